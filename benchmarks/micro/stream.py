"""Time to the first token of a stream, through the cache and straight from the model.

In turn, over real HTTP, against an upstream that takes a while before its first token. Once as a
whole miss in both layers, and once with the look-ups left out (`no-store`), which leaves the tee.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass

from openai import AsyncOpenAI  # noqa: TC002 - one import reads better than two places

from benchmarks.micro.settings import Micro, Row, Settings
from llm_cache import CacheConfig, LLMCache
from llm_cache.testing import Answer, FakeEmbedder, ScriptedUpstream

_FIRST_TOKEN_S = 0.05


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Medians in milliseconds."""

    direct_ms: float
    miss_added_ms: float
    """What a miss adds: median of the differences of neighbouring calls."""
    tee_added_ms: float
    """What the tee adds, without the look-ups before it."""


async def measure(url: str, *, repeats: int = 100) -> FirstToken:
    """Time the first chunk of *repeats* direct calls, misses and bypassed calls, in turn."""
    config = CacheConfig(namespace=f"bench.stream.{time.time_ns()}")
    async with (
        ScriptedUpstream(record=False) as upstream,
        LLMCache(url, client=upstream.client(), embedder=FakeEmbedder(), config=config) as cache,
    ):
        upstream.default = Answer(text="one two three", first_token_delay_s=_FIRST_TOKEN_S)
        clients = [
            upstream.client(),
            cache.wrap(upstream.client()),
            cache.wrap(upstream.client(), cache_control="no-store"),
        ]
        for client in clients:
            await _first_chunk_s(client, 0)
        rounds = [
            [await _first_chunk_s(client, seed) for client in clients]
            for seed in range(1, repeats + 1)
        ]
    return FirstToken(
        direct_ms=statistics.median(direct for direct, _, _ in rounds) * 1e3,
        miss_added_ms=statistics.median(miss - direct for direct, miss, _ in rounds) * 1e3,
        tee_added_ms=statistics.median(tee - direct for direct, _, tee in rounds) * 1e3,
    )


async def run(settings: Settings) -> list[Row]:
    """Measure it."""
    return [asdict(await measure(settings.url, repeats=10 if settings.quick else 100))]


async def _first_chunk_s(client: AsyncOpenAI, seed: int) -> float:
    start = time.perf_counter()
    stream = await client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        seed=seed,
        stream=True,
    )
    first = None
    async for chunk in stream:
        if first is None and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - start
    return first if first is not None else float("nan")


BENCHMARK = Micro(
    name="stream",
    run=run,
    about=__doc__,
    columns={
        "first token, straight from the model, ms": "direct_ms:.2f",
        "added by a whole miss": "miss_added_ms:.2f",
        "added by the tee alone": "tee_added_ms:.2f",
    },
)
