import os
import sys

import pytest

from llm_cache._core.codec import HEADER_BYTES, decode_entry, encode_entry, open_sealed
from llm_cache._core.encryption import OVERHEAD_BYTES, Cipher, UnknownKey
from llm_cache._core.kept import Kept, read_kept
from llm_cache._core.types import Entry
from llm_cache.errors import ConfigurationError, CorruptEntry

OLD, NEW = os.urandom(32), os.urandom(32)
DIGEST, OTHER = "a" * 28, "b" * 28
PLACE = ("space", "scope", DIGEST)
ENTRY = Entry(
    answer={"text": "a secret " * 300}, created_s=1.0, stamp="0" * 32, model="m", tenant="t"
)


@pytest.fixture
def cipher():
    return Cipher([NEW, OLD], namespace="n")


def test_what_is_encrypted_comes_back_and_is_never_the_same_twice(cipher):
    first, second = cipher.encrypt(b"text", b"place"), cipher.encrypt(b"text", b"place")
    assert cipher.decrypt(first, b"place") == cipher.decrypt(second, b"place") == b"text"
    assert first != second
    assert len(first) == len(b"text") + OVERHEAD_BYTES


def test_first_key_encrypts_and_every_key_decrypts(cipher):
    old = Cipher([OLD], namespace="n")
    assert cipher.decrypt(old.encrypt(b"text"), *()) == b"text"
    with pytest.raises(UnknownKey):
        old.decrypt(cipher.encrypt(b"text"))


@pytest.mark.parametrize("place", [(b"ab",), (b"a", b"b", b""), (b"b", b"a"), ()])
def test_what_was_moved_does_not_decrypt(cipher, place):
    sealed = cipher.encrypt(b"text", b"a", b"b")
    with pytest.raises(ValueError, match="another key"):
        cipher.decrypt(sealed, *place)


def test_namespaces_do_not_read_each_other(cipher):
    with pytest.raises(ValueError, match="another key"):
        Cipher([NEW], namespace="m").decrypt(cipher.encrypt(b"text"))


@pytest.mark.parametrize("size", [0, 3, 4, 15, 16, 31])
def test_what_is_too_short_does_not_decrypt(cipher, size):
    with pytest.raises(ValueError, match="key"):
        cipher.decrypt(cipher.encrypt(b"text")[:size])


def test_keys_are_never_shown(cipher):
    shown = repr(cipher) + str(vars(cipher))
    assert not any(key.hex() in shown or repr(key) in shown for key in (OLD, NEW))


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(ConfigurationError, match=r"llm-cache\[encryption\]"):
        Cipher([NEW], namespace="n")


# ------------------------------------------------------------------ answers


def test_answer_is_packed_then_encrypted_and_comes_back(cipher):
    blob = encode_entry(ENTRY, DIGEST, cipher=cipher)
    assert b"secret" not in blob
    assert len(blob) < 500
    assert decode_entry(blob, DIGEST, cipher) == ENTRY


def test_whose_answer_it_is_stays_readable_and_cannot_be_changed(cipher):
    blob = encode_entry(ENTRY, DIGEST, cipher=cipher)
    forged = encode_entry(
        Entry(**{name: getattr(ENTRY, name) for name in ENTRY.__slots__} | {"tenant": "u"}), DIGEST
    )
    # The details of another tenant before the same ciphertext, with a checksum that fits.
    from llm_cache._core.codec import _checksum

    head = HEADER_BYTES + int.from_bytes(blob[HEADER_BYTES - 2 : HEADER_BYTES], "little")
    rest = forged[6:head] + blob[head:]
    start = blob[:2]
    moved = start + _checksum(start, rest, DIGEST).to_bytes(4, "little") + rest
    assert b'"t":"t"' in blob
    with pytest.raises(CorruptEntry, match="another key"):
        open_sealed(moved, DIGEST, cipher)


def test_answer_of_another_key_does_not_decrypt_even_with_its_checksum_mended(cipher):
    from llm_cache._core.codec import _checksum

    blob = encode_entry(ENTRY, OTHER, cipher=cipher)
    mended = blob[:2] + _checksum(blob[:2], blob[6:], DIGEST).to_bytes(4, "little") + blob[6:]
    with pytest.raises(CorruptEntry, match="another key"):
        open_sealed(mended, DIGEST, cipher)


def test_answer_in_clear_and_answer_under_an_unknown_key_are_those_of_other_workers(cipher):
    assert open_sealed(encode_entry(ENTRY, DIGEST), DIGEST, cipher) is None
    assert open_sealed(encode_entry(ENTRY, DIGEST, cipher=cipher), DIGEST) is None
    stranger = Cipher([os.urandom(32)], namespace="n")
    assert open_sealed(encode_entry(ENTRY, DIGEST, cipher=stranger), DIGEST, cipher) is None


# ------------------------------------------------------------------ prompts


@pytest.mark.parametrize("kept", [Kept("Grüße 🙂"), Kept(signature=b"\x01\xff\x00"), Kept("\x01")])
def test_what_is_kept_of_a_prompt_comes_back(cipher, kept):
    assert read_kept(kept.field(None), None) == kept
    sealed = kept.field(cipher, *PLACE)
    assert read_kept(sealed, cipher, *PLACE) == kept


def test_prompt_is_read_in_its_own_place_alone(cipher):
    sealed = Kept("text").field(cipher, *PLACE)
    assert read_kept(sealed, None) is None
    assert read_kept(sealed, cipher, "space", "other", DIGEST) is None
    assert read_kept(sealed, cipher, "space", "scope", OTHER) is None
    assert read_kept(b"text", cipher, *PLACE) is None
