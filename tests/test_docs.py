"""What the pages under docs/ say of numbers and commands is what there is."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from benchmarks.correctness import put
from llm_cache import CacheConfig
from llm_cache._core.shadow import Shadow
from llm_cache.metrics import PrometheusHook

ROOT = Path(__file__).parent.parent
OBSERVABILITY = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
CORRECTNESS = (ROOT / "docs" / "correctness.md").read_text(encoding="utf-8")
CLI = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def first_column(page: str, title: str) -> set[str]:
    """Return the names in the first column of the table headed *title*."""
    table = page.partition(f"| {title} |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


async def test_every_number_is_described(cache):
    await cache.chat("question")
    told = {*await cache.server_stats(), *await cache.server_stats(tenant=None)}
    assert first_column(OBSERVABILITY, "key") == told


async def test_models_and_tenants_have_the_rows_it_says(cache):
    await cache.chat("question", tenant="acme")
    stats = await cache.server_stats()
    above = first_column(OBSERVABILITY.partition("| `embedding` |")[0] + "\n\n", "key")
    for told in (*stats["models"].values(), *stats["tenants"].values()):
        assert told.keys() == above


def test_every_metric_is_described():
    registry = CollectorRegistry()
    PrometheusHook(registry)
    names = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in registry.collect()
    }
    assert first_column(OBSERVABILITY, "metric") == names


def test_the_example_of_the_savings_prints_what_it_says(tmp_path):
    example = next(
        b for b in re.findall(r"```python\n(.*?)```", OBSERVABILITY, re.DOTALL) if "Price(" in b
    )
    ran = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, check=True
    )
    assert f"# {ran.stdout}" in example


def test_examples_of_correct_hits_can_be_typed_in():
    examples = re.findall(r"```python\n(.*?)```", CORRECTNESS, re.DOTALL)
    for example in examples:
        compile(example, "docs/correctness.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    given = re.search(r"config = (CacheConfig\(.*?\))", "".join(examples))
    assert given
    assert eval(given[1], {"CacheConfig": CacheConfig}).verify_from == 0.75


def test_outcomes_of_shadow_mode_are_described():
    table = CORRECTNESS.partition('`stats()["shadow"]` counts:')[2].partition("\n\nModels")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == {str(o) for o in Shadow}


def test_measurements_take_the_place_of_the_last_ones():
    page = put(CORRECTNESS, ["nothing"])
    assert page.startswith(CORRECTNESS.partition("<!-- results -->")[0])
    assert page.endswith("<!-- results -->\nnothing\n<!-- end of results -->\n")


def test_every_command_is_described():
    ran = subprocess.run(
        [sys.executable, "-m", "llm_cache.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    commands = re.findall(r"^  (\w+)  ", ran.stdout.partition("Commands:")[2], re.MULTILINE)
    assert first_column(CLI, "command") == {f"llm-cache {name}" for name in commands}


def test_the_savings_of_the_example_are_what_it_prints():
    example = re.search(r"(llm-cache savings .*?)\n```\n\n```text\n(.*?)```", CLI, re.DOTALL)
    assert example
    words = shlex.split(example[1].replace("\\\n", " "))
    ran = subprocess.run(
        [sys.executable, "-m", "llm_cache.cli", *words[1:]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == example[2]


@pytest.mark.parametrize("command", ["chat", "explain", "stats", "savings", "doctor"])
def test_commands_print_json_as_it_says(command):
    ran = subprocess.run(
        [sys.executable, "-m", "llm_cache.cli", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--json" in ran.stdout
