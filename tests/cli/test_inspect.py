"""`llm-cache inspect`: one stored answer, with all that belongs to it."""

from __future__ import annotations

import json

import pytest
from redis import Redis

QUESTION = "What is the capital of France?"
REPHRASED = "what is the capital of france"


@pytest.fixture
def key(run):
    """The key of an answer that has an alias."""
    first = json.loads(run("chat", "--json", "--ttl", "3600", QUESTION).stdout)
    assert json.loads(run("chat", "--json", REPHRASED).stdout)["status"] == "semantic"
    return first["key"]


def test_key_prompt_and_semantic_entry_show_the_same(run, key):
    by_key = json.loads(run("inspect", key, "--json", env={}).stdout)
    by_prompt = json.loads(run("inspect", QUESTION, "--json").stdout)
    by_entry = json.loads(run("inspect", by_key["semantic"][0]["key"], "--json").stdout)

    for told in (by_key, by_prompt, by_entry):
        assert (told["key"], told["status"]) == (key, "alive")
        assert told["model"] == "gpt-4o-mini"
        assert 3500 < told["ttl_left_s"] <= 3600
        assert told["usage"]["completion_tokens"] > 0
        assert len(told["aliases"]) == len(told["semantic"]) == 1


def test_an_alias_names_its_origin(run, key):
    told = json.loads(run("inspect", REPHRASED, "--json").stdout)

    assert told["origin"] == key
    assert told["similarity"] > 0.99
    assert told["key"] != key


def test_texts_are_shown_only_when_asked_for(run, key):
    assert QUESTION not in run("inspect", key).stdout + run("inspect", key, "--json").stdout
    assert QUESTION in run("inspect", key, "--answer").stdout
    told = json.loads(run("inspect", key, "--answer", "--json").stdout)
    assert told["semantic"][0]["prompt"] == QUESTION
    assert told["answer"]["choices"]


def test_people_see_all_of_it(run, key):
    shown = run("inspect", key, "--answer").stdout

    assert f"key           {key}\nstatus        alive\nage           stored " in shown
    assert "ago, expires in 59 min\n" in shown
    assert "model         gpt-4o-mini\ntenant        none\ntags          none\n" in shown
    assert "answer        gpt-4o-mini gives answer" in shown


def test_dead_and_unreadable_answers_are_told_as_such(run, key, redis_url, namespace):
    with Redis.from_url(redis_url) as redis:
        redis.set(key, b"somebody's bytes, not ours", px=60_000)
        assert json.loads(run("inspect", key, "--json").stdout)["status"] != "alive"
        assert "model" not in run("inspect", key).stdout


def test_nothing_and_what_is_elsewhere_are_one_line(run, namespace):
    nothing = run("inspect", "Never asked")
    elsewhere = run("inspect", "other:x:{qg337jxypqwg734byhkpm6vczdjtf4fc}")

    assert (nothing.exit_code, nothing.stdout) == (1, "")
    assert "nothing is stored under" in nothing.stderr
    assert (elsewhere.exit_code, elsewhere.stdout) == (2, "")
    assert "namespace other" in elsewhere.stderr


def test_looking_changes_nothing(run, key, redis_url):
    with Redis.from_url(redis_url) as redis:
        before = (redis.get(key), redis.pexpiretime(key))
        run("inspect", key, "--answer")
        assert (redis.get(key), redis.pexpiretime(key)) == before
