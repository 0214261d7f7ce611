"""`python -m benchmarks faults`: break things under load, and look at every answer.

Each scenario has a Redis, a network and a model of its own and 200 callers. It fails where a call
fails, an answer is wrong, the budget is exceeded, or what was broken is not whole again in time.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.faults.measure import Row, measure
from benchmarks.faults.scenarios import SCENARIOS
from benchmarks.faults.stage import Settings
from benchmarks.micro.settings import Settings as Around
from benchmarks.micro.settings import record, table, write
from benchmarks.session import UpstreamProcess

THINKING = ("--delay-ms", "20", "--jitter-ms", "10")
"""How long the model takes."""
COLUMNS = {
    "scenario": "about",
    "calls": "calls:,",
    "failed": "failed",
    "wrong": "wrong",
    "added p50 ms": "fault_added_p50_ms:.1f",
    "p99": "fault_added_p99_ms:.0f",
    "loop lag p99": "fault_lag_p99_ms:.0f",
    "whole again after s: exact": "recovered_exact_s:.2f",
    "semantic": "recovered_semantic_s:.2f",
    "hit rate after / before": "hit_rate_ratio:.3f",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="a second of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path, metavar="DIR", help="keep results in DIR")


def run(arguments: argparse.Namespace) -> int:
    """Run what was asked for; return 1 where a promise was broken."""
    unknown = set(arguments.names) - set(SCENARIOS)
    if unknown:
        print(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
        return 2
    names = arguments.names or list(SCENARIOS)
    settings = Settings.quickly() if arguments.quick else Settings()
    return asyncio.run(_run(names, replace(settings, seed=arguments.seed), arguments.write))


async def _run(names: Sequence[str], settings: Settings, folder: Path | None) -> int:
    rows: list[Row] = []
    async with UpstreamProcess(*THINKING) as upstream:
        for name in names:
            row = await measure(SCENARIOS[name], settings, upstream.base_url)
            rows.append(row)
            print(_line(row), flush=True)
            if folder is not None:
                around = Around(seed=settings.seed, quick=settings.quick)
                write(folder / "faults.json", record("faults", rows, around, {}))
    print(f"\n{table(COLUMNS, rows)}")
    return 1 if any(row["broken_promises"] for row in rows) else 0


def _line(row: Row) -> str:
    told = ", ".join(f"{count} {status}" for status, count in row["statuses"].items())
    broken = "; ".join(row["broken_promises"]) or "holds"
    return f"{row['scenario']:17} {broken}  ({told})"
