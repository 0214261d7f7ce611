"""Embedders that count and time what they are asked, around the one that does the work."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.errors import BadInput
from llm_cache import Embedder, LocalEmbedder
from llm_cache.errors import MissingExtra
from llm_cache.testing import FakeEmbedder

KEPT = 20_000
"""Vectors remembered between replays; the least recently used ones go first."""


class InstantEmbedder:
    """Vectors of bags of words in 0.1 ms, for load tests of everything but the embedding model.

    The geometry is `FakeEmbedder`'s, which keeps every text it saw; this one keeps nothing.
    """

    model_id = "bench-bag-of-words"
    similarity_threshold = 0.9
    max_in_flight = None

    def __init__(self, dimensions: int = 384) -> None:
        self.dimensions = dimensions
        self._fake = FakeEmbedder(dimensions)

    async def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return one row a text."""
        return np.array([self._fake.vector(text) for text in texts], np.float32)


class MeteredEmbedder:
    """Counts and times the calls of *inner*, and tells the last duration.

    Args:
        inner: What makes the vectors.
        remembers: Whether a text that was embedded before comes from memory. It is counted all
            the same: replays of one stream then take less time and show the same figures.
    """

    def __init__(self, inner: Embedder, *, remembers: bool = False) -> None:
        self._inner = inner
        self._kept: OrderedDict[str, Any] | None = OrderedDict() if remembers else None
        self.calls = 0
        self.texts = 0
        self.spent_s = 0.0
        self.model_id = inner.model_id
        self.dimensions = inner.dimensions
        self.similarity_threshold = inner.similarity_threshold

    def __getattr__(self, name: str) -> Any:
        """Have whatever else an embedder may have, if *inner* has it: it decides as that would."""
        return getattr(self._inner, name)

    async def embed(self, texts: Sequence[str]) -> Any:
        """Return what *inner* does."""
        self.calls += 1
        self.texts += len(texts)
        started_s = time.perf_counter()
        vectors = await self.vectors(texts)
        self.spent_s += time.perf_counter() - started_s
        return vectors

    async def vectors(self, texts: Sequence[str]) -> Any:
        """Return what *inner* does, without counting."""
        if self._kept is None:
            return await self._inner.embed(texts)
        kept = self._kept
        new = [text for text in dict.fromkeys(texts) if text not in kept]
        if new:
            for text, vector in zip(new, await self._inner.embed(new), strict=True):
                kept[text] = np.asarray(vector, np.float32)
        rows = np.array([kept[text] for text in texts], np.float32)
        for text in texts:
            kept.move_to_end(text)
        while len(kept) > KEPT:
            kept.popitem(last=False)
        return rows


async def make_embedder(name: str) -> Embedder:
    """Return the embedder called *name*: `local` or `instant`.

    Raises:
        BadInput: `local` is not installed.
    """
    if name == "instant":
        return InstantEmbedder()
    embedder = LocalEmbedder()
    try:
        await embedder.open()
    except MissingExtra as error:
        raise BadInput(f"--embedder local: {error}, or take --embedder instant") from error
    return embedder
