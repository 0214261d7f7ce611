"""`make test-matrix`: a selection of the tests with each release of redis-py, protocol and Python.

Every Python of the list that is on this machine gets an environment under ~/.cache with all that
the selection needs, and one for each redis-py that lies over it. They are kept for the next time.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CACHE = Path.home() / ".cache" / "llm_cache-matrix"
PYTHONS = ("3.11", "3.12", "3.13")
REDIS = ("6.4.0", "7.*", "8.1.0")
PROTOCOLS = ("2", "3")
TOOLS = (
    *("pytest>=8.3", "pytest-asyncio>=0.25", "pytest-timeout>=2.3", "hypothesis>=6.100"),
    *("h11", "trustme"),
)
SELECTION = (
    *("tests/redis/test_wire.py", "tests/redis/test_link.py", "tests/redis/test_line.py"),
    "tests/redis/test_replica.py",
    *("tests/redis/test_reads.py", "tests/redis/test_vectors.py"),
    *("tests/redis/test_epoch.py", "tests/redis/test_counters.py", "tests/redis/test_answers.py"),
    *("tests/cache/test_chat.py", "tests/cache/test_stream.py", "tests/cache/test_layers.py"),
    *("tests/cache/test_outage.py", "tests/cache/test_isolation.py", "tests/cache/test_wrap.py"),
    *("tests/cache/test_sharing.py", "tests/cache/test_feedback.py"),
)
MOST_S = 240.0
"""A cell that takes longer has failed."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination, and what came of it."""

    python: str
    redis: str
    protocol: str
    ended: str
    seconds: float
    is_good: bool


def main() -> int:
    """Run every cell, print the table, and return 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", help="only these; default: all there are")
    parser.add_argument("--redis", action="append", help="only these; default: all")
    parser.add_argument("tests", nargs="*", default=SELECTION, help="default: a selection")
    options = parser.parse_args()
    cells = []
    for version in options.python or PYTHONS:
        python = interpreter(version)
        if python is None:
            print(f"Python {version} is not on this machine", flush=True)
            continue
        cells += list(_cells(version, python, options.redis or REDIS, options.tests))
    _print(cells)
    return 0 if cells and all(cell.is_good for cell in cells) else 1


def _cells(
    version: str, python: str, releases: Sequence[str], tests: Sequence[str]
) -> Iterator[Cell]:
    beneath = environment(f"python{version}", python, [f"{ROOT}[compression,embedded]", *TOOLS])
    for release in releases:
        over = environment(
            f"python{version}-redis{release.rstrip('.*')}",
            python,
            [f"redis[hiredis]=={release}"],
            beneath=beneath,
        )
        for protocol in PROTOCOLS:
            cell = tested(over, version, protocol, tests)
            print(f"{_named(cell)}: {cell.ended} in {cell.seconds:.0f} s", flush=True)
            yield cell


def interpreter(version: str) -> str | None:
    """Return a Python of this version: one on `PATH` that works, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}")]
    found += [str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)]
    for python in found:
        if python is not None and not _failed(python, "-c", "import ensurepip, venv"):
            return python
    return None


def environment(
    name: str, python: str, packages: list[str], *, beneath: Path | None = None
) -> Path:
    """Return an environment with *packages*, over all that is in the one *beneath*."""
    folder = CACHE / name
    stamp = folder / "packages"
    wanted = "\n".join([*packages, (ROOT / "pyproject.toml").read_text(encoding="utf-8")])
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return folder
    print(f"making {folder}", flush=True)
    subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--disable-pip-version-check", *packages], check=True)
    if beneath is not None:
        # At the end of the path: what is in both is taken from the one above.
        (_site(folder) / "beneath.pth").write_text(f"{_site(beneath)}\n", encoding="utf-8")
    stamp.write_text(wanted, encoding="utf-8")
    return folder


def tested(folder: Path, version: str, protocol: str, tests: Sequence[str]) -> Cell:
    """Run *tests* in the environment and return what came of it."""
    python = str(folder / "bin" / "python")
    release = _said(python, "-c", "import redis; print(redis.__version__)")
    started_s = time.monotonic()
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--resp", protocol, *tests]
    try:
        ran = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=MOST_S, check=False
        )
        lines = ran.stdout.strip().splitlines()
        ended = re.sub(r" in .*", "", lines[-1]) if lines else ran.stderr.strip()[-200:]
        if ran.returncode:
            print("\n".join(lines[-25:]), flush=True)
    except subprocess.TimeoutExpired:
        ran, ended = None, f"not done after {MOST_S:g} s"
    is_good = ran is not None and ran.returncode == 0
    return Cell(version, release, protocol, ended, time.monotonic() - started_s, is_good)


def _print(cells: list[Cell]) -> None:
    print("\n| Python | redis-py | RESP | | |\n| --- | --- | --- | --- | --- |")
    for cell in cells:
        good = "passes" if cell.is_good else "FAILS"
        print(f"| {cell.python} | {cell.redis} | {cell.protocol} | {good} | {cell.ended} |")


def _named(cell: Cell) -> str:
    return f"Python {cell.python}, redis-py {cell.redis}, RESP{cell.protocol}"


def _site(folder: Path) -> Path:
    return next((folder / "lib").glob("python*")) / "site-packages"


def _failed(*command: object) -> bool:
    return (
        subprocess.run(list(map(str, command)), capture_output=True, check=False).returncode != 0
    )


def _said(*command: object) -> str:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
