"""Vectors: checked, brought to unit length, and turned by the signs of their scope."""

from __future__ import annotations

from functools import lru_cache
from hashlib import shake_256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_cache.errors import InvalidEmbedding

Vector = NDArray[np.float32]

_LEAST_NORM = 1e-6


def check_vectors(vectors: Any, *, count: int, dimensions: int | None, model_id: str) -> Vector:
    """Return *vectors* as `count` float32 rows of unit length.

    Args:
        vectors: What the embedder answered; anything numpy reads as a matrix.
        count: How many texts were embedded.
        dimensions: Length every vector must have; `None` accepts any.
        model_id: Names the embedder in errors.

    Raises:
        InvalidEmbedding: wrong shape, a value that is not finite, or a vector of zeros.
    """
    try:
        rows = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError):
        raise InvalidEmbedding(
            f"embedder {model_id!r} must answer an array of numbers, one row a text;"
            f" got {type(vectors).__name__}"
        ) from None
    if rows.ndim != 2 or rows.shape[0] != count or rows.shape[1] == 0:
        raise InvalidEmbedding(
            f"embedder {model_id!r} must answer one vector a text: expected {count} row(s) of"
            f" {dimensions or 'any number of'} values, got an array of shape {rows.shape}"
        )
    if dimensions is not None and rows.shape[1] != dimensions:
        raise InvalidEmbedding(
            f"embedder {model_id!r} answered vectors of {rows.shape[1]} dimensions instead of"
            f" {dimensions}: correct the embedder's `dimensions`"
        )
    if not np.isfinite(rows).all():
        raise InvalidEmbedding(f"embedder {model_id!r} answered NaN or infinite values")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if (norms < _LEAST_NORM).any():
        raise InvalidEmbedding(
            f"embedder {model_id!r} answered a vector of zeros, which has no direction to compare"
        )
    unit: Vector = rows / norms
    return unit


def salted_blob(vector: Vector, scope: str) -> bytes:
    """Return the FLOAT16 bytes of *vector* turned by the signs of *scope*.

    Flipping the signs of the same coordinates in two vectors leaves their cosine as it is, so
    within a scope nothing changes. Vectors of two scopes are flipped differently and end up at
    right angles, give or take: the neighbours that an index finds are those of the scope, and the
    same prompt in ten thousand other scopes does not stand in their way.
    """
    return (vector * _signs(scope, vector.shape[0])).astype("<f2").tobytes()


@lru_cache(maxsize=4096)
def _signs(scope: str, dimensions: int) -> Vector:
    bits = np.frombuffer(shake_256(scope.encode()).digest((dimensions + 7) // 8), dtype=np.uint8)
    signs = np.unpackbits(bits, count=dimensions).astype(np.float32)
    return signs * np.float32(2) - np.float32(1)
