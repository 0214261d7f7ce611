"""The two plans of a search by the size of its scope: where they cross, what `EF_RUNTIME` takes.

One index with scopes of many sizes, and for each size one with a single scope. Each query is
searched exactly (every entry of its scope is scored) and through the graph with several values of
`EF_RUNTIME`, by the very commands that the product sends but for that; the time is the server's
own, which no client's load disturbs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from redis import asyncio as redis

from benchmarks.micro import material
from benchmarks.micro.semantic import GivenVectors, Scope, fill, placed, searches
from benchmarks.micro.settings import Micro, Row, Settings
from llm_cache import CacheConfig, LLMCache
from llm_cache._redis import vectors as product

_SIZES = (250, 500, 1_000, 2_000, 4_000, 8_000)
_SCOPES = 4
"""Scopes of each size."""
_EFS = (20, 50, 100, 200)
_QUERIES = 150
_THRESHOLD = 0.8
_TIE = 0.002


async def run(settings: Settings) -> list[Row]:
    """Measure at 384 and 1,536 dimensions."""
    real = await material.load(settings)
    rows: list[Row] = []
    for dimensions in (384, 1_536):
        given = real if dimensions == 384 else real.lifted(dimensions, settings.seed)
        rows += await _measure(settings, given, dimensions)
        settings.keep(rows)
    return rows


async def _measure(settings: Settings, given: material.Material, dimensions: int) -> list[Row]:
    rng = np.random.default_rng(settings.seed)
    sizes = [size // 10 for size in _SIZES] if settings.quick else _SIZES
    together = [[_scope(given, size, which, rng) for which in range(_SCOPES)] for size in sizes]
    rows: list[Row] = []
    for of_sizes in (together, *([scopes[:1]] for scopes in together)):
        rows += await _in_one_index(settings, given, dimensions, of_sizes, rng)
    return rows


async def _in_one_index(
    settings: Settings,
    given: material.Material,
    dimensions: int,
    of_sizes: Sequence[Sequence[Scope]],
    rng: np.random.Generator,
) -> list[Row]:
    """Return a row for each size."""
    scopes = [scope for of_size in of_sizes for scope in of_size]
    config = CacheConfig(
        namespace=f"bench.plans.{time.time_ns()}",
        guards=False,
        redis_timeout_s=60,
        added_latency_budget_s=60,
    )
    embedder = GivenVectors(dimensions)
    async with LLMCache(settings.url, embedder=embedder, config=config) as cache:
        await fill(cache, scopes)
        bare = redis.Redis.from_url(cache.redis_url, protocol=3)
        try:
            return [
                {
                    "dimensions": dimensions,
                    "index": sum(len(scope.texts.texts) for scope in scopes),
                    **await _compare(cache, bare, given, of_size, rng),
                }
                for of_size in of_sizes
            ]
        finally:
            await bare.aclose()


def _scope(given: material.Material, size: int, which: int, rng: np.random.Generator) -> Scope:
    rows = rng.choice(len(given.stored.texts), size, replace=False)
    texts = given.stored.part(rows)
    stored = texts.vectors.astype(np.float16).astype(np.float32)
    return Scope(f"Shop {which} of those with {size} questions.", texts, stored)


async def _compare(
    cache: LLMCache,
    bare: redis.Redis,
    given: material.Material,
    scopes: Sequence[Scope],
    rng: np.random.Generator,
) -> Row:
    places, bests = [], []
    for i in rng.choice(len(given.asked.texts), _QUERIES, replace=False):
        scope = scopes[int(i) % len(scopes)]
        vector = given.asked.vectors[i]
        places.append(await placed(cache, given.asked.texts[i], vector, system=scope.system))
        bests.append(float((scope.stored @ vector).max()))
    scopes_of = [place.scope for place in places]
    asked = list(zip(await searches(cache, places), scopes_of, bests, strict=True))
    row: Row = {"scope_size": len(scopes[0].texts.texts)}
    exact = [(c, product._EXACT.format(scope=scope, limit=4), best) for c, scope, best in asked]
    row["exact_us"], row["exact_recall"] = await _run(bare, exact)
    for ef in _EFS:
        graph = [(c, product._GRAPH.format(limit=4, ef=ef), best) for c, _, best in asked]
        row[f"ef{ef}_us"], row[f"ef{ef}_recall"] = await _run(bare, graph)
    return row


async def _run(
    bare: redis.Redis, searches: Sequence[tuple[Any, str, float]]
) -> tuple[float, float | None]:
    """Return microseconds in the server, and recall of the nearest above the threshold."""
    await bare.config_resetstat()
    counted = found = 0
    for command, query, best in searches:
        reply = await bare.execute_command(*command[:2], query, *command[3:])
        distances = [float(row[b"extra_attributes"][b"distance"]) for row in reply[b"results"]]
        if best >= _THRESHOLD:
            counted += 1
            found += 1 - min(distances, default=2.0) >= best - _TIE
    stats = (await bare.info("commandstats"))["cmdstat_FT.SEARCH"]
    return stats["usec_per_call"], found / counted if counted else None


BENCHMARK = Micro(
    name="plans",
    run=run,
    about=__doc__,
    columns={
        "dims": "dimensions:,",
        "entries of the index": "index:,",
        "of the scope": "scope_size:,",
        "exact, µs": "exact_us:.0f",
        "EF 20, µs": "ef20_us:.0f",
        "recall": "ef20_recall:.3f",
        "EF 50, µs": "ef50_us:.0f",
        "recall ": "ef50_recall:.3f",
        "EF 100, µs": "ef100_us:.0f",
        "recall  ": "ef100_recall:.3f",
        "EF 200, µs": "ef200_us:.0f",
        "recall   ": "ef200_recall:.3f",
    },
)
