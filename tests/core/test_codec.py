import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cache._core.codec import decode_entry, encode_entry
from llm_cache._core.types import Entry
from llm_cache.errors import CorruptEntry

DIGEST = "a" * 32
OTHER = "b" * 32
ENTRY = Entry(
    answer={"choices": [{"message": {"content": "Grüße 🙂"}, "finish_reason": "stop"}]},
    created_s=1_750_000_000.5,
    stamp="0006",
    model="m",
    tenant="t",
    tags=("a", "b"),
    origin=OTHER,
    similarity=0.93,
)


def test_entry_survives_the_way_through_bytes():
    assert decode_entry(encode_entry(ENTRY, DIGEST), DIGEST) == ENTRY


def test_repr_shows_no_answer():
    assert "Grüße" not in repr(ENTRY)


def test_entry_of_defaults_survives_too():
    entry = Entry(answer={}, created_s=0, stamp="", model="m")
    assert decode_entry(encode_entry(entry, DIGEST), DIGEST) == entry


def test_bytes_of_another_key_are_no_entry():
    with pytest.raises(CorruptEntry, match="another key"):
        decode_entry(encode_entry(ENTRY, DIGEST), OTHER)


@pytest.mark.parametrize("position", [0, 1])
def test_entry_of_another_version_is_a_miss(position):
    blob = bytearray(encode_entry(ENTRY, DIGEST))
    blob[position] ^= 0x40
    assert decode_entry(bytes(blob), DIGEST) is None


@pytest.mark.parametrize("size", [0, 1, 21])
def test_bytes_too_few_for_a_header_are_no_entry(size):
    with pytest.raises(CorruptEntry):
        decode_entry(encode_entry(ENTRY, DIGEST)[:size], DIGEST)


@given(st.integers(min_value=22), st.integers(min_value=1, max_value=255))
def test_changed_body_is_an_entry_or_an_error_of_ours(position, flip):
    blob = bytearray(encode_entry(ENTRY, DIGEST))
    blob[22 + position % (len(blob) - 22)] ^= flip
    try:
        entry = decode_entry(bytes(blob), DIGEST)
    except CorruptEntry:
        return
    assert isinstance(entry, Entry)


@given(st.binary(max_size=200))
def test_any_body_is_an_entry_or_an_error_of_ours(body):
    header = encode_entry(ENTRY, DIGEST)[:22]
    try:
        entry = decode_entry(header + body, DIGEST)
    except CorruptEntry:
        return
    assert isinstance(entry, Entry)
