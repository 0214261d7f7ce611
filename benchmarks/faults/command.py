"""`python -m benchmarks faults`: break things under load, and look at every answer.

Each scenario has a Redis, a network and a model of its own and 200 callers. It fails where a call
fails, an answer is wrong, the budget is exceeded, or what was broken is not whole again in time.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.faults import identity, leaders
from benchmarks.faults.measure import Row, measure
from benchmarks.faults.scenarios import SCENARIOS
from benchmarks.faults.stage import Settings
from benchmarks.micro.settings import Settings as Around
from benchmarks.micro.settings import record, table, write
from benchmarks.session import UpstreamProcess

THINKING = ("--delay-ms", "200", "--jitter-ms", "100")
"""How long the model takes: so long that many calls are under way at once."""
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


LEADER_COLUMNS = {
    "scenario": "about",
    "calls": "calls:,",
    "failed": "failed",
    "wrong": "wrong",
    "asked the model": "asked_the_model",
    "after its death, p50 ms": "after_death_p50_ms:.0f",
    "p99": "after_death_p99_ms:.0f",
}
CLIENT_COLUMNS = {
    "scenario": "about",
    "calls": "calls:,",
    "hits": "hits:,",
    "failed": "failed",
    "answers of others": "foreign",
    "wrong": "wrong",
}
NAMES = [*SCENARIOS, leaders.NAME, identity.NAME, f"{identity.NAME}-cluster"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(NAMES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="a second of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path, metavar="DIR", help="keep results in DIR")


def run(arguments: argparse.Namespace) -> int:
    """Run what was asked for; return 1 where a promise was broken."""
    unknown = set(arguments.names) - set(NAMES)
    if unknown:
        print(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
        return 2
    names = arguments.names or NAMES
    settings = Settings.quickly() if arguments.quick else Settings()
    return asyncio.run(_run(names, replace(settings, seed=arguments.seed), arguments.write))


async def _run(names: Sequence[str], settings: Settings, folder: Path | None) -> int:
    rows: list[Row] = []
    async with UpstreamProcess(*THINKING) as upstream:
        for name in names:
            row = await one(name, settings, upstream.base_url)
            rows.append(row)
            print(f"{name:17} {'; '.join(row['broken_promises']) or 'holds'}", flush=True)
            if folder is not None:
                around = Around(seed=settings.seed, quick=settings.quick)
                write(folder / "faults.json", record("faults", rows, around, {}))
    for columns, of_kind in kinds(rows):
        print(f"\n{table(columns, of_kind)}")
    return 1 if any(row["broken_promises"] for row in rows) else 0


async def one(name: str, settings: Settings, upstream_url: str) -> Row:
    """Run the scenario of that name."""
    if name == leaders.NAME:
        return await leaders.measure(settings, upstream_url)
    if name.startswith(identity.NAME):
        return await identity.measure(settings, on_cluster=name.endswith("cluster"))
    return await measure(SCENARIOS[name], settings, upstream_url)


def kinds(rows: Sequence[Row]) -> list[tuple[Mapping[str, str], list[Row]]]:
    """Return the rows that share columns, with these."""
    by_key = {"lasted_s": COLUMNS, "after_death_p99_ms": LEADER_COLUMNS, "foreign": CLIENT_COLUMNS}
    found = [(columns, [row for row in rows if key in row]) for key, columns in by_key.items()]
    return [(columns, of_kind) for columns, of_kind in found if of_kind]
