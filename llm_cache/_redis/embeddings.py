"""Kept embeddings: the vector of a text that was embedded before, as FLOAT16, with an expiry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_cache._core import keys as identity
from llm_cache._core.encryption import Cipher
from llm_cache._core.keys import Keys
from llm_cache._core.vectors import Vector
from llm_cache._redis.connection import Connection

_NORM_TOLERANCE = 0.01
_KIND = b"embedding"


class KeptEmbeddings:
    """The vectors of one embedding model, under the digests of their texts."""

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        *,
        model_id: str,
        ttl_ms: int,
        cipher: Cipher | None = None,
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._model_id = model_id
        self._ttl_ms = ttl_ms
        self._cipher = cipher

    async def lookup(self, texts: Sequence[str], dimensions: int) -> list[Vector | None]:
        """Return the kept vector of each text, of unit length. One round trip.

        `None` stands for a text that has none, and for bytes that are no vector of ours.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        names = self._names(texts, dimensions)
        blobs = await self._connection.read(names)
        pairs = zip(names, blobs, strict=True)
        return [_decode(self._decrypted(name, blob), dimensions) for name, blob in pairs]

    async def store(self, texts: Sequence[str], vectors: Vector) -> None:
        """Keep the vector of each text, a row each. One round trip.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        names = self._names(texts, vectors.shape[1])
        await self._connection.execute_all(
            [
                ("SET", name, self._encrypted(name, vector.tobytes()), "PX", self._ttl_ms)
                for name, vector in zip(names, vectors.astype("<f2"), strict=True)
            ]
        )

    def _encrypted(self, name: str, blob: bytes) -> bytes:
        return blob if self._cipher is None else self._cipher.encrypt(blob, _KIND, name.encode())

    def _decrypted(self, name: str, blob: bytes | None) -> bytes | None:
        if self._cipher is None or blob is None:
            return blob
        try:
            return self._cipher.decrypt(blob, _KIND, name.encode())
        except ValueError:
            return None

    def _names(self, texts: Sequence[str], dimensions: int) -> list[str]:
        space = identity.fingerprint(self._model_id, dimensions)
        return [self._keys.embedding(space, identity.text_digest(text)) for text in texts]


def _decode(blob: bytes | None, dimensions: int) -> Vector | None:
    if blob is None or len(blob) != 2 * dimensions:
        return None
    vector: Vector = np.frombuffer(blob, dtype="<f2").astype(np.float32)
    # What we wrote has unit length but for rounding. Damaged bytes may be infinite, or no number.
    with np.errstate(all="ignore"):
        norm = float(np.linalg.norm(vector))
    if not abs(norm - 1) < _NORM_TOLERANCE:
        return None
    return vector / np.float32(norm)
