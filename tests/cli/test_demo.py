"""`llm-cache demo`: real models, a real Redis, and what people see of them."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from llm_cache import CacheStatus, ChatReply
from llm_cache._ends import Fresh
from llm_cache.cli.demo import _Asked, _Rows
from llm_cache.cli.screen import Screen

ROW = re.compile(r" *(\d+)  (.+?)  +(exact|semantic|miss|bypass) .* [\d.]+ m?s", re.MULTILINE)


def statuses(shown: str) -> list[str]:
    return [status for _, _, status in ROW.findall(shown)]


def start(*args: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "llm_cache.cli", "demo", *args],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def still_running(session: int) -> list[int]:
    """Return the processes of a session; a zombie that waits for a slow init is none."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(status.parent.name))
    return found


@pytest.fixture
def temporary(environment, tmp_path_factory) -> dict[str, str]:
    """An environment whose temporary directory is a test's own, with a path that a socket fits."""
    return {**environment, "TMPDIR": str(tmp_path_factory.mktemp("t"))}


# --- the real models ----------------------------------------------------------------------------


def test_real_models_show_a_miss_a_semantic_and_an_exact_hit(temporary):
    with start("--questions", "6", "--plain", environment=temporary) as demo:
        shown, errors = demo.communicate(timeout=60)

    assert demo.returncode == 0, errors
    assert errors == ""
    assert len(statuses(shown)) == 6
    assert {"miss", "semantic", "exact"} <= set(statuses(shown))
    assert "└ as: " in shown
    assert re.search(r"Hit rate +\d+%: \d of 6 without the model", shown)
    assert re.search(r"Median +exact [\d.]+ ms, semantic [\d.]+ m?s, miss [\d.]+ m?s", shown)
    assert re.search(r"\d+ tokens \(\d+ of prompts, \d+ of answers\)", shown)
    assert re.search(r"0\.\d+ USD, .* would have cost at gpt-4o-mini", shown)
    assert "\x1b" not in shown
    assert list(Path(temporary["TMPDIR"]).iterdir()) == []
    assert still_running(demo.pid) == []


def test_a_second_run_with_the_same_directory_starts_with_hits(cli, tmp_path):
    data = str(tmp_path / "data")

    first = cli("demo", "--questions", "2", "--data", data)
    second = cli("demo", "--questions", "2", "--data", data)

    assert statuses(first.stdout) == ["miss", "miss"]
    assert statuses(second.stdout) == ["exact", "exact"]
    # The model's server has told how long it took, so that the savings are known without a miss.
    assert re.search(r"exact +– +[\d.]+ ms +[\d.]+ m?s  ", second.stdout)
    assert f"The answers are kept in {data}" in second.stdout
    assert first.exit_code == second.exit_code == 0


def test_ctrl_c_ends_everything_it_started(temporary):
    with start("--questions", "200", environment=temporary) as demo:
        assert demo.stdout is not None
        while not statuses(demo.stdout.readline()):
            assert demo.poll() is None
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=20)

    assert demo.returncode == 130
    assert errors == ""
    assert still_running(demo.pid) == []
    assert list(Path(temporary["TMPDIR"]).iterdir()) == []


# --- a service in place of the local models -----------------------------------------------------


@pytest.fixture
def demo(cli, redis_url, namespace, service):
    """Run the demonstration with the service and the Redis of the tests."""

    def run(*args, **options):
        options.setdefault("env", service)
        return cli(
            *("demo", "--openai", "--redis-url", redis_url, "--namespace", namespace),
            *args,
            **options,
        )

    return run


def test_openai_and_any_redis_take_the_place_of_the_local_ones(demo, redis_url, namespace):
    ran = demo("--questions", "4")

    assert ran.exit_code == 0
    assert "gpt-4o-mini and text-embedding-3-small, of OpenAI" in ran.stdout
    assert statuses(ran.stdout) == ["miss", "miss", "miss", "exact"]
    with Redis.from_url(redis_url) as redis:
        assert redis.keys(f"{namespace}:x:*")


def test_a_real_redis_keeps_the_answers_for_the_next_run(demo):
    demo("--questions", "4")

    assert statuses(demo("--questions", "4").stdout) == ["exact"] * 4


def test_twenty_questions_are_asked_unless_told_otherwise(demo):
    assert len(statuses(demo().stdout)) == 20


def test_another_seed_asks_other_questions(demo):
    def asked(*args: str) -> list[str]:
        return [question for _, question, _ in ROW.findall(demo("--questions", "5", *args).stdout)]

    assert asked("--seed", "1") == asked("--seed", "1") != asked()


@pytest.mark.parametrize(("columns", "has_answers"), [(80, False), (109, False), (110, True)])
def test_rows_fit_the_terminal(capsys, monkeypatch, columns, has_answers):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    rows = _Rows(Screen(live=False), 20)
    reply = ChatReply(
        status=CacheStatus.SEMANTIC,
        key="key",
        source=Fresh({"choices": [{"message": {"content": "A long\nanswer. " * 20}}]}),
        similarity=0.9,
    )
    rows.header()
    rows.row(_Asked("A long question? " * 20, reply, 0.0123, 1.5, note="a long note " * 20))

    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert lines[2].startswith(" 1  A long question? A")
    assert re.search("…  semantic  0.90  12.3 ms   1.50 s", lines[2])
    assert max(map(len, lines)) == columns
    assert ("A long answer. A" in lines[2]) is has_answers


def test_openai_needs_a_key(cli):
    ran = cli("demo", "--openai")

    assert ran.exit_code == 1
    assert ran.stdout == ""
    assert ran.stderr == "llm-cache: --openai needs a key: set OPENAI_API_KEY\n"


def test_no_redis_is_one_line(demo):
    ran = demo("--redis-url", "redis://127.0.0.1:1")

    assert ran.exit_code == 1
    assert "no usable Redis at redis://127.0.0.1:1" in ran.stderr
    assert "Traceback" not in ran.output


def test_a_redis_without_search_names_the_way_out(demo, plain_redis):
    ran = demo("--redis-url", plain_redis)

    assert ran.exit_code == 1
    assert "search module" in ran.stderr
