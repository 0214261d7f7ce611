"""What a scenario plays on: a Redis, a network in front of it, a model, and two caches."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.load import client
from benchmarks.faults.proxy import Proxy
from benchmarks.faults.servers import RedisProcess, answers
from llm_cache import CacheConfig, LLMCache
from llm_cache.embedders import Embedder, OpenAIEmbedder
from llm_cache.events import DependencyFailed, Event, LogHook
from llm_cache.testing import FakeEmbedder, ScriptedUpstream

NAMESPACE = "llm_cache_bench.faults"
DIMENSIONS = 384
THRESHOLD = 0.85


@dataclass(frozen=True, slots=True)
class Settings:
    """How long things take, and how many take part."""

    seed: int = 1
    callers: int = 200
    think_s: float = 2.0
    known: int = 200
    """Answers that are stored before anything goes wrong."""
    workers: int = 2
    """Cache objects that the callers are spread over."""
    calm_s: float = 5.0
    """How long the hit rate is measured, before and after."""
    fault_s: float = 10.0
    quick: bool = False

    @classmethod
    def quickly(cls, seed: int = 1) -> Settings:
        """Return settings for a look at whether everything holds, not for figures."""
        return cls(seed=seed, known=60, calm_s=0.6, fault_s=1.0, think_s=1.5, quick=True)


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
    url: str
    """What the caches connect to."""
    caches: list[LLMCache]
    ready: Callable[[], Awaitable[None]]
    """Returns when Redis answers `PING` the way the caches reach it."""
    server: RedisProcess | None = None
    proxy: Proxy | None = None
    admin: Any = None
    """A client of the server, past the proxy."""
    embeddings: ScriptedUpstream | None = None
    """Where the caches get their vectors, where that is what misbehaves."""
    failures: Tally = field(default_factory=Tally)
    lines: Lines = field(default_factory=Lines)


@asynccontextmanager
async def standalone(
    settings: Settings, upstream_url: str, *, http_embedder: bool = False, **config: Any
) -> AsyncIterator[Stage]:
    """Yield a stage with one server behind a proxy, and caches that are open."""
    async with AsyncExitStack() as held:
        server = await start_server(held)
        proxy = await held.enter_async_context(Proxy(server.port, seed=settings.seed))
        stage = Stage(
            settings,
            f"redis://127.0.0.1:{proxy.port}",
            [],
            ready=lambda: answers(proxy.port),
            server=server,
            proxy=proxy,
            admin=server.client(),
        )
        held.push_async_callback(stage.admin.aclose)
        if http_embedder:
            stage.embeddings = await held.enter_async_context(
                ScriptedUpstream(embedding_dimensions=DIMENSIONS, record=False)
            )
        await open_caches(held, stage, upstream_url, **config)
        yield stage


async def start_server(held: AsyncExitStack, *options: str) -> RedisProcess:
    """Return a server that answers; it ends, and its data goes, with *held*."""
    folder = held.enter_context(tempfile.TemporaryDirectory(prefix="llm-cache-faults-"))
    server = RedisProcess(Path(folder), *options)
    held.callback(server.kill)
    await server.start()
    return server


async def open_caches(
    held: AsyncExitStack, stage: Stage, upstream_url: str, **config: Any
) -> None:
    """Open the caches of *stage*; they are closed with *held*."""
    held.enter_context(_counted(stage.lines))
    for _ in range(stage.settings.workers):
        model = client(upstream_url)
        held.push_async_callback(model.close)
        cache = LLMCache(
            stage.url,
            client=model,
            embedder=_embedder(stage),
            config=CacheConfig(namespace=NAMESPACE, **config),
            hooks=[LogHook(), stage.failures],
        )
        held.push_async_callback(cache.aclose)
        stage.caches.append(await cache.open())


def _embedder(stage: Stage) -> Embedder:
    if stage.embeddings is None:
        return FakeEmbedder(DIMENSIONS, similarity_threshold=THRESHOLD)
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
