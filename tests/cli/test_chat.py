"""`llm-cache chat`: through the cache from the shell."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

if TYPE_CHECKING:
    from typer.testing import Result

NOBODY = "redis://127.0.0.1:1"
QUESTION = "What is the capital of France?"


@pytest.fixture
def chat(cli, redis_url, namespace, service):
    """Ask the service through the cache of this test."""

    def run(*args, **options):
        options.setdefault("env", service)
        return cli("chat", "--redis-url", redis_url, "--namespace", namespace, *args, **options)

    return run


def as_json(ran: Result) -> list[dict[str, Any]]:
    assert ran.exit_code == 0, ran.output
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_prints_the_answer_and_how_it_was_come_by(chat):
    first, second = chat(QUESTION), chat(QUESTION)

    answer, status = first.stdout.splitlines()
    assert answer
    assert status.startswith("miss, ")
    assert status.endswith((" ms", " s"))
    again, status = second.stdout.splitlines()
    assert again == answer
    assert re.match(r"exact, stored \d+ s ago, ", status)


def test_json_holds_everything_a_script_wants(chat):
    (miss,), (exact,) = as_json(chat("--json", QUESTION)), as_json(chat("--json", QUESTION))

    assert (miss["status"], exact["status"]) == ("miss", "exact")
    assert miss["text"] == exact["text"]
    assert miss["key"] == exact["key"] is not None
    assert exact["usage"] == miss["usage"]
    assert exact["age_s"] >= 0
    assert exact["latency_ms"] > 0
    assert (exact["similarity"], exact["reason"], exact["failure"]) == (None, None, None)


def test_a_rephrased_question_is_served_with_its_similarity(chat):
    asked = as_json(chat("--json", stdin=f"{QUESTION}\nwhat is the capital of france\n"))

    assert [answer["status"] for answer in asked] == ["miss", "semantic"]
    assert asked[1]["similarity"] > 0.99


def test_without_the_semantic_layer_it_is_not(chat):
    asked = as_json(
        chat("--json", "--no-semantic", stdin=f"{QUESTION}\nwhat is the capital of france\n")
    )

    assert [answer["status"] for answer in asked] == ["miss", "miss"]


def test_empty_lines_of_a_file_are_left_out(chat):
    asked = as_json(chat("--json", stdin=f"\n{QUESTION}\n   \n\n{QUESTION}"))

    assert [answer["status"] for answer in asked] == ["miss", "exact"]


@pytest.mark.parametrize(
    "other",
    [
        ("--tenant", "acme"),
        ("--system", "Be brief."),
        ("--system", ""),
        ("--model", "gpt-4o"),
    ],
    ids=" ".join,
)
def test_what_the_model_sees_keeps_answers_apart(chat, other):
    chat(QUESTION)

    (asked,) = as_json(chat("--json", *other, QUESTION))

    assert asked["status"] == "miss"


def test_an_answer_lives_as_long_as_it_is_told_to(chat, redis_url):
    (asked,) = as_json(chat("--json", "--ttl", "60", QUESTION))

    with Redis.from_url(redis_url) as redis:
        assert 55_000 < redis.pttl(asked["key"]) <= 60_000


def test_the_url_may_come_from_the_environment(cli, redis_url, namespace, service):
    env = {**service, "REDIS_URL": redis_url}
    (asked,) = as_json(cli("chat", "--json", "--namespace", namespace, QUESTION, env=env))

    assert asked["status"] == "miss"


def test_without_redis_the_model_answers_and_the_status_says_why(cli, service):
    ran = cli("chat", "--redis-url", NOBODY, QUESTION, env=service)

    assert ran.exit_code == 0
    answer, status = ran.stdout.splitlines()
    assert answer
    assert status.startswith("bypass, ")
    assert "the cache was not used: redis: no usable Redis at redis://127.0.0.1:1" in status
    assert ran.stderr == ""


def test_without_redis_json_names_the_failure(cli, service):
    (asked,) = as_json(cli("chat", "--redis-url", NOBODY, "--json", QUESTION, env=service))

    assert (asked["status"], asked["reason"]) == ("bypass", "redis")
    assert "no usable Redis" in asked["failure"]


def assert_one_line_on_stderr(ran: Result, *words: str) -> None:
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert line.startswith("llm-cache: ")
    assert all(word in line for word in words)


def test_without_a_key_it_says_what_can_be_done(chat):
    ran = chat(QUESTION, env={})

    assert ran.exit_code == 1
    assert_one_line_on_stderr(ran, "OPENAI_API_KEY", "--base-url", "--local")


def test_a_model_that_cannot_be_reached_is_one_line(chat, namespace):
    ran = chat("--no-semantic", "--base-url", "http://127.0.0.1:1/v1", QUESTION, env={})

    assert ran.exit_code == 1
    assert_one_line_on_stderr(ran, "the model's service failed", "Connection error")


def test_a_url_that_cannot_work_is_one_line(cli, service):
    ran = cli("chat", "--redis-url", "http://localhost", QUESTION, env=service)

    assert ran.exit_code == 1
    assert_one_line_on_stderr(ran, "redis://", "http://localhost")


def test_a_redis_without_search_names_the_way_out(cli, plain_redis, service):
    ran = cli("chat", "--redis-url", plain_redis, QUESTION, env=service)

    assert ran.exit_code == 0
    assert "bypass, " in ran.output
    assert "no search module" in ran.output
    assert "semantic=False" in ran.output


@pytest.mark.parametrize("args", [("",), ("--tenant", "", QUESTION)], ids=["prompt", "tenant"])
def test_an_empty_prompt_or_tenant_is_wrong_usage(chat, args):
    ran = chat(*args)

    assert ran.exit_code == 2
    assert_one_line_on_stderr(ran)


def test_the_local_models_need_no_key(cli, redis_url, namespace):
    ran = cli(
        *("chat", "--redis-url", redis_url, "--namespace", namespace, "--local", "--json"),
        stdin="What is the capital of France?\nTell me the capital city of France.\n",
    )

    miss, semantic = as_json(ran)
    assert (miss["status"], semantic["status"]) == ("miss", "semantic")
    assert "Paris" in miss["text"]
    assert semantic["text"] == miss["text"]


def test_in_a_terminal_it_asks_line_by_line_until_ctrl_d(
    environment, redis_url, namespace, service
):
    command = ["chat", "--redis-url", redis_url, "--namespace", namespace]
    code, shown = in_terminal(command, {**environment, **service}, typed=["Hi\n", "Hi\n", "\x04"])

    assert code == 0
    assert "miss, " in shown
    assert "exact, " in shown


def test_in_a_terminal_a_failure_does_not_end_the_conversation(environment, plain_redis, service):
    command = ["chat", "--redis-url", plain_redis]
    code, shown = in_terminal(
        command, {**environment, **service}, typed=["Hi\n", "Hello\n", "\x04"]
    )

    assert code == 0
    assert shown.count("this Redis has no search module") == 2


def in_terminal(
    command: list[str], environment: dict[str, str], *, typed: list[str]
) -> tuple[int, str]:
    """Run a command in a terminal where somebody types whenever there is a prompt.

    Returns the exit code and what was shown, without colours.
    """
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "llm_cache.cli", *command],
        env={**environment, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        shown = b""
        prompts = 0
        while part := _read(ours):
            shown += part
            if shown.count("› ".encode()) > prompts:
                os.write(ours, typed[prompts].encode())
                prompts += 1
    os.close(ours)
    return process.returncode, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())


def _read(terminal: int) -> bytes:
    ready, _, _ = select.select([terminal], [], [], 20)
    assert ready, "the command waits for something that nobody types"
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that nobody holds the other end any more
        return b""
