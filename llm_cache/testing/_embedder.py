"""Vectors without a model."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np

from llm_cache.testing._tally import Tally

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Vector: TypeAlias = NDArray[np.float32]

_WORD = re.compile(r"\w+")


def word_directions(words: Sequence[str], dimensions: int) -> NDArray[np.float64]:
    """Return a ±1 vector a word, the same in every process and on every machine.

    Dense signs rather than one hashed position a word: two different words then never coincide,
    and their cosine is about 1 / sqrt(dimensions). A vector of fewer dimensions is the beginning
    of one of more, as with the models that can shorten theirs.
    """
    size_bytes = (dimensions + 7) // 8
    hashed = b"".join(hashlib.shake_256(word.encode()).digest(size_bytes) for word in words)
    bits = np.unpackbits(np.frombuffer(hashed, np.uint8).reshape(len(words), size_bytes), axis=1)
    return bits[:, :dimensions].astype(np.float64) * 2.0 - 1.0


def bag_of_words(text: str, dimensions: int) -> Vector:
    """Return the unit vector of the lower-case words of *text*, whatever their order."""
    # A text without words still is one that can be told from another.
    words = _WORD.findall(text.lower()) or [text]
    total = word_directions(words, dimensions).sum(axis=0)
    if not total.any():  # the words cancel each other, which takes very few dimensions
        total = word_directions([text], dimensions)[0]
    unit: Vector = (total / np.linalg.norm(total)).astype(np.float32)
    return unit


class FakeEmbedder:
    """A deterministic embedder: texts that share words are close, their order does not matter.

    Vectors have unit length. `set` and `similar` fix the geometry where a test needs it exact.

    Args:
        dimensions: of every vector.
        model_id: what the cache knows this embedder by.
        similarity_threshold: what the cache accepts from this embedder.
        gate: `embed` waits for it before it answers or fails; see also `called`.
        fail_with: raised by `embed` instead of an answer. May be changed at any time, as may
            `gate` and `returns`.
        returns: returned by `embed` as it is, to imitate garbage: NaN, zeros, another shape.
        record: keep `texts`. A load test turns this off, the count of calls works without.
    """

    def __init__(
        self,
        dimensions: int = 64,
        *,
        model_id: str = "fake",
        similarity_threshold: float = 0.9,
        gate: asyncio.Event | None = None,
        fail_with: BaseException | None = None,
        returns: object = None,
        record: bool = True,
    ) -> None:
        if dimensions < 1:
            raise ValueError(f"dimensions must be at least 1, not {dimensions}")
        self.model_id = model_id
        self.is_free = True
        self.dimensions = dimensions
        self.similarity_threshold = similarity_threshold
        self.gate = gate
        self.fail_with = fail_with
        self.returns = returns
        self._record = record
        self.texts: list[str] = []
        """Every text `embed` was given, in order, repeats included."""
        self._calls = Tally("calls of embed()")
        self._fixed: dict[str, Vector] = {}

    @property
    def calls(self) -> int:
        """How often `embed` was called, failures included."""
        return self._calls.count

    async def called(self, n: int = 1, *, timeout_s: float = 5.0) -> None:
        """Return once `embed` was called *n* times in all; `TimeoutError` if it was not."""
        await self._calls.reached(n, timeout_s)

    async def embed(self, texts: Sequence[str]) -> Vector:
        """Return one row a text, as float32."""
        if self._record:
            self.texts.extend(texts)
        self._calls.add()
        if self.gate is not None:
            await self.gate.wait()
        if self.fail_with is not None:
            raise self.fail_with
        if self.returns is not None:
            return cast("Vector", self.returns)
        rows = [self.vector(text) for text in texts]
        return np.array(rows, np.float32).reshape(len(rows), self.dimensions)

    def vector(self, text: str) -> Vector:
        """Return the vector of *text*, without counting a call."""
        fixed = self._fixed.get(text)
        return bag_of_words(text, self.dimensions) if fixed is None else fixed

    def set(self, text: str, vector: ArrayLike) -> None:
        """Make *vector* the one of *text*; it is not scaled to unit length."""
        given = np.array(vector, np.float32)
        if given.shape != (self.dimensions,):
            raise ValueError(f"the vector has shape {given.shape}, not ({self.dimensions},)")
        self._fixed[text] = given

    def similar(self, text_a: str, text_b: str, similarity: float) -> None:
        """Place *text_b* at cosine *similarity* from *text_a*, which stays where it is.

        Exact to float32 (about 1e-7). Several texts placed around the same one go in different
        directions; a later change to *text_a* does not move *text_b*.
        """
        if text_a == text_b:
            raise ValueError("a text has one place: give two different texts")
        if not -1.0 <= similarity <= 1.0:
            raise ValueError(f"similarity must be between -1 and 1, not {similarity}")
        a = self.vector(text_a).astype(np.float64)
        a /= np.linalg.norm(a)
        aside = np.sqrt(1.0 - similarity**2) * self._across(a, text_b)
        self.set(text_b, similarity * a + aside)

    def _across(self, a: NDArray[np.float64], text: str) -> NDArray[np.float64]:
        """Return a unit vector at right angles to *a*, chosen by *text*."""
        if self.dimensions == 1:
            return np.zeros(1)
        across = word_directions([text], self.dimensions)[0]
        across -= (across @ a) * a
        if np.linalg.norm(across) < 1e-6:  # parallel: any axis that *a* hardly follows will do
            across = np.zeros(self.dimensions)
            across[np.argmin(np.abs(a))] = 1.0
            across -= (across @ a) * a
        unit: NDArray[np.float64] = across / np.linalg.norm(across)
        return unit
