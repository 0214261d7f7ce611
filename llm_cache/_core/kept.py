"""What a semantic entry keeps of its prompt, in one field: the text, or a signature of it.

    the text, UTF-8
    0xFE and a signature (`signature.pack`)
    0xFF and either of them, encrypted

No text in UTF-8 begins with one of these bytes, so what is stored tells by itself what it is.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from llm_cache._core.encryption import Cipher, UnknownKey
from llm_cache.errors import CorruptEntry

_SIGNATURE: Final = b"\xfe"
_ENCRYPTED: Final = b"\xff"
_KIND: Final = b"prompt"


class Kept(NamedTuple):
    """What is known of a stored prompt: its text or its signature, or neither of them."""

    prompt: str = ""
    signature: bytes = b""

    def __repr__(self) -> str:
        """Tell nothing of the prompt."""
        return "Kept()"

    def field(self, cipher: Cipher | None, *bound: str) -> bytes:
        """Return what is stored; empty for nothing.

        With a *cipher* it can be read only together with the same *bound* texts: the space, the
        scope and the digest of the answer.
        """
        plain = _SIGNATURE + self.signature if self.signature else self.prompt.encode()
        if cipher is None or not plain:
            return plain
        return _ENCRYPTED + cipher.encrypt(plain, _KIND, *[text.encode() for text in bound])


def open_kept(stored: bytes, cipher: Cipher | None, *bound: str) -> Kept | None:
    """Return what is *stored*; `None` where other workers can read it, and this one cannot.

    That is, without a *cipher*, what is encrypted; with it, what is not, or under another key.

    Raises:
        CorruptEntry: it was encrypted for another place, or changed.
    """
    if cipher is not None:
        if stored[:1] != _ENCRYPTED:
            return None
        try:
            stored = cipher.decrypt(stored[1:], _KIND, *[text.encode() for text in bound])
        except UnknownKey:
            return None
        except ValueError as error:
            raise CorruptEntry(f"a stored prompt {error}") from None
    if stored[:1] == _SIGNATURE:
        return Kept(signature=stored[1:])
    try:
        # What is encrypted is no text either.
        return Kept(prompt=stored.decode())
    except UnicodeDecodeError:
        return None


def read_kept(stored: bytes, cipher: Cipher | None, *bound: str) -> Kept | None:
    """Return what `open_kept` does, and `None` where that raises."""
    try:
        return open_kept(stored, cipher, *bound)
    except CorruptEntry:
        return None
