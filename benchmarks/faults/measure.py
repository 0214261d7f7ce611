"""One scenario: calm, the fault, how long it takes to be whole again, and calm once more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.faults.load import Asked, Load, Prompts, Question, ask, percentile_ms, statuses
from benchmarks.faults.scenarios import Scenario
from benchmarks.faults.stage import Settings, Stage
from llm_cache import LLMCache

Row = dict[str, Any]
RECOVERY_S = 5.0
"""So soon after `PING` is answered both layers have to hit what was stored since."""
LEAST_RATIO = 0.95
"""So much of the hit rate has to be back, where the data has survived."""
LEASE_S = 1.0
"""What a leader that died may cost those who wait for it."""
_GIVE_UP_S = 20.0
_FILL_S = 60.0
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Times:
    """When things happened, by `time.perf_counter`."""

    calm: float
    broken: float
    mended: float
    """When the fault was taken away."""
    answering: float
    """When `PING` was answered."""
    whole: float
    """When both layers hit again, or the time for that was over."""
    end: float


async def measure(scenario: Scenario, settings: Settings, upstream_url: str) -> Row:
    """Run *scenario* and return its figures."""
    async with scenario.stage(settings, upstream_url, **scenario.options) as stage:
        prompts = Prompts(known=settings.known, seed=settings.seed)
        await _fill(stage, prompts)
        load = Load(stage.caches, prompts, settings.callers, settings.think_s)
        load.start()
        try:
            times, recovered = await _play(scenario, stage, load)
        finally:
            await load.stop()
        return _row(scenario, stage, load, times, recovered)


async def _fill(stage: Stage, prompts: Prompts) -> None:
    """Store what is known. On each cache, so that all have done everything once."""
    few = asyncio.Semaphore(10)

    async def one(number: int, question: Question) -> Asked:
        async with few:
            return await ask(stage.caches[number % len(stage.caches)], question)

    async with asyncio.timeout(_FILL_S):
        left = prompts.known
        while left:  # on a machine that is busy the budget may not do for all at once
            asked = await asyncio.gather(*(one(i, known) for i, known in enumerate(left)))
            pairs = zip(left, asked, strict=True)
            left = [known for known, call in pairs if call.status != "exact"]
    for cache in stage.caches:
        # What is imported at the first semantic hit and at the first stream.
        await ask(cache, prompts.rephrased(prompts.known[0]))
        await ask(cache, prompts.new(), stream=True)


async def _play(
    scenario: Scenario, stage: Stage, load: Load
) -> tuple[Times, dict[str, float | None]]:
    clock = time.perf_counter
    # Callers that have just begun all think for the first time: fewer of them ask.
    await asyncio.sleep(0.2 if stage.settings.quick else stage.settings.think_s)
    load.phase("calm")
    calm = clock()
    await asyncio.sleep(stage.settings.calm_s)
    load.phase("fault")
    broken = clock()
    async with scenario.fault(stage):
        await asyncio.sleep(scenario.lasts_s(stage.settings))
        mended = clock()
    await stage.ready()
    answering = clock()
    recovered = await _recovery(stage, load.prompts, answering)
    whole = clock()
    load.phase("after")
    await asyncio.sleep(stage.settings.calm_s)
    return Times(calm, broken, mended, answering, whole, clock()), recovered


async def _recovery(stage: Stage, prompts: Prompts, answering_s: float) -> dict[str, float | None]:
    """Return after how many seconds each layer hits what was stored since; the slowest cache's."""
    each = await asyncio.gather(*(_recovered(c, prompts, answering_s) for c in stage.caches))
    return {layer: _slowest([times[layer] for times in each]) for layer in ("exact", "semantic")}


async def _recovered(
    cache: LLMCache, prompts: Prompts, answering_s: float
) -> dict[str, float | None]:
    seen: dict[str, float | None] = {"exact": None, "semantic": None}
    while None in seen.values() and time.perf_counter() - answering_s < _GIVE_UP_S:
        question = prompts.new()
        await ask(cache, question)
        again = await ask(cache, question)
        reworded = await ask(cache, prompts.rephrased(question))
        for call in (again, reworded):
            if call.status in seen and not call.is_wrong and seen[call.status] is None:
                seen[call.status] = call.end_s - answering_s
        await asyncio.sleep(_POLL_S)
    return seen


def _slowest(times: Sequence[float | None]) -> float | None:
    told = [one for one in times if one is not None]
    return max(told) if len(told) == len(times) else None


# ---------------------------------------------------------------------- figures


def _row(
    scenario: Scenario,
    stage: Stage,
    load: Load,
    times: Times,
    recovered: dict[str, float | None],
) -> Row:
    calls = load.calls
    # Of a call that was under way when things broke, or were mended, the fault is a part.
    during = [c for c in calls if c.end_s >= times.broken and c.start_s <= times.whole]
    before = [c for c in calls if c.start_s >= times.calm and c.end_s < times.broken]
    after = [c for c in calls if c.start_s > times.whole]
    rate, rate_after = _hit_rate(before), _hit_rate(after)
    budget_s = stage.caches[0].config.added_latency_budget_s
    row: Row = {
        "scenario": scenario.name,
        "about": scenario.about,
        "callers": load.callers,
        "calls": len(calls),
        "calls_during": len(during),
        "failed": sum(call.error is not None for call in calls),
        "wrong": sum(call.is_wrong for call in calls),
        "lasted_s": times.mended - times.broken,
        "ping_s": times.answering - times.mended,
        "budget_ms": 1000 * budget_s,
        **_latencies("calm", before, load),
        **_latencies("fault", during, load),
        "recovered_exact_s": recovered["exact"],
        "recovered_semantic_s": recovered["semantic"],
        "hit_rate_before": rate,
        "hit_rate_after": rate_after,
        "hit_rate_ratio": None if not rate or rate_after is None else rate_after / rate,
        "data_survives": scenario.data_survives,
        "statuses": dict(sorted(statuses(during).items())),
        "not_hit_after": dict(sorted(statuses(_not_hit(after)).items())),
        "events": dict(sorted(stage.failures.failures.items())),
        "log_lines": stage.lines.count,
        "wrong_answers": [call.seen for call in calls if call.is_wrong][:10],
        "errors": sorted({call.error for call in calls if call.error is not None})[:5],
    }
    row["broken_promises"] = broken_promises(row)
    return row


def _hit_rate(calls: Sequence[Asked]) -> float | None:
    """Return the share of hits among the calls whose answers had been stored."""
    repeats = _repeats(calls)
    return 1 - len(_not_hit(calls)) / len(repeats) if repeats else None


def _not_hit(calls: Sequence[Asked]) -> list[Asked]:
    return [call for call in _repeats(calls) if not call.is_hit]


def _repeats(calls: Sequence[Asked]) -> list[Asked]:
    return [call for call in calls if call.kind in {"known", "rephrased"}]


def _latencies(phase: str, calls: Sequence[Asked], load: Load) -> Row:
    """Return the figures of *phase*, in ms.

    Those who ask the same at the same time wait for each other's call of the model, which is no
    time that the cache adds; they are told apart.
    """
    alone = [call for call in calls if call.kind != "twin" and not call.is_shared]
    added = [s for call in alone if (s := call.added_before_s) is not None]
    twins = [call.end_s - call.start_s for call in calls if call.kind == "twin"]
    hits = [call.end_s - call.start_s for call in alone if call.is_hit]
    stored = [
        call.end_s - call.answered_s
        for call in alone
        if call.answered_s is not None and not call.is_hit
    ]
    lag = load.lag.get(phase)
    return {
        f"{phase}_model_calls": len(added),
        f"{phase}_added_p50_ms": percentile_ms(added, 50),
        f"{phase}_added_p99_ms": percentile_ms(added, 99),
        f"{phase}_added_max_ms": percentile_ms(added, 100),
        f"{phase}_stored_p99_ms": percentile_ms(stored, 99),
        f"{phase}_hit_p99_ms": percentile_ms(hits, 99),
        f"{phase}_twin_p99_ms": percentile_ms(twins, 99),
        f"{phase}_lag_p99_ms": None if lag is None else _ms(lag.at(99)),
        f"{phase}_lag_max_ms": None if lag is None else _ms(lag.at(100)),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def broken_promises(row: Row, *, in_time: bool = True) -> list[str]:
    """Return what was promised and did not hold; without *in_time*, all but the latencies."""
    broken = []
    if row["failed"]:
        broken.append(f"{row['failed']} calls failed")
    if row["wrong"]:
        broken.append(f"{row['wrong']} answers were wrong")
    for layer in ("exact", "semantic"):
        took_s = row[f"recovered_{layer}_s"]
        if took_s is None or (in_time and took_s > RECOVERY_S):
            broken.append(f"the {layer} layer was not back {RECOVERY_S:g} s after PING")
    ratio = row["hit_rate_ratio"]
    if row["data_survives"] and (ratio is None or ratio < LEAST_RATIO):
        told = "unknown" if ratio is None else f"{ratio:.3f}"
        broken.append(f"the hit rate afterwards is {told} of what it was")
    added_ms = row["fault_added_p99_ms"]
    if in_time and added_ms is not None and added_ms > row["budget_ms"]:
        broken.append(f"p99 of the added latency is {added_ms:.0f} ms")
    return broken
