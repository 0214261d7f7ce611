"""What listening to every call adds to an exact hit: metrics and traces, beside the default hooks.

One hit after the other, in turn, so that whatever else the machine does hits all alike.
"""

from __future__ import annotations

import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass

from benchmarks.micro.settings import Micro, MissingData, Row, Settings
from llm_cache import CacheConfig, LLMCache
from llm_cache.events import EventHook
from llm_cache.testing import FakeEmbedder, ScriptedUpstream

_PROMPT = "What is the capital of France?"


@dataclass(frozen=True, slots=True)
class HookCost:
    """Medians in microseconds."""

    bare_us: float
    """An exact hit with the default hooks."""
    prometheus_us: float
    """What `PrometheusHook` adds: the median over neighbouring pairs."""
    otel_us: float
    """What `OpenTelemetryHook` adds, with an SDK that samples everything and exports nothing."""


async def measure(url: str, *, repeats: int = 3_000) -> HookCost:
    """Time *repeats* exact hits of three caches in turn.

    Raises:
        MissingData: what the hooks are made with is not installed.
    """
    try:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.trace import TracerProvider
        from prometheus_client import CollectorRegistry
    except ImportError as error:
        raise MissingData(f"{error}; pip install 'llm-cache[dev]'") from error
    from llm_cache.metrics import PrometheusHook
    from llm_cache.tracing import OpenTelemetryHook

    otel = OpenTelemetryHook(
        tracer_provider=TracerProvider(shutdown_on_exit=False),
        meter_provider=MeterProvider(shutdown_on_exit=False),
    )
    hooks: list[list[EventHook] | None] = [None, [PrometheusHook(CollectorRegistry())], [otel]]
    config = CacheConfig(namespace="bench.hooks")
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream())
        caches: list[LLMCache] = []
        for each in hooks:
            target = caches[0].redis_url if caches else url
            cache = LLMCache(
                target,
                client=upstream.client(),
                embedder=FakeEmbedder(),
                config=config,
                hooks=each,
            )
            caches.append(await stack.enter_async_context(cache))
            await cache.chat(_PROMPT)
        rows = [await _race(caches, first=number % len(caches)) for number in range(repeats)]
    added = [statistics.median(row[i] - row[0] for row in rows) * 1e6 for i in (1, 2)]
    bare_us = statistics.median(row[0] for row in rows) * 1e6
    return HookCost(bare_us=bare_us, prometheus_us=added[0], otel_us=added[1])


async def run(settings: Settings) -> list[Row]:
    """Measure it."""
    return [asdict(await measure(settings.url, repeats=300 if settings.quick else 3_000))]


async def _race(caches: list[LLMCache], *, first: int) -> list[float]:
    """Time a hit of each, beginning with another one each time: the first of a round is slower."""
    took_s = [0.0] * len(caches)
    for step in range(len(caches)):
        i = (first + step) % len(caches)
        took_s[i] = await _timed(caches[i])
    return took_s


async def _timed(cache: LLMCache) -> float:
    started_s = time.perf_counter()
    await cache.chat(_PROMPT)
    return time.perf_counter() - started_s


BENCHMARK = Micro(
    name="hooks",
    run=run,
    about=__doc__,
    columns={
        "exact hit p50 µs": "bare_us:.0f",
        "PrometheusHook adds µs": "prometheus_us:.1f",
        "OpenTelemetryHook adds µs": "otel_us:.1f",
    },
)
