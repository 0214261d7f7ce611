"""Other ways to keep the semantic entries: what each costs in bytes, time and recall.

The hash that the product writes, and the statement that makes its index, with one thing changed at
a time; 20,000 real vectors in one scope. Bytes are those of hash and index alone, without the
answer, but for the two variants that are about where an answer of 500 bytes is kept. Recall is
that of the graph, above a similarity of 0.8.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from redis import asyncio as redis

from benchmarks.micro import material
from benchmarks.micro.layouts import DTYPES, Statement, graph_recall, statement, with_value
from benchmarks.micro.material import Material
from benchmarks.micro.semantic import GivenVectors
from benchmarks.micro.settings import Micro, Row, Settings
from llm_cache import CacheConfig, LLMCache
from llm_cache._core.keys import Keys
from llm_cache._core.vectors import salted_blob

_ENTRIES = 20_000
_TTL_MS = 3_600_000
_SCOPE = "ybh36qrzakkpg722aidoozyjeoxe4pze"
_ANSWER = b"x" * 500

Fields = dict[Any, Any]


@dataclass(frozen=True, slots=True)
class _Variant:
    name: str
    statement: Callable[[Statement], Statement] = field(default=lambda statement: statement)
    fields: Callable[[Fields], Fields] = field(default=lambda fields: fields)
    settings: Sequence[tuple[str, str]] = ()
    ef: int | None = 50
    dtype: str = "FLOAT16"
    answer_beside: bool = False
    """Whether an answer is kept in a key of its own, as the product does."""


def _attribute(name: str, value: Any) -> Callable[[Statement], Statement]:
    """Return an addition to the attributes of the vector field."""

    def change(statement: Statement) -> Statement:
        at = statement.index("HNSW") + 1
        count = statement[at] + 2
        return [*statement[:at], count, *statement[at + 1 :], name, value]

    return change


def _without_case(statement: Statement) -> Statement:
    return [word for word in statement if word != "CASESENSITIVE"]


def _flat(statement: Statement) -> Statement:
    at = statement.index("HNSW")
    kept = {"TYPE", "DIM", "DISTANCE_METRIC"}
    pairs = list(zip(statement[at + 2 :: 2], statement[at + 3 :: 2], strict=True))
    chosen = [word for name, value in pairs if name in kept for word in (name, value)]
    return [*statement[:at], "FLAT", len(chosen), *chosen]


_VARIANTS = (
    _Variant("as it is"),
    *(_Variant(f"M {m}", with_value("M", m)) for m in (6, 8, 12, 24, 32)),
    _Variant("EF_CONSTRUCTION 100", with_value("EF_CONSTRUCTION", 100)),
    _Variant("EF_CONSTRUCTION 400", with_value("EF_CONSTRUCTION", 400)),
    _Variant("EF_RUNTIME 20", ef=20),
    _Variant("EF_RUNTIME 100", ef=100),
    _Variant("BLOCK_SIZE 128", _attribute("BLOCK_SIZE", 128)),
    _Variant("scope without CASESENSITIVE", _without_case),
    _Variant("scope of 16 characters", fields=lambda f: {**f, "scope": _SCOPE[:16]}),
    _Variant(
        "no prompt in the hash", fields=lambda f: {k: v for k, v in f.items() if k != "prompt"}
    ),
    _Variant("hash-max-listpack-value 8192", settings=[("hash-max-listpack-value", "8192")]),
    *(
        _Variant(dtype, with_value("TYPE", dtype), dtype=dtype)
        for dtype in ("FLOAT32", "BFLOAT16", "INT8")
    ),
    _Variant("FLAT", _flat, ef=None),
    _Variant("with an answer, in a key of its own", answer_beside=True),
    _Variant("with an answer, in the hash", fields=lambda f: {**f, "answer": _ANSWER}),
)


async def run(settings: Settings) -> list[Row]:
    """Measure every variant at 384 and 1,536 dimensions."""
    given = await material.load(settings)
    rows: list[Row] = []
    for dimensions in (384, 1_536):
        wide = given if dimensions == 384 else given.lifted(dimensions, settings.seed)
        for variant in _VARIANTS:
            rows.append(await _measure(settings, wide, dimensions, variant))
            settings.keep(rows)
    return rows


async def _measure(settings: Settings, given: Material, dimensions: int, variant: _Variant) -> Row:
    about: Row = {"dimensions": dimensions, "variant": variant.name}
    # The cache starts the server, and says what it would send.
    config = CacheConfig(
        namespace=f"bench.variants.{time.time_ns()}", redis_timeout_s=60, added_latency_budget_s=60
    )
    embedder = GivenVectors(dimensions)
    async with LLMCache(settings.url, embedder=embedder, config=config) as cache:
        bare = redis.Redis.from_url(cache.redis_url, protocol=2)
        name = f"bench.variant.{time.time_ns()}"
        try:
            for setting, value in variant.settings:
                await bare.config_set(setting, value)
            making = variant.statement(await statement(cache.redis_url, name, dimensions))
            before = (await bare.info("memory"))["used_memory"]
            await bare.execute_command(*making)
        except redis.ResponseError as error:
            return {**about, "why": f"refused: {error}"}
        else:
            return {**about, **await _fill(settings, bare, given, variant, name, before)}
        finally:
            await bare.aclose()


async def _fill(
    settings: Settings,
    bare: redis.Redis,
    given: Material,
    variant: _Variant,
    name: str,
    before: int,
) -> Row:
    count = 1_000 if settings.quick else _ENTRIES
    rng = np.random.default_rng(settings.seed)
    rows = rng.choice(len(given.stored.texts), count, replace=False)
    convert = DTYPES[variant.dtype]
    keys = Keys(name)
    stored = given.stored.vectors[rows]
    started_s = time.perf_counter()
    for start in range(0, count, 500):
        pipeline = bare.pipeline(transaction=False)
        for i in range(start, min(start + 500, count)):
            fields = {
                "vector": convert(salted_blob(stored[i], _SCOPE)),
                "scope": _SCOPE,
                "prompt": given.stored.texts[rows[i]].ljust(60)[:60],
            }
            digest = f"{i:032d}"
            pipeline.hset(keys.entry("v", digest), mapping=variant.fields(fields))
            pipeline.pexpire(keys.entry("v", digest), _TTL_MS)
            if variant.answer_beside:
                pipeline.set(keys.answer(digest), _ANSWER, px=_TTL_MS)
        await pipeline.execute()
    seconds = time.perf_counter() - started_s
    used = (await bare.info("memory"))["used_memory"] - before
    return {
        "bytes_per_entry": round(used / count),
        "inserts_per_s": round(count / seconds),
        **await graph_recall(
            bare,
            keys.index("v"),
            _SCOPE,
            stored=stored,
            asked=given.asked.vectors[:1_000],
            convert=convert,
            ef=variant.ef,
        ),
    }


BENCHMARK = Micro(
    name="variants",
    run=run,
    about=__doc__,
    is_long=True,
    columns={
        "dims": "dimensions:,",
        "variant": "variant",
        "bytes of hash and index": "bytes_per_entry:,",
        "inserts/s": "inserts_per_s:,",
        "recall": "recall:.4f",
        "search in the server, µs": "server_us:.0f",
        "note": "why",
    },
)
