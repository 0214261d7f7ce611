"""Bytes that an entry takes in Redis: change of `used_memory`, by the number of entries.

20,000 entries through `store_semantic` with the default configuration: a prompt of 60 bytes, an
answer of natural text, a vector (real ones; above 384 dimensions under a random orthogonal map).
Everything that a stored answer leaves in Redis counts: answer, entry, index, key names, expiries.
The bound is 1.15 x twice the vector (hash and index each hold it) + 2,300 bytes, for answers of
500 bytes.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
from redis import asyncio as redis

from benchmarks.micro import loading, material
from benchmarks.micro.material import Material
from benchmarks.micro.semantic import GivenVectors
from benchmarks.micro.settings import Micro, Row, Settings
from llm_cache import CacheConfig, LLMCache

_DIMENSIONS = (384, 768, 1_536, 3_072)
_ANSWERS = (100, 500, 2_000)
_ENTRIES = 20_000
_PROMPT_BYTES = 60


async def run(settings: Settings) -> list[Row]:
    """Measure every number of dimensions with every size of answer."""
    given = await material.load(settings)
    rows: list[Row] = []
    for dimensions in _DIMENSIONS:
        wide = given if dimensions == 384 else given.lifted(dimensions, settings.seed)
        for answer_bytes in _ANSWERS:
            rows.append(await _measure(settings, wide, dimensions, answer_bytes))
            settings.keep(rows)
    return rows


async def _measure(settings: Settings, given: Material, dimensions: int, size: int) -> Row:
    count = 1_000 if settings.quick else _ENTRIES
    rng = np.random.default_rng(settings.seed)
    rows = rng.choice(len(given.stored.texts), count, replace=False)
    answers = list(material.answers(given.stored, count, size, rng))
    config = CacheConfig(
        namespace=f"bench.memory.{time.time_ns()}", redis_timeout_s=60, added_latency_budget_s=60
    )
    embedder = GivenVectors(dimensions)
    async with LLMCache(settings.url, embedder=embedder, config=config) as cache:
        bare = redis.Redis.from_url(cache.redis_url)
        before = (await bare.info("memory"))["used_memory"]
        async with loading.fast(cache):
            await loading.each(
                partial(
                    cache.store_semantic,
                    f"{i} {given.stored.texts[row]}".ljust(_PROMPT_BYTES)[: _PROMPT_BYTES - 1]
                    + "?",
                    answers[i],
                    vector=given.stored.vectors[row].tolist(),
                )
                for i, row in enumerate(rows)
            )
        used = (await bare.info("memory"))["used_memory"] - before
        await bare.aclose()
    per_entry = used / count
    vector_bytes = 2 * dimensions
    return {
        "dimensions": dimensions,
        "answer_bytes": size,
        "entries": count,
        "bytes_per_entry": round(per_entry),
        "vectors_bytes": 2 * vector_bytes,
        "rest_bytes": round(per_entry - 2 * vector_bytes),
        "bound_bytes": round(1.15 * 2 * vector_bytes + 2_300) if size == 500 else None,
        "million_gb": per_entry * 1e6 / 1e9,
    }


BENCHMARK = Micro(
    name="memory",
    run=run,
    about=__doc__,
    columns={
        "dims": "dimensions:,",
        "answer bytes": "answer_bytes:,",
        "bytes an entry": "bytes_per_entry:,",
        "of it vectors": "vectors_bytes:,",
        "the rest": "rest_bytes:,",
        "bound": "bound_bytes:,",
        "a million entries, GB": "million_gb:.1f",
    },
)
