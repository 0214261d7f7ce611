"""What a semantic entry keeps of its prompt, in one field: the text, or a signature of it.

    the text, UTF-8
    0xFE and a signature (`signature.pack`)
    0xFF and either of them, encrypted

No text in UTF-8 begins with one of these bytes, so what is stored tells by itself what it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from llm_cache._core.encryption import Cipher

_SIGNATURE: Final = b"\xfe"
_ENCRYPTED: Final = b"\xff"
_KIND: Final = b"prompt"


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of a stored prompt: its text or its signature, or neither of them."""

    prompt: str = field(default="", repr=False)
    signature: bytes = field(default=b"", repr=False)

    def field(self, cipher: Cipher | None, *bound: str) -> bytes:
        """Return what is stored; empty for nothing.

        With a *cipher* it can be read only together with the same *bound* texts: the space, the
        scope and the digest of the answer.
        """
        plain = _SIGNATURE + self.signature if self.signature else self.prompt.encode()
        if cipher is None or not plain:
            return plain
        return _ENCRYPTED + cipher.encrypt(plain, _KIND, *[text.encode() for text in bound])


def read_kept(stored: bytes, cipher: Cipher | None, *bound: str) -> Kept | None:
    """Return what is *stored*; `None` where it cannot be read here. Never raises.

    That is, where there is a *cipher*, all that it did not encrypt for this very place.
    """
    if cipher is not None:
        try:
            stored = cipher.decrypt(
                stored.removeprefix(_ENCRYPTED), _KIND, *[text.encode() for text in bound]
            )
        except ValueError:
            return None
    if stored[:1] == _SIGNATURE:
        return Kept(signature=stored[1:])
    try:
        # What is encrypted is no text either.
        return Kept(prompt=stored.decode())
    except UnicodeDecodeError:
        return None
