"""What a scenario plays on: a Redis, a network in front of it, a model, and two caches."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

from redis import asyncio as redis_py

from benchmarks.faults.load import client
from benchmarks.faults.proxy import Proxy
from benchmarks.faults.servers import ON_DISK, answers, running
from llm_cache import CacheConfig, LLMCache
from llm_cache.embedders import Embedder, OpenAIEmbedder
from llm_cache.events import DependencyFailed, Event, EventHook, LogHook
from llm_cache.testing import FakeEmbedder, ScriptedUpstream
from tests.topologies.servers import Cluster, Sentinels, Standalone, Topology

NAMESPACE = "llm_cache_bench.faults"
DIMENSIONS = 384
THRESHOLD = 0.85
_ADMIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How long things take, and how many take part."""

    seed: int = 1
    callers: int = 200
    think_s: float = 5.0
    known: int = 200
    """Answers that are stored before anything goes wrong."""
    workers: int = 2
    """Cache objects that the callers are spread over."""
    calm_s: float = 5.0
    """How long the hit rate is measured, before and after."""
    fault_s: float = 10.0
    quick: bool = False
    budget_s: float = 0.25
    """`added_latency_budget_s` of the caches."""

    @classmethod
    def quickly(cls, seed: int = 1) -> Settings:
        """Return settings for a look at whether everything holds, not for figures."""
        return cls(seed=seed, known=60, calm_s=0.5, fault_s=0.8, think_s=3.0, quick=True)


class Tally:
    """Counts failures of dependencies as the events tell them."""

    hears = (DependencyFailed,)

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()

    def __call__(self, event: Event, /) -> None:
        """Count *event*."""
        if isinstance(event, DependencyFailed):
            self.failures[f"{event.dependency}.{event.operation}"] += 1


class Lines(logging.Handler):
    """Counts what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - the name of the base
        """Count it."""
        self.count += 1


@dataclass
class Stage:
    """One scenario's surroundings."""

    settings: Settings
    topology: Topology
    url: str
    """What the caches connect to."""
    ready: Callable[[], Awaitable[None]]
    """Returns when Redis answers `PING` the way the caches reach it."""
    proxy: Proxy | None = None
    admin: Any = None
    """A client of a single server, past the proxy."""
    upstream_url: str = ""
    caches: list[LLMCache] = field(default_factory=list)
    embeddings: ScriptedUpstream | None = None
    """Where the caches get their vectors, where that is what misbehaves."""
    failures: Tally = field(default_factory=Tally)
    lines: Lines = field(default_factory=Lines)


@asynccontextmanager
async def standalone(
    settings: Settings,
    upstream_url: str,
    *,
    http_embedder: bool = False,
    server: Mapping[str, str] = MappingProxyType({}),
    **config: Any,
) -> AsyncIterator[Stage]:
    """Yield a stage with one server behind a proxy, and caches that are open.

    Args:
        settings: Of the run.
        upstream_url: The model.
        http_embedder: Whether vectors come over HTTP, from where the scenario can reach.
        server: Further options of redis-server.
        config: Of the caches.
    """
    async with AsyncExitStack() as held:
        make = partial(Standalone, {**ON_DISK, **server})
        topology = await held.enter_async_context(running(make))
        port = topology.server.port
        proxy = await held.enter_async_context(Proxy(port, seed=settings.seed))
        stage = Stage(
            settings,
            topology,
            f"redis://127.0.0.1:{proxy.port}",
            ready=partial(answers, proxy.port),
            proxy=proxy,
            admin=redis_py.Redis(port=port, decode_responses=True, socket_timeout=_ADMIN_S),
            upstream_url=upstream_url,
        )
        held.push_async_callback(stage.admin.aclose)
        if http_embedder:
            stage.embeddings = await held.enter_async_context(
                ScriptedUpstream(embedding_dimensions=DIMENSIONS, record=False)
            )
        await open_caches(held, stage, **config)
        yield stage


@asynccontextmanager
async def sentinels(settings: Settings, upstream_url: str) -> AsyncIterator[Stage]:
    """Yield a stage with a master, two replicas and three sentinels."""
    async with AsyncExitStack() as held:
        make = partial(Sentinels, replicas=2, options=ON_DISK)
        topology = await held.enter_async_context(running(make))

        async def ready() -> None:
            master = await asyncio.to_thread(topology.master)
            await answers(master.port)

        stage = Stage(settings, topology, topology.url, ready, upstream_url=upstream_url)
        await open_caches(held, stage)
        yield stage


@asynccontextmanager
async def cluster(
    settings: Settings, upstream_url: str, *, replicas: int = 1
) -> AsyncIterator[Stage]:
    """Yield a stage with three primaries, each with so many *replicas*."""
    async with AsyncExitStack() as held:
        make = partial(Cluster, 3, replicas=replicas, options=ON_DISK)
        topology = await held.enter_async_context(running(make))

        async def ready() -> None:
            for server in await asyncio.to_thread(topology.primaries):
                await answers(server.port)

        stage = Stage(settings, topology, topology.url, ready, upstream_url=upstream_url)
        await open_caches(held, stage)
        yield stage


async def open_caches(held: AsyncExitStack, stage: Stage, **config: Any) -> None:
    """Open the caches of *stage*; they are closed with *held*."""
    held.enter_context(_counted(stage.lines))
    for _ in range(stage.settings.workers):
        cache = await cache_of(
            held,
            stage.url,
            stage.upstream_url,
            embedder=_embedder(stage),
            hook=stage.failures,
            **config,
        )
        stage.caches.append(cache)


async def cache_of(
    held: AsyncExitStack,
    url: str,
    upstream_url: str,
    *,
    embedder: Embedder | None = None,
    hook: EventHook | None = None,
    **config: Any,
) -> LLMCache:
    """Return an open cache; it is closed with *held*, and its client after it."""
    model = client(upstream_url)
    held.push_async_callback(model.close)
    cache = LLMCache(
        url,
        client=model,
        embedder=inline_embedder() if embedder is None else embedder,
        config=CacheConfig(namespace=NAMESPACE, **config),
        hooks=[LogHook()] if hook is None else [LogHook(), hook],
    )
    held.push_async_callback(cache.aclose)
    return await cache.open()


def inline_embedder() -> FakeEmbedder:
    """Return an embedder that takes a tenth of a millisecond and never fails."""
    return FakeEmbedder(DIMENSIONS, similarity_threshold=THRESHOLD, record=False)


def _embedder(stage: Stage) -> Embedder:
    if stage.embeddings is None:
        return inline_embedder()
    return OpenAIEmbedder(
        stage.embeddings.client(),
        model="text-embedding-3-small",
        dimensions=DIMENSIONS,
        similarity_threshold=THRESHOLD,
    )


@contextmanager
def _counted(lines: Lines) -> Iterator[None]:
    logger = logging.getLogger("llm_cache")
    logger.addHandler(lines)
    try:
        yield
    finally:
        logger.removeHandler(lines)


async def every(seconds: float, do: Callable[[], Awaitable[object]]) -> None:
    """Do it now, and again and again, until cancelled."""
    while True:
        await do()
        await asyncio.sleep(seconds)
