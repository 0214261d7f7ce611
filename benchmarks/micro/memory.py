"""Bytes that an entry takes in Redis: change of `used_memory`, by the number of entries.

20,000 entries through `store_semantic` with the default configuration: a prompt of 60 bytes, an
answer of natural text, a vector (real ones; above 384 dimensions under a random orthogonal map).
Everything that a stored answer leaves in Redis counts: answer, entry, index, key names, expiries.
The bound is 1.15 x twice the vector (hash and index each hold it) + 2,300 bytes, for answers of
500 bytes.

The product stores FLOAT16. Other types are the same entries with their vectors converted, in an
index of that type. Recall is that of the graph, above a similarity of 0.8. A Redis keeps a hash
compactly as long as no value is longer than its `hash-max-listpack-value`: 64 bytes, unless it is
configured.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
from redis import asyncio as redis

from benchmarks.micro import loading, material
from benchmarks.micro.layouts import DTYPES, graph_recall, statement_of, with_value
from benchmarks.micro.material import Material
from benchmarks.micro.semantic import GivenVectors, placed, vector_store
from benchmarks.micro.settings import Micro, Row, Settings
from llm_cache import CacheConfig, LLMCache

_DIMENSIONS = (384, 768, 1_536, 3_072)
_ANSWERS = (100, 500, 2_000)
_LAYOUTS = (("FLOAT16", 64), ("FLOAT16", 8_192), ("BFLOAT16", 64), ("FLOAT32", 64))
"""Types of the vectors, and the server's `hash-max-listpack-value`."""
_ENTRIES = 20_000
_PROMPT_BYTES = 60


async def run(settings: Settings) -> list[Row]:
    """Measure every number of dimensions with every layout and size of answer."""
    given = await material.load(settings)
    rows: list[Row] = []
    for dimensions in _DIMENSIONS:
        wide = given if dimensions == 384 else given.lifted(dimensions, settings.seed)
        for dtype, compact_bytes in _LAYOUTS:
            for answer_bytes in _ANSWERS:
                row = await _measure(settings, wide, dtype, compact_bytes, answer_bytes)
                rows.append(row)
                settings.keep(rows)
    return rows


async def _measure(
    settings: Settings, given: Material, dtype: str, compact_bytes: int, answer_bytes: int
) -> Row:
    count = 1_000 if settings.quick else _ENTRIES
    rng = np.random.default_rng(settings.seed)
    stored = given.stored.part(rng.choice(len(given.stored.texts), count, replace=False))
    answers = list(material.answers(stored, count, answer_bytes, rng))
    dimensions = stored.vectors.shape[1]
    config = CacheConfig(
        namespace=f"bench.memory.{time.time_ns()}", redis_timeout_s=60, added_latency_budget_s=60
    )
    embedder = GivenVectors(dimensions)
    async with LLMCache(settings.url, embedder=embedder, config=config) as cache:
        bare = redis.Redis.from_url(cache.redis_url, protocol=2)
        await bare.config_set("hash-max-listpack-value", compact_bytes)
        await _keep_as(dtype, cache, bare)
        before = (await bare.info("memory"))["used_memory"]
        async with loading.fast(cache):
            await loading.each(
                partial(
                    cache.store_semantic,
                    f"{i} {stored.texts[i]}".ljust(_PROMPT_BYTES)[: _PROMPT_BYTES - 1] + "?",
                    answers[i],
                    vector=stored.vectors[i].tolist(),
                )
                for i in range(count)
            )
        used = (await bare.info("memory"))["used_memory"] - before
        place = await placed(cache, "Any.", stored.vectors[0].tolist())
        found = await graph_recall(
            bare,
            vector_store(cache).index,
            place.scope,
            stored=stored.vectors,
            asked=given.asked.vectors[:1_000],
            convert=DTYPES[dtype],
        )
        await bare.aclose()
    per_entry = used / count
    is_bounded = answer_bytes == 500 and dtype == "FLOAT16"
    return {
        "dimensions": dimensions,
        "dtype": dtype,
        "compact_bytes": compact_bytes,
        "answer_bytes": answer_bytes,
        "entries": count,
        "bytes_per_entry": round(per_entry),
        "bound_bytes": round(1.15 * 4 * dimensions + 2_300) if is_bounded else None,
        "recall": found["recall"],
        "queries": found["queries"],
        "million_gb": per_entry * 1e6 / 1e9,
    }


async def _keep_as(dtype: str, cache: LLMCache, bare: redis.Redis) -> None:
    """Have *cache* store its vectors as *dtype*. It can no longer search for them itself."""
    if dtype == "FLOAT16":
        return
    store = vector_store(cache)
    convert, entry = DTYPES[dtype], store.entry

    def converted(**given: Any) -> Any:
        key, [name, blob, *rest] = entry(**given)
        return key, [name, convert(blob), *rest]  # type: ignore[arg-type] # a vector is bytes

    making = await statement_of(store)
    store.entry = converted  # type: ignore[method-assign]
    await bare.execute_command("FT.DROPINDEX", store.index)
    await bare.execute_command(*with_value("TYPE", dtype)(making))


BENCHMARK = Micro(
    name="memory",
    run=run,
    about=__doc__,
    is_long=True,
    columns={
        "dims": "dimensions:,",
        "type": "dtype",
        "hash-max-listpack-value": "compact_bytes:,",
        "answer bytes": "answer_bytes:,",
        "bytes an entry": "bytes_per_entry:,",
        "bound": "bound_bytes:,",
        "a million entries, GB": "million_gb:.1f",
        "recall": "recall:.3f",
    },
)
