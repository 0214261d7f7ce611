"""Exact hits of many callers at once, beside bare `GET`s through a pool of 50 connections.

2,000 different keys of about 700 bytes; every caller reads keys of its own choice and checks that
the value is the one stored under its key. Whole `chat()` hits (hashing, epoch check and decoding
included); the look-up by key (`ExactStore.lookup`, which has no public door), which checks the
epoch and that the bytes are whole and belong to the key; and the same with the answer decoded.
Beside them what somebody reaches who has all keys at hand: redis-py's pipeline of as many `GET`s
as there are callers. At 10,000 callers nobody may get an error, and the server counts our
connections meanwhile.

And one caller alone: `ExactStore.lookup`'s read, coalesced, with the check of its bytes, beside
the same `MGET` through the cache's pool, which is what there would be without coalescing.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from redis import asyncio as redis

from benchmarks.micro import loading
from benchmarks.micro.semantic import bare_client
from benchmarks.micro.settings import Micro, Row, Settings
from llm_cache import CacheConfig, LLMCache
from llm_cache._core.codec import HEADER_BYTES
from llm_cache.testing import FakeEmbedder, ScriptedUpstream

_KEYS = 2_000
_ANSWER_BYTES = 600
"""With what surrounds it in the store, about 700."""
_ROUNDS = 5
_READS = 10_000
_ALONE = 3_000

Read = Callable[[int], Awaitable[None]]
Crowd = Callable[[int], Awaitable[None]]
"""Reads for so many callers, `_reads(callers)` in all."""
_FLOOR = "GET"


async def run(settings: Settings) -> list[Row]:
    """Measure 100, 1,000 and 10,000 callers, and one."""
    return await measure(settings, (100, 1_000, 10_000))


async def measure(settings: Settings, crowds: Sequence[int]) -> list[Row]:
    """Measure as many callers as each of *crowds* says, and one."""
    config = CacheConfig(
        namespace=f"bench.concurrent.{time.time_ns()}",
        semantic=False,
        redis_timeout_s=10,
        added_latency_budget_s=10,
    )
    async with (
        ScriptedUpstream() as upstream,
        LLMCache(
            settings.url, client=upstream.client(), embedder=FakeEmbedder(), config=config
        ) as cache,
    ):
        prompts = [f"Question number {i}?" for i in range(_KEYS)]
        answers = [f"Answer number {i}. ".ljust(_ANSWER_BYTES, "x") for i in range(_KEYS)]
        keys: dict[int, str] = {}
        await loading.each(
            [partial(_store, cache, prompts, answers, keys, i) for i in range(_KEYS)]
        )
        bare = bare_client(cache.redis_url)
        try:
            ways = await _ways(cache, bare, prompts, answers, keys)
            rows: list[Row] = []
            for callers in crowds:
                rows += await _together(cache, ways, callers, settings)
            return [*rows, await _alone(cache, keys)]
        finally:
            await bare.aclose()


async def _store(
    cache: LLMCache, prompts: list[str], answers: list[str], keys: dict[int, str], i: int
) -> None:
    keys[i] = await cache.store_exact(prompts[i], answers[i])


async def _ways(
    cache: LLMCache,
    bare: redis.Redis,
    prompts: list[str],
    answers: list[str],
    keys: dict[int, str],
) -> dict[str, Crowd]:
    stored: Any = await bare.mget([keys[i] for i in range(_KEYS)])
    digests = {i: key[key.index("{") + 1 : key.index("}")] for i, key in keys.items()}
    headers = [blob[:HEADER_BYTES] for blob in stored]  # with a checksum over key and answer
    exact = cache._exact

    async def chat(i: int) -> None:
        if (await cache.chat(prompts[i])).text != answers[i]:
            raise AssertionError("a caller got the answer of another")

    async def look_up(i: int) -> None:
        found = await exact.lookup(digests[i])
        if found.entry is None or found.entry.header != headers[i]:
            raise AssertionError("a caller got the answer of another")

    async def look_up_and_read(i: int) -> None:
        found = await exact.lookup(digests[i])
        if found.entry is None or _text(found.entry.answer) != answers[i]:
            raise AssertionError("a caller got the answer of another")

    async def get(i: int) -> None:
        if await bare.get(keys[i]) != stored[i]:
            raise AssertionError("a caller got the value of another key")

    async def pipelined(callers: int) -> None:
        for start in range(0, _reads(callers), callers):
            numbers = [(start + i) * 7 % _KEYS for i in range(callers)]
            pipeline = bare.pipeline(transaction=False)
            for i in numbers:
                pipeline.get(keys[i])
            if await pipeline.execute() != [stored[i] for i in numbers]:
                raise AssertionError("a pipeline got the value of another key")

    return {
        "chat": partial(_by_all, chat),
        "look-up by key": partial(_by_all, look_up),
        "look-up by key, decoded": partial(_by_all, look_up_and_read),
        "GETs in redis-py's pipelines": pipelined,
        _FLOOR: partial(_by_all, get),
    }


async def _by_all(read: Read, callers: int) -> None:
    async def call(caller: int) -> None:
        for i in range(_reads(callers) // callers):
            await read((caller * 31 + i * 7) % _KEYS)

    await asyncio.gather(*(call(caller) for caller in range(callers)))


def _reads(callers: int) -> int:
    return callers * max(1, _READS // callers)


def _text(answer: Any) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


async def _together(
    cache: LLMCache, ways: dict[str, Crowd], callers: int, settings: Settings
) -> list[Row]:
    rounds = 1 if settings.quick else _ROUNDS
    rates: dict[str, list[float]] = {name: [] for name in ways}
    most: dict[str, int] = {}
    for _ in range(rounds):
        for name, crowd in ways.items():
            rate, connections = await _rate(cache.redis_url, crowd, callers)
            rates[name].append(rate)
            most[name] = max(most.get(name, 0), connections)
    floor = statistics.median(rates[_FLOOR])
    return [
        {
            "what": name,
            "callers": callers,
            "keys": _KEYS,
            "per_s": round(statistics.median(rates[name])),
            "get_per_s": round(floor),
            "ratio": statistics.median(rates[name]) / floor,
            # Those of the bare client's pool stay open throughout.
            "new_connections": most[name],
        }
        for name in ways
        if name != _FLOOR
    ]


async def _rate(url: str, crowd: Crowd, callers: int) -> tuple[float, int]:
    """Return reads a second, and how many connections came on top meanwhile."""
    watcher = redis.Redis.from_url(url)
    before = len(await watcher.client_list())
    most, is_over = before, False

    async def watch() -> None:
        nonlocal most
        while not is_over:
            most = max(most, len(await watcher.client_list()))
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    start = time.perf_counter()
    await crowd(callers)
    seconds = time.perf_counter() - start
    is_over = True
    await watching
    await watcher.aclose()
    return _reads(callers) / seconds, most - before


async def _alone(cache: LLMCache, keys: dict[int, str]) -> Row:
    reads = cache._exact._reads
    connection, epoch = cache._connection, cache._keys.epoch
    coalesced, plain = [], []
    for i in range(_ALONE):
        key = keys[i * 7 % _KEYS]
        start = time.perf_counter()
        await reads.get(key)
        middle = time.perf_counter()
        await connection.execute("MGET", key, epoch)
        plain.append(time.perf_counter() - middle)
        coalesced.append(middle - start)
    ours_us, plain_us = statistics.median(coalesced) * 1e6, statistics.median(plain) * 1e6
    return {
        "what": "read alone, p50",
        "callers": 1,
        "keys": _KEYS,
        "ours_us": round(ours_us, 1),
        "plain_us": round(plain_us, 1),
        "ratio": ours_us / plain_us,
    }


BENCHMARK = Micro(
    name="concurrent",
    run=run,
    about=__doc__,
    columns={
        "": "what",
        "callers": "callers:,",
        "per second": "per_s:,",
        "bare GETs per second": "get_per_s:,",
        "p50 µs": "ours_us:.0f",
        "uncoalesced p50 µs": "plain_us:.0f",
        "ratio": "ratio:.2f",
        "new connections": "new_connections:,",
    },
)
