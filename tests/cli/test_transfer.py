"""`llm-cache export` and `import`: answers out of one Redis and into another, from the shell."""

from __future__ import annotations

import json
import stat

import pytest

QUESTION = "What is the capital of France?"
REPHRASED = "what is the capital of france"


@pytest.fixture
def there(cli, own_redis, service):
    """Run a command on the second one."""

    def there(command, *args, **options):
        options.setdefault("env", service)
        return cli(command, "--redis-url", own_redis, *args, **options)

    return there


@pytest.fixture
def file(run, tmp_path):
    """An export of an answer, its alias, and the answer of a tenant."""
    for args in ((QUESTION,), (REPHRASED,), ("--tenant", "acme", QUESTION)):
        assert run("chat", *args).exit_code == 0
    path = tmp_path / "answers.jsonl.gz"
    ran = run("export", str(path), env={})
    assert ran.exit_code == 0, ran.output
    return path


def test_answers_move_without_a_key_or_a_service(file, there):
    ran = there("import", str(file), "--json", env={})

    assert json.loads(ran.stdout)["written"] == 3
    assert json.loads(there("chat", "--json", QUESTION).stdout)["status"] == "exact"
    asked = json.loads(there("chat", "--json", "WHAT is the capital of France?").stdout)
    assert asked["status"] == "semantic"


def test_people_are_told_what_is_in_the_file_and_who_may_read_it(run, tmp_path, file):
    path = tmp_path / "acme.jsonl"
    ran = run("export", str(path), "--tenant", "acme")

    assert "answers       1\naliases       0\nsemantic      1 entries\n" in ran.stdout
    assert "in clear. Only you may read it." in ran.stdout
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_export_counts_as_json(run, tmp_path, file):
    told = json.loads(run("export", str(tmp_path / "a.jsonl"), "--json").stdout)

    assert (told["answers"], told["aliases"], told["semantic"]) == (2, 1, 2)
    assert told["size_bytes"] > 0


def test_people_are_told_what_became_of_each_answer(file, there):
    first = there("import", str(file)).stdout
    second = there("import", str(file)).stdout

    assert "written       3, with 2 semantic entries\n" in first
    assert "written       0, with 0" in second
    assert "present       3: the same or a newer answer is there\n" in second


def test_a_dry_run_tells_what_a_file_holds_and_needs_no_redis(file, cli):
    ran = cli("import", str(file), "--dry-run", "--redis-url", "redis://127.0.0.1:1")
    told = json.loads(cli("import", str(file), "--dry-run", "--json").stdout)

    assert ran.exit_code == 0
    assert "answers       2\naliases       1\n" in ran.stdout
    assert told["answers"] == 2


def test_vectors_may_be_made_anew(run, there, tmp_path, file):
    path = tmp_path / "small.jsonl"
    assert run("export", str(path), "--no-vectors").exit_code == 0

    refused = there("import", str(path))
    told = json.loads(there("import", str(path), "--vectors", "embed", "--json").stdout)

    assert refused.exit_code == 1
    assert "--vectors embed" in refused.stderr
    assert (told["written"], told["embedded"]) == (3, 2)
    asked = json.loads(there("chat", "--json", "WHAT is the capital of France?").stdout)
    assert asked["status"] == "semantic"


def test_what_cannot_be_is_one_line_and_the_right_exit_code(run, there, tmp_path, file):
    foreign = tmp_path / "notes.txt"
    foreign.write_text("my notes\n")

    for ran, code, words in (
        (run("export", str(file)), 2, "is there"),
        (run("export", str(tmp_path / "missing" / "a.jsonl")), 2, "no directory"),
        (run("export", str(tmp_path / "b.jsonl"), "--resume"), 2, "to resume"),
        (run("export", str(tmp_path / "c.jsonl"), "--tenant", ""), 2, "--tenant"),
        (there("import", str(foreign)), 1, "line 1: this is no export"),
        (there("import", str(tmp_path / "missing")), 1, "No such file"),
    ):
        assert (ran.exit_code, ran.stdout) == (code, "")
        assert words in ran.stderr
        assert "Traceback" not in ran.stderr
