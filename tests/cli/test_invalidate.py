"""`llm-cache invalidate`: broad ones only with --yes."""

from __future__ import annotations

import json
from typing import Any

import pytest

QUESTION = "What is the capital of France?"


def status(run: Any, *args: str) -> tuple[str, str]:
    told = json.loads(run("chat", "--json", "--no-semantic", *args, QUESTION).stdout)
    return told["status"], told["key"]


@pytest.mark.parametrize(
    "selected",
    [
        ("--model", "gpt-4o-mini"),
        ("--older-than", "0"),
        ("--all",),
        ("--no-tenant",),
        ("--system", "You are a helpful assistant."),
    ],
)
def test_what_is_broad_is_counted_until_yes(run, selected):
    assert status(run)[0] == "miss"

    counted = run("invalidate", *selected)
    assert counted.stdout.splitlines() == [
        "1 answer would be invalidated",
        "nothing was done; add --yes to do it",
    ]
    assert status(run)[0] == "exact"

    assert "invalidated" in run("invalidate", *selected, "--yes").stdout
    assert status(run)[0] == "miss"


def test_a_single_answer_is_invalidated_at_once(run):
    _, key = status(run)

    assert json.loads(run("invalidate", "--key", key, "--dry-run", "--json").stdout) == {
        "reached": 1,
        "complete": True,
        "dry_run": True,
    }
    assert run("invalidate", "--key", key).stdout == "1 answer invalidated\n"
    assert status(run)[0] == "miss"


def test_a_tenant_is_named_with_the_secret_of_the_environment(run, service):
    env = {**service, "LLM_CACHE_TENANT_SECRET": "a secret of some length"}
    asked = ("chat", "--json", "--no-semantic", "--tenant", "a", QUESTION)
    run(*asked, env=env)

    assert "0 answers would" in run("invalidate", "--tenant", "a").stdout
    assert "1 answer would" in run("invalidate", "--tenant", "a", env=env).stdout


def test_patterns_need_no_embedder(run):
    run("chat", "--json", QUESTION)

    assert "1 answer would" in run("invalidate", "--pattern", "*CAPITAL of f*", env={}).stdout
    assert "0 answers would" in run("invalidate", "--pattern", "capital*", env={}).stdout


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("--all", "--tag", "x"),
        ("--tenant", "a", "--no-tenant"),
        ("--tag", "x", "--model", "m"),
        ("--tag", ""),
        ("--pattern", "**"),
        ("--key", "nonsense"),
        ("--older-than", "-1"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(run, args):
    assert run("invalidate", *args).exit_code == 2


def test_answers_without_an_index_are_told_of(run):
    status(run)

    refused = run("invalidate", "--pattern", "*capital*")
    assert refused.exit_code == 2
    assert "allow_partial" in refused.stderr
    partial = run("invalidate", "--pattern", "*capital*", "--allow-partial")
    assert "there may be more" in partial.stdout
