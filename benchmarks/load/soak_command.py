"""`soak`: a steady rate for long: does anything grow, fail or leak?

By default 70 % of the knee, for 20 minutes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

from redis import asyncio as redis_py

from benchmarks.command import add_options, measured, positive
from benchmarks.load.command import add_load_options, described, fleet_of
from benchmarks.load.fleet import Fleet, Step
from benchmarks.load.sweep import Limit, find_knee
from benchmarks.results import Results
from benchmarks.session import Session
from llm_cache._core.keys import Keys

Json = dict[str, Any]
MOST_GROWTH = 0.02
_TTL_S = 60.0
_WRITES, _AT_ONCE = 1_000_000, 10_000
"""Before a soak, to an index: so many fill the table of documents (`_age`)."""
_WARM_UP_LIFETIMES = 5
"""What was stored together at the start expires together; of that swing a hundredth is left then,
as lifetimes are spread."""
_POINTS = 240
_PER_WORKER = 55
"""50 in the pool of a cache, and five beside it: look-ups, searches, leases, stores, news."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_options(parser, embedder="instant")
    add_load_options(parser)
    parser.set_defaults(ttl_s=_TTL_S)
    parser.add_argument("--minutes", type=positive, default=20.0, help="after warming up")
    parser.add_argument(
        "--warm-up-minutes", type=positive, help="default: 5 lifetimes of an answer, at least 2"
    )
    parser.add_argument("--rate", type=positive, help="requests/s; default: 70 %% of the knee")


def run(arguments: argparse.Namespace) -> int:
    """Measure and write the report."""

    async def measure(session: Session, results: Results) -> None:
        await soak(arguments, session, results)

    return measured(arguments, measure)


async def soak(arguments: argparse.Namespace, session: Session, results: Results) -> None:
    """Find the rate, warm up until nothing fills up any more, and watch.

    Answers live for a minute only: what is stored and what expires are then in balance before the
    watching begins, and whatever still grows is a leak.
    """
    section = results.section("soak")
    section.update(described(arguments), minutes=arguments.minutes)
    async with fleet_of(arguments, session) as (fleet, prepare):
        others = await _connections(session)
        await prepare()
        section["writes_before"] = await _age(session)
        rate = arguments.rate
        if rate is None:
            knee = await _knee(arguments, session, fleet)
            section["knee_per_s"] = knee
            if knee is None:
                results.note("soak: no knee was found; name a rate with --rate")
                return
            rate = 0.7 * knee
        section["rate_per_s"] = rate
        ttl_s = arguments.ttl_s or _TTL_S
        warm_up_s = 60 * (arguments.warm_up_minutes or max(2.0, _WARM_UP_LIFETIMES * ttl_s / 60))
        if session.stop.is_set():
            return
        await fleet.run(Step(warm_up_s, rate, arrivals=arguments.arrivals, seed=session.seed))
        if session.stop.is_set():
            return
        step = Step(60 * arguments.minutes, rate, arrivals=arguments.arrivals, seed=1)
        figures = await fleet.run(step)
        section["warm_up_s"] = warm_up_s
        section["steady"] = summarised(figures)
        most = others + arguments.workers * _PER_WORKER + 1  # the watch has one
        check(results, section["steady"], most_connections=most)


async def _knee(arguments: argparse.Namespace, session: Session, fleet: Fleet) -> float | None:
    async def step(rate: float) -> Json | None:
        if session.stop.is_set():
            return None
        return await fleet.run(Step(arguments.seconds, rate, arrivals=arguments.arrivals))

    found = await find_knee(step, Limit(arguments.p99_ms / 1000), start_per_s=arguments.start_rate)
    knee: float | None = found["knee_per_s"]
    return knee


def summarised(figures: Json) -> Json:
    """Return the figures of the steady stretch with what grew, and fewer points."""
    points = figures["seconds_seen"]
    seen = [point for point in points if "redis_memory_bytes" in point]
    every = max(1, len(points) // _POINTS)
    return {
        **figures,
        "seconds_seen": points[::every],
        "client_growth": growth([sum(point["rss_bytes"]) for point in points]),
        "redis_growth": growth([point["redis_memory_bytes"] for point in seen]),
        "most_connections": max((point["redis_connections"] for point in seen), default=None),
    }


def growth(values: Sequence[float]) -> float | None:
    """Return by what share the last tenth is above the first; `None` for too few values.

    A tenth is at least 30 s, which is how often the search module sweeps out what has expired.
    """
    tenth = max(30, len(values) // 10)
    if len(values) < 3 * tenth:
        return None
    first, last = statistics.median(values[:tenth]), statistics.median(values[-tenth:])
    return last / first - 1 if first else None


async def _age(session: Session) -> int:
    """Bring the search module to where it is after a million writes; return how many were made.

    It keeps a few bytes for every write there ever was to an index, up to a million of them
    (`MAXDOCTABLESIZE`); 20 minutes of load would otherwise see nothing but that table grow.
    """
    client: Any = redis_py.Redis.from_url(session.redis_url, protocol=2)
    keys = Keys(session.namespace("load"))
    try:
        names = [name.decode() for name in await client.execute_command("FT._LIST")]
        # By its name an entry, without a vector: no search finds it.
        written = [
            await _write_to(f"{keys.entry_prefix(space)}none", client, session)
            for name in names
            if (space := keys.space(name))
        ]
    finally:
        await client.aclose()
    return sum(written)


async def _write_to(key: str, client: Any, session: Session) -> int:
    """Write a hash *key* a million times, and remove it; return how often it was written."""
    written = 0
    with session.progress.bar("writing to the index", _WRITES) as advance:
        while written < _WRITES and not session.stop.is_set():
            pipeline = client.pipeline(transaction=False)
            for _ in range(_AT_ONCE):
                pipeline.hset(key, "scope", "none")
            await pipeline.execute()
            advance(_AT_ONCE)
            written += _AT_ONCE
    await client.unlink(key)
    return written


async def _connections(session: Session) -> int:
    """Return how many connections Redis has without the load, this one left out."""
    client: Any = redis_py.Redis.from_url(session.redis_url)
    try:
        return int((await client.info("clients"))["connected_clients"]) - 1
    finally:
        await client.aclose()


def check(results: Results, figures: Json, *, most_connections: int) -> None:
    """Put what must hold into *results*."""
    if figures["failures"]:
        results.note(f"soak: the cache worked around failures: {figures['failures']}")
    trouble = sum(figures["errors"].values()) + figures["unfinished"]
    trouble += figures["statuses"].get("bypass", 0)
    results.check(
        "soak: no call fails, none is bypassed",
        ok=trouble == 0,
        expected="0",
        measured=f"{trouble}",
    )
    results.check(
        "soak: no wrong answer",
        ok=figures["wrong"] + figures["foreign"] == 0,
        expected="0",
        measured=f"{figures['wrong'] + figures['foreign']}",
    )
    for who, name in (("client", "the clients"), ("redis", "Redis")):
        grown = figures[f"{who}_growth"]
        if grown is None:
            results.note(f"soak: too short to tell whether the memory of {name} grows")
            continue
        results.check(
            f"soak: memory of {name} grows by at most 2 %",
            ok=grown <= MOST_GROWTH,
            expected="≤ +2.0 %",
            measured=f"{100 * grown:+.1f} %",
        )
    connections = figures["most_connections"]
    if connections is not None:
        results.check(
            "soak: connections to Redis are bounded",
            ok=connections <= most_connections,
            expected=f"≤ {most_connections}",
            measured=f"{connections}",
        )
