"""`llm-cache review`: people say which pairs of prompts are the same."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis

from llm_cache import CacheConfig, LLMCache
from llm_cache._core.keys import Keys, answer_digest
from llm_cache._redis.connection import Connection
from llm_cache._redis.review import Review, ReviewItem
from llm_cache.labels import read_labels

QUESTION = "What is the capital of France?"


@pytest.fixture
def waiting(run, redis_url, namespace):
    """Three recorded pairs: a hit, and two near misses; returns how many still wait."""
    key = json.loads(run("chat", "--json", QUESTION).stdout)["key"]
    digest = answer_digest(key)
    pairs = [
        ("Capital of France?", 0.98, "served"),
        ("What is the capital of Spain?", 0.95, "guard: names"),
        ("Which town is France's capital? \x1b[31m", 0.91, "similarity below 0.97"),
    ]
    items = [
        ReviewItem(new=new, cached=QUESTION, similarity=near, verdict=verdict, digest=digest)
        for new, near, verdict in pairs
    ]

    async def use(work: Callable[[Review], Awaitable[Any]]) -> Any:
        connection = Connection(redis_url, max_connections=2, timeout_s=5)
        await connection.open()
        try:
            return await work(Review(connection, Keys(namespace)))
        finally:
            await connection.aclose()

    asyncio.run(use(lambda review: review.add(items)))
    return lambda: asyncio.run(use(lambda review: review.count()))


@pytest.fixture
def labels(tmp_path):
    return tmp_path / "labels.jsonl"


def test_what_is_said_becomes_labels_and_is_not_asked_again(run, waiting, labels):
    ran = run("review", "--labels", str(labels), stdin="y\nn\ns\n")

    assert ran.exit_code == 0, ran.output
    said = list(read_labels(labels))
    assert [(label.new, label.label) for label in said] == [
        ("Capital of France?", "same"),
        ("What is the capital of Spain?", "different"),
    ]
    assert said[0].similarity == 0.98
    assert stat.S_IMODE(labels.stat().st_mode) == 0o600
    assert waiting() == 1
    assert "1 same, 1 different, added to" in ran.stdout


def test_people_see_both_prompts_the_verdict_and_the_answer(run, waiting, labels):
    shown = run("review", "--labels", str(labels), stdin="q\n").stdout

    assert "1 of 3   similarity 0.980   served   " in shown
    assert (
        f"asked         Capital of France?\nstored        {QUESTION}\nanswer        gpt" in shown
    )
    assert not labels.exists()
    assert waiting() == 3


def test_the_end_of_the_input_is_the_end(run, waiting, labels):
    assert run("review", "--labels", str(labels), stdin="x\n\ny\n").exit_code == 0

    assert len(list(read_labels(labels))) == 1
    assert waiting() == 2


def test_what_a_stopped_run_has_written_down_is_not_asked_again(run, waiting, labels):
    labels.write_text(
        json.dumps(
            {"new": "Capital of France?", "cached": QUESTION, "similarity": 1, "label": "same"}
        )
    )
    shown = run("review", "--labels", str(labels), stdin="q\n").stdout

    assert "Spain" in shown
    assert waiting() == 2


def test_hits_and_misses_can_be_looked_at_apart(run, waiting):
    def verdicts(*args: str) -> list[str]:
        lines = run("review", "--json", *args).stdout.splitlines()
        return [json.loads(line)["verdict"] for line in lines]

    assert verdicts("--only", "hits") == ["served"]
    assert verdicts("--only", "misses") == ["guard: names", "similarity below 0.97"]
    assert verdicts("--limit", "2") == ["served", "guard: names"]
    assert waiting() == 3


def test_pairs_can_be_taken_elsewhere_to_be_labelled(run, waiting, tmp_path):
    path = tmp_path / "pairs.jsonl"
    assert "3 pairs" in run("review", "--export", str(path)).stdout
    assert run("review", "--export", str(path)).exit_code == 2

    assert [label.label for label in read_labels(path)] == [None, None, None]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_users_typed_does_not_reach_the_terminal_as_commands(run, waiting, labels):
    shown = run("review", "--labels", str(labels), stdin="s\ns\ns\n").stdout

    assert "Which town" in shown
    assert "\x1b" not in shown


def test_nothing_to_review_says_how_to_record(run, labels):
    ran = run("review", "--labels", str(labels))

    assert ran.exit_code == 0
    assert "review_sample_rate" in ran.stdout


# -- what is said has consequences


@pytest.fixture
def served(run, waiting, redis_url, namespace):
    """The hit among the recorded pairs, promoted for the request that asked; returns its keys."""
    first = json.loads(run("chat", "--json", QUESTION).stdout)["key"]
    asked = json.loads(run("explain", "--json", "Capital of France?").stdout)["key"]

    async def promote() -> None:
        async with LLMCache(
            redis_url, config=CacheConfig(namespace=namespace, semantic=False)
        ) as c:
            await c._answers.copy(answer_digest(first), answer_digest(asked))
            item = ReviewItem(
                new="Capital of France?",
                cached=QUESTION,
                similarity=0.98,
                verdict="served",
                digest=answer_digest(first),
                asked=answer_digest(asked),
                label="different",
            )
            await c._review.add([item])

    asyncio.run(promote())
    with redis.Redis.from_url(redis_url) as client:
        yield lambda: (client.exists(first), client.exists(asked))


def test_a_hit_that_is_different_is_taken_from_the_request_and_stays_for_its_own(
    run, served, labels
):
    assert served() == (1, 1)
    ran = run("review", "--labels", str(labels), "--only", "hits", stdin="s\nn\n")

    assert ran.exit_code == 0, ran.output
    assert "compared      with the model's own answer: different" in ran.stdout
    assert served() == (1, 0)


def test_what_the_comparison_said_is_exported(run, served, tmp_path):
    path = tmp_path / "pairs.jsonl"
    run("review", "--only", "hits", "--export", str(path))
    assert [label.label for label in read_labels(path)] == [None, "different"]
