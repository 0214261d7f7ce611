"""What Redis replies, as text and as a dict, whatever the client was told to decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def text(value: Any, errors: str = "surrogateescape") -> str:
    """Return *value* as text.

    Names are to be found again, so what is no UTF-8 is kept by default. What is to be shown wants
    ``errors="replace"``.
    """
    return value.decode("utf-8", errors) if isinstance(value, bytes) else str(value)


def mapping(flat: Sequence[Any]) -> dict[Any, Any]:
    """Return a flat list of names and values as a dict."""
    # Lists that describe a field end with flags that have no value.
    return dict(zip(flat[::2], flat[1::2], strict=False))
