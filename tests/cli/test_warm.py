"""`llm-cache warm`: a file of prompts, asked before anybody else does."""

from __future__ import annotations

import json

import pytest

NOBODY = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": "x"}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,tenant\nWhat is 1 + 1?,\nWhat is 2 + 2?,acme\n")
    return path


def test_what_was_warmed_up_is_exact(run, file):
    told = json.loads(run("warm", str(file), "--json").stdout)

    assert (told["asked"], told["lines"], told["failed"]) == (2, 2, 0)
    asked = run("chat", "--json", "--tenant", "acme", "What is 2 + 2?")
    assert json.loads(asked.stdout)["status"] == "exact"


def test_people_see_what_it_took(run, file):
    assert "asked         2, 36 tokens in, 14 out\n" in run("warm", str(file)).stdout
    assert "asked         0\nthere         2\n" in run("warm", str(file)).stdout


def test_a_dry_run_tells_the_price_and_asks_nobody(run, file):
    told = json.loads(run("warm", str(file), "--dry-run", "--json", env=NOBODY).stdout)
    shown = run("warm", str(file), "--dry-run", "--model", "no-such-model", env=NOBODY).stdout

    assert told["by_model"]["gpt-4o-mini"]["calls"] == 2
    assert told["usd"] == told["by_model"]["gpt-4o-mini"]["usd"] > 0
    assert "2 of no-such-model" in shown
    assert "no price is known" in shown


def test_failing_lines_are_told_with_their_numbers_and_end_in_1(run, file):
    ran = run("warm", str(file), env=NOBODY)

    assert ran.exit_code == 1
    assert "failed        2: to be tried again by the next run\n" in ran.stdout
    assert "  line 2      APIConnectionError" in ran.stdout
    assert file.with_name("prompts.csv.warm").exists()


def test_a_mistake_in_the_last_line_is_told_before_the_first_call(run, file):
    with file.open("a") as rows:
        rows.write("What is 3 + 3?\n")
    ran = run("warm", str(file), env=NOBODY)

    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "line 4: not as many cells as columns" in ran.stderr
