"""`Entry` ⇄ bytes. Versioned, data only: JSON behind a header of 22 bytes.

    byte 0       version of this format, `0x01`
    byte 1       how the body is packed, `0x00` for plain
    bytes 2-21   the digest of the key that the entry was written under
    bytes 22-    the body, UTF-8 JSON

The digest in the header ties the bytes to their key: bytes that arrive under any other key, by
whatever accident on the way, are not an entry.
"""

from __future__ import annotations

import json
from base64 import b32decode
from typing import Any

from llm_cache._core.types import Entry
from llm_cache.errors import CorruptEntry

_VERSION = 1
_PLAIN = 0
_HEADER_BYTES = 22

_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def encode_entry(entry: Entry, digest: str) -> bytes:
    """Return the bytes to store *entry* under the key of *digest*."""
    body: dict[str, Any] = {
        "created": entry.created_s,
        "stamp": entry.stamp,
        "model": entry.model,
        "answer": entry.answer,
    }
    optional = {
        "tenant": entry.tenant,
        "tags": list(entry.tags) or None,
        "origin": entry.origin,
        "similarity": entry.similarity,
    }
    body.update((name, value) for name, value in optional.items() if value is not None)
    return _header(digest) + _encoder.encode(body).encode()


def decode_entry(blob: bytes, digest: str) -> Entry | None:
    """Return the entry in *blob*, which was read from the key of *digest*.

    `None` for an entry of another version of this format: a newer worker wrote it, or an older.

    Raises:
        CorruptEntry: *blob* is not an entry, or was written under another key.
    """
    if len(blob) < _HEADER_BYTES:
        raise CorruptEntry("a stored answer is too short to be an entry")
    if blob[0] != _VERSION or blob[1] != _PLAIN:
        return None
    if blob[:_HEADER_BYTES] != _header(digest):
        raise CorruptEntry("a stored answer belongs to another key")
    try:
        body = json.loads(blob[_HEADER_BYTES:].decode())
        return Entry(
            answer=body["answer"],
            created_s=_checked(body["created"], (int, float)),
            stamp=_checked(body["stamp"], str),
            model=_checked(body["model"], str),
            tenant=_checked(body.get("tenant"), (str, type(None))),
            tags=tuple(_checked(tag, str) for tag in body.get("tags", ())),
            origin=_checked(body.get("origin"), (str, type(None))),
            similarity=_checked(body.get("similarity"), (int, float, type(None))),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptEntry("a stored answer cannot be read") from error


def _header(digest: str) -> bytes:
    return bytes((_VERSION, _PLAIN)) + b32decode(digest.upper())


def _checked(value: Any, kinds: type | tuple[type, ...]) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(type(value).__name__)
    return value
