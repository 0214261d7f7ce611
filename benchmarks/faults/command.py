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
from benchmarks.faults.servers import running
from benchmarks.faults.stage import Settings
from benchmarks.micro.settings import Settings as Around
from benchmarks.micro.settings import record, server_versions, table, write
from benchmarks.session import UpstreamProcess
from tests.topologies.servers import Standalone

THINKING = ("--delay-ms", "200", "--jitter-ms", "100")
"""How long the model takes: so long that many calls are under way at once."""
COLUMNS = {
    "what goes wrong": "about",
    "for s": "lasted_s:.1f",
    "calls": "calls:,",
    "failed": "failed",
    "wrong": "wrong",
    "added ms p50": "fault_added_p50_ms:.0f",
    "p99": "fault_added_p99_ms:.0f",
    "p99 before": "calm_added_p99_ms:.0f",
    "loop late p99": "fault_lag_p99_ms:.0f",
    "whole again s: exact": "recovered_exact_s:.2f",
    "semantic": "recovered_semantic_s:.2f",
    "hits after / before": "hit_rate_ratio:.3f",
    "does not hold": "verdict",
}
END_COLUMNS = {
    "what goes wrong": "about",
    "calls meanwhile": "calls_during:,",
    "exact": "ended_exact:,",
    "semantic": "ended_semantic:,",
    "miss": "ended_miss:,",
    "bypass, because of": "bypasses",
    "lines logged": "log_lines",
}
LEADER_COLUMNS = {
    "what goes wrong": "about",
    "calls": "calls:,",
    "failed": "failed",
    "wrong": "wrong",
    "did not wait": "did_not_wait",
    "asked the model": "asked_the_model",
    "ms after its death p50": "after_death_p50_ms:.0f",
    "p99": "after_death_p99_ms:.0f",
    "does not hold": "verdict",
}
CLIENT_COLUMNS = {
    "what goes wrong": "about",
    "calls": "calls:,",
    "hits": "hits:,",
    "failed": "failed",
    "answers of others": "foreign",
    "wrong": "wrong",
    "does not hold": "verdict",
}
_SCENARIO_KEY, _LEADER_KEY, _CLIENT_KEY = "lasted_s", "after_death_p99_ms", "foreign"
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
    server = await _server()
    async with UpstreamProcess(*THINKING) as upstream:
        for name in names:
            row = await one(name, settings, upstream.base_url)
            rows.append(row)
            print(f"{name:17} {'; '.join(row['broken_promises']) or 'holds'}", flush=True)
            if folder is not None:
                around = Around(seed=settings.seed, quick=settings.quick)
                write(folder / "faults.json", record("faults", rows, around, server))
    for columns in (COLUMNS, END_COLUMNS, LEADER_COLUMNS, CLIENT_COLUMNS):
        if shown := of_kind(columns, rows):
            print(f"\n{table(columns, [told(row) for row in shown])}")
    return 1 if any(row["broken_promises"] for row in rows) else 0


async def _server() -> Row:
    async with running(Standalone) as topology:
        return await server_versions(topology.url)


async def one(name: str, settings: Settings, upstream_url: str) -> Row:
    """Run the scenario of that name."""
    if name == leaders.NAME:
        return await leaders.measure(settings, upstream_url)
    if name.startswith(identity.NAME):
        return await identity.measure(settings, on_cluster=name.endswith("cluster"))
    return await measure(SCENARIOS[name], settings, upstream_url)


def of_kind(columns: Mapping[str, str], rows: Sequence[Row]) -> list[Row]:
    """Return those of *rows* that *columns* are of."""
    keys = {
        _CLIENT_KEY: columns is CLIENT_COLUMNS,
        _LEADER_KEY: columns is LEADER_COLUMNS,
        _SCENARIO_KEY: columns in (COLUMNS, END_COLUMNS),
    }
    (key,) = (key for key, is_of_it in keys.items() if is_of_it)
    return [row for row in rows if key in row]


def told(row: Row) -> Row:
    """Return *row* with what tables show of its statuses and of its promises."""
    ended = row.get("statuses", {})
    names = ("exact", "semantic", "miss")
    bypasses = {
        name.partition(":")[2]: count for name, count in ended.items() if name not in names
    }
    return {
        **row,
        **{f"ended_{name}": ended.get(name, 0) for name in names},
        "bypasses": ", ".join(f"{count:,} {reason}" for reason, count in bypasses.items()),
        "verdict": "; ".join(row["broken_promises"]),
    }
