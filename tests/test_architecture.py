"""Imports point one way, and only one module spells keys."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "llm_cache"

# From the outside in: a layer may import from layers below it, and within itself without a cycle.
LAYERS = [
    {"cli"},
    {"testing"},
    {"transfer", "warm", "inspection"},
    {"cache", "_wrap", "_wrap_embeddings", "calibrate"},
    {"_statistics"},
    {"_report", "metrics", "tracing"},
    {"_engine", "_explain", "_invalidate"},
    {"_streams"},
    {"_stale"},
    {"_steps"},
    {"_storing"},
    {"_scrutiny"},
    {"_ends"},
    {"_placing"},
    {"_semantic"},
    {"_decisions"},
    {"_embedding", "_batches", "_labels", "verify"},
    {"_health", "_background"},
    {"_budget", "_plan"},
    {"_terms"},
    {"_flight", "_redis", "_http", "_call", "reply", "local", "embedders", "local_chat"},
    {"_deadline", "_exports"},
    {"_core"},
    {"events", "config", "labels", "tokens", "_savings"},
    {"prices"},
    {"errors"},
]
ALONE = {"_local_chat_child", "__init__"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def imports(path: Path) -> set[str]:
    """Return the modules of ours that *path* imports, at any level, for types or for use."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llm_cache"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("llm_cache")}
    return found


def test_every_part_has_its_layer():
    parts = {part(path) for path in modules()} - ALONE
    assert parts == set().union(*LAYERS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_inwards(path):
    if part(path) in ALONE:
        return
    for name in imports(path):
        imported = name.split(".")[1] if "." in name else "__init__"
        if imported in ("__version__", *ALONE) or imported[0].isupper():
            assert part(path) in {"cli", "testing"}, f"{name} goes through the front door"
            continue
        assert layer(imported) >= layer(part(path)), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("_core/*.py")), ids=lambda path: path.name)
def test_core_is_pure(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    roots = {name.partition(".")[0] for name in names}
    assert not roots & {"asyncio", "logging", "redis", "openai", "time", "datetime", "random"}
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.AsyncFunctionDef | ast.Await)]


def test_no_module_is_called_after_nothing():
    vague = {"utils", "util", "helpers", "common", "base", "manager", "misc"}
    assert not vague & {path.stem for path in modules()}


def test_only_keys_spells_redis_keys():
    spelled = re.compile(r"""f["'].*namespace\}:""")
    found = {p.name for p in modules() if spelled.search(p.read_text(encoding="utf-8"))}
    assert found == {"keys.py"}


@pytest.mark.parametrize("word", ["pickle", "marshal", "eval(", "exec("])
def test_nothing_evaluates_what_it_reads(word):
    for path in modules():
        code = re.sub(r'""".*?"""|#.*', "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(rf"(?<![\w.-]){re.escape(word)}", code), path


@pytest.mark.parametrize("command", ["KEYS", "FLUSHDB", "FLUSHALL", "SCAN"])
def test_no_redis_command_walks_or_empties_the_database(command):
    # For the sweep and for exports, in small steps.
    allowed = {"connection.py"} if command == "SCAN" else set()
    for path in PACKAGE.glob("_redis/*.py"):
        if path.name in allowed:
            continue
        text = path.read_text(encoding="utf-8")
        assert f'"{command}"' not in text
        assert f"client.{command.lower()}(" not in text
        assert f"pipeline.{command.lower()}(" not in text


def test_heavy_packages_wait_until_they_are_needed():
    code = "import sys, llm_cache; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"openai", "tiktoken", "onnxruntime", "tokenizers", "pydantic", "typer", "rich"}
    # With their word lists, the guards and all that needs them.
    heavy |= {f"llm_cache._core.{name}" for name in ("guards", "lexicon", "hit_policy")}
    heavy |= {"llm_cache._decisions", "llm_cache._redis.policies"}
    assert not heavy & set(ran.stdout.split())
