"""`llm-cache stats`: what all processes have done together."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from redis import Redis

QUESTION = "What is the capital of France?"


@pytest.fixture
def stats(cli, redis_url, namespace):
    def run(*args):
        return cli("stats", "--redis-url", redis_url, "--namespace", namespace, *args)

    return run


@pytest.fixture
def asked(cli, redis_url, namespace, service):
    """A miss, an exact and a semantic hit, by processes that have ended."""
    lines = f"{QUESTION}\n{QUESTION}\nwhat is the capital of france\n"
    ran = cli(
        *("chat", "--redis-url", redis_url, "--namespace", namespace, "--json"),
        stdin=lines,
        env=service,
    )
    assert ran.exit_code == 0, ran.output
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_json_counts_calls_entries_and_savings(stats, asked):
    numbers = json.loads(stats("--json").stdout)

    assert numbers["miss"] == numbers["exact"] == numbers["semantic"] == 1
    assert numbers["hit_rate"] == 0.667
    assert numbers["entries"] == 1
    assert [index["dimensions"] for index in numbers["indexes"]] == [1536]
    assert numbers["redis_memory_bytes"] > 0
    assert numbers["prompt_tokens_saved"] == 2 * asked[0]["usage"]["prompt_tokens"]
    assert numbers["completion_tokens_saved"] == 2 * asked[0]["usage"]["completion_tokens"]
    assert numbers["usd_saved"] > 0
    assert numbers["price_model"] is None


def test_another_price_model_tells_other_savings(stats, asked):
    cheap = json.loads(stats("--json").stdout)["usd_saved"]

    assert json.loads(stats("--json", "--price-model", "gpt-4o").stdout)["usd_saved"] > cheap


def test_people_see_the_same(stats, asked):
    ran = stats()

    assert ran.exit_code == 0
    assert "hit rate      66.7%" in ran.stdout
    assert "1 entries of 1536 dimensions" in ran.stdout
    assert "USD" in ran.stdout


def test_a_window_and_a_tenant_choose_what_is_counted(stats, asked):
    ours = json.loads(stats("--json", "--window", "24h").stdout)
    theirs = json.loads(stats("--json", "--tenant", "acme").stdout)

    assert (ours["miss"], ours["window"]) == (1, "24h")
    assert (theirs["miss"], theirs["tenant"]) == (0, "acme")


def test_a_window_that_is_none_is_one_line(stats):
    ran = stats("--window", "24")

    assert ran.exit_code == 1
    assert "24h or 7d" in ran.stderr


def test_own_prices_go_before_the_list(stats, asked):
    numbers = json.loads(stats("--json", "--price", "gpt-4o-mini=1,2").stdout)

    tokens = numbers["prompt_tokens_saved"] + 2 * numbers["completion_tokens_saved"]
    assert numbers["usd_saved"] == pytest.approx(tokens / 1e6)


def test_a_model_without_a_price_is_named_and_not_taken_for_free(
    stats, cli, redis_url, namespace, service
):
    options = ("--redis-url", redis_url, "--namespace", namespace, "--no-semantic")
    ran = cli("chat", *options, "--model", "in-house", stdin="hi\nhi\n", env=service)
    assert ran.exit_code == 0

    assert json.loads(stats("--json").stdout)["usd_saved"] is None
    assert "no price is known for in-house" in stats().stdout


def test_watching_goes_on_until_interrupted(redis_url, namespace, environment, asked):
    options = ["--redis-url", redis_url, "--namespace", namespace, "--interval", "0.1", "--json"]
    watching = subprocess.Popen(
        [sys.executable, "-m", "llm_cache.cli", "stats", "--watch", *options],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert watching.stdout
    lines = [json.loads(watching.stdout.readline()) for _ in range(3)]
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=20)

    assert [line["miss"] for line in lines] == [1, 1, 1]
    assert watching.returncode == 130


def test_an_unused_namespace_is_all_zeros_and_gets_no_index(stats, redis_url, namespace):
    numbers = json.loads(stats("--json").stdout)

    assert numbers["hit_rate"] == 0.0
    assert numbers["entries"] == 0
    assert numbers["indexes"] == []
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        assert not [name for name in redis.execute_command("FT._LIST") if namespace in name]


def test_a_redis_without_search_has_no_entries_to_count(cli, plain_redis):
    ran = cli("stats", "--redis-url", plain_redis, "--json")

    assert ran.exit_code == 0
    assert json.loads(ran.stdout)["entries"] is None


def test_an_embedded_redis_has_its_entries_counted(cli, tmp_path, service):
    url = f"embedded://{tmp_path}"
    assert cli("chat", "--redis-url", url, QUESTION, env=service).exit_code == 0

    numbers = json.loads(cli("stats", "--redis-url", url, "--json").stdout)

    assert (numbers["miss"], numbers["entries"]) == (1, 1)


def test_a_directory_that_is_not_there_is_one_line_and_not_made(cli, tmp_path):
    missing = tmp_path / "missing"

    ran = cli("stats", "--redis-url", f"embedded://{missing}")

    assert (ran.exit_code, ran.stdout) == (1, "")
    assert f"no directory {missing}" in ran.stderr
    assert not missing.exists()


def test_no_redis_is_one_line(cli):
    ran = cli("stats", "--redis-url", "redis://user:secret@127.0.0.1:1")

    assert ran.exit_code == 1
    assert ran.stdout == ""
    assert "no usable Redis at redis://***@127.0.0.1:1" in ran.stderr
    assert "secret" not in ran.stderr
