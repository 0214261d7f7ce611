"""`llm-cache tune`: from a file of labels to a policy, or a refusal."""

from __future__ import annotations

import asyncio
import json

import pytest
import redis

from llm_cache._core.keys import Keys, fingerprint, tenant_id
from llm_cache._core.policy_file import decode
from llm_cache._redis.connection import Connection
from llm_cache._redis.policies import Policies, PolicyStore
from llm_cache.cli.tune import read_log
from llm_cache.errors import InvalidRequest
from llm_cache.labels import Label, Verdict, append_labels
from llm_cache.local import LocalEmbedder
from tests.test_calibrate import pairs

SPACE = fingerprint(LocalEmbedder.model_id, LocalEmbedder.dimensions)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.jsonl"
    rows = (
        {"new": p.new, "cached": p.cached, "same": int(p.same), "similarity": p.similarity}
        for p in pairs(2000)
    )
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_it_tells_what_was_shown_and_writes_nothing(cli, log):
    result = cli("tune", str(log), "--local", "--max-wrong", "0.05")
    assert result.exit_code == 0, result.output
    assert "at most 5.00% wrong hits per hit with 95% confidence" in result.output
    assert "nowhere" in result.output


def test_it_writes_a_policy_file(cli, log, tmp_path):
    file = tmp_path / "policy.json"
    cli("tune", str(log), "--local", "--max-wrong", "0.05", "--output", str(file))
    assert decode(file.read_bytes()).space == SPACE


def test_it_saves_the_policy_for_all_workers(cli, log, redis_url, namespace):
    options = ("--max-wrong", "0.05", "--basis", "requests", "--save", "--json")
    where = ("--redis-url", redis_url, "--namespace", namespace, "--tenant", "acme")
    result = cli("tune", str(log), "--local", *options, *where)
    assert json.loads(result.output)["certificate"]["claim"]["basis"] == "requests"

    async def load() -> Policies:
        connection = Connection(redis_url, max_connections=1, timeout_s=2.0)
        await connection.open()
        try:
            return await PolicyStore(connection, Keys(namespace), space=SPACE).load()
        finally:
            await connection.aclose()

    policies = asyncio.run(load())
    assert policies.of("acme") is not None
    assert policies.of(None) is None


def test_a_refusal_says_how_many_labels_are_missing(cli, log):
    lines = log.read_text().splitlines()[:50]
    log.write_text("\n".join(lines))
    result = cli("tune", str(log), "--local")
    assert result.exit_code == 1
    assert "50 labels are too few" in result.output
    assert "more labels are needed" in result.output


def test_a_log_of_answers_is_labelled_by_comparing_them(cli, tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("prompt,answer\nHow do I pay?,By card.\nHow can I pay?,by card.\n")
    result = cli("tune", str(path), "--local")
    assert result.exit_code == 1
    assert "same answer" in result.output


def test_max_wrong_of_zero_is_not_taken_for_the_default(cli, log):
    result = cli("tune", str(log), "--local", "--max-wrong", "0")
    assert result.exit_code == 1
    assert "cannot be shown" in result.output


def test_csv_holds_numbers_and_labels(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("new,cached,same,similarity\na,b,1,0.9\na,c,false,0.5\n")
    assert list(read_log(path)) == [
        {"new": "a", "cached": "b", "same": True, "similarity": 0.9},
        {"new": "a", "cached": "c", "same": False, "similarity": 0.5},
    ]


def test_what_review_wrote_is_a_log(tmp_path):
    path = tmp_path / "labels.jsonl"
    said = [Verdict.SAME, Verdict.DIFFERENT, None]
    append_labels(path, [Label("a", "b", 0.9, verdict, 0.0, space="other") for verdict in said])
    assert list(read_log(path)) == [
        {"new": "a", "cached": "b", "same": True},
        {"new": "a", "cached": "b", "same": False},
    ]


def test_with_a_secret_a_tenant_is_saved_as_it_stands_in_redis(cli, log, redis_url, namespace):
    env = {"LLM_CACHE_TENANT_SECRET": "0123456789abcdef"}
    where = ("--redis-url", redis_url, "--namespace", namespace, "--tenant", "acme")
    told = cli("tune", str(log), "--local", "--max-wrong", "0.05", "--save", *where, env=env)
    assert told.exit_code == 0, told.output
    with redis.Redis.from_url(redis_url) as client:
        (name,) = client.hkeys(Keys(namespace).policy(SPACE))
    assert name.decode() == f"tenant:{tenant_id('acme', '0123456789abcdef')}"


@pytest.mark.parametrize(
    ("name", "text"), [("l.jsonl", "{"), ("l.jsonl", "[]"), ("l.csv", "timestamp\nx")]
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=r"line 1|column timestamp"):
        list(read_log(path))
