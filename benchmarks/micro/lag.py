"""Lag of the event loop while a hundred callers embed on this machine.

A ticker asks to be woken every millisecond and notes by how much it comes late.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.micro.settings import Micro, Row, Settings
from llm_cache import CacheConfig, LLMCache, LocalEmbedder

_TICK_S = 0.001


@dataclass(frozen=True, slots=True)
class Lag:
    """Milliseconds by which the loop was late, and look-ups a second."""

    p50_ms: float
    p99_ms: float
    worst_ms: float
    lookups_per_s: float


async def measure(url: str, *, callers: int = 100, seconds: float = 5.0) -> Lag:
    """Look up ever new prompts by meaning from *callers* tasks, and watch the loop."""
    config = CacheConfig(namespace=f"bench.lag.{time.time_ns()}")
    async with LLMCache(url, embedder=LocalEmbedder(), config=config) as cache:
        await cache.lookup_semantic("Something to load the model with.")
        done = 0
        ends_at = time.perf_counter() + seconds

        async def call(caller: int) -> None:
            nonlocal done
            i = 0
            while time.perf_counter() < ends_at:
                i += 1
                await cache.lookup_semantic(f"How do I reset password {i} of account {caller}?")
                done += 1

        watching = asyncio.create_task(_watch(ends_at))
        await asyncio.gather(*(call(caller) for caller in range(callers)))
        late = np.array(await watching) * 1e3
        return Lag(
            p50_ms=float(np.percentile(late, 50)),
            p99_ms=float(np.percentile(late, 99)),
            worst_ms=float(late.max()),
            lookups_per_s=done / seconds,
        )


async def run(settings: Settings) -> list[Row]:
    """Measure it."""
    return [asdict(await measure(settings.url, seconds=1.0 if settings.quick else 5.0))]


async def _watch(ends_at: float) -> list[float]:
    late = []
    while time.perf_counter() < ends_at:
        start = time.perf_counter()
        await asyncio.sleep(_TICK_S)
        late.append(time.perf_counter() - start - _TICK_S)
    return late


BENCHMARK = Micro(
    name="lag",
    run=run,
    about=__doc__,
    columns={
        "lag p50 ms": "p50_ms:.2f",
        "p99": "p99_ms:.2f",
        "worst": "worst_ms:.1f",
        "look-ups/s": "lookups_per_s:.0f",
    },
)
