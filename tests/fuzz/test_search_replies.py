"""Damaged replies to a search: no candidates or an error of ours, never another scope's entry."""

import random
from math import isfinite
from typing import Any

import numpy as np
import pytest

from llm_cache._core.codec import encode_entry
from llm_cache._core.encryption import Cipher
from llm_cache._core.hit_policy import ThresholdPolicy, decide
from llm_cache._core.kept import Kept
from llm_cache._core.keys import Keys
from llm_cache._core.policy import Purges
from llm_cache._core.types import Entry
from llm_cache._redis.connection import Connection
from llm_cache._redis.epoch import Epochs
from llm_cache._redis.exact import ExactStore
from llm_cache._redis.sliding import Sliding
from llm_cache._redis.vectors import VectorStore
from llm_cache.errors import StoreError
from tests.fuzz.mutation import JUNK, broken

SIZES = [
    pytest.param(5_000, id="quick"),
    pytest.param(50_000, id="full", marks=[pytest.mark.heavy, pytest.mark.timeout(3600)]),
]
"""Replies, without an answer beside them and with one: 100,000 together when in full."""
CIPHER = Cipher([bytes(32)], namespace="n")
KEYS, SPACE, SCOPE = Keys("n"), "space", "mine"
PROMPT = "How do I reset my password?"
ROWS = [
    (scope, name * 28) for scope, names in ((SCOPE, "abc"), ("theirs", "def")) for name in names
]
MINE = {digest for scope, digest in ROWS if scope == SCOPE}


def fields(scope: str, digest: str, at: int, cipher: Cipher | None) -> list[Any]:
    prompt = Kept(f"{PROMPT} {digest}").field(cipher, SPACE, scope, digest)
    return [b"scope", scope.encode(), b"distance", b"0.0%d" % at, b"prompt", prompt]


def reply_of(cipher: Cipher | None) -> list[Any]:
    """Return what a search answers: rows of the scope that asks, and of another."""
    names = [KEYS.entry(SPACE, digest).encode() for _, digest in ROWS]
    rows = [fields(*row, at, cipher) for at, row in enumerate(ROWS)]
    return [len(rows), *(part for pair in zip(names, rows, strict=True) for part in pair)]


def damaged(draw: random.Random, reply: list[Any]) -> Any:
    """Return *reply* broken, its rows as wholes: that a name belongs to the fields behind it is
    what the server says, and nothing else in them would tell.
    """
    if draw.random() < 0.1:
        return draw.choice(JUNK)
    rows: list[Any] = list(zip(reply[1::2], reply[2::2], strict=True))
    at = draw.randrange(len(rows))
    rows[at] = (rows[at][0], broken(draw, rows[at][1]))
    parts = broken(draw, [(reply[0],), *rows]) if draw.random() < 0.5 else [(reply[0],), *rows]
    if not isinstance(parts, list):
        return parts
    flat = [part for row in parts for part in (row if isinstance(row, tuple) else [row])]
    if flat and draw.random() < 0.3:
        start = draw.randrange(len(flat))
        flat[start : start + draw.choice((0, 1))] = [draw.choice(JUNK)] * draw.choice((0, 1))
    return flat


class Answering:
    """Stands for the line to Redis: answers every command with what it was given."""

    def __init__(self, answer: Any, counted: Any) -> None:
        self.answer, self.counted = answer, counted

    async def execute_all(self, *commands: Any) -> list[Any]:
        return [
            self.answer if c[0] in ("FT.SEARCH", "EVALSHA") else self.counted for c in commands
        ]

    async def execute(self, *_: Any) -> Any:
        return b"OK"


def store(cipher: Cipher | None) -> VectorStore:
    nowhere = Connection("redis://nowhere", max_connections=1, timeout_s=1)
    return VectorStore(nowhere, KEYS, space=SPACE, dimensions=4, cipher=cipher)


@pytest.mark.parametrize("count", SIZES)
async def test_broken_reply_yields_entries_of_the_scope_or_an_error_of_ours(count):
    vector = np.full(4, 0.5, dtype=np.float32)
    intact, policy = reply_of(None), ThresholdPolicy(0.5)
    for seed in range(count):
        draw = random.Random(seed)
        vectors = store(None)
        answer, counted = damaged(draw, intact), broken(draw, [1, [], []])
        vectors.line = Answering(answer, counted)  # type: ignore[assignment]
        try:
            candidates = await vectors.nearest(SCOPE, vector, limit=4)
        except StoreError:
            continue
        assert {c.digest for c in candidates} <= MINE, seed
        assert all(isfinite(c.similarity) and c.similarity <= 1.01 for c in candidates), seed
        assert len(candidates) <= 4, seed
        assert len(decide(PROMPT, candidates, policy).judged) == len(candidates), seed


@pytest.mark.parametrize("count", SIZES)
async def test_broken_reply_with_an_answer_beside_it_yields_no_other_answer(count):
    vector, intact = np.full(4, 0.5, dtype=np.float32), reply_of(None)
    nowhere = Connection("redis://nowhere", max_connections=1, timeout_s=1)
    exact = ExactStore(nowhere, KEYS, Epochs(nowhere, KEYS), Sliding(nowhere, KEYS, spaces=list))
    stamp = "0" * 32
    exact.epochs._purges, exact.epochs._epoch = Purges(stamp, stamp), stamp.encode()
    for seed in range(count):
        draw = random.Random(seed)
        digest = draw.choice(sorted(MINE))
        entry = Entry(answer="mine", created_s=1.0, stamp=stamp, model="m")
        beside = [digest.encode(), encode_entry(entry, digest), stamp.encode(), 1_000, None]
        vectors = store(None)
        answer = broken(draw, [damaged(draw, intact) if draw.random() < 0.5 else intact, *beside])
        vectors.line = Answering(answer, [1, [], []])  # type: ignore[assignment]
        try:
            candidates, read = await vectors.nearest_and_answer(
                SCOPE, vector, limit=4, asked="asked", least_similarity=0.5
            )
            assert {c.digest for c in candidates} <= MINE, seed
            if read is None:
                continue
            found, left_ms = await exact.judged(read.values, read.digest, PROMPT)
        except StoreError:
            continue
        assert found.entry is None or found.entry.answer == "mine", seed
        assert type(left_ms) is int, seed


async def test_parts_of_one_row_in_another_do_not_pass_where_prompts_are_encrypted():
    intact, reader = reply_of(CIPHER), store(CIPHER)
    prompts = {digest: f"{PROMPT} {digest}" for _, digest in ROWS}
    for seed in range(5_000):
        draw = random.Random(seed)
        try:
            candidates = reader._candidates(shuffled(draw, intact), SCOPE)
        except StoreError:
            continue
        assert {c.digest for c in candidates} <= MINE, seed
        assert all(c.prompt == prompts[c.digest] for c in candidates), seed


def shuffled(draw: random.Random, reply: list[Any]) -> list[Any]:
    """Return *reply* with names or fields of two of its rows exchanged."""
    names, rows = list(reply[1::2]), [list(row) for row in reply[2::2]]
    i, j = draw.sample(range(len(rows)), 2)
    if at := draw.choice((0, 1, 3, 5)):
        rows[i][at], rows[j][at] = rows[j][at], rows[i][at]
    else:
        names[i], names[j] = names[j], names[i]
    return [reply[0], *(part for pair in zip(names, rows, strict=True) for part in pair)]
