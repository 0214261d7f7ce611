"""`Entry` ⇄ bytes. Versioned, data only: a fixed header, then two pieces of JSON.

    bytes 0      version of this format, `0x02`
    byte  1      flags: 1 for an alias; 2 and 4 for how the answer is packed; 8 if it is encrypted
    bytes 2-5    CRC-32 of all that follows, begun with the key's digest, the version and the flags
    bytes 6-13   when the answer was stored, Unix seconds, float64
    bytes 14-21  until when it is fresh, Unix seconds, float64
    bytes 22-37  stamp: the epoch that the storing request saw
    bytes 38-49  tokens of the prompt, of these cached by the provider, and of the completion,
                 uint32 each; all ones where nobody says
    bytes 50-51  length of the details, uint16
    then         the details (model, tenant, tags, …), and behind them the answer

All numbers are little-endian. The checksum ties the bytes to their key: what was changed on the
way, or arrives under another key, is not an entry. So a look-up reads the header and no more; the
JSON behind it is parsed when somebody asks for it.

Who has a cipher reads encrypted entries alone, and decrypts them at once: what stands before the
answer (but for the checksum) and the digest are authenticated with it. The details stay readable,
because the sweep has to know whose an answer is from its first bytes.
"""

from __future__ import annotations

import json
from struct import Struct
from typing import Any
from zlib import crc32

from llm_cache._core import packing
from llm_cache._core.counts import Tokens, tokens_of
from llm_cache._core.encryption import Cipher, UnknownKey
from llm_cache._core.types import Entry, Json
from llm_cache.errors import CorruptEntry

try:
    # Every release of openai that we allow brings it along. It parses an answer in a third of the
    # time, which is a tenth of what a hit costs.
    from jiter import from_json
except ImportError:
    from_json = json.loads

_VERSION = 2
_ALIAS = 1
_PACKED_SHIFT = 1
_PACKED = 6
_ENCRYPTED = 8
_KNOWN_FLAGS = _ALIAS | _PACKED
_HEADER = Struct("<BBIdd16sIIIH")
_CHECKED = Struct("<dd16sIIIH")
_CHECKED_AT = 6
_NOT_SAID = 2**32 - 1
_MOST_DETAILS_BYTES = 2**16 - 1
_ALIAS_BYTES = 128
"""What the details of an alias have more than those of its origin, at most."""
HEADER_BYTES = _HEADER.size
MOST_BYTES = 64 * 1024 * 1024
"""No entry takes more, as it is stored; longer ones are not read."""
_MOST_NESTING = 200
"""Lists and objects within each other in an answer: what every reader takes (jiter: 200)."""

_SHORT = {
    "model": "m",
    "tenant": "t",
    "shared_scope": "c",
    "prompt_version": "v",
    "tags": "g",
    "depends_on": "d",
    "origin": "o",
    "similarity": "s",
}
"""The details, and their names in Redis, where every answer has them."""

_TEXT = frozenset({str})
_UNREAD = object()
_UNREADABLE = "a stored answer cannot be read"

_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class Sealed:
    """An entry whose bytes are known to be whole; its details and its answer are read on demand.

    Whoever changes the answer changes it for this object alone.
    """

    __slots__ = (
        "_about",
        "_answer",
        "_blob",
        "_body",
        "_header",
        "created_s",
        "fresh_until_s",
        "is_alias",
        "stamp",
    )

    def __init__(self, blob: bytes, header: tuple[Any, ...], body: bytes | None = None) -> None:
        _, flags, _, self.created_s, self.fresh_until_s, stamp, _, _, _, _ = header
        self._header = header
        self._blob = blob
        self._body = body
        self.stamp: str = stamp.hex()
        self.is_alias = flags & _ALIAS != 0
        self._answer: Json = _UNREAD
        self._about: Entry | None = None

    def tokens(self) -> Tokens:
        """Return the tokens that the model took for the answer, from the header alone."""
        _, _, _, _, _, _, prompt, cached, completion, _ = self._header
        return (
            None if prompt == _NOT_SAID else prompt,
            None if cached == _NOT_SAID else cached,
            None if completion == _NOT_SAID else completion,
        )

    @property
    def answer(self) -> Json:
        """The answer.

        Raises:
            CorruptEntry: the bytes are as they were written, and yet no entry.
        """
        if self._answer is _UNREAD:
            blob, body = self._blob, self._body
            if body is None:
                body = blob[_HEADER.size + self._header[-1] :]
            try:
                plain = packing.unpack((blob[1] & _PACKED) >> _PACKED_SHIFT, body)
                self._answer = from_json(plain)
            except (ValueError, RecursionError) as error:
                raise CorruptEntry(_UNREADABLE) from error
        return self._answer

    @property
    def about(self) -> Entry:
        """All but the answer, which is `None` here. Raises as `answer` does."""
        if self._about is None:
            self._about = self._entry(None)
        return self._about

    def own(self) -> Sealed:
        """Return the same entry, not read yet: its answer may be changed, and this one's stays."""
        return Sealed(self._blob, self._header, self._body)

    @property
    def header(self) -> bytes:
        """The first bytes, which tell this answer from any other that is stored under its key."""
        return self._blob[:HEADER_BYTES]

    def open(self) -> Entry:
        """Return the whole entry. Raises as `answer` does."""
        return self._entry(self.answer)

    def _entry(self, answer: Json) -> Entry:
        begin = _HEADER.size
        try:
            details = from_json(self._blob[begin : begin + self._header[-1]])
            return Entry(
                answer=answer,
                created_s=self.created_s,
                fresh_until_s=self.fresh_until_s,
                stamp=self.stamp,
                **_checked(details),
            )
        except (ValueError, TypeError, RecursionError) as error:
            raise CorruptEntry(_UNREADABLE) from error


def encode_entry(
    entry: Entry, digest: str, *, compress: bool = True, cipher: Cipher | None = None
) -> bytes:
    """Return the bytes to store *entry* under the key of *digest*.

    Raises:
        ValueError, TypeError: the answer is not JSON, or its lists and objects are nested too
            deeply.
        OverflowError: the details (tenant, tags, …) take more than 64 KiB, or all of it more than
            64 MiB.
    """
    details = {name: value for name in _SHORT if (value := getattr(entry, name)) not in (None, ())}
    details = {_SHORT[name]: value for name, value in details.items()}
    head = _encoder.encode(details).encode()
    if len(head) > _MOST_DETAILS_BYTES - (_ALIAS_BYTES if entry.origin is None else 0):
        raise OverflowError("tenant, tags and dependencies take more than 64 KiB together")
    body = _written(entry.answer).encode()
    packed, body = packing.pack(body) if compress else (packing.PLAIN, body)
    flags = packed << _PACKED_SHIFT | (_ALIAS if entry.origin is not None else 0)
    flags |= 0 if cipher is None else _ENCRYPTED
    checked = _CHECKED.pack(
        entry.created_s,
        entry.fresh_until_s,
        bytes.fromhex(entry.stamp),
        *(_NOT_SAID if count is None else count for count in tokens_of(entry.answer)),
        len(head),
    )
    start = bytes((_VERSION, flags))
    if cipher is not None:
        body = cipher.encrypt(body, *_bound(start, checked + head, digest))
    rest = b"".join((checked, head, body))
    if len(rest) > MOST_BYTES - _CHECKED_AT:
        raise OverflowError("an answer takes more than 64 MiB")
    return b"".join((start, _checksum(start, rest, digest).to_bytes(4, "little"), rest))


def open_sealed(blob: bytes, digest: str, cipher: Cipher | None = None) -> Sealed | None:
    """Return the entry in *blob*, which was read from the key of *digest*, without parsing it.

    `None` for an entry of another version of this format, packed in a way that is not known here,
    or encrypted under a key that is not here: another worker can read it. With a *cipher*, `None`
    for one that is not encrypted, too: anybody who can write to Redis may have made it.

    Raises:
        CorruptEntry: *blob* is not an entry, or was written under another key.
    """
    size = len(blob)
    if size < _HEADER.size:
        raise CorruptEntry("a stored answer is too short to be an entry")
    if size > MOST_BYTES:
        raise CorruptEntry("a stored answer is too long to be an entry")
    header = _HEADER.unpack_from(blob)
    flags = header[1]
    if cipher is not None:
        # The one difference that is wanted is taken out; who has no cipher knows no such flag.
        flags ^= _ENCRYPTED
    if (
        header[0] != _VERSION
        or flags & ~_KNOWN_FLAGS
        or (flags > _ALIAS and not packing.can_unpack(flags >> _PACKED_SHIFT))
    ):
        return None
    if _checksum(blob[:2], blob[_CHECKED_AT:], digest) != header[2]:
        raise CorruptEntry("a stored answer was changed, or belongs to another key")
    if cipher is None and flags <= _ALIAS:
        return Sealed(blob, header)
    begin = _HEADER.size + header[-1]
    body = blob[begin:]
    if cipher is not None:
        try:
            body = cipher.decrypt(body, *_bound(blob[:2], blob[_CHECKED_AT:begin], digest))
        except UnknownKey:
            return None
        except ValueError as error:
            raise CorruptEntry(f"a stored answer {error}") from None
    if flags > _ALIAS and not packing.is_bounded(flags >> _PACKED_SHIFT, body):
        raise CorruptEntry("a packed answer does not tell its size, or is too large")
    return Sealed(blob, header, body)


def peek(start: bytes) -> Sealed | None:
    """Return what the *start* of a stored answer tells, but for the answer itself. Unchecked.

    For walks over all answers, of which only the first bytes are read. `None` where they are of
    another version, or too few.
    """
    if len(start) < _HEADER.size:
        return None
    header = _HEADER.unpack_from(start)
    is_whole = len(start) >= _HEADER.size + header[-1]
    return Sealed(start, header) if header[0] == _VERSION and is_whole else None


def decode_entry(blob: bytes, digest: str, cipher: Cipher | None = None) -> Entry | None:
    """Return what `open_sealed` does, read to its end. Raises as it and `Sealed.open` do."""
    sealed = open_sealed(blob, digest, cipher)
    return None if sealed is None else sealed.open()


def _bound(start: bytes, details: bytes, digest: str) -> tuple[bytes, ...]:
    """Return what an encrypted answer belongs to: its key, and all that is said of it."""
    return b"answer", digest.encode(), start, details


def _written(answer: Json) -> str:
    """Return *answer* as JSON that every reader has the stack for."""
    try:
        text = _encoder.encode(answer)
    except RecursionError:
        raise ValueError("an answer is nested too deeply") from None
    # Seldom are there so many brackets that it is worth while to look how deep they go.
    if text.count("[") + text.count("{") > _MOST_NESTING and _is_deep(answer):
        raise ValueError("an answer is nested too deeply")
    return text


def _is_deep(answer: Json) -> bool:
    level = [answer]
    for _ in range(_MOST_NESTING):
        lists = [item.values() if isinstance(item, dict) else item for item in level]
        level = [it for items in lists for it in items if isinstance(it, dict | list | tuple)]
        if not level:
            return False
    return True


def _checksum(start: bytes, rest: bytes, digest: str) -> int:
    return crc32(rest, crc32(start, crc32(digest.encode())))


def _checked(details: Any) -> dict[str, Any]:
    """Return *details* as the fields of an `Entry` that they are; those of later writers are not.

    Raises:
        TypeError: a detail is of the wrong kind.
    """
    known = {}
    for name, short in _SHORT.items():
        if short not in details:
            continue
        value = details[short]
        if name in ("tags", "depends_on"):
            if not isinstance(value, list) or not _TEXT.issuperset(map(type, value)):
                raise TypeError(name)
            value = tuple(value)
        elif not isinstance(value, (int, float) if name == "similarity" else str):
            raise TypeError(name)
        known[name] = value
    return known
