"""Vectors: checked, brought to unit length, and turned by the signs of their scope."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import lru_cache
from hashlib import shake_256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_cache.errors import InvalidEmbedding

Vector = NDArray[np.float32]

_HALF, _BITS = np.dtype("<f2"), np.dtype("<u2")
_LEAST_NORM = 1e-6
_MOST_NORM = math.sqrt(np.finfo(np.float32).max)
"""A longer vector has a square that no float32 holds."""


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
        given = np.asarray(vectors)
    except (TypeError, ValueError):
        given = np.empty(0, dtype=object)
    # Text, objects, and complex numbers, whose one half would be dropped without a word.
    if given.dtype.kind not in "fiu":
        raise InvalidEmbedding(
            f"embedder {model_id!r} must answer an array of numbers, one row a text;"
            f" got {type(vectors).__name__} of {given.dtype}"
        )
    # What is too large becomes infinite, and is refused below.
    with np.errstate(over="ignore"):
        rows = given.astype(np.float32, copy=False)
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
    # As Python's numbers: mostly there is one row, for which numpy's checks would take longer.
    norms = [math.sqrt(square) for square in np.einsum("ij,ij->i", rows, rows).tolist()]
    # One value that is not finite is enough to make the whole norm such.
    if not all(map(math.isfinite, norms)):
        raise InvalidEmbedding(f"embedder {model_id!r} answered NaN, infinite or huge values")
    if min(norms, default=1.0) < _LEAST_NORM:
        raise InvalidEmbedding(
            f"embedder {model_id!r} answered a vector of zeros, which has no direction to compare"
        )
    unit: Vector = rows / (norms[0] if count == 1 else np.array(norms, np.float32)[:, np.newaxis])
    return unit


def check_vector(values: Sequence[float], *, dimensions: int, model_id: str) -> Vector:
    """Return *values* as one vector of unit length. Raises as `check_vectors`.

    A list of floats, as most callers have it, takes half the time: numpy would walk over it once
    to see what it holds, and once more to take it in.
    """
    row = _row(values) if type(values) is list and len(values) == dimensions else None
    unit: Vector
    if row is not None and _LEAST_NORM <= (norm := math.hypot(*values)) <= _MOST_NORM:
        unit = row / norm
        return unit
    # Arrays, and whatever is wrong: this says what.
    (unit,) = check_vectors([values], count=1, dimensions=dimensions, model_id=model_id)
    return unit


def _row(values: list[float]) -> Vector | None:
    """Return *values* as float32, if they are floats, or what adds up with them to a float."""
    try:
        if type(sum(values)) is not float:
            return None
        return np.frombuffer(struct.pack(f"{len(values)}f", *values), np.float32)
    except (TypeError, OverflowError, struct.error):
        return None


def salted_blob(vector: Vector, scope: str) -> bytes:
    """Return the FLOAT16 bytes of *vector* turned by the signs of *scope*.

    Flipping the signs of the same coordinates in two vectors leaves their cosine as it is, so
    within a scope nothing changes. Vectors of two scopes are flipped differently: the same prompt
    in ten thousand other scopes is at a cosine of about a quarter, and does not stand in the way
    of neighbours that are nearer than that.

    Every fourth coordinate is left as it is. Flipping them all would put the scopes at right
    angles, and a graph from one of whose corners all others look alike is one to get lost in: what
    scopes have in common leads a search to the right region, and the rest of it to the right
    scope.
    """
    halves = vector.astype(_HALF).view(_BITS)
    turned: bytes = np.bitwise_xor(halves, _sign_bits(scope, vector.shape[0])).tobytes()
    return turned


@lru_cache(maxsize=1024)
def _sign_bits(scope: str, dimensions: int) -> NDArray[np.uint16]:
    """Return, for each coordinate, the sign bit of a half to flip, or 0 to leave it."""
    bits = np.frombuffer(shake_256(scope.encode()).digest((dimensions + 7) // 8), dtype=np.uint8)
    signs = np.unpackbits(bits, count=dimensions).astype(_BITS)
    signs[::4] = 0
    flips: NDArray[np.uint16] = np.left_shift(signs, 15)
    return flips
