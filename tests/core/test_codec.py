import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cache._core import codec, packing
from llm_cache._core.codec import (
    _CHECKED,
    _checksum,
    decode_entry,
    encode_entry,
    open_sealed,
)
from llm_cache._core.types import Entry
from llm_cache.errors import CorruptEntry

DIGEST = "a" * 32
OTHER = "b" * 32
ENTRY = Entry(
    answer={"choices": [{"message": {"content": "Grüße 🙂"}, "finish_reason": "stop"}]},
    created_s=1_750_000_000.5,
    stamp="0006" * 8,
    model="m",
    tenant="t",
    fresh_until_s=1_750_000_100.5,
    tags=("a", "b"),
    depends_on=("doc:1",),
    origin=OTHER,
    similarity=0.93,
)


def test_entry_survives_the_way_through_bytes():
    assert decode_entry(encode_entry(ENTRY, DIGEST), DIGEST) == ENTRY


@pytest.mark.parametrize("parser", ["jiter", "json"])
@pytest.mark.parametrize("depth", [1, 199])
def test_answers_of_any_depth_that_is_stored_are_read_by_either_parser(monkeypatch, parser, depth):
    if parser == "json":
        monkeypatch.setattr(codec, "from_json", json.loads)
    answer: object = [2**70, -0.5, 1e300, None, True, "\u2028 Grüße 🙂"]
    for _ in range(depth):
        answer = {"in": answer}
    entry = replace(ENTRY, answer=answer)
    assert decode_entry(encode_entry(entry, DIGEST), DIGEST) == entry


def test_repr_shows_no_answer():
    assert "Grüße" not in repr(ENTRY)


def test_entry_of_defaults_survives_too():
    entry = Entry(answer={}, created_s=0, stamp="0" * 32, model="m")
    assert decode_entry(encode_entry(entry, DIGEST), DIGEST) == entry


def test_bytes_of_another_key_are_no_entry():
    with pytest.raises(CorruptEntry, match="another key"):
        decode_entry(encode_entry(ENTRY, DIGEST), OTHER)


@pytest.mark.parametrize("position", [0, 1])
def test_entry_of_another_version_is_a_miss(position):
    blob = bytearray(encode_entry(ENTRY, DIGEST))
    blob[position] ^= 0x40
    assert decode_entry(bytes(blob), DIGEST) is None


@pytest.mark.parametrize("size", [0, 1, 51])
def test_bytes_too_few_for_a_header_are_no_entry(size):
    with pytest.raises(CorruptEntry, match="too short"):
        decode_entry(encode_entry(ENTRY, DIGEST)[:size], DIGEST)


@given(st.integers(min_value=2), st.integers(min_value=1, max_value=255))
def test_any_changed_byte_behind_the_version_is_noticed(position, flip):
    blob = bytearray(encode_entry(ENTRY, DIGEST))
    blob[2 + position % (len(blob) - 2)] ^= flip
    with pytest.raises(CorruptEntry):
        open_sealed(bytes(blob), DIGEST)


@given(st.integers(min_value=0))
def test_bytes_that_were_cut_are_no_entry(size):
    blob = encode_entry(ENTRY, DIGEST)
    with pytest.raises(CorruptEntry):
        open_sealed(blob[: size % len(blob)], DIGEST)


@given(st.binary(max_size=200), st.integers(0, 60), st.sampled_from([0, 1, 2]))
def test_any_body_with_the_right_checksum_is_an_entry_or_an_error_of_ours(body, head, flags):
    checked = _CHECKED.pack(1.0, 2.0, bytes(16), 0, 0, 0, head) + body
    start = bytes((2, flags))
    blob = start + _checksum(start, checked, DIGEST).to_bytes(4, "little") + checked
    try:
        entry = decode_entry(blob, DIGEST)
    except CorruptEntry:
        return
    assert isinstance(entry, Entry)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 12, "completion_tokens": 34}, (12, None, 34)),
        ({"prompt_tokens": 0, "prompt_tokens_details": {"cached_tokens": 0}}, (0, 0, None)),
        (None, (None, None, None)),
    ],
)
def test_header_tells_what_every_look_up_asks(usage, tokens):
    sealed = open_sealed(encode_entry(replace(ENTRY, answer={"usage": usage}), DIGEST), DIGEST)
    assert sealed is not None
    assert sealed.tokens() == tokens
    assert (sealed.created_s, sealed.fresh_until_s) == (ENTRY.created_s, ENTRY.fresh_until_s)
    assert (sealed.stamp, sealed.is_alias) == (ENTRY.stamp, True)


@pytest.mark.parametrize(("chars", "is_packed"), [(800, False), (4000, True)])
def test_long_answers_are_packed_and_short_ones_are_not(chars, is_packed):
    entry = replace(ENTRY, answer={"text": "Some words of text. " * (chars // 20)})
    blob = encode_entry(entry, DIGEST)
    assert (len(blob) < chars) == is_packed
    assert decode_entry(blob, DIGEST) == entry


def test_what_is_not_compressed_stays_plain():
    entry = replace(ENTRY, answer={"text": "x" * 4000})
    assert len(encode_entry(entry, DIGEST, compress=False)) > 4000


def test_without_zstandard_packed_entries_are_those_of_other_workers(monkeypatch):
    blob = encode_entry(replace(ENTRY, answer={"text": "x" * 4000}), DIGEST)
    monkeypatch.setattr(packing, "_zstd", lambda: None)
    assert open_sealed(blob, DIGEST) is None
    assert decode_entry(encode_entry(ENTRY, DIGEST), DIGEST) == ENTRY


@given(st.binary(max_size=60))
def test_damaged_packing_is_an_error(body):
    with pytest.raises(ValueError, match="packed"):
        packing.unpack(packing.ZSTD, body)
