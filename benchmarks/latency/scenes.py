"""Calls of every kind, one at a time, in blocks that take turns.

So whatever else the machine does hits all kinds alike, and every round has a bare `GET` beside it.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from redis import asyncio as redis_py

from benchmarks.embedding import MeteredEmbedder
from benchmarks.histograms import Latencies
from benchmarks.latency.stages import (
    AnnouncedEmbedder,
    MeteredLoop,
    Meters,
    ServerCommands,
    Spent,
    TimedClient,
)
from benchmarks.results import Results
from benchmarks.session import Session, UpstreamProcess, forget
from benchmarks.workloads.zipf import popular, respelled
from llm_cache import CacheConfig, LLMCache

_MODEL = "gpt-4o-mini"
_GUARDED, _UNGUARDED = "semantic hit", "semantic hit, no guards"


@dataclass(frozen=True, slots=True)
class Plan:
    """How often."""

    rounds: int = 30
    block: int = 40
    """Calls of one kind in a row."""
    upstream_delay_ms: float = 0.0
    stored: int = 500
    """Answers in the cache before it begins."""


QUICK = Plan(rounds=12, block=20)

_Called = tuple[str, AsyncIterator[Any] | None]
"""How a call ended, and what is still to come of one that streams."""


@dataclass(slots=True)
class _Scene:
    """One kind of call."""

    name: str
    expected: str
    """The status it ends with; others are counted apart."""
    call: Callable[[int], Awaitable[_Called]]
    """Makes the n-th call, up to its first token if it streams."""
    spent: Spent
    latencies: Latencies = field(default_factory=Latencies)
    blocks_s: list[float] = field(default_factory=list)
    """What stands for each block when runs are compared, see `undisturbed`."""
    unexpected: Counter[str] = field(default_factory=Counter)
    number: int = 0

    def figures(self, *, key_s: float, guards_s: float) -> dict[str, Any]:
        return {
            "name": self.name,
            "status": self.expected,
            **self.latencies.figures(),
            "blocks_s": self.blocks_s,
            "unexpected": dict(self.unexpected),
            "stages": self.spent.figures(
                key_s=0.0 if self.expected == "direct" else key_s,
                guards_s=guards_s if self.name == _GUARDED else 0.0,
            ),
        }


async def measure(
    session: Session, results: Results, plan: Plan, embedder: MeteredEmbedder
) -> None:
    """Measure all kinds of calls and put the figures into *results*.

    The running loop has to be a `MeteredLoop`.
    """
    section = results.section("latency")
    section.update(embedder=embedder.model_id, upstream_delay_ms=plan.upstream_delay_ms)
    async with AsyncExitStack() as stack:
        scenes, reference, commands, key_s = await _prepare(session, plan, embedder, stack)
        bare = Latencies()
        reference_blocks: list[float] = []
        with session.progress.bar("latency", plan.rounds * len(scenes)) as advance:
            for round_number in range(-1, plan.rounds):  # the first only warms up
                if session.stop.is_set():
                    break
                if round_number == 0:
                    _start_over(scenes)
                    reference_blocks.clear()
                    bare = Latencies()
                reference_blocks.append(await _block_of(reference, plan.block, bare))
                for scene in scenes:
                    await _play(scene, plan.block, commands)
                    advance()
                section["reference"] = bare.figures()
                section["reference_blocks_s"] = reference_blocks
                guards_s = _guards_s(scenes)
                section["scenes"] = [
                    scene.figures(key_s=key_s, guards_s=guards_s) for scene in scenes
                ]
    for scene in scenes:
        if scene.unexpected:
            results.note(
                f"latency, {scene.name}: {sum(scene.unexpected.values())} calls ended otherwise:"
                f" {dict(scene.unexpected)}"
            )


async def _prepare(
    session: Session, plan: Plan, embedder: MeteredEmbedder, stack: AsyncExitStack
) -> tuple[list[_Scene], Callable[[], Awaitable[Any]], ServerCommands, float]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, MeteredLoop)  # noqa: S101 - `benchmarks.command` makes one
    namespace = session.namespace("latency")
    await forget(session.redis_url, namespace)
    stack.push_async_callback(forget, session.redis_url, namespace)
    upstream = await stack.enter_async_context(
        UpstreamProcess("--delay-ms", f"{plan.upstream_delay_ms:g}")
    )
    timed = TimedClient(loop)
    meters = Meters(loop, AnnouncedEmbedder(embedder, loop), timed)
    client = timed.make(upstream.base_url)
    stack.push_async_callback(client.close)
    cache, unguarded = [
        await stack.enter_async_context(
            LLMCache(
                session.redis_url,
                client=client,
                embedder=meters.embedder,
                config=CacheConfig(namespace=namespace, guards=guards, stats_flush_s=3600.0),
            )
        )
        for guards in (True, False)
    ]
    prompts = [question.wordings[0] for question in popular(plan.stored, session.seed)]
    key = await _fill(session, cache, prompts)
    redis = redis_py.Redis.from_url(session.redis_url)
    stack.push_async_callback(redis.aclose)

    def scene(name: str, expected: str, call: Any) -> _Scene:
        return _Scene(name, expected, call, Spent(meters))

    random = np.random.default_rng([session.seed, 7])
    calls = _Calls(cache, unguarded, client, prompts, random)
    scenes = [
        scene("exact hit", "exact", calls.exact),
        scene(_GUARDED, "semantic", calls.semantic),
        scene(_UNGUARDED, "semantic", calls.semantic_unguarded),
        scene("miss", "miss", calls.miss),
        scene("bypass (no-store)", "bypass", calls.bypass),
        scene("the model without the cache", "direct", calls.direct),
        scene("first token, exact hit", "exact", calls.stream_exact),
        scene("first token, miss", "miss", calls.stream_miss),
    ]
    return scenes, lambda: redis.get(key), ServerCommands(redis), _key_s(cache, prompts)


def _key_s(cache: LLMCache, prompts: Sequence[str]) -> float:
    """Return what it takes to tell which request a prompt is, by itself.

    It is the first thing that `chat` does, and has no public door.
    """
    durations = []
    for prompt in prompts:
        started_s = time.perf_counter()
        cache._plan_given(prompt, {"model": _MODEL})
        durations.append(time.perf_counter() - started_s)
    return statistics.median(durations)


def _guards_s(scenes: Sequence[_Scene]) -> float:
    """Return by how much calls with guards take longer, the median of the rounds."""
    blocks = {scene.name: scene.blocks_s for scene in scenes}
    pairs = zip(blocks[_GUARDED], blocks[_UNGUARDED], strict=True)
    return max(0.0, statistics.median(a - b for a, b in pairs))


async def _fill(session: Session, cache: LLMCache, prompts: list[str]) -> str:
    keys = []
    with session.progress.bar("storing", len(prompts)) as advance:
        for prompt in prompts:
            keys.append((await cache.chat(prompt, model=_MODEL)).key)
            advance()
    return str(keys[0])


class _Calls:
    """The n-th call of each kind."""

    def __init__(
        self,
        cache: LLMCache,
        unguarded: LLMCache,
        client: Any,
        prompts: list[str],
        random: np.random.Generator,
    ) -> None:
        self._cache = cache
        self._unguarded = unguarded
        self._client = client
        self._prompts = prompts
        self._random = random
        self._serial = itertools.count()

    async def exact(self, n: int) -> tuple[str, None]:
        reply = await self._cache.chat(self._prompts[n % len(self._prompts)], model=_MODEL)
        return str(reply.status), None

    async def semantic(self, n: int) -> tuple[str, None]:
        return await self._respelled(self._cache, n)

    async def semantic_unguarded(self, n: int) -> tuple[str, None]:
        return await self._respelled(self._unguarded, n)

    async def _respelled(self, cache: LLMCache, n: int) -> tuple[str, None]:
        prompt = respelled(self._prompts[n % len(self._prompts)], self._random)
        return str((await cache.chat(prompt, model=_MODEL)).status), None

    async def miss(self, _n: int) -> tuple[str, None]:
        return str((await self._cache.chat(self._new(), model=_MODEL)).status), None

    async def bypass(self, _n: int) -> tuple[str, None]:
        reply = await self._cache.chat(self._new(), model=_MODEL, cache_control="no-store")
        return str(reply.status), None

    async def direct(self, _n: int) -> tuple[str, None]:
        messages = [{"role": "user", "content": self._new()}]
        await self._client.chat.completions.create(model=_MODEL, messages=messages)
        return "direct", None

    async def stream_exact(self, n: int) -> _Called:
        return await self._stream(self._prompts[n % len(self._prompts)])

    async def stream_miss(self, _n: int) -> _Called:
        return await self._stream(self._new())

    async def _stream(self, prompt: str) -> _Called:
        stream = await self._cache.chat(prompt, model=_MODEL, stream=True)
        chunks = aiter(stream)
        await anext(chunks)
        return str(stream.status), chunks

    def _new(self) -> str:
        """Return a question like many before and yet another one: the hard kind of miss."""
        return f"What is the status of ticket {next(self._serial)}?"


def _start_over(scenes: list[_Scene]) -> None:
    for scene in scenes:
        scene.spent, scene.latencies = Spent(scene.spent.meters), Latencies()
        scene.blocks_s.clear()
        scene.unexpected.clear()


def undisturbed(durations_s: Sequence[float]) -> float:
    """Return the lower quartile, which stands for a block of calls.

    Half of the calls are disturbed as soon as the machine does something else besides, so that
    medians move with its load: `compare --self-test` on a busy machine tells more pairs rightly by
    lower quartiles.
    """
    return statistics.quantiles(durations_s, n=4)[0]


async def _block_of(call: Callable[[], Awaitable[Any]], count: int, all_of: Latencies) -> float:
    durations = []
    for _ in range(count):
        started_s = time.perf_counter()
        await call()
        durations.append(time.perf_counter() - started_s)
        all_of.add(durations[-1])
    return undisturbed(durations)


async def _play(scene: _Scene, count: int, commands: ServerCommands) -> None:
    durations = []
    await commands.begin()
    for _ in range(count):
        scene.number += 1
        before = scene.spent.meters.read()
        started_s = time.perf_counter()
        status, chunks = await scene.call(scene.number)
        durations.append(time.perf_counter() - started_s)
        scene.spent.add(before, durations[-1])
        if chunks is not None:
            async for _chunk in chunks:
                pass
        if status == scene.expected:
            scene.latencies.add(durations[-1])
        else:
            scene.unexpected[status] += 1
    await commands.end(scene.spent.commands)
    scene.blocks_s.append(undisturbed(durations))
