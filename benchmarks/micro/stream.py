"""Time to the first token of a streamed miss, through the cache and straight from the model.

In turn, over real HTTP, against an upstream that takes a while before its first token.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from openai import AsyncOpenAI  # noqa: TC002 - one import reads better than two places

from llm_cache import CacheConfig, LLMCache
from llm_cache.testing import Answer, FakeEmbedder, ScriptedUpstream

_FIRST_TOKEN_S = 0.05


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Medians in milliseconds."""

    cached_ms: float
    direct_ms: float
    added_ms: float
    """Median of the differences of neighbouring pairs."""


async def measure(url: str, *, repeats: int = 100) -> FirstToken:
    """Time the first chunk of *repeats* streamed misses, and of as many direct calls, in turn."""
    config = CacheConfig(namespace=f"bench.stream.{time.time_ns()}")
    async with (
        ScriptedUpstream(record=False) as upstream,
        LLMCache(url, client=upstream.client(), embedder=FakeEmbedder(), config=config) as cache,
    ):
        upstream.default = Answer(text="one two three", first_token_delay_s=_FIRST_TOKEN_S)
        direct, wrapped = upstream.client(), cache.wrap(upstream.client())
        await _first_chunk_s(direct, 0)
        await _first_chunk_s(wrapped, 0)
        cached, straight = [], []
        for seed in range(1, repeats + 1):
            straight.append(await _first_chunk_s(direct, seed))
            cached.append(await _first_chunk_s(wrapped, seed))
        return FirstToken(
            cached_ms=statistics.median(cached) * 1e3,
            direct_ms=statistics.median(straight) * 1e3,
            added_ms=statistics.median(c - s for c, s in zip(cached, straight, strict=True)) * 1e3,
        )


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
