"""`llm-cache explain`: how a prompt would be answered, and why."""

from __future__ import annotations

import json
from typing import Any

import pytest
from redis import Redis

NOBODY = "redis://user:secret@127.0.0.1:1"
NO_SERVICE = "http://127.0.0.1:1/v1"
QUESTION = "What is the capital of France?"
REPHRASED = "what is the capital of france"


@pytest.fixture
def explain(run):
    """Return what is explained, as JSON."""

    def explain(*args, **options) -> dict[str, Any]:
        ran = run("explain", "--json", *args, **options)
        assert ran.exit_code == 0, ran.output
        told: dict[str, Any] = json.loads(ran.stdout)
        return told

    return explain


@pytest.fixture
def asked(run):
    """The question, answered and stored."""
    ran = run("chat", "--json", QUESTION)
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def test_an_unknown_prompt_would_be_a_miss(explain, service):
    told = explain(QUESTION, "--param", "temperature=0", "--param", 'stop=["."]')

    assert (told["status"], told["neighbours"]) == ("miss", [])
    assert told["compared"] == QUESTION
    assert told["similarity_threshold"] == 0.97
    assert told["parts"]["model"] == "gpt-4o-mini"
    assert told["parts"]["base_url"].rstrip("/") == service["OPENAI_BASE_URL"].rstrip("/")
    assert told["parts"]["body"] == {"temperature": 0, "stop": ["."]}


def test_what_chat_has_stored_is_exact_under_its_key(explain, asked):
    told = explain(QUESTION)

    assert (told["status"], told["key"]) == ("exact", asked["key"])


def test_a_rephrased_prompt_has_the_candidate_that_would_be_served(explain, asked):
    told = explain(REPHRASED)

    assert told["status"] == "semantic"
    (candidate,) = told["neighbours"]
    assert candidate["similarity"] > 0.99
    assert (candidate["prompt"], candidate["verdict"]) == (QUESTION, "served")
    assert candidate["key"] == asked["key"]


@pytest.mark.parametrize(
    "other",
    [
        ("--tenant", "acme"),
        ("--system", ""),
        ("--model", "gpt-4o"),
        ("--param", "seed=1"),
    ],
    ids=" ".join,
)
def test_each_part_of_the_scope_keeps_answers_apart(explain, asked, other):
    told = explain(*other, QUESTION)

    assert (told["status"], told["neighbours"]) == ("miss", [])
    assert told["scope"] != explain(QUESTION)["scope"]


def test_the_threshold_may_be_tried_out(explain, asked):
    assert explain("--threshold", "1", "What is the Capital of Spain?")["status"] == "miss"
    assert explain("--threshold", "0", REPHRASED)["similarity_threshold"] == 0


def test_nothing_is_stored_but_what_its_embedding_cost(explain, asked, redis_url, namespace):
    def keys(redis: Any) -> set[bytes]:
        return {key for key in redis.scan_iter(f"{namespace}:*") if b":stats:" not in key}

    with Redis.from_url(redis_url) as redis:
        before = keys(redis)
        explain(REPHRASED)
        assert keys(redis) == before


def test_people_see_all_of_it(run, asked):
    ran = run("explain", "--param", "temperature=0", QUESTION)

    assert ran.exit_code == 0
    assert "status        miss: no stored answer may be served\n" in ran.stdout
    assert "messages      system: You are a helpful assistant.\n" in ran.stdout
    assert 'body          {"temperature": 0}\n' in ran.stdout
    assert (
        f"compared      {QUESTION}\n"
        "policy        uncertified: similarity at least 0.97, guards\n"
        "candidates    none" in ran.stdout
    )


def test_candidates_are_a_table_that_fits_a_narrow_terminal(run, asked, service):
    long = f"{QUESTION} {'It was asked by a person who likes to write. ' * 20}"
    assert run("chat", long).exit_code == 0

    # A terminal that can do nothing is 80 columns wide.
    ran = run("explain", REPHRASED, env={**service, "FORCE_COLOR": "1", "TERM": "dumb"})

    lines = [line.rstrip() for line in ran.stdout.splitlines()]
    assert "status        semantic: a stored prompt means the same" in lines
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("similarity ")) :]
    assert table[0].split() == ["similarity", "verdict", "prompt"]
    assert table[1].endswith(f"served                 {QUESTION}")
    assert len(table) > 6
    assert lines[-1].endswith("…")
    assert max(map(len, lines)) <= 80


def test_what_others_stored_does_not_reach_the_terminal_as_commands(run):
    run("chat", "Hi \x1b[31mred")

    assert "\x1b" not in run("explain", "Hi \x1b[31mRed").stdout


def test_without_the_semantic_layer_neither_key_nor_service_is_needed(explain, run):
    told = explain("--no-semantic", QUESTION, env={})

    assert (told["status"], told["compared"], told["similarity_threshold"]) == ("miss", None, None)
    assert told["parts"]["base_url"] == "https://api.openai.com/v1/"


def test_without_a_key_the_semantic_layer_has_no_embedder(run):
    ran = run("explain", QUESTION, env={})

    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "OPENAI_API_KEY" in ran.stderr


def test_the_local_models_have_the_keys_of_chat_and_no_server_is_started(
    run, explain, monkeypatch
):
    ran = run("chat", "--local", "--json", QUESTION, env={})
    assert ran.exit_code == 0, ran.output
    asked = json.loads(ran.stdout)

    async def refuse(server):
        raise AssertionError("explain asks no model")

    monkeypatch.setattr("llm_cache.local_chat.LocalChatServer.start", refuse)
    exact = explain("--local", QUESTION, env={})
    semantic = explain("--local", "Tell me the capital city of France.", env={})

    assert (exact["status"], exact["key"]) == ("exact", asked["key"])
    assert semantic["status"] == "semantic"
    assert semantic["neighbours"][0]["key"] == asked["key"]
    assert exact["parts"]["base_url"] == exact["parts"]["model"]
    assert explain("--local", "--param", "max_tokens=5", QUESTION, env={})["status"] == "miss"


def test_the_local_embedder_goes_with_a_service_that_is_not_asked(explain):
    told = explain("--local", "--base-url", NO_SERVICE, "--model", "some", QUESTION, env={})

    assert (told["status"], told["similarity_threshold"]) == ("miss", 0.85)
    assert told["parts"]["base_url"] == f"{NO_SERVICE}/"


def test_no_redis_is_one_line(cli, service):
    ran = cli("explain", "--redis-url", NOBODY, QUESTION, env=service)

    assert (ran.exit_code, ran.stdout) == (1, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith("llm-cache: no usable Redis at redis://***@127.0.0.1:1")


def test_an_embedder_that_cannot_be_reached_is_one_line(run):
    ran = run("explain", "--base-url", NO_SERVICE, QUESTION, env={})

    assert (ran.exit_code, ran.stdout) == (1, "")
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("",),
        ("--tenant", "", QUESTION),
        ("--local", "--model", "gpt-4o", QUESTION),
        ("--param", "temperature", QUESTION),
        ("--param", "=1", QUESTION),
        ("--param", "user=bob", QUESTION),
        ("--param", 'tenant="acme"', QUESTION),
        ("--param", 'temperature="hot"', QUESTION),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(run, args):
    ran = run("explain", *args)

    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "Traceback" not in ran.output


def test_a_directory_that_is_not_there_is_not_made(cli, tmp_path, service):
    missing = tmp_path / "missing"
    ran = cli("explain", "--redis-url", f"embedded://{missing}", QUESTION, env=service)

    assert ran.exit_code == 1
    assert str(missing) in ran.stderr
    assert not missing.exists()
