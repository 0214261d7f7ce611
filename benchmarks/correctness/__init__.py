"""How often the semantic layer serves, and how often it serves the wrong answer.

`python -m benchmarks correctness --data DIR --write docs/correctness.md` replaces what stands on
that page between two comments; the rest of it is prose.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

_BEGIN, _END = "<!-- results -->", "<!-- end of results -->"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what this benchmark takes."""
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--resamples", type=int, default=3, help="permutations of each stream")
    parser.add_argument("--logs", type=int, default=40, help="synthetic logs of each kind")
    parser.add_argument("--workers", type=int, default=1, help="processes; the results are equal")
    parser.add_argument(
        "--peers-python", type=Path, help="interpreter of an environment with gptcache and redisvl"
    )
    parser.add_argument("--write", type=Path, help="put the results into this page")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and write if asked to."""
    from benchmarks.correctness import report
    from benchmarks.correctness.workers import in_processes

    if not (arguments.data / "banking77_train.csv.gz").is_file():
        print(f"--data: there is no banking77_train.csv.gz in {arguments.data}", file=sys.stderr)
        return 2
    lines: list[str] = []
    with in_processes(arguments.workers) as each:
        for line in report.lines(
            arguments.data, arguments.resamples, arguments.logs, arguments.peers_python, each
        ):
            print(line, flush=True)
            lines.append(line)
    if arguments.write is not None:
        path: Path = arguments.write
        page = path.read_text(encoding="utf-8") if path.exists() else f"{_BEGIN}\n{_END}\n"
        path.write_text(put(page, lines), encoding="utf-8")
    return 0


def put(page: str, lines: Sequence[str]) -> str:
    """Return *page* with *lines* in place of the results that it has."""
    results = "\n".join([_BEGIN, *lines, _END])
    return re.sub(f"{_BEGIN}.*?{_END}", lambda _: results, page, flags=re.DOTALL)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks correctness", description=__doc__)
    add_arguments(parser)
    sys.exit(run(parser.parse_args(argv)))
