"""Embeddings of the data sets, kept on disk: embedding them again would take minutes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llm_cache import LocalEmbedder

Vectors = npt.NDArray[np.float32]

CACHE = Path("~/.cache/llm_cache-benchmarks").expanduser()
_AT_ONCE = 512


def embed(texts: Sequence[str], *, name: str) -> Vectors:
    """Return one unit vector per text, from the disk if *name* was embedded before."""
    digest = hashlib.sha256("\x1e".join([LocalEmbedder.model_id, *texts]).encode()).hexdigest()
    path = CACHE / f"{name}-{digest[:16]}.npy"
    if path.is_file():
        kept: Vectors = np.load(path, allow_pickle=False).astype(np.float32)
        return kept
    vectors = asyncio.run(_embed(texts, name))
    CACHE.mkdir(parents=True, exist_ok=True)
    # Renamed into place, so that a run that is interrupted leaves no half a file behind.
    part = path.with_suffix(".part.npy")
    np.save(part, vectors)
    part.replace(path)
    return vectors


async def _embed(texts: Sequence[str], name: str) -> Vectors:
    embedder = LocalEmbedder()
    await embedder.open()
    parts = []
    try:
        for start in range(0, len(texts), _AT_ONCE):
            parts.append(await embedder.embed(texts[start : start + _AT_ONCE]))
            if start and start % (_AT_ONCE * 10) == 0:
                print(f"embedding {name}: {start:,} of {len(texts):,}", flush=True)
    finally:
        await embedder.aclose()
    return np.concatenate(parts)
