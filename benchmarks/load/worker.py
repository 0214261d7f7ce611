"""`python -m benchmarks.load.worker`: one process of the load, told what to do in lines of JSON.

Commands on stdin: `open` (a namespace), `warm`, `load`, `stop`. Each is answered by one line on
stdout when it is done. The end of stdin ends the process.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import selectors
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.embedding import MeteredEmbedder, make_embedder
from benchmarks.load.arrivals import arrivals
from benchmarks.load.drive import Meter, closed_loop, open_loop
from benchmarks.load.population import Mix, Population
from benchmarks.workloads.datasets import arrivals as trace_arrivals
from llm_cache import CacheConfig, LLMCache
from llm_cache.events import DependencyFailed, Event

Json = dict[str, Any]
_WARMING = 16
_JITTER = 0.5
"""Of a lifetime that is set, the largest share that an answer loses. What was stored at the same
moment would expire at the same moment, again and again: such a system is never at rest, and
whether its memory grows cannot be told."""


if hasattr(selectors, "EpollSelector"):

    class _FineSelector(selectors.EpollSelector):
        """An epoll that wakes when it is due: on its own it rounds up to the next millisecond."""

        def select(self, timeout: float | None = None) -> Any:
            if timeout is not None and timeout > 0:
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)

else:  # pragma: no cover - kqueue and its kin are fine enough
    _FineSelector = selectors.DefaultSelector  # type: ignore[misc,assignment]


def fine_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop whose timers are not rounded to milliseconds."""
    return asyncio.SelectorEventLoop(_FineSelector())


@dataclass(frozen=True, slots=True)
class Setup:
    """What stays the same for all commands of a worker."""

    redis_url: str
    base_url: str
    worker: int
    workers: int
    seed: int
    embedder: str
    mix: Json
    model: str
    echoes: bool
    """Whether the upstream says the question again, so that answers can be judged."""
    ttl_s: float | None
    trace: str | None


class Worker:
    """Keeps a cache open and puts load on it when told to."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._cache: LLMCache | None = None
        self._population: Population | None = None
        self._embedder: MeteredEmbedder | None = None
        self._client: Any = None
        self._failures: dict[str, int] = {}
        self._stopped_at_s: float | None = None
        trace = setup.trace
        self._trace_s = None if trace is None else trace_arrivals(Path(trace))

    async def do(self, command: Json) -> Json:
        """Do what *command* says."""
        if command["do"] == "open":
            return await self.open(command["namespace"])
        if command["do"] == "warm":
            return await self.warm()
        if command["do"] == "load":
            return await self.load(command)
        raise ValueError(f"unknown command {command['do']!r}")

    def stop(self) -> None:
        """End what is under way early, and whatever is yet to come."""
        self._stopped_at_s = time.monotonic()

    async def open(self, namespace: str) -> Json:
        """Open a cache over *namespace*, closing the one before."""
        await self.aclose()
        setup = self._setup
        if self._embedder is None:
            self._embedder = MeteredEmbedder(await make_embedder(setup.embedder))
        config = CacheConfig(namespace=namespace)
        if setup.ttl_s is not None:
            config = CacheConfig(namespace=namespace, ttl_s=setup.ttl_s, ttl_jitter=_JITTER)
        self._client = _client(setup.base_url)
        self._cache = LLMCache(
            setup.redis_url,
            client=self._client,
            embedder=self._embedder,
            config=config,
            hooks=[self._hear],
        )
        await self._cache.open()
        self._population = Population(
            self._cache,
            Mix(**setup.mix),
            seed=setup.seed,
            worker=setup.worker,
            model=setup.model,
        )
        self._population.judges = setup.echoes
        return {"redis_connections": None}

    async def warm(self) -> Json:
        """Ask every popular question once for every tenant; this worker's share of them."""
        population = self._open_population()
        setup = self._setup
        tenants = int(setup.mix.get("tenants", 1))
        todo = iter(
            [
                (prompt, tenant)
                for number, prompt in enumerate(population.prompts)
                for tenant in range(tenants)
                if number % setup.workers == setup.worker
            ]
        )

        async def some() -> None:
            for prompt, tenant in todo:
                if self._stopped_at_s is not None:
                    return
                await population.send(prompt, tenant)

        await asyncio.gather(*(some() for _ in range(_WARMING)))
        return {}

    async def load(self, command: Json) -> Json:
        """Put load on the cache, and return what was measured."""
        population, embedder = self._open_population(), self._embedder
        assert embedder is not None  # noqa: S101 - made by `open`
        self._failures = {}
        population.wrong = population.foreign = 0
        meter = Meter(block_s=command["block_s"])
        process = psutil.Process()
        cpu_before, texts_before = sum(process.cpu_times()[:2]), embedder.texts
        begin = {"seconds": command["seconds"], "start_s": command["start_s"]}
        stopped = lambda: self._stopped_at_s is not None  # noqa: E731 - read anew each time
        if command["callers"] is not None:
            callers = _part(command["callers"], self._setup)
            await closed_loop(population.ask, meter, callers=callers, stopped=stopped, **begin)
        else:
            due = arrivals(
                command["arrivals"],
                command["rate_per_s"],
                worker=self._setup.worker,
                workers=self._setup.workers,
                seed=command["seed"],
                trace_s=self._trace_s,
            )
            await open_loop(population.ask, due, meter, stopped=stopped, **begin)
        spent_s = time.monotonic() - command["start_s"]
        ended_s = self._stopped_at_s or float("inf")
        return {
            **meter.figures(),
            "lasted_s": max(0.001, min(command["seconds"], ended_s - command["start_s"])),
            "wrong": population.wrong,
            "foreign": population.foreign,
            "tenants_of_ids": population.tenants_of_ids(),
            "failures": self._failures,
            "embedded_texts": embedder.texts - texts_before,
            # Waiting for the last answers takes longer than the load.
            "cpu_share": (sum(process.cpu_times()[:2]) - cpu_before) / spent_s,
            "rss_bytes": process.memory_info().rss,
        }

    async def aclose(self) -> None:
        """Close the cache and its client."""
        cache, self._cache = self._cache, None
        if cache is not None:
            await cache.aclose()
            await self._client.close()

    def _open_population(self) -> Population:
        if self._population is None:
            raise ValueError("open comes first")
        return self._population

    def _hear(self, event: Event) -> None:
        if isinstance(event, DependencyFailed):
            name = f"{event.dependency}: {event.operation}"
            self._failures[name] = self._failures.get(name, 0) + 1


def _client(base_url: str) -> Any:
    import openai

    http_client = openai.DefaultAsyncHttpxClient(
        trust_env=False,
        verify=False,
    )
    return openai.AsyncOpenAI(
        base_url=base_url, api_key="bench", max_retries=0, http_client=http_client
    )


def _part(callers: int, setup: Setup) -> int:
    """Return this worker's share of *callers*."""
    return callers // setup.workers + (setup.worker < callers % setup.workers)


async def _serve(setup: Setup) -> None:
    commands: asyncio.Queue[Json | None] = asyncio.Queue()
    worker = Worker(setup)
    loop = asyncio.get_running_loop()

    def read() -> None:
        # A thread, since the loop cannot wait for files; raw, since a thread that sits in a
        # buffered read would hold its lock at the interpreter's end.
        rest = b""
        while piece := os.read(0, 65_536):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                command = json.loads(line)
                if command["do"] == "stop":
                    loop.call_soon_threadsafe(worker.stop)
                else:
                    loop.call_soon_threadsafe(commands.put_nowait, command)
        loop.call_soon_threadsafe(worker.stop)
        loop.call_soon_threadsafe(commands.put_nowait, None)

    threading.Thread(target=read, name="commands", daemon=True).start()
    try:
        while (command := await commands.get()) is not None:
            try:
                answer = await worker.do(command)
            except Exception as error:  # noqa: BLE001 - the parent has to hear of it
                answer = {"failed": f"{type(error).__name__}: {error}"}
            sys.stdout.write(f"{json.dumps(answer)}\n")
            sys.stdout.flush()
    finally:
        await worker.aclose()


def main() -> None:
    """Serve commands as the set-up in the first argument says."""
    setup = Setup(**json.loads(sys.argv[1]))
    with asyncio.Runner(loop_factory=fine_loop) as runner:
        runner.run(_serve(setup))


if __name__ == "__main__":
    main()
