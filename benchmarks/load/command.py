"""`load`: what happens under load.

Open-loop rate sweeps to the knee, bursts, closed loops of many callers; from a cold or a warm
cache, with 1 to 8 processes.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.command import add_options, measured, positive
from benchmarks.errors import BadInput
from benchmarks.load.arrivals import KINDS
from benchmarks.load.fleet import Fleet, Step
from benchmarks.load.population import MODEL, Mix
from benchmarks.load.sweep import Limit, find_knee
from benchmarks.results import Results
from benchmarks.session import Session, UpstreamProcess, forget
from benchmarks.workloads.datasets import arrivals as trace_arrivals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_options(parser, embedder="instant")
    add_load_options(parser)
    parser.add_argument("--rates", type=_rates, help="these rates only, as 100,200,400")
    parser.add_argument("--callers", type=_rates, default=[1, 50, 200], help="of closed loops")
    parser.add_argument("--quick", action="store_true", help="less of everything")


def add_load_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every kind of load."""
    parser.add_argument("--workers", type=int, default=1, help="processes, 1 to 8")
    parser.add_argument("--seconds", type=positive, default=10.0, help="length of each step")
    parser.add_argument("--arrivals", choices=KINDS, default="poisson")
    parser.add_argument("--trace", type=Path, help="recorded arrivals, for --arrivals trace")
    parser.add_argument("--start-rate", type=positive, default=200.0, help="where a sweep begins")
    parser.add_argument("--p99-ms", type=positive, default=250.0, help="most p99 of a knee")
    parser.add_argument(
        "--mix", type=_mix, default=Mix(), help="exact=0.9,semantic=0.08,miss=0.02,tenants=1,…"
    )
    parser.add_argument(
        "--upstream", default="scripted", help="scripted, local (a chat model), or a base URL"
    )
    parser.add_argument("--model", default=MODEL, help="of the upstream")
    parser.add_argument(
        "--upstream-ms", type=float, default=0.0, help="how long the scripted model thinks"
    )
    parser.add_argument("--upstream-p99-ms", type=float, help="its 99th percentile: lognormal")
    parser.add_argument("--answer-chars", type=int, default=500, help="length of its answers")
    parser.add_argument("--cold", action="store_true", help="begin with an empty cache")
    parser.add_argument(
        "--ttl-s", type=positive, help="longest lifetime of answers; the shortest is half of it"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure and write the report."""

    async def measure(session: Session, results: Results) -> None:
        await loads(arguments, session, results)

    return measured(arguments, measure)


async def loads(arguments: argparse.Namespace, session: Session, results: Results) -> None:
    """Sweep the rates, then bursts at 70 % of the knee, then closed loops."""
    section = results.section("load")
    section.update(described(arguments))
    async with fleet_of(arguments, session) as (fleet, prepare):
        await prepare()

        async def step(rate: float) -> dict[str, Any] | None:
            if session.stop.is_set():
                return None
            seconds = arguments.seconds
            figures = await fleet.run(
                Step(seconds, rate, arrivals=arguments.arrivals, seed=session.seed)
            )
            section.setdefault("sweep", {}).setdefault("steps", []).append(figures)
            _note_trouble(results, figures, f"{rate:,.0f}/s")
            return figures

        limit = Limit(arguments.p99_ms / 1000)
        if arguments.rates:
            section["sweep"] = await _fixed(step, limit, arguments.rates)
        else:
            section["sweep"] = await find_knee(step, limit, start_per_s=arguments.start_rate)
        knee = section["sweep"]["knee_per_s"]
        if any(each["redis_lost_at_s"] is not None for each in section["sweep"]["steps"]):
            check(results, section)
            return
        if knee is None:
            results.note(
                "No rate was kept up with: the machine is busy with something else, or the p99"
                f" limit of {arguments.p99_ms:g} ms is too low for this mix (--p99-ms)."
            )
        elif not arguments.quick and not session.stop.is_set():
            rate = 0.7 * knee
            burst = Step(arguments.seconds, rate, arrivals="burst", seed=session.seed)
            section["burst"] = await fleet.run(burst)
        section["closed"] = []
        for callers in arguments.callers:
            if session.stop.is_set():
                break
            figures = await fleet.run(Step(arguments.seconds / 2, callers=int(callers)))
            section["closed"].append(figures)
            _note_trouble(results, figures, f"{callers:g} callers")
            if figures["redis_lost_at_s"] is not None:
                break
    check(results, section)


async def _fixed(step: Any, limit: Limit, rates: list[float]) -> dict[str, Any]:
    steps, knee, failed, why = [], None, None, None
    for rate in sorted(rates):
        figures = await step(rate)
        if figures is None:
            break
        steps.append(figures)
        reason = limit.why_not(figures)
        if reason is None:
            knee = rate
        elif failed is None:
            failed, why = rate, reason
        if figures["redis_lost_at_s"] is not None:
            break
    return {
        "steps": steps,
        "knee_per_s": knee,
        "too_much_per_s": failed,
        "why": why,
        "p99_limit_s": limit.p99_s,
    }


@asynccontextmanager
async def fleet_of(
    arguments: argparse.Namespace, session: Session
) -> AsyncIterator[tuple[Fleet, Any]]:
    """Start the model and the workers; yield them with what fills the cache beforehand."""
    if arguments.arrivals == "trace":
        if arguments.trace is None:
            raise BadInput("--arrivals trace needs --trace FILE")
        trace_arrivals(arguments.trace)  # a file that cannot be read is found now
    namespace = session.namespace("load")
    await forget(session.redis_url, namespace)
    async with _upstream(arguments) as (base_url, model, echoes):
        fleet = Fleet(
            session,
            workers=arguments.workers,
            base_url=base_url,
            mix=arguments.mix,
            embedder=arguments.embedder,
            model=model,
            echoes=echoes,
            ttl_s=arguments.ttl_s,
            trace=None if arguments.trace is None else str(arguments.trace),
        )

        async def prepare() -> None:
            await fleet.open(namespace)
            if not arguments.cold:
                session.progress.say(f"asking {arguments.mix.questions:,} questions once")
                await fleet.warm()

        try:
            async with fleet:
                yield fleet, prepare
        finally:
            await _forget(session, namespace)


async def _forget(session: Session, namespace: str) -> None:
    from redis.exceptions import RedisError

    try:
        await forget(session.redis_url, namespace)
    except (RedisError, OSError):
        session.progress.say(f"Redis is gone; {namespace} could not be removed from it")


@asynccontextmanager
async def _upstream(arguments: argparse.Namespace) -> AsyncIterator[tuple[str, str, bool]]:
    """Yield base URL and name of the model, and whether it echoes."""
    if arguments.upstream == "scripted":
        options = ["--echo", "--answer-chars", str(arguments.answer_chars)]
        options += ["--delay-ms", f"{arguments.upstream_ms:g}"]
        if arguments.upstream_p99_ms is not None:
            if not arguments.upstream_p99_ms > arguments.upstream_ms > 0:
                raise BadInput("--upstream-p99-ms must be above --upstream-ms, the median")
            options += ["--p99-ms", f"{arguments.upstream_p99_ms:g}"]
        async with UpstreamProcess(*options) as upstream:
            yield upstream.base_url, arguments.model, True
    elif arguments.upstream == "local":
        from llm_cache.local import LocalChatServer

        async with LocalChatServer() as server:
            yield server.base_url, server.model, False
    elif "://" in arguments.upstream:
        yield arguments.upstream, arguments.model, False
    else:
        raise BadInput("--upstream: scripted, local, or the base URL of a model")


def described(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return how the load was made."""
    from dataclasses import asdict

    from benchmarks.session import without_password

    return {
        "workers": arguments.workers,
        "seconds": arguments.seconds,
        "arrivals": arguments.arrivals,
        "mix": asdict(arguments.mix),
        "embedder": arguments.embedder,
        "upstream": without_password(arguments.upstream),
        "upstream_ms": arguments.upstream_ms,
        "upstream_p99_ms": arguments.upstream_p99_ms,
        "answer_chars": arguments.answer_chars,
        "start": "cold" if arguments.cold else "warm",
        "ttl_s": arguments.ttl_s,
    }


def check(results: Results, section: dict[str, Any]) -> None:
    """Put what must hold under load into *results*."""
    steps = [*section["sweep"]["steps"], *section.get("closed", [])]
    steps += [section["burst"]] if "burst" in section else []
    if not steps:
        return
    wrong = sum(step["wrong"] for step in steps)
    foreign = sum(step["foreign"] for step in steps)
    # Above the knee, time-outs are what is being looked for.
    knee = section["sweep"]["knee_per_s"] or 0.0
    below = [step for step in steps if (step["rate_per_s"] or 0.0) <= knee]
    errors = sum(sum(step["errors"].values()) for step in below)
    results.check("load: no wrong answer", ok=wrong == 0, expected="0", measured=str(wrong))
    results.check(
        "load: no answer crosses a tenant", ok=foreign == 0, expected="0", measured=str(foreign)
    )
    results.check(
        "load: no call fails up to the knee", ok=errors == 0, expected="0", measured=str(errors)
    )


def _note_trouble(results: Results, figures: dict[str, Any], what: str) -> None:
    if figures["redis_lost_at_s"] is not None:
        results.note(
            f"load at {what}: Redis stopped answering {figures['redis_lost_at_s']:.0f} s into it."
            " Callers were served by the model; the steps after it were left out."
        )
    if figures["errors"]:
        results.note(f"load at {what}: errors {figures['errors']}")
    if figures["unfinished"]:
        results.note(
            f"load at {what}: {figures['unfinished']:,} of {figures['offered']:,} requests had no"
            " answer when waiting ended; they count with the time they had waited"
        )


def _rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        rates = []
    if not rates or min(rates) <= 0:
        raise argparse.ArgumentTypeError("numbers above 0, as 100,200,400")
    return rates


def _mix(text: str) -> Mix:
    try:
        pairs = dict(part.split("=") for part in text.split(","))
        whole = ("questions", "tenants")
        return Mix(**{k: int(v) if k in whole else float(v) for k, v in pairs.items()})  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(
            f"as exact=0.9,semantic=0.08,miss=0.02,questions=1000,exponent=1,tenants=1 ({error})"
        ) from error
