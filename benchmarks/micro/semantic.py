"""A semantic look-up beside the bare search that it cannot beat, on layouts that break others.

Layouts: one scope; many scopes of different prompts; thousands of scopes that share the same
popular prompts (one FAQ, many tenants); all of these in one index. At 384 dimensions the vectors
are real; at 1,536 they are the same vectors under a random orthogonal map, which keeps every
cosine and so all neighbours.

Timed in random order for each query, one at a time: the identical `FT.SEARCH` through a redis-py
pool as the cache has it, and that search followed by a `GET`; the search and the decision inside
the cache (which has no public door: `SemanticLayer.nearest` and `decide`); and
`lookup_semantic(vector=…)`, answer and all, with guards off and on. Recall is the share of queries
whose true nearest neighbour, by brute force over the stored FLOAT16 vectors, comes back, among
those that have one above the threshold.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from benchmarks.micro import loading, material
from benchmarks.micro.material import Material, Texts, Vectors
from benchmarks.micro.settings import Micro, Row, Settings
from llm_cache import CacheConfig, LLMCache
from llm_cache._core.hit_policy import ThresholdPolicy, decide
from llm_cache._redis.vectors import VectorStore
from llm_cache._semantic import Place

THRESHOLD = 0.85
_RULE = ThresholdPolicy(THRESHOLD, is_guarded=False)
_FAR = 0.6
_TIE = 0.001
"""Two neighbours this close are one to FLOAT16; either is right."""
_DIMENSIONS = (384, 1_536)
_PER_KIND = 300
_CALLERS = 100


class GivenVectors:
    """An embedder of any number of dimensions that is never asked: all vectors are given."""

    similarity_threshold = THRESHOLD

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.model_id = f"given/{dimensions}"

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Refuse."""
        raise AssertionError(f"{len(texts)} texts were to be embedded")


@dataclass(frozen=True, slots=True)
class Part:
    """So many scopes that hold so many prompts each: the same ones, or different ones."""

    scopes: int
    prompts: int
    are_shared: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """What is in the index."""

    name: str
    parts: Sequence[Part]


LAYOUTS = (
    Layout("one scope", [Part(1, 20_000, are_shared=False)]),
    Layout("50 scopes, different prompts", [Part(50, 400, are_shared=False)]),
    Layout("2,000 scopes, same prompts", [Part(2_000, 10, are_shared=True)]),
    Layout("20,000 scopes, same prompts", [Part(20_000, 2, are_shared=True)]),
    Layout(
        "all of these",
        [
            Part(1, 10_000, are_shared=False),
            Part(30, 400, are_shared=False),
            Part(1_000, 10, are_shared=True),
            Part(4_000, 2, are_shared=True),
        ],
    ),
)


@dataclass(frozen=True, slots=True)
class Scope:
    """One scope: its system message, and the prompts in it with their vectors."""

    system: str
    texts: Texts

    stored: Vectors
    """The vectors as the index has them."""


@dataclass(frozen=True, slots=True)
class Query:
    """A query with what is true of it."""

    system: str
    text: str
    vector: Any
    """An array, which the type checker does not take for a sequence of floats."""
    best: float

    @property
    def kind(self) -> str:
        """Whether it has a true neighbour at the threshold, near it, or none."""
        if self.best >= THRESHOLD:
            return "hit"
        return "near miss" if self.best >= _FAR else "far miss"


async def run(settings: Settings) -> list[Row]:
    """Measure all layouts at all dimensions."""
    real = await material.load(settings)
    rows: list[Row] = []
    for dimensions in _DIMENSIONS:
        given = real if dimensions == 384 else real.lifted(dimensions, settings.seed)
        for layout in LAYOUTS:
            rows += await _measure(settings, given, layout, dimensions)
            settings.keep(rows)
    return rows


async def _measure(
    settings: Settings, given: Material, layout: Layout, dimensions: int
) -> list[Row]:
    scopes = list(scopes_of(layout, given, settings))
    queries = list(_queries(scopes, given, settings))
    config = CacheConfig(
        namespace=f"bench.semantic.{time.time_ns()}",
        guards=False,
        ttl_s=3600,
        redis_timeout_s=60,
        added_latency_budget_s=60,
    )
    embedder = GivenVectors(dimensions)
    async with LLMCache(settings.url, embedder=embedder, config=config) as cache:
        inserts_per_s = await fill(cache, scopes)
        guarded = LLMCache(cache.redis_url, embedder=embedder, config=replace(config, guards=True))
        bare = bare_client(cache.redis_url)
        try:
            rows = await _time(cache, guarded, bare, queries)
            together = await _together(cache, bare, queries)
        finally:
            await bare.aclose()
            await guarded.aclose()
    about = {
        "dimensions": dimensions,
        "layout": layout.name,
        "entries": sum(len(scope.texts.texts) for scope in scopes),
        "inserts_per_s": round(inserts_per_s),
        **together,
    }
    return [{**about, **row} for row in rows]


def scopes_of(layout: Layout, given: Material, settings: Settings) -> Iterator[Scope]:
    """Yield the scopes of *layout*, a part of them in a small run."""
    rng = np.random.default_rng(settings.seed)
    number = 0
    for part in layout.parts:
        count = max(1, part.scopes // 20) if settings.quick else part.scopes
        prompts = max(2, part.prompts // 20) if settings.quick else part.prompts
        shared = _prompts(given.stored, part.prompts, rng)
        same = _halved(shared)
        for _ in range(count):
            number += 1
            texts = shared if part.are_shared else _prompts(given.stored, prompts, rng)
            halves = same if part.are_shared else _halved(texts)
            yield Scope(f"You answer for shop {number}.", texts, halves)


def _prompts(stored: Texts, count: int, rng: np.random.Generator) -> Texts:
    if count <= len(stored.texts) // 4:
        return stored.part(rng.choice(len(stored.texts), count, replace=False))
    vectors, nearer = material.between(stored, count, rng)
    near = stored.part(nearer)
    return Texts([f"{t} ({i})" for i, t in enumerate(near.texts)], near.intents, vectors)


def _queries(scopes: Sequence[Scope], given: Material, settings: Settings) -> Iterator[Query]:
    """Yield queries of all kinds.

    Points between a stored prompt and another of its intent, texts of intents that are not stored,
    and texts about something else.
    """
    rng = np.random.default_rng(settings.seed + 1)
    asked = _by_intent(given.asked)
    left = dict.fromkeys(("hit", "near miss", "far miss"), 20 if settings.quick else _PER_KIND)
    for attempt in range(200_000):
        if not any(left.values()):
            return
        scope = scopes[int(rng.integers(len(scopes)))]
        row = rng.integers(len(scope.texts.texts))
        other = (given.neighbouring, given.foreign)[attempt % 2]
        if attempt % 4 < 2 and scope.texts.intents[row] in asked:
            rows = asked[scope.texts.intents[row]]
            pick = rows[rng.integers(len(rows))]
            text, target = given.asked.texts[pick], given.asked.vectors[pick]
            share = np.float32(rng.random())
            mixed = scope.texts.vectors[row] * share + target * (1 - share)
            vector = mixed / np.linalg.norm(mixed)
        else:
            pick = int(rng.integers(len(other.texts)))
            text = other.texts[pick]
            vector = other.vectors[pick]
        cosines = scope.stored @ vector
        query = Query(scope.system, text, vector, float(cosines.max()))
        if left[query.kind]:
            left[query.kind] -= 1
            yield query


def _halved(texts: Texts) -> Vectors:
    halves: Vectors = texts.vectors.astype(np.float16).astype(np.float32)
    return halves


def _by_intent(texts: Texts) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, intent in enumerate(texts.intents):
        rows.setdefault(intent, []).append(row)
    return rows


async def fill(cache: LLMCache, scopes: Sequence[Scope], answer_bytes: int = 500) -> float:
    """Store every prompt of every scope; return entries a second."""
    rng = np.random.default_rng(0)
    first = scopes[0].texts
    answers = list(material.answers(first, 1_000, answer_bytes, rng))
    places = [(scope, i) for scope in scopes for i in range(len(scope.texts.texts))]
    started_s = time.perf_counter()
    async with loading.fast(cache):
        await loading.each(
            partial(
                cache.store_semantic,
                scope.texts.texts[i],
                answers[i % len(answers)],
                vector=scope.texts.vectors[i].tolist(),
                system=scope.system,
            )
            for scope, i in places
        )
    return len(places) / (time.perf_counter() - started_s)


def bare_client(url: str) -> redis.Redis:
    """Return a client that connects as the cache's own pool does: pool, retries, time-outs."""
    pool = redis.BlockingConnectionPool.from_url(
        url, max_connections=50, retry=Retry(NoBackoff(), 1), timeout=None
    )
    return redis.Redis.from_pool(pool)


@dataclass(slots=True)
class Recorder:
    """Hears what search a cache sends, so that the bare one is identical."""

    commands: list[tuple[Any, ...]]

    @classmethod
    def on(cls, cache: LLMCache) -> Recorder:
        """Begin to hear the searches of *cache*."""
        store = vector_store(cache)
        ask = store._ask
        recorder = cls([])

        async def note(*commands: tuple[Any, ...]) -> Any:
            recorder.commands += [c for c in commands if c[0] == "FT.SEARCH"]
            return await ask(*commands)

        store._ask = note  # type: ignore[method-assign]
        return recorder

    def off(self, cache: LLMCache) -> None:
        """Hear no more."""
        del vector_store(cache)._ask


def vector_store(cache: LLMCache) -> VectorStore:
    """Return where *cache* keeps its vectors."""
    store = cache._semantic.vectors
    assert isinstance(store, VectorStore)  # noqa: S101 - a single server has one
    return store


async def placed(cache: LLMCache, text: str, vector: Any, **options: Any) -> Place:
    """Return where *text* with its *vector* stands for *cache*."""
    place, _ = await cache._place(text, vector, options)
    assert place is not None  # noqa: S101 - what has blind spots is not asked here
    return place


async def searches(cache: LLMCache, places: Iterable[Place]) -> list[tuple[Any, ...]]:
    """Return the search that *cache* makes for each of *places*."""
    recorder = Recorder.on(cache)
    for place in places:
        # A look-up would make the same one from a script.
        await cache._semantic.nearest(place)
    recorder.off(cache)
    return recorder.commands


async def _time(
    cache: LLMCache, guarded: LLMCache, bare: redis.Redis, queries: Sequence[Query]
) -> list[Row]:
    await guarded.open()
    places = {}
    first_s: dict[str, list[float]] = {}
    commands = []
    recorder = Recorder.on(cache)
    for query in queries:
        is_new = query.system not in places
        place = await placed(cache, query.text, query.vector, system=query.system)
        places[query.system] = place.scope
        start = time.perf_counter()
        await cache._semantic.nearest(place)
        if is_new:
            first_s.setdefault(query.kind, []).append(time.perf_counter() - start)
        commands.append(recorder.commands[-1])
    recorder.off(cache)
    # Searched once by every cache, so that the size of every scope is known.
    for query in queries:
        await guarded.lookup_semantic(query.text, vector=query.vector, system=query.system)
    key = await cache.store_exact("Any.", "x" * 500)
    order = np.random.default_rng(2).permutation(len(queries))
    times: dict[tuple[str, str], list[float]] = {}
    found: dict[str, list[bool]] = {}
    for number in order:
        query, command = queries[number], commands[number]
        place = Place(places[query.system], query.vector, query.text)
        ways: dict[str, Callable[[], Awaitable[Any]]] = {
            "bare": partial(bare.execute_command, *command),
            "bare_get": partial(_search_and_get, bare, command, key),
            "decision": partial(_decide, cache, place),
            "lookup": partial(
                cache.lookup_semantic, query.text, vector=query.vector, system=query.system
            ),
            "guarded": partial(
                guarded.lookup_semantic, query.text, vector=query.vector, system=query.system
            ),
            "ping": bare.ping,
        }
        names = list(ways)
        # The first of them warms the caches of the processor for the others.
        await bare.execute_command(*command)
        for which in np.random.default_rng(int(number)).permutation(len(names)):
            name = names[which]
            start = time.perf_counter()
            answer = await ways[name]()
            times.setdefault((query.kind, name), []).append(time.perf_counter() - start)
            # Right at the threshold, rounding decides.
            if name == "lookup" and query.best >= THRESHOLD + _TIE:
                is_found = answer is not None and answer.similarity >= query.best - _TIE
                found.setdefault(query.kind, []).append(is_found)
    kinds = dict.fromkeys(query.kind for query in queries)
    return [
        {
            "kind": kind,
            "queries": sum(query.kind == kind for query in queries),
            **_summary({name: t for (of, name), t in times.items() if of == kind}),
            "first_us": _us(first_s.get(kind, []), 50),
            "recall": float(np.mean(found[kind])) if kind in found else None,
        }
        for kind in kinds
    ]


async def _search_and_get(bare: redis.Redis, command: tuple[Any, ...], key: str) -> None:
    await bare.execute_command(*command)
    await bare.get(key)


async def _decide(cache: LLMCache, place: Place) -> object:
    # What a cache salts and asks for a vector that it is given.
    candidates = await cache._semantic.nearest(place)
    return decide(place.prompt, candidates, _RULE).first_served


def _summary(times: dict[str, list[float]]) -> Row:
    row: Row = {}
    for name, values in times.items():
        row[f"{name}_us"] = _us(values, 50)
        row[f"{name}_p99_us"] = _us(values, 99)
    return {
        **row,
        "decision_ratio": row["decision_us"] / row["bare_us"],
        "lookup_ratio": row["lookup_us"] / row["bare_get_us"],
        "guarded_ratio": row["guarded_us"] / row["bare_get_us"],
        "spread": row["decision_p99_us"] / row["decision_us"],
        "bare_spread": row["bare_p99_us"] / row["bare_us"],
    }


def _us(values: Sequence[float], which: float) -> float | None:
    return round(float(np.percentile(values, which)) * 1e6, 1) if values else None


async def _together(cache: LLMCache, bare: redis.Redis, queries: Sequence[Query]) -> Row:
    """Return searches a second of many callers, through the cache and through a pool of 50.

    And the time of a `GET` meanwhile, on a connection of its own: what others feel of it.
    """
    places = [await placed(cache, q.text, q.vector, system=q.system) for q in queries]
    commands = await searches(cache, places)
    other = redis.Redis.from_url(cache.redis_url)
    rates: dict[str, list[float]] = {"line": [], "pool": []}
    felt: dict[str, list[float]] = {"line": [], "pool": []}

    async def by_line(i: int) -> None:
        await cache._semantic.nearest(places[i])

    async def by_pool(i: int) -> None:
        await bare.execute_command(*commands[i])

    for _ in range(5):
        for name, search in (("line", by_line), ("pool", by_pool)):
            per_s, waits = await rate(search, len(places), other)
            rates[name].append(per_s)
            felt[name] += waits
    await other.aclose()
    return {
        "callers": _CALLERS,
        "line_per_s": round(float(np.median(rates["line"]))),
        "pool_per_s": round(float(np.median(rates["pool"]))),
        "get_beside_line_us": _us(felt["line"], 50),
        "get_beside_pool_us": _us(felt["pool"], 50),
        "get_beside_line_p99_us": _us(felt["line"], 99),
        "get_beside_pool_p99_us": _us(felt["pool"], 99),
    }


async def rate(
    search: Callable[[int], Awaitable[None]], count: int, other: redis.Redis
) -> tuple[float, list[float]]:
    """Return searches a second of many callers, and the seconds of a `GET` beside them."""
    waits: list[float] = []
    is_over = False
    turns = iter(list(range(count)) * 2)

    async def call() -> None:
        for i in turns:
            await search(i)

    async def feel() -> None:
        while not is_over:
            start = time.perf_counter()
            await other.get("nothing")
            waits.append(time.perf_counter() - start)
            await asyncio.sleep(0.002)

    feeling = asyncio.create_task(feel())
    start = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(_CALLERS)))
    seconds = time.perf_counter() - start
    is_over = True
    await feeling
    return 2 * count / seconds, waits


BENCHMARK = Micro(
    name="semantic",
    run=run,
    about=__doc__,
    columns={
        "dims": "dimensions:,",
        "layout": "layout",
        "entries": "entries:,",
        "": "kind",
        "FT.SEARCH µs": "bare_us:.0f",
        "search + decision": "decision_us:.0f",
        "ratio": "decision_ratio:.2f",
        "FT.SEARCH + GET": "bare_get_us:.0f",
        "lookup_semantic": "lookup_us:.0f",
        "ratio ": "lookup_ratio:.2f",
        "with guards": "guarded_us:.0f",
        "p99 / p50": "spread:.1f",
        "bare p99 / p50": "bare_spread:.1f",
        "recall": "recall:.3f",
        "first contact µs": "first_us:.0f",
    },
)
