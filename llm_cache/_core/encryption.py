"""Encryption of what is stored: AES-256-GCM, under the first of several keys, read with any.

    bytes 0-3    which key: the first bytes of its SHA-256
    bytes 4-15   nonce, drawn at random for every text
    then         the text, encrypted, and behind it the tag of 16 bytes

What a text belongs to (namespace, kind, digest, scope) is authenticated along with it, not stored:
a ciphertext that is moved to another place does not decrypt there.

Random nonces of 96 bits may be drawn 2**32 times under one key (NIST SP 800-38D, section 8.3).
With an answer and a prompt for each miss, that is two thousand million misses.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from llm_cache.errors import ConfigurationError

OVERHEAD_BYTES: Final = 32
"""What the encrypted form is longer by."""
_ID_BYTES: Final = 4
_NONCE_BYTES: Final = 12
_BEGIN: Final = _ID_BYTES + _NONCE_BYTES
_DOMAIN: Final = b"llm_cache/sealed/1"


class UnknownKey(ValueError):
    """It was encrypted under a key that is not here."""


class Cipher:
    """Encrypts with the first of its keys, decrypts with all of them. Its `repr` shows none.

    Args:
        keys: 32 bytes each.
        namespace: What is encrypted in one namespace does not decrypt in another.

    Raises:
        ConfigurationError: the extra `encryption` is not installed.
    """

    def __init__(self, keys: Sequence[bytes], *, namespace: str) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise ConfigurationError(
                "encryption_keys needs the package cryptography: pip install llm-cache[encryption]"
            ) from error
        self._invalid_tag = InvalidTag
        self._keys = {_key_id(key): AESGCM(key) for key in keys}
        self._first = _key_id(keys[0])
        self._begun = _framed(_DOMAIN, namespace.encode())

    def encrypt(self, plain: bytes, *bound: bytes) -> bytes:
        """Return *plain* encrypted; it decrypts only together with the same *bound* parts."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._keys[self._first].encrypt(nonce, plain, self._begun + _framed(*bound))
        return b"".join((self._first, nonce, sealed))

    def decrypt(self, sealed: bytes, *bound: bytes) -> bytes:
        """Return what `encrypt` was given.

        Raises:
            UnknownKey: none of the keys here; another worker may have it.
            ValueError: it was changed, or belongs elsewhere.
        """
        key = self._keys.get(sealed[:_ID_BYTES])
        if key is None:
            raise UnknownKey("encrypted under a key that is not here")
        try:
            plain: bytes = key.decrypt(
                sealed[_ID_BYTES:_BEGIN], sealed[_BEGIN:], self._begun + _framed(*bound)
            )
        except (self._invalid_tag, ValueError):
            # Without the cause: nothing in it tells more.
            raise ValueError("was changed, or belongs to another key") from None
        return plain


def _key_id(key: bytes) -> bytes:
    return sha256(b"llm_cache key" + key).digest()[:_ID_BYTES]


def _framed(*parts: bytes) -> bytes:
    """Return *parts*, each behind its length, so that no two lists of parts run together."""
    return b"".join([b"%d:%b" % (len(part), part) for part in parts])
