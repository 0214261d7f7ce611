"""What a micro benchmark is given, and what it hands back."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from redis import asyncio as redis

Row = dict[str, Any]
"""One line of results: JSON. Units are in the names."""

_PACKAGES = ("redis", "hiredis", "numpy", "openai", "onnxruntime", "uvloop")


@dataclass(frozen=True, slots=True)
class Settings:
    """What all micro benchmarks are given."""

    url: str = "embedded://"
    """Redis with RediSearch. What is measured in bytes needs one that nothing else uses."""
    data: Path | None = None
    """Folder with `banking77_{train,test}.csv.gz`, `clinc150.jsonl.gz` and
    `arena_hard_prompts_v01.jsonl.gz`; benchmarks on real texts need it."""
    cache: Path = field(default_factory=lambda: Path.home() / ".cache" / "llm_cache-benchmarks")
    """Where embeddings and the environments of peers are kept between runs."""
    seed: int = 1
    quick: bool = False
    """Small sizes, to see that everything runs."""
    deadline_s: float = 4_500.0
    """Most seconds the long benchmarks may take; what is not reached is told."""
    keep: Callable[[Sequence[Row]], None] = field(default=lambda _: None, repr=False)
    """Told all rows so far, so that a long benchmark that is stopped has left something."""

    def folder(self) -> Path:
        """Return the folder of data.

        Raises:
            MissingData: none was given.
        """
        if self.data is None:
            raise MissingData("needs --data with Banking77, CLINC150 and Arena-Hard")
        return self.data


class MissingData(Exception):
    """A benchmark needs data that was not given."""


@dataclass(frozen=True, slots=True)
class Micro:
    """One micro benchmark."""

    name: str
    run: Callable[[Settings], Awaitable[list[Row]]]
    columns: Mapping[str, str]
    """Headings of the table → key of the row and format: `"p50 ms": "p50_ms:.2f"`."""
    about: str
    """What is measured, in a sentence."""
    is_long: bool = False
    """Whether it runs only when it is named."""


def record(name: str, rows: Sequence[Row], settings: Settings, server: Row) -> Row:
    """Return what is kept of a run: rows, and all it takes to judge and repeat them."""
    return {
        "benchmark": name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(settings),
        "seed": settings.seed,
        "machine": machine(),
        "versions": {**versions(), **server},
        "rows": list(rows),
    }


def _command(settings: Settings) -> str:
    """Return what was run; where the data lay is nobody's business."""
    data = None if settings.data is None else str(settings.data)
    words = ["DATA" if word == data else word for word in sys.argv[1:]]
    return shlex.join(["python", "-m", "benchmarks", *words])


def write(path: Path, result: Row) -> None:
    """Write a result, readable and stable under `git diff`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


def table(columns: Mapping[str, str], rows: Sequence[Row]) -> str:
    """Return *rows* as a Markdown table; a row with `failed` says so across its columns."""
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[_cell(row, spec) for spec in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: Row, spec: str) -> str:
    key, _, form = spec.partition(":")
    value = row.get(key)
    if value is None:
        return "–"
    return format(value, form) if form and not isinstance(value, str) else str(value)


def machine() -> Row:
    """Return what the figures were measured on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_before": [round(load, 2) for load in os.getloadavg()],
    }


def versions() -> Row:
    """Return the versions of what takes part on the client's side."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


async def server_versions(url: str) -> Row:
    """Return the versions of the Redis at *url* and of its search module."""
    client = redis.Redis.from_url(url)
    try:
        info = await client.info("server")
        modules = await client.module_list()
    finally:
        await client.aclose()
    named = [{_text(name): _text(value) for name, value in module.items()} for module in modules]
    return {
        "redis_server": info["redis_version"],
        **{f"module_{module['name']}": module["ver"] for module in named},
    }


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "unknown")
