"""The command as a whole: usage, exit codes, and what it does not import."""

from __future__ import annotations

import subprocess
import sys

import pytest

import llm_cache

COMMANDS = (
    *("demo", "chat", "explain", "inspect", "invalidate", "warm"),
    *("review", "tune", "export", "import", "stats", "savings", "doctor"),
)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_version(cli):
    ran = cli("--version")

    assert ran.exit_code == 0
    assert ran.stdout == f"llm-cache {llm_cache.__version__}\n"


def test_help_names_every_command_and_the_exit_codes(cli):
    ran = cli("--help")

    assert ran.exit_code == 0
    assert all(command in ran.stdout for command in COMMANDS)
    assert "Exit codes: 0" in ran.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_fits_a_narrow_terminal(cli, command):
    ran = cli(command, "-h", env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})

    assert ran.exit_code == 0
    assert "--namespace" in ran.stdout
    assert "Exit codes: 0" in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("bake",),
        ("demo", "--no-such-option"),
        ("demo", "--questions", "0"),
        ("demo", "--questions", "1001"),
        ("demo", "--data", "x", "--redis-url", "redis://localhost"),
        ("demo", "--price-model", "no-such-model"),
        ("chat", "--namespace", "a b", "hi"),
        ("chat", "--ttl", "0", "hi"),
        ("chat", "--threshold", "1.01", "hi"),
        ("chat", "--local", "--model", "gpt-4o", "hi"),
        ("stats", "--namespace", ""),
        ("stats", "--interval", "0"),
        ("stats", "--price", "gpt-4o"),
        ("stats", "--price", "gpt-4o=1"),
        ("stats", "--price", "=1,2"),
        ("stats", "--price", "m=1,-2"),
        ("stats", "--price-model", "no-such-model"),
        ("savings", "--requests", "10"),
        ("savings", "--hit-rate", "1.01"),
        ("savings", "--input-price", "5"),
        ("doctor", "--threshold", "-0.1"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(cli, args):
    ran = cli(*args)

    assert ran.exit_code == 2
    assert "Traceback" not in ran.output


def test_without_typer_and_rich_it_says_what_to_install():
    ran = python("import sys; sys.modules['typer'] = None; import llm_cache.cli as c; c.main()")

    assert ran.returncode == 1
    assert "pip install 'llm-cache[cli]'" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_help_imports_neither_models_nor_the_sdk():
    ran = python(
        "import sys\n"
        "from llm_cache.cli import main\n"
        "sys.argv = ['llm-cache', '--help']\n"
        "try: main()\n"
        "except SystemExit as done: assert not done.code\n"
        "print(*sys.modules)"
    )

    heavy = {"openai", "onnxruntime", "tokenizers", "genai_prices", "pydantic", "xllamacpp"}
    assert ran.returncode == 0, ran.stderr
    assert not heavy & set(ran.stdout.split())


@pytest.mark.parametrize(
    ("shell", "environment"),
    [
        ("bash", {"COMP_WORDS": "llm-cache sav", "COMP_CWORD": "1"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "llm-cache sav"}),
        (
            "fish",
            {"_TYPER_COMPLETE_ARGS": "llm-cache sav", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
        ),
    ],
)
def test_shells_complete_commands(shell, environment):
    ran = subprocess.run(
        [sys.executable, "-c", "from llm_cache.cli import main; main()"],
        env={"_LLM_CACHE_COMPLETE": f"complete_{shell}", **environment},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "savings" in ran.stdout
    assert "stats" not in ran.stdout


def test_it_runs_as_a_module():
    ran = subprocess.run(
        [sys.executable, "-m", "llm_cache.cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert ran.stdout.startswith("llm-cache ")
