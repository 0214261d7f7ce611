"""Measures whether `compare` can be believed on this machine, now.

20 pairs of equal runs, and 20 whose second run takes 20 % longer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from redis import asyncio as redis_py

from benchmarks.comparison import Change, Verdict, durations
from benchmarks.latency.scenes import undisturbed
from benchmarks.results import Results
from benchmarks.session import Session, forget, session
from llm_cache import CacheConfig, LLMCache
from llm_cache.testing import FakeEmbedder, ScriptedUpstream

PAIRS = 20
INJECTED = 0.20
_ROUNDS = 30
_MOST_ROUNDS = 120
"""Where 30 rounds leave it open: on a machine that does other things besides."""
_BLOCK = 20


def run() -> int:
    """Measure and print."""

    async def measured() -> tuple[int, int]:
        async with session("embedded://", seed=0) as around:
            return await measure(around)

    equal, detected = asyncio.run(measured())
    print(f"{equal} of {PAIRS} equal pairs were called equal")
    print(f"{detected} of {PAIRS} pairs with 20 % more were called changed")
    return 0 if min(equal, detected) >= PAIRS - 1 else 1


async def measure(around: Session, results: Results | None = None) -> tuple[int, int]:
    """Return how many of 20 pairs were called equal, and how many slower ones changed."""
    namespace = around.namespace("self_test")
    await forget(around.redis_url, namespace)
    async with (
        ScriptedUpstream(record=False) as upstream,
        LLMCache(
            around.redis_url,
            client=upstream.client(),
            embedder=FakeEmbedder(),
            config=CacheConfig(namespace=namespace),
        ) as cache,
    ):
        key = str((await cache.chat("What is the capital of France?")).key)
        redis = redis_py.Redis.from_url(around.redis_url)

        async def hit() -> object:
            return await cache.chat("What is the capital of France?")

        async def bare() -> object:
            return await redis.get(key)

        try:
            await _ratios(hit, bare, 0.0)
            equal, detected = 0, 0
            with around.progress.bar("self-test of compare", 2 * PAIRS) as advance:
                for _ in range(PAIRS):
                    equal += (await _pair(hit, bare, 0.0)).verdict is Verdict.EQUAL
                    advance()
                    change = await _pair(hit, bare, INJECTED)
                    detected += change.verdict is Verdict.CHANGED
                    advance()
        finally:
            await redis.aclose()
            await forget(around.redis_url, namespace)
    if results is not None:
        figures = {"pairs": PAIRS, "called_equal": equal, "detected": detected}
        results.section("self_test").update(figures, injected=INJECTED)
    return equal, detected


async def _pair(
    call: Callable[[], Awaitable[object]], bare: Callable[[], Awaitable[object]], injected: float
) -> Change:
    before: list[float] = []
    after: list[float] = []
    while True:
        before += await _ratios(call, bare, 0.0)
        after += await _ratios(call, bare, injected)
        change = durations("self-test", before, after, "bare GETs")
        if change.verdict is not Verdict.NOISY or len(before) >= _MOST_ROUNDS:
            return change


async def _ratios(
    call: Callable[[], Awaitable[object]], bare: Callable[[], Awaitable[object]], injected: float
) -> list[float]:
    """Return how many bare `GET`s a call took, round by round."""
    ratios = []
    for _ in range(_ROUNDS):
        references, durations_s = [], []
        for _ in range(_BLOCK):
            started_s = time.perf_counter()
            await bare()
            middle_s = time.perf_counter()
            await call()
            # As much longer as the call itself took, as a slower cache would be.
            ends_s = middle_s + (time.perf_counter() - middle_s) * (1 + injected)
            while time.perf_counter() < ends_s:
                pass
            references.append(middle_s - started_s)
            durations_s.append(time.perf_counter() - middle_s)
        ratios.append(undisturbed(durations_s) / undisturbed(references))
    return ratios
