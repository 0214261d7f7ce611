"""An exact hit of `chat()` beside a bare `GET` of the same bytes through the same client.

One at a time, in turn, so that whatever else the machine does hits both alike.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass

from redis import asyncio as redis  # noqa: TC002 - one import reads better than two places

from benchmarks.micro.semantic import bare_client
from benchmarks.micro.settings import Micro, Row, Settings
from llm_cache import CacheConfig, LLMCache
from llm_cache.testing import FakeEmbedder, ScriptedUpstream

_PROMPT = "What is the capital of France?"
_ANSWER = "Paris is the capital of France. " * 16


@dataclass(frozen=True, slots=True)
class ExactHit:
    """Medians in microseconds, and the median of the ratios of neighbouring pairs."""

    chat_us: float
    get_us: float
    ratio: float


async def measure(url: str, *, repeats: int = 5_000) -> ExactHit:
    """Time *repeats* exact hits and as many `GET`s, in turn."""
    config = CacheConfig(namespace="bench.exact")
    async with (
        ScriptedUpstream() as upstream,
        LLMCache(url, client=upstream.client(), embedder=FakeEmbedder(), config=config) as cache,
    ):
        upstream.default = _ANSWER
        key = (await cache.chat(_PROMPT)).key
        bare = bare_client(cache.redis_url)
        try:
            return await _race(cache, bare, str(key), repeats)
        finally:
            await bare.aclose()


async def run(settings: Settings) -> list[Row]:
    """Measure it."""
    return [asdict(await measure(settings.url, repeats=500 if settings.quick else 5_000))]


async def _race(cache: LLMCache, bare: redis.Redis, key: str, repeats: int) -> ExactHit:
    chats, gets = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        await bare.get(key)
        middle = time.perf_counter()
        await cache.chat(_PROMPT)
        end = time.perf_counter()
        gets.append(middle - start)
        chats.append(end - middle)
    return ExactHit(
        chat_us=statistics.median(chats) * 1e6,
        get_us=statistics.median(gets) * 1e6,
        ratio=statistics.median(c / g for c, g in zip(chats, gets, strict=True)),
    )


BENCHMARK = Micro(
    name="exact",
    run=run,
    about=__doc__,
    columns={
        "chat() p50 µs": "chat_us:.0f",
        "bare GET p50 µs": "get_us:.0f",
        "median of the ratios of neighbouring pairs": "ratio:.2f",
    },
)
