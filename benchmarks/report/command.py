"""`report`: write the report of a `results.json` anew, or the page of the documentation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import results
from benchmarks.errors import BadInput
from benchmarks.report.folder import write_docs, write_report

_DOCS = Path(__file__).parent.parent.parent / "docs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "results",
        type=Path,
        nargs="?",
        default=_DOCS / "benchmarks",
        help="a report's folder, or results.json; default: that of the documentation",
    )
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks.md from it")
    parser.add_argument(
        "--out", type=Path, help="folder of the report; default: beside the figures"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write it."""
    try:
        data = results.read(arguments.results)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.docs:
        print(write_docs(data, _DOCS if arguments.out is None else arguments.out))
        return 0
    given: Path = arguments.results
    folder = given if given.is_dir() else given.parent
    folder = folder if arguments.out is None else arguments.out
    print(write_report(results.Results.of(data, folder)))
    return 0
