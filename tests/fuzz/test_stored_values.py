"""Damaged values: misses or errors of ours, and never what belongs to another key."""

import random
from dataclasses import replace

import numpy as np
import pytest

from llm_cache._core import packing, signature
from llm_cache._core.codec import (
    MOST_BYTES,
    _checksum,
    decode_entry,
    encode_entry,
    open_sealed,
    peek,
)
from llm_cache._core.encryption import Cipher
from llm_cache._core.hit_policy import ThresholdPolicy, decide
from llm_cache._core.kept import Kept, read_kept
from llm_cache._core.types import Candidate, Entry
from llm_cache._redis.embeddings import _decode
from llm_cache.errors import CorruptEntry
from tests.fuzz.mutation import damaged

SIZES = [
    pytest.param(20_000, id="quick"),
    pytest.param(500_000, id="full", marks=[pytest.mark.heavy, pytest.mark.timeout(3600)]),
]
"""Cases of each of the two tests that the bulk goes into: 1,000,000 together when in full."""
CIPHER = Cipher([bytes(range(32)), bytes(32)], namespace="n")
DIGEST, OTHER = "a" * 28, "b" * 28
SHORT = Entry(
    answer={"choices": [{"message": {"content": "short"}}], "usage": {"prompt_tokens": 3}},
    created_s=1.0,
    stamp="01" * 16,
    model="m",
    tenant="one",
)
ENTRIES = (
    SHORT,
    replace(SHORT, answer={"text": "A long answer, which is packed. " * 200}, tags=("a", "b")),
    replace(SHORT, origin=OTHER, similarity=0.9),
)
FOREIGN = tuple(replace(entry, tenant="two", answer={"secret": "two"}) for entry in ENTRIES)


def stored(cipher: Cipher | None) -> tuple[list[bytes], list[bytes]]:
    """Return what is stored under the key, and what is under that of somebody else."""
    mine = [encode_entry(entry, DIGEST, cipher=cipher) for entry in ENTRIES]
    return mine, [encode_entry(entry, OTHER, cipher=cipher) for entry in FOREIGN]


def mended(blob: bytes) -> bytes:
    """Return *blob* with the checksum that its bytes have under the key."""
    check = _checksum(blob[:2], blob[6:], DIGEST)
    return blob[:2] + check.to_bytes(4, "little") + blob[6:]


def read(blob: bytes, cipher: Cipher | None) -> Entry | None:
    """Return the entry, read to its end as by those who call; `None` for a miss."""
    peek(blob)
    try:
        sealed = open_sealed(blob, DIGEST, cipher)
        if sealed is None:
            return None
        sealed.tokens()
        return sealed.open()
    except CorruptEntry:
        return None


@pytest.mark.parametrize("count", SIZES)
def test_damaged_answer_is_a_miss_or_what_it_was(count):
    mine, theirs = stored(None)
    for seed in range(count):
        draw = random.Random(seed)
        found = read(damaged(draw, draw.choice(mine), mine + theirs), None)
        assert found is None or found in ENTRIES, seed


@pytest.mark.parametrize("count", SIZES)
def test_encrypted_answer_is_a_miss_or_what_it_was_though_its_checksum_is_mended(count):
    mine, theirs = stored(CIPHER)
    plain, _ = stored(None)
    for seed in range(count):
        draw = random.Random(seed)
        blob = damaged(draw, draw.choice(mine), mine + theirs + plain)
        found = read(mended(blob) if draw.random() < 0.7 else blob, CIPHER)
        assert found is None or found in ENTRIES, seed


@pytest.mark.parametrize("count", [20_000])
def test_answer_that_somebody_has_made_is_an_entry_or_a_miss(count):
    """In clear, who can write to Redis can write answers; they are data and nothing more."""
    mine, theirs = stored(None)
    for seed in range(count):
        draw = random.Random(seed)
        found = read(mended(damaged(draw, draw.choice(mine), mine + theirs)), None)
        assert found is None or isinstance(found, Entry), seed


@pytest.mark.parametrize("count", [20_000])
def test_encrypted_prompt_is_read_as_it_was_or_not_at_all(count):
    place = ("space", "scope", DIGEST)
    mine = [Kept("a prompt").field(CIPHER, *place), Kept(signature=b"x").field(CIPHER, *place)]
    theirs = [Kept("theirs").field(CIPHER, "space", "scope", OTHER), b"in clear"]
    for seed in range(count):
        draw = random.Random(seed)
        found = read_kept(damaged(draw, draw.choice(mine), mine + theirs), CIPHER, *place)
        assert found in (None, Kept("a prompt"), Kept(signature=b"x")), seed


@pytest.mark.parametrize("count", [20_000])
def test_damaged_signature_is_decided_upon(count):
    prompt = "How do I reset the password of my account?"
    kept = [signature.pack(text) for text in (prompt, "Who wrote it, and when?", "x " * 4000)]
    policy = ThresholdPolicy(0.8)
    for seed in range(count):
        draw = random.Random(seed)
        blob = damaged(draw, draw.choice(kept), kept)
        candidate = Candidate("k", DIGEST, "", 0.9, signature=blob)
        assert len(decide(prompt, [candidate], policy).judged) == 1, seed


@pytest.mark.parametrize("count", [20_000])
def test_damaged_embedding_is_a_unit_vector_or_none(count):
    vectors = np.random.default_rng(0).standard_normal((3, 32))
    kept = [(v / np.linalg.norm(v)).astype("<f2").tobytes() for v in vectors]
    for seed in range(count):
        draw = random.Random(seed)
        found = _decode(damaged(draw, draw.choice(kept), kept), 32)
        assert found is None or abs(float(np.linalg.norm(found)) - 1) < 1e-3, seed


# ------------------------------------------------------------------ sizes


def body_of(entry: Entry, body: bytes, *, packed: bool) -> bytes:
    blob = encode_entry(replace(entry, answer=0), DIGEST)
    start = bytes((2, packing.ZSTD << 1 if packed else 0))
    return mended(start + blob[2:-1] + body)


def test_answer_of_the_largest_size_is_the_last_that_is_read():
    blob = encode_entry(replace(SHORT, answer=""), DIGEST)
    text = b"x" * (MOST_BYTES - len(blob))
    assert decode_entry(mended(blob[:-1] + text + b'"'), DIGEST) is not None
    with pytest.raises(CorruptEntry, match="too long"):
        open_sealed(mended(blob[:-1] + text + b'x"'), DIGEST)


def test_answer_that_would_be_too_large_is_not_written():
    with pytest.raises(OverflowError, match="64 MiB"):
        encode_entry(replace(SHORT, answer="x" * MOST_BYTES), DIGEST, compress=False)


@pytest.mark.parametrize("claim", [65 * 2**20, 2**40, 2**64 - 3])
def test_frame_that_claims_too_much_is_a_miss_before_it_is_unpacked(claim):
    # RFC 8878: magic number, descriptor with 8 bytes of content size, and an empty last block.
    frame = b"\x28\xb5\x2f\xfd\xe0" + claim.to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(CorruptEntry, match="too large"):
        open_sealed(body_of(SHORT, frame, packed=True), DIGEST)


def test_frame_that_unpacks_to_more_than_it_claims_is_no_answer():
    import zstandard

    frame = bytearray(zstandard.ZstdCompressor().compress(b'"' + b"x" * 200 + b'"'))
    at = frame.index((202).to_bytes(1, "little"))
    frame[at] = 100
    sealed = open_sealed(body_of(SHORT, bytes(frame), packed=True), DIGEST)
    assert sealed is not None
    with pytest.raises(CorruptEntry):
        sealed.open()


@pytest.mark.parametrize("depth", [201, 1_000, 100_000])
def test_deep_nesting_is_neither_written_nor_read_as_an_answer(depth):
    answer: list[object] = []
    for _ in range(depth):
        answer = [answer]
    with pytest.raises(ValueError, match="nested"):
        encode_entry(replace(SHORT, answer=answer), DIGEST)
    if depth >= 1_000:
        sealed = open_sealed(body_of(SHORT, b"[" * depth + b"]" * depth, packed=False), DIGEST)
        assert sealed is not None
        with pytest.raises(CorruptEntry):
            sealed.open()


@pytest.mark.parametrize("answer", [[[[]]] * 300, "[" * 300, {"a": [{"b": 1}] * 300}])
def test_many_brackets_are_no_deep_nesting(answer):
    entry = replace(SHORT, answer=answer)
    assert decode_entry(encode_entry(entry, DIGEST), DIGEST) == entry
