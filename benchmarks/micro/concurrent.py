"""Exact hits of many callers at once, beside bare `GET`s through a pool of 50 connections.

Every caller reads keys of its own choice among many different ones, and checks that the value it
gets is the one that was stored under its key.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from redis import asyncio as redis

from llm_cache import CacheConfig, LLMCache
from llm_cache.testing import FakeEmbedder, ScriptedUpstream

_KEYS = 2_000
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Concurrent:
    """Operations a second, medians of the rounds."""

    callers: int
    chat_per_s: float
    get_per_s: float

    @property
    def ratio(self) -> float:
        """How many whole `chat()` hits take the time of one bare `GET`."""
        return self.chat_per_s / self.get_per_s


async def measure(url: str, *, callers: int = 100, reads: int = 10_000) -> Concurrent:
    """Read *reads* times by *callers* tasks, through the cache and bare, in turn."""
    config = CacheConfig(namespace=f"bench.concurrent.{time.time_ns()}", semantic=False)
    async with (
        ScriptedUpstream() as upstream,
        LLMCache(url, client=upstream.client(), embedder=FakeEmbedder(), config=config) as cache,
    ):
        prompts = [f"Question number {i}?" for i in range(_KEYS)]
        answers = [f"Answer number {i}. ".ljust(500, "x") for i in range(_KEYS)]
        keys = [
            await cache.store_exact(prompt, answer)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        pool = redis.BlockingConnectionPool.from_url(
            cache.redis_url, max_connections=50, timeout=None
        )
        bare = redis.Redis.from_pool(pool)
        stored = await bare.mget(keys)

        async def chat(i: int) -> None:
            reply = await cache.chat(prompts[i])
            if reply.text != answers[i]:
                raise AssertionError("a caller got the answer of another")

        async def get(i: int) -> None:
            if await bare.get(keys[i]) != stored[i]:
                raise AssertionError("a caller got the value of another key")

        try:
            rates = [
                (await _rate(chat, callers, reads), await _rate(get, callers, reads))
                for _ in range(_ROUNDS)
            ]
        finally:
            await bare.aclose()
        chats, gets = (sorted(rate)[_ROUNDS // 2] for rate in zip(*rates, strict=True))
        return Concurrent(callers, chats, gets)


async def _rate(read: Callable[[int], Awaitable[None]], callers: int, reads: int) -> float:
    async def call(caller: int) -> None:
        for i in range(reads // callers):
            await read((caller * 31 + i * 7) % _KEYS)

    start = time.perf_counter()
    await asyncio.gather(*(call(caller) for caller in range(callers)))
    return reads / (time.perf_counter() - start)
