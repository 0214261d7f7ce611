"""How much of a vector is best left unsalted: recall and price in an index of 100 scopes.

300,000 real vectors, and points between them, in 100 scopes of 3,000; each share of coordinates
that is left alone has an index of its own. What is asked are held-out texts; recall is that of the
true nearest in the scope, above a similarity of 0.8. Hashes are written bare: there is no public
door to other ways of salting.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
from redis import asyncio as redis

from benchmarks.micro import material
from benchmarks.micro.layouts import statement
from benchmarks.micro.material import Material, Vectors
from benchmarks.micro.settings import Micro, Row, Settings
from llm_cache import CacheConfig, LLMCache, LocalEmbedder

_SCOPES = 100
_PER_SCOPE = 3_000
_NAMES = {0: "none", 4: "every fourth", 2: "every second"}
"""By every how many-th coordinate is left alone."""
_EFS = (20, 50, 100, 200)
_QUERIES = 400
_THRESHOLD = 0.8
_TIE = 0.002

Halves = npt.NDArray[np.float16]


async def run(settings: Settings) -> list[Row]:
    """Measure every share."""
    given = await material.load(settings)
    rows: list[Row] = []
    for every in _NAMES:
        # The cache is what starts a server, a new one for each.
        config = CacheConfig(semantic=False)
        async with LLMCache(settings.url, embedder=LocalEmbedder(), config=config) as cache:
            rows += await _measure(settings, given, cache.redis_url, every)
            settings.keep(rows)
    return rows


async def _measure(settings: Settings, given: Material, url: str, every: int) -> list[Row]:
    per_scope = 30 if settings.quick else _PER_SCOPE
    name = f"bench.salting.{time.time_ns()}"
    rng = np.random.default_rng(settings.seed)
    bare = redis.Redis.from_url(url, protocol=2)
    try:
        await bare.execute_command(*await statement(url, name, 384))
        stored: list[Vectors] = []
        started_s = time.perf_counter()
        for scope in range(_SCOPES):
            vectors, _ = material.between(given.stored, per_scope, rng)
            stored.append(vectors)
            pipeline = bare.pipeline(transaction=False)
            for i, blob in enumerate(_salted(vectors, scope, every)):
                key = f"{name}:s:v:{{{scope}.{i}}}:0"
                pipeline.hset(key, mapping={"vector": blob.tobytes(), "scope": f"s{scope}"})
                pipeline.pexpire(key, 4 * 3_600_000)
            await pipeline.execute()
        inserts_per_s = _SCOPES * per_scope / (time.perf_counter() - started_s)
        return [
            {
                "left_alone": _NAMES[every],
                "entries": _SCOPES * per_scope,
                "inserts_per_s": round(inserts_per_s),
                "ef": ef,
                **await _search(bare, given, stored, f"{name}:idx:v", every, ef),
            }
            for ef in _EFS
        ]
    finally:
        await bare.aclose()


def _salted(vectors: Vectors, scope: int, every: int) -> Halves:
    signs = np.random.default_rng(scope).choice(np.array([-1, 1], np.float16), vectors.shape[1])
    if every:
        signs[::every] = 1
    turned: Halves = vectors.astype(np.float16) * signs
    return turned


async def _search(
    bare: redis.Redis,
    given: Material,
    stored: list[Vectors],
    index: str,
    every: int,
    ef: int,
) -> Row:
    rng = np.random.default_rng(0)
    counted = found = 0
    await bare.config_resetstat()
    for vector in given.asked.vectors:
        scope = int(rng.integers(len(stored)))
        best = float((stored[scope] @ vector).max())
        if best < _THRESHOLD:
            continue
        blob = _salted(vector[np.newaxis], scope, every).tobytes()
        reply = await bare.execute_command(
            *("FT.SEARCH", index, f"*=>[KNN 4 @vector $v EF_RUNTIME {ef} AS distance]"),
            *("PARAMS", 2, "v", blob, "RETURN", 2, "scope", "distance"),
            *("SORTBY", "distance", "LIMIT", 0, 4, "DIALECT", 2),
        )
        rows = [dict(zip(row[::2], row[1::2], strict=True)) for row in reply[2::2] if row]
        own = [float(row[b"distance"]) for row in rows if row[b"scope"] == b"s%d" % scope]
        counted += 1
        found += 1 - min(own, default=2.0) >= best - _TIE
        if counted == _QUERIES:
            break
    stats = await bare.info("commandstats")
    return {
        "queries": counted,
        "recall": found / counted if counted else None,
        "server_us": stats["cmdstat_FT.SEARCH"]["usec_per_call"],
    }


BENCHMARK = Micro(
    name="salting",
    run=run,
    about=__doc__,
    is_long=True,
    columns={
        "coordinates left alone": "left_alone",
        "entries": "entries:,",
        "inserts/s": "inserts_per_s:,",
        "EF_RUNTIME": "ef:,",
        "recall": "recall:.4f",
        "search in the server, µs": "server_us:.0f",
    },
)
