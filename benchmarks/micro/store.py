"""Storing, beside a bare pipelined `MULTI SET HSET PEXPIRE EXEC` of the very same bytes.

Both into an identical index, in turn, in blocks. Ours: `store_semantic(vector=…)` by 100 callers
at once, hashing, epoch, encoding and lease script included. Bare: pipelines of 100 transactions
that are made before the clock starts, with the values that the product wrote.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
from redis import asyncio as redis  # noqa: TC002 - one import reads better than two places

from benchmarks.micro import loading, material
from benchmarks.micro.semantic import GivenVectors, bare_client
from benchmarks.micro.settings import Micro, Row, Settings
from llm_cache import CacheConfig, LLMCache
from llm_cache._redis.vectors import VectorStore

_CALLERS = 100
_BLOCK = 1_000
_BLOCKS = 8


async def run(settings: Settings) -> list[Row]:
    """Measure at 384 and 1,536 dimensions."""
    given = await material.load(settings)
    rows = []
    for dimensions in (384, 1_536):
        wide = given if dimensions == 384 else given.lifted(dimensions, settings.seed)
        rows.append(await _measure(settings, wide.stored, dimensions))
    return rows


async def _measure(settings: Settings, texts: material.Texts, dimensions: int) -> Row:
    rng = np.random.default_rng(settings.seed)
    blocks = 2 if settings.quick else _BLOCKS
    picks = rng.choice(len(texts.texts), blocks * _BLOCK, replace=False)
    answers = list(material.answers(texts, len(picks), 500, rng))
    config = CacheConfig(
        namespace=f"bench.store.{time.time_ns()}", redis_timeout_s=60, added_latency_budget_s=60
    )
    embedder = GivenVectors(dimensions)
    # Two servers, so that neither index is searched by the inserts of the other.
    async with (
        LLMCache(settings.url, embedder=embedder, config=config) as cache,
        LLMCache(settings.url, embedder=embedder, config=config) as other,
    ):
        ours, bare = bare_client(cache.redis_url), bare_client(other.redis_url)
        if cache.redis_url == other.redis_url:
            raise AssertionError("this needs a server for each: use --redis-url embedded://")
        rates: dict[str, list[float]] = {"ours": [], "bare": []}
        for start in range(0, len(picks), _BLOCK):
            chosen = picks[start : start + _BLOCK]
            jobs = [
                partial(
                    cache.store_semantic,
                    f"{texts.texts[row]} ({start + i})",
                    answers[start + i],
                    vector=texts.vectors[row],
                )
                for i, row in enumerate(chosen)
            ]
            began_s = time.perf_counter()
            keys: list[str] = []
            await loading.each([partial(_keep, job, keys) for job in jobs], at_once=_CALLERS)
            rates["ours"].append(_BLOCK / (time.perf_counter() - began_s))
            written = [await _written(cache, ours, key) for key in keys]
            rates["bare"].append(await _bare(bare, written))
        stored = (await _entries(cache), await _entries(other))
        await ours.aclose()
        await bare.aclose()
    if stored[0] != stored[1]:
        raise AssertionError(f"the indexes differ: {stored}")
    mine, floor = (float(np.median(rate)) for rate in rates.values())
    return {
        "dimensions": dimensions,
        "entries": len(picks),
        "callers": _CALLERS,
        "ours_per_s": round(mine),
        "bare_per_s": round(floor),
        "ratio": mine / floor,
    }


async def _keep(job: Any, keys: list[str]) -> None:
    keys.append(await job())


async def _entries(cache: LLMCache) -> int:
    entries = (await cache.server_stats())["entries"]
    assert isinstance(entries, int)  # noqa: S101 - the semantic layer is on
    return entries


async def _written(cache: LLMCache, client: redis.Redis, key: str) -> tuple[Any, ...]:
    """Return what the product wrote for one answer: its key and bytes, its entry's and fields."""
    store = cache._semantic.vectors
    assert isinstance(store, VectorStore)  # noqa: S101 - a single server has one
    digest = key[key.index("{") + 1 : key.index("}")]
    entry = store._keys.entry(store.space, digest)
    blob, fields = await client.get(key), await client.hgetall(entry)
    assert blob is not None  # noqa: S101 - it was stored a moment ago
    assert fields  # noqa: S101
    return key, blob, entry, fields


async def _bare(client: redis.Redis, written: list[tuple[Any, ...]]) -> float:
    pipelines = []
    for start in range(0, len(written), _CALLERS):
        pipeline = client.pipeline(transaction=False)
        for key, blob, entry, fields in written[start : start + _CALLERS]:
            pipeline.execute_command("MULTI")
            pipeline.set(key, blob, ex=86_400)
            pipeline.hset(entry, mapping=fields)
            pipeline.pexpire(entry, 86_400_000)
            pipeline.execute_command("EXEC")
        pipelines.append(pipeline)
    began_s = time.perf_counter()
    for pipeline in pipelines:
        await pipeline.execute()
    return len(written) / (time.perf_counter() - began_s)


BENCHMARK = Micro(
    name="store",
    run=run,
    about=__doc__,
    columns={
        "dims": "dimensions:,",
        "entries": "entries:,",
        "store_semantic/s": "ours_per_s:,",
        "bare transactions/s": "bare_per_s:,",
        "ratio": "ratio:.2f",
    },
)
