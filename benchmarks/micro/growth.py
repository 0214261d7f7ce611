"""Growth to a million entries: look-ups, inserts and memory at 10k, 100k and 1M.

Two ways to grow, each on a server of its own (384 dimensions, real vectors and points between
them):

* `constant`: ever more scopes of 10,000 entries. The near neighbours of a prompt stay as many.
* `density`: one scope. The near neighbours of a prompt grow in proportion to the entries.

What is asked are held-out texts, sorted by the similarity of their true nearest neighbour, which
is computed by brute force over the stored FLOAT16 vectors: hits (at the threshold or above), near
misses, far misses (below 0.6). A bare `PING` is timed beside every look-up: it tells what of the
ninety-ninth percentile is the machine's.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from redis import asyncio as redis

from benchmarks.micro import loading, material
from benchmarks.micro.material import Material, Texts, Vectors
from benchmarks.micro.semantic import placed, searches
from benchmarks.micro.settings import Micro, Row, Settings
from llm_cache import CacheConfig, LLMCache, LocalEmbedder

_SIZES = (10_000, 100_000, 1_000_000)
_SCOPE = 10_000
_THRESHOLD = 0.85
_FAR = 0.6
_TIE = 0.001
"""Two neighbours this close are one to FLOAT16; either is right."""
_PER_KIND = 500
_ANSWER_BYTES = 500
_CHUNK = 10_000
_EFS = (20, 50, 100, 150, 200, 400)
_EF = re.compile("EF_RUNTIME ([0-9]+)")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A query with what is true of it."""

    system: str
    text: str
    vector: Vectors
    best: float
    near: int
    """Entries of its scope at the threshold or above."""

    @property
    def kind(self) -> str:
        if self.best >= _THRESHOLD:
            return "hit"
        return "near_miss" if self.best >= _FAR else "far_miss"


@dataclass(slots=True)
class _Grown:
    """What is stored so far: the vectors of each scope, as FLOAT16 like in the index."""

    mode: str
    scopes: dict[str, list[npt.NDArray[np.float16]]] = field(default_factory=dict)

    def system(self, entry: int) -> str:
        shop = entry // _SCOPE if self.mode == "constant" else 0
        return f"You answer for shop {shop}."

    def add(self, entry: int, vectors: Vectors) -> None:
        self.scopes.setdefault(self.system(entry), []).append(vectors.astype(np.float16))


async def run(settings: Settings) -> list[Row]:
    """Grow both ways, as far as the deadline allows."""
    sizes = [size // 50 for size in _SIZES[:2]] if settings.quick else list(_SIZES)
    given = await material.load(settings)
    started_s = time.monotonic()
    rows: list[Row] = []
    for share, mode in ((0.5, "constant"), (1.0, "density")):
        ends_s = started_s + share * settings.deadline_s
        async for row in _grow(settings, given, mode, sizes, ends_s):
            rows.append(row)
            settings.keep(rows)
    return rows


async def _grow(
    settings: Settings, given: Material, mode: str, sizes: Sequence[int], ends_s: float
) -> AsyncIterator[Row]:
    rng = np.random.default_rng(settings.seed)
    # The plain search is what is measured. Entries of a server that lives on expire by themselves.
    config = CacheConfig(
        namespace=f"bench.growth.{time.time_ns()}",
        guards=False,
        similarity_threshold=_THRESHOLD,
        redis_timeout_s=120,
        added_latency_budget_s=120,
        ttl_s=4 * 3600,
    )
    grown, embedder = _Grown(mode), LocalEmbedder()
    async with LLMCache(settings.url, embedder=embedder, config=config) as cache:
        bare = redis.Redis.from_url(cache.redis_url, protocol=3)
        empty_bytes = (await bare.info("memory"))["used_memory"]
        entries, seconds = 0, 0.0
        for size in sizes:
            while entries < size and time.monotonic() < ends_s:
                count = min(_CHUNK, size - entries)
                seconds = await _insert(cache, given.stored, grown, entries, count, rng)
                entries += count
            used = (await bare.info("memory"))["used_memory"] - empty_bytes
            asked = list(_questions(given, grown, settings.seed))
            # A reader of its own knows the index as it is now; the one that fills it would learn
            # within a minute.
            async with LLMCache(cache.redis_url, embedder=embedder, config=config) as reader:
                row = await _look_up(reader, bare, asked)
                hits = [one for one in asked if one.best >= _THRESHOLD + _TIE][:_PER_KIND]
                places = [
                    await placed(reader, one.text, one.vector.tolist(), system=one.system)
                    for one in hits
                ]
                commands = await searches(reader, places)
            # An exact search keeps none in view.
            width = _EF.search(commands[0][2]) if commands else None
            yield {
                "mode": mode,
                "entries": entries,
                "is_complete": entries == size,
                "inserts_per_s": round(count / seconds),
                "bytes_per_entry": round(used / entries),
                **row,
                "ef_runtime": int(width[1]) if width else None,
                "by_ef": [await _with_ef(ef, bare, hits, commands) for ef in _EFS],
            }
            if entries < size:
                break
        await bare.aclose()


async def _insert(
    cache: LLMCache,
    texts: Texts,
    grown: _Grown,
    start: int,
    count: int,
    rng: np.random.Generator,
) -> float:
    """Store *count* entries, and return the seconds it took."""
    vectors, nearer = material.between(texts, count, rng)
    answers = list(material.answers(texts, count, _ANSWER_BYTES, rng))
    system = grown.system(start)
    grown.add(start, vectors)
    started_s = time.perf_counter()
    async with loading.fast(cache):
        await loading.each(
            partial(
                cache.store_semantic,
                f"{texts.texts[nearer[i]]} ({start + i})",
                answers[i],
                vector=vectors[i],
                system=system,
            )
            for i in range(count)
        )
    return time.perf_counter() - started_s


def _questions(given: Material, grown: _Grown, seed: int) -> Iterator[_Asked]:
    rng = np.random.default_rng(seed)
    pools = [(given.asked, 1_600), (given.neighbouring, 700), (given.foreign, 500)]
    parts = [
        pool.part(rng.choice(len(pool.texts), min(many, len(pool.texts)), replace=False))
        for pool, many in pools
    ]
    texts = [text for part in parts for text in part.texts]
    vectors = np.concatenate([part.vectors for part in parts])
    systems = rng.choice(sorted(grown.scopes), len(texts))
    for system, chunks in grown.scopes.items():
        rows = np.flatnonzero(systems == system)
        best = np.full(len(rows), -1.0, np.float32)
        near = np.zeros(len(rows), np.int64)
        for chunk in chunks:
            cosines = vectors[rows] @ chunk.astype(np.float32).T
            best = np.maximum(best, cosines.max(axis=1))
            near += (cosines >= _THRESHOLD).sum(axis=1)
        for i, row in enumerate(rows):
            yield _Asked(system, texts[row], vectors[row], float(best[i]), int(near[i]))


async def _look_up(cache: LLMCache, bare: redis.Redis, asked: Sequence[_Asked]) -> Row:
    kinds = {
        kind: [one for one in asked if one.kind == kind][:_PER_KIND]
        for kind in ("hit", "near_miss", "far_miss")
    }
    for system in {one.system for one in asked}:
        first = next(one for one in asked if one.system == system)
        await cache.lookup_semantic(first.text, vector=first.vector.tolist(), system=system)
    row: Row = {}
    pings: list[float] = []
    counted = found = 0
    for kind, queries in kinds.items():
        await bare.config_resetstat()
        times = []
        for one in queries:
            start = time.perf_counter()
            await bare.ping()
            middle = time.perf_counter()
            reply = await cache.lookup_semantic(
                one.text, vector=one.vector.tolist(), system=one.system
            )
            times.append(time.perf_counter() - middle)
            pings.append(middle - start)
            # Right at the threshold, rounding decides.
            if one.best >= _THRESHOLD + _TIE:
                counted += 1
                found += reply is not None and (reply.similarity or 0) >= one.best - _TIE
        search = (await bare.info("commandstats")).get("cmdstat_FT.SEARCH", {})
        row |= {
            f"{kind}_queries": len(queries),
            f"{kind}_p50_ms": _percentile_ms(times, 50),
            f"{kind}_p99_ms": _percentile_ms(times, 99),
            f"{kind}_server_us": search.get("usec_per_call"),
        }
    near = [one.near for one in kinds["hit"]]
    return {
        **row,
        "ping_p50_ms": _percentile_ms(pings, 50),
        "ping_p99_ms": _percentile_ms(pings, 99),
        "recall": round(found / counted, 4) if counted else None,
        "recall_queries": counted,
        "near_neighbours_p50": int(np.median(near)) if near else 0,
        "near_neighbours_p90": int(np.percentile(near, 90)) if near else 0,
    }


async def _with_ef(
    ef: int, bare: redis.Redis, hits: Sequence[_Asked], commands: Sequence[tuple[Any, ...]]
) -> Row:
    """Return what the searches of *hits*, *commands*, give and take with this `EF_RUNTIME`."""
    await bare.config_resetstat()
    found = 0
    for one, command in zip(hits, commands, strict=True):
        query = _EF.sub(f"EF_RUNTIME {ef}", command[2])
        reply = await bare.execute_command(*command[:2], query, *command[3:])
        rows_found = [row[b"extra_attributes"] for row in reply[b"results"]]
        # A row of another scope is at a cosine of a quarter, far below what is counted here.
        nearest = [1 - float(row[b"distance"]) for row in rows_found]
        found += max(nearest, default=-1) >= one.best - _TIE
    search = (await bare.info("commandstats"))["cmdstat_FT.SEARCH"]
    return {
        "ef": ef,
        "recall": round(found / len(hits), 4),
        "queries": len(hits),
        "server_us": search["usec_per_call"],
    }


def _percentile_ms(times_s: Sequence[float], which: float) -> float | None:
    return round(float(np.percentile(times_s, which)) * 1e3, 3) if times_s else None


BENCHMARK = Micro(
    name="growth",
    run=run,
    about=__doc__,
    is_long=True,
    columns={
        "growth": "mode",
        "entries": "entries:,",
        "EF_RUNTIME": "ef_runtime",
        "near neighbours of a hit, p50": "near_neighbours_p50:,",
        "hit p50 ms": "hit_p50_ms:.2f",
        "p99": "hit_p99_ms:.2f",
        "near miss p50": "near_miss_p50_ms:.2f",
        "p99 ": "near_miss_p99_ms:.2f",
        "far miss p50": "far_miss_p50_ms:.2f",
        "p99  ": "far_miss_p99_ms:.2f",
        "PING p99": "ping_p99_ms:.2f",
        "recall": "recall:.4f",
        "inserts/s": "inserts_per_s:,",
        "bytes/entry": "bytes_per_entry:,",
    },
)
