"""Kept embeddings: the vector of a text that was embedded before, as FLOAT16, with an expiry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_cache._core import keys as identity
from llm_cache._core.keys import Keys
from llm_cache._core.vectors import Vector
from llm_cache._redis.connection import Connection

_NORM_TOLERANCE = 0.01


class KeptEmbeddings:
    """The vectors of one embedding model, under the digests of their texts."""

    def __init__(self, connection: Connection, keys: Keys, *, model_id: str, ttl_ms: int) -> None:
        self._connection = connection
        self._keys = keys
        self._model_id = model_id
        self._ttl_ms = ttl_ms

    async def lookup(self, texts: Sequence[str], dimensions: int) -> list[Vector | None]:
        """Return the kept vector of each text, of unit length. One round trip.

        `None` stands for a text that has none, and for bytes that are no vector of ours.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        names = self._names(texts, dimensions)
        blobs = await self._connection.read(names)
        return [_decode(blob, dimensions) for blob in blobs]

    async def store(self, texts: Sequence[str], vectors: Vector) -> None:
        """Keep the vector of each text, a row each. One round trip.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        names = self._names(texts, vectors.shape[1])
        await self._connection.execute_all(
            [
                ("SET", name, vector.tobytes(), "PX", self._ttl_ms)
                for name, vector in zip(names, vectors.astype("<f2"), strict=True)
            ]
        )

    def _names(self, texts: Sequence[str], dimensions: int) -> list[str]:
        space = identity.fingerprint(self._model_id, dimensions)
        return [self._keys.embedding(space, identity.text_digest(text)) for text in texts]


def _decode(blob: bytes | None, dimensions: int) -> Vector | None:
    if blob is None or len(blob) != 2 * dimensions:
        return None
    vector: Vector = np.frombuffer(blob, dtype="<f2").astype(np.float32)
    norm = float(np.linalg.norm(vector))
    # What we wrote has unit length but for rounding. The comparison is false for NaN, too.
    if not abs(norm - 1) < _NORM_TOLERANCE:
        return None
    return vector / np.float32(norm)
