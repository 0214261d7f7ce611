"""A worker dies while it asks the model, and 200 callers of other workers wait for its answers.

They notice when its lease runs out, a second after it was last renewed: that is the price of a
leader that died, and it is measured from the moment of its death.

Run as a module it is the worker: it asks the questions, and never gets an answer.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

from benchmarks.faults.load import MODEL, SYSTEM, Asked, Prompts, Question, ask, percentile_ms
from benchmarks.faults.measure import LEASE_S, Row
from benchmarks.faults.stage import Settings, Stage, cache_of, standalone
from llm_cache.testing import ScriptedUpstream

NAME = "leader-dies"
_QUESTIONS = 50
# What names the model in keys: the worker that dies is to wait for another upstream for ever.
_SAME_MODEL = "model"
_JOIN_S = 3.0
"""All who wait have come by then: not at once, which would keep this process busy."""
_LOOK_S = 1.0
"""And have found out that there is a leader."""


async def measure(settings: Settings, upstream_url: str) -> Row:
    """Let workers die, and return how long those who waited had to wait for the model."""
    rounds = 1 if settings.quick else 5
    calls: list[Asked] = []
    after_s: list[float] = []
    did_not_wait = 0
    async with standalone(settings, upstream_url, upstream_id=_SAME_MODEL) as stage:
        prompts = Prompts(known=0, seed=settings.seed)
        for _ in range(rounds):
            died_s, asked = await _round(stage, settings, prompts)
            calls += asked
            called_s = [call.called_s for call in asked if call.called_s is not None]
            did_not_wait += sum(at_s < died_s for at_s in called_s)
            after_s += [at_s - died_s for at_s in called_s if at_s >= died_s]
        budget_s = stage.caches[0].config.added_latency_budget_s
    row: Row = {
        "scenario": NAME,
        "about": "a worker dies that 200 callers wait for",
        "callers": settings.callers,
        "calls": len(calls),
        "failed": sum(call.error is not None for call in calls),
        "wrong": sum(call.is_wrong for call in calls),
        "asked_the_model": len(after_s),
        "did_not_wait": did_not_wait,
        "after_death_p50_ms": percentile_ms(after_s, 50),
        "after_death_p99_ms": percentile_ms(after_s, 99),
        "most_ms": 1000 * (LEASE_S + budget_s),
        "errors": sorted({call.error for call in calls if call.error is not None})[:5],
    }
    row["broken_promises"] = broken_promises(row)
    return row


def broken_promises(row: Row, *, in_time: bool = True) -> list[str]:
    """Return what was promised and did not hold.

    Without *in_time*, all but what depends on how busy this machine is.
    """
    broken = [f"{row[name]} calls {name}" for name in ("failed", "wrong") if row[name]]
    if in_time and row["did_not_wait"]:
        broken.append(f"{row['did_not_wait']} did not wait for a leader that lived")
    if row["after_death_p99_ms"] is None:
        broken.append("nobody took the place of the leader")
    elif in_time and row["after_death_p99_ms"] > row["most_ms"]:
        broken.append(f"p99 after the leader's death is {row['after_death_p99_ms']:.0f} ms")
    return broken


async def _round(stage: Stage, settings: Settings, prompts: Prompts) -> tuple[float, list[Asked]]:
    """Return when a leader died, and the calls that waited for it."""
    questions = [prompts.new() for _ in range(_QUESTIONS)]
    async with ScriptedUpstream(hold=True, record=False) as silent:
        leader = await _leader(stage.url, silent.base_url, questions)
        try:
            await silent.called(len(questions), timeout_s=30)
            waiting = [
                asyncio.create_task(_ask_soon(stage, questions, i))
                for i in range(settings.callers)
            ]
            await asyncio.sleep(_JOIN_S + _LOOK_S)
        finally:
            leader.kill()
            died_s = time.perf_counter()
            await leader.wait()
        return died_s, list(await asyncio.gather(*waiting))


async def _ask_soon(stage: Stage, questions: list[Question], number: int) -> Asked:
    await asyncio.sleep(_JOIN_S * number / stage.settings.callers)
    cache = stage.caches[number % len(stage.caches)]
    return await ask(cache, questions[number % len(questions)])


async def _leader(url: str, model_url: str, questions: list[Question]) -> Any:
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.faults.leaders", url, model_url),
        stdin=asyncio.subprocess.PIPE,
    )
    assert worker.stdin is not None  # noqa: S101 - a pipe was asked for
    worker.stdin.write("".join(f"{question.prompt}\n" for question in questions).encode())
    worker.stdin.close()
    return worker


async def _ask_for_ever(url: str, model_url: str) -> None:
    prompts = sys.stdin.read().splitlines()
    async with AsyncExitStack() as held:
        # It takes its leases however busy this machine is.
        cache = await cache_of(
            held,
            url,
            model_url,
            upstream_id=_SAME_MODEL,
            added_latency_budget_s=20.0,
            redis_timeout_s=20.0,
        )
        await asyncio.gather(*(cache.chat(p, model=MODEL, system=SYSTEM) for p in prompts))


if __name__ == "__main__":
    asyncio.run(_ask_for_ever(*sys.argv[1:]))
