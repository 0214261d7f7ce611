"""How the answer within an entry is packed: plain, or with Zstandard where it is installed."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any, Final

PLAIN: Final = 0
ZSTD: Final = 1

_WORTH_PACKING_BYTES = 1024
"""Shorter answers gain little, in bytes and even less in what Redis allocates for them."""
_MOST_BYTES = 64 * 1024 * 1024
"""What an answer may unpack to: a packed byte can stand for thousands."""


@cache
def _zstd() -> Any:
    """Return the module, imported when the first entry needs it, or `None`."""
    try:
        import zstandard
    except ImportError:
        return None
    return zstandard


class _Tools(threading.local):
    """Making them takes longer than using them; one thread must not use another's."""

    def __init__(self) -> None:
        self.compressor = _zstd().ZstdCompressor()
        self.decompressor = _zstd().ZstdDecompressor()


@cache
def _tools() -> _Tools:
    return _Tools()


def can_unpack(kind: int) -> bool:
    """Tell whether this process can read what was packed as *kind*."""
    return kind == PLAIN or (kind == ZSTD and _zstd() is not None)


def pack(body: bytes) -> tuple[int, bytes]:
    """Return how *body* was packed, and the result, which is not longer."""
    if not _WORTH_PACKING_BYTES <= len(body) <= _MOST_BYTES or _zstd() is None:
        return PLAIN, body
    packed = _tools().compressor.compress(body)
    return (ZSTD, packed) if len(packed) < len(body) else (PLAIN, body)


def is_bounded(kind: int, packed: bytes) -> bool:
    """Tell whether *packed* says what it unpacks to, and that is not too much: no bomb."""
    if kind == PLAIN:
        return True
    zstd = _zstd()
    try:
        # The size that the frame tells is what would be allocated.
        return 0 <= int(zstd.frame_content_size(packed)) <= _MOST_BYTES
    except zstd.ZstdError:
        return False


def unpack(kind: int, packed: bytes) -> bytes:
    """Return what `pack` was given.

    Raises:
        ValueError: *packed* was not packed so.
    """
    if kind == PLAIN:
        return packed
    if not can_unpack(kind):
        raise ValueError(f"packing {kind} is not known here")
    if not is_bounded(kind, packed):
        raise ValueError("a packed answer does not tell its size, or is too large")
    zstd = _zstd()
    try:
        body: bytes = _tools().decompressor.decompress(packed, allow_extra_data=False)
    except zstd.ZstdError as error:
        raise ValueError("a packed answer is damaged") from error
    return body
