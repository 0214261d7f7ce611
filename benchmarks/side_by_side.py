"""Ours and others on one Redis, in one run: the same vectors, the same answers, the same stream.

What takes part is a `Contender`: something that opens caches. `benchmarks.peers.contenders()`
lists the others, where that package is; each lives in a process and an environment of its own. One
that cannot be opened is a row that says why.
"""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from redis.exceptions import RedisError

from benchmarks.embedding import MeteredEmbedder
from benchmarks.histograms import Latencies
from benchmarks.results import Results
from benchmarks.session import Session, forget, used_memory_bytes
from benchmarks.workloads import Workload, shipped
from benchmarks.workloads.zipf import popular
from llm_cache import CacheConfig, LLMCache, __version__
from llm_cache.testing import ScriptedUpstream

Json = dict[str, Any]
T = TypeVar("T")
Vector = np.ndarray
_ANSWER = "An answer of some length. ".ljust(500, "x")


class CannotRun(Exception):
    """A contender cannot take part; the message says why."""


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """What an operation returned, and how long it took where it ran."""

    value: T
    elapsed_s: float


class Peer(Protocol):
    """A cache under comparison.

    An operation it does not have raises `NotImplementedError`; one that fails raises whatever it
    likes, and is counted.
    """

    async def exact_set(self, prompt: str, answer: str) -> Timed[None]:
        """Store the answer to *prompt*."""

    async def exact_get(self, prompt: str) -> Timed[str | None]:
        """Return the answer stored for *prompt*."""

    async def semantic_store(self, prompt: str, answer: str, vector: Vector) -> Timed[None]:
        """Store the answer to *prompt*, to be found by its *vector*."""

    async def semantic_check(self, prompt: str, vector: Vector) -> Timed[str | None]:
        """Return the answer to a prompt near *vector*."""

    async def close(self) -> None:
        """End it, and remove what it stored."""


class Contender(Protocol):
    """Opens caches of one kind."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def version(self) -> str:
        """Its release."""

    async def open(self, redis_url: str, *, dimensions: int, similarity_threshold: float) -> Peer:
        """Return a cache with nothing in it.

        Raises:
            CannotRun: it is not installed, or cannot work with this Redis.
        """


@dataclass(frozen=True, slots=True)
class Plan:
    """How much."""

    entries: int = 1_024
    """A multiple of the 1,024 by which an index grows, so that no unused room is weighed."""
    reads: int = 1_000
    callers: int = 200


QUICK = Plan(reads=300)


async def measure(
    session: Session, results: Results, plan: Plan, embedder: MeteredEmbedder
) -> None:
    """Measure ours and whoever else is there, and put the rows into *results*."""
    section = results.section("peers")
    prompts = [question.wordings[0] for question in popular(plan.entries, session.seed)]
    stored = dict(zip(prompts, await embedder.vectors(prompts), strict=True))
    dimensions = len(next(iter(stored.values())))
    section.update(
        entries=plan.entries, dimensions=dimensions, callers=plan.callers, rows=(rows := [])
    )
    for contender in [Ours(session), *others()]:
        if session.stop.is_set():
            return
        session.progress.say(f"side by side: {contender.name}")
        bench = _Bench(session, plan, contender, embedder, dimensions)
        rows.append(await bench.row(stored))
    if len(rows) == 1:
        results.note("No others are beside ours: benchmarks.peers is not there.")


def others() -> list[Contender]:
    """Return whoever else is there."""
    if importlib.util.find_spec("benchmarks.peers") is None:
        return []
    peers = importlib.import_module("benchmarks.peers")
    return list(peers.contenders())


class _Bench:
    """Measures one contender."""

    def __init__(
        self,
        session: Session,
        plan: Plan,
        contender: Contender,
        embedder: MeteredEmbedder,
        dimensions: int,
    ) -> None:
        self._url = session.redis_url
        self._seed = session.seed
        self._plan = plan
        self._contender = contender
        self._embedder = embedder
        self._dimensions = dimensions

    async def row(self, stored: dict[str, Vector]) -> Json:
        """Return its figures; of what failed, why."""
        row: Json = {"name": self._contender.name, "version": "", "why_not": None}
        row.update(dict.fromkeys(("exact_hit", "store", "semantic_hit", "crowd", "faq", "traps")))
        row["bytes_per_entry"] = None
        try:
            await self._speeds(row, stored)
            row["faq"] = await self._replay(shipped.faq(self._seed))
            row["traps"] = await self._fall_into(shipped.traps())
        except CannotRun as error:
            row["why_not"] = str(error)
        except Exception as error:  # noqa: BLE001 - another library's failure is a row, not ours
            row["why_not"] = f"{type(error).__name__}: {error}"
        row["version"] = self._contender.version
        return row

    async def _open(self) -> Peer:
        return await self._contender.open(
            self._url,
            dimensions=self._dimensions,
            similarity_threshold=self._embedder.similarity_threshold,
        )

    async def _speeds(self, row: Json, stored: dict[str, Vector]) -> None:
        peer = await self._open()
        try:
            with suppress(NotImplementedError):
                row["exact_hit"] = await self._exact(peer, list(stored))
            with suppress(NotImplementedError):
                await self._semantic(peer, row, stored)
            row["crowd"] = await self._crowd(peer, stored, is_semantic=bool(row["semantic_hit"]))
        finally:
            await peer.close()

    async def _exact(self, peer: Peer, prompts: Sequence[str]) -> Json:
        await peer.exact_set(prompts[0], _ANSWER)
        latencies, missed = Latencies(), 0
        for prompt in prompts:
            await peer.exact_set(prompt, _ANSWER)
        for i in range(self._plan.reads):
            got = await peer.exact_get(prompts[i % len(prompts)])
            latencies.add(got.elapsed_s)
            missed += got.value != _ANSWER
        return {**latencies.figures(), "missed": missed}

    async def _semantic(self, peer: Peer, row: Json, stored: dict[str, Vector]) -> None:
        before = await used_memory_bytes(self._url)
        storing, looking, missed = Latencies(), Latencies(), 0
        for prompt, vector in stored.items():
            # Prompts of its own, so that no exact entry of before is replaced.
            storing.add((await peer.semantic_store(_other(prompt), _ANSWER, vector)).elapsed_s)
        row["bytes_per_entry"] = (await used_memory_bytes(self._url) - before) / len(stored)
        pairs = list(stored.items())
        for i in range(self._plan.reads):
            prompt, vector = pairs[i % len(pairs)]
            got = await peer.semantic_check(_other(prompt), vector)
            looking.add(got.elapsed_s)
            missed += got.value is None
        row["store"] = storing.figures()
        row["semantic_hit"] = {**looking.figures(), "missed": missed}

    async def _crowd(self, peer: Peer, stored: dict[str, Vector], *, is_semantic: bool) -> Json:
        """Let so many callers ask at the same time, three times each."""
        pairs = list(stored.items())
        latencies, failed = Latencies(), 0

        async def caller(number: int) -> None:
            nonlocal failed
            for i in range(3):
                prompt, vector = pairs[(number * 3 + i) % len(pairs)]
                try:
                    if is_semantic:
                        got = await peer.semantic_check(_other(prompt), vector)
                    else:
                        got = await peer.exact_get(prompt)
                except Exception:  # noqa: BLE001 - whatever it is, the caller got no answer
                    failed += 1
                else:
                    latencies.add(got.elapsed_s)

        await asyncio.gather(*(caller(number) for number in range(self._plan.callers)))
        return {**latencies.figures(), "failed": failed}

    async def _replay(self, workload: Workload) -> Json | None:
        """Ask a stream: look up, and store what was not found."""
        peer = await self._open()
        hits = wrong = requests = 0
        try:
            for ask in workload.asks():
                (vector,) = await self._embedder.vectors([ask.prompt])
                requests += 1
                found = (await peer.semantic_check(ask.prompt, vector)).value
                if found is None:
                    await peer.semantic_store(ask.prompt, str(ask.answer_id), vector)
                else:
                    hits += 1
                    wrong += found != ask.answer_id
        except NotImplementedError:
            return None
        finally:
            await peer.close()
        return {"requests": requests, "hit_rate": hits / requests, "hits": hits, "wrong": wrong}

    async def _fall_into(self, workload: Workload) -> Json | None:
        """Store the first of each pair, then ask the second of each.

        All pairs share one cache here, since not everybody has tenants. So only the answer of the
        pair's own first counts: another pair's may be right, who knows.
        """
        peer = await self._open()
        asks = list(workload.asks())
        pairs = list(zip(asks[::2], asks[1::2], strict=True))
        hits = wrong = 0
        try:
            for first, _ in pairs:
                (vector,) = await self._embedder.vectors([first.prompt])
                await peer.semantic_store(first.prompt, str(first.answer_id), vector)
            for first, second in pairs:
                (vector,) = await self._embedder.vectors([second.prompt])
                found = (await peer.semantic_check(second.prompt, vector)).value
                is_served = found == first.answer_id
                hits += is_served
                wrong += is_served and second.answer_id != first.answer_id
        except NotImplementedError:
            return None
        finally:
            await peer.close()
        return {"requests": len(pairs), "hits": hits, "wrong": wrong}


def _other(prompt: str) -> str:
    return f"{prompt} Thanks!"


# --- ours -------------------------------------------------------------------------------------


class Ours:
    """This project's cache, one layer at a time, as others are asked."""

    name = "llm_cache"
    version = __version__

    def __init__(self, session: Session) -> None:
        self._session = session

    async def open(self, redis_url: str, *, dimensions: int, similarity_threshold: float) -> Peer:
        """Return a cache with nothing in it."""
        namespace = self._session.namespace("ours")
        await forget(redis_url, namespace)
        upstream = ScriptedUpstream(record=False)
        await upstream.open()
        cache = LLMCache(
            redis_url,
            client=upstream.client(),
            embedder=_GivenVectors(dimensions, similarity_threshold),
            config=CacheConfig(namespace=namespace),
        )
        await cache.open()
        return _OurPeer(cache, upstream, redis_url, namespace)


class _GivenVectors:
    """Stands for an embedder whose vectors are always given."""

    model_id = "given"

    def __init__(self, dimensions: int, similarity_threshold: float) -> None:
        self.dimensions = dimensions
        self.similarity_threshold = similarity_threshold

    async def embed(self, texts: Sequence[str]) -> Any:
        raise NotImplementedError("every vector is given")


class _OurPeer:
    def __init__(
        self, cache: LLMCache, upstream: ScriptedUpstream, redis_url: str, namespace: str
    ) -> None:
        self._cache = cache
        self._upstream = upstream
        self._url = redis_url
        self._namespace = namespace

    async def exact_set(self, prompt: str, answer: str) -> Timed[None]:
        stored = await _timed(lambda: self._cache.store_exact(prompt, answer))
        return Timed(None, stored.elapsed_s)

    async def exact_get(self, prompt: str) -> Timed[str | None]:
        found = await _timed(lambda: self._cache.lookup_exact(prompt))
        return Timed(None if found.value is None else found.value.text, found.elapsed_s)

    async def semantic_store(self, prompt: str, answer: str, vector: Vector) -> Timed[None]:
        given = vector.tolist()
        stored = await _timed(lambda: self._cache.store_semantic(prompt, answer, vector=given))
        return Timed(None, stored.elapsed_s)

    async def semantic_check(self, prompt: str, vector: Vector) -> Timed[str | None]:
        given = vector.tolist()
        found = await _timed(lambda: self._cache.lookup_semantic(prompt, vector=given))
        return Timed(None if found.value is None else found.value.text, found.elapsed_s)

    async def close(self) -> None:
        await self._cache.aclose()
        await self._upstream.aclose()
        with suppress(RedisError, OSError):
            await forget(self._url, self._namespace)


async def _timed(call: Callable[[], Awaitable[T]]) -> Timed[T]:
    started_s = time.perf_counter()
    value = await call()
    return Timed(value, time.perf_counter() - started_s)
