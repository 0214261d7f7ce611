"""Where the time of a call goes, seen from outside: nothing is switched on in the cache for it."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.embedding import MeteredEmbedder

if TYPE_CHECKING:
    from redis import asyncio as redis_py


class MeteredLoop(asyncio.SelectorEventLoop):
    """An event loop that knows how long it waited, and for what.

    While calls are made one at a time, a loop that waits does so for the embedder, the model or
    Redis. What stands around the first two says so in `waiting_for`; what remains is Redis.
    """

    def __init__(self) -> None:
        self.waiting_for = "redis"
        self.waited_s: defaultdict[str, float] = defaultdict(float)
        super().__init__(_MeteredSelector(self))

    def waited(self, timeout_s: float) -> None:
        """Note that it waited so long."""
        self.waited_s[self.waiting_for] += timeout_s


class _MeteredSelector(selectors.DefaultSelector):
    def __init__(self, loop: MeteredLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        started_s = time.perf_counter()
        events = super().select(timeout)
        self._loop.waited(time.perf_counter() - started_s)
        return events


class AnnouncedEmbedder(MeteredEmbedder):
    """Tells the loop that it waits for the embedder."""

    def __init__(self, inner: MeteredEmbedder, loop: MeteredLoop) -> None:
        super().__init__(inner)
        self._loop = loop

    async def embed(self, texts: Sequence[str]) -> Any:
        """Return what *inner* does."""
        self._loop.waiting_for = "embedding"
        try:
            return await super().embed(texts)
        finally:
            self._loop.waiting_for = "redis"


class TimedClient:
    """Makes clients of the SDK whose requests are timed, from sending to the head's arrival."""

    def __init__(self, loop: MeteredLoop) -> None:
        self._loop = loop
        self.spent_s = 0.0
        self._sent_s = 0.0

    def make(self, base_url: str) -> Any:
        """Return an `AsyncOpenAI` for *base_url*; whoever asked closes it."""
        import openai

        async def sent(_request: Any) -> None:
            self._loop.waiting_for = "upstream"
            self._sent_s = time.perf_counter()

        async def answered(_response: Any) -> None:
            self.spent_s += time.perf_counter() - self._sent_s
            self._loop.waiting_for = "redis"

        http_client = openai.DefaultAsyncHttpxClient(
            trust_env=False,
            verify=False,
            event_hooks={"request": [sent], "response": [answered]},
        )
        return openai.AsyncOpenAI(
            base_url=base_url, api_key="bench", max_retries=0, http_client=http_client
        )


class ServerCommands:
    """What Redis itself says of the commands it ran."""

    def __init__(self, client: redis_py.Redis) -> None:
        self._client = client
        self._total: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._before: dict[str, tuple[float, float]] = {}

    async def begin(self) -> None:
        """Look before a stretch."""
        self._before = await self._read()

    async def end(self, total: dict[str, list[float]]) -> None:
        """Look after it, and add calls and microseconds by command to *total*."""
        for name, (calls, spent_us) in (await self._read()).items():
            calls_before, spent_before = self._before.get(name, (0.0, 0.0))
            if calls > calls_before and name != "info":
                sums = total.setdefault(name, [0.0, 0.0])
                sums[0] += calls - calls_before
                sums[1] += spent_us - spent_before

    async def _read(self) -> dict[str, tuple[float, float]]:
        stats = await self._client.info("commandstats")
        return {
            name.removeprefix("cmdstat_").lower(): (float(row["calls"]), float(row["usec"]))
            for name, row in stats.items()
        }


@dataclass(frozen=True, slots=True)
class Meters:
    """What there is to read while calls are made."""

    loop: MeteredLoop
    embedder: MeteredEmbedder
    client: TimedClient

    def read(self) -> tuple[float, float, float, int]:
        """Return the seconds of embedding, of the model and of Redis, and the texts embedded."""
        embedder = self.embedder
        return (
            embedder.spent_s,
            self.client.spent_s,
            self.loop.waited_s["redis"],
            embedder.texts,
        )


class Spent:
    """Sums over the calls of one scene."""

    def __init__(self, meters: Meters) -> None:
        self.meters = meters
        self.commands: dict[str, list[float]] = {}
        self._calls = 0
        self._whole_s = 0.0
        self._sums = [0.0, 0.0, 0.0, 0.0]

    def add(self, before: tuple[float, float, float, int], whole_s: float) -> None:
        """Add a call of so many seconds, and what the meters moved since *before*."""
        self._calls += 1
        self._whole_s += whole_s
        for i, (earlier, now) in enumerate(zip(before, self.meters.read(), strict=True)):
            self._sums[i] += now - earlier

    def figures(self, *, key_s: float, guards_s: float) -> dict[str, Any]:
        """Return means per call, in seconds, which add up to the whole.

        Args:
            key_s: What the key of a call takes, measured by itself.
            guards_s: What the guards take: the difference to calls without.
        """
        calls = max(1, self._calls)
        embedding_s, upstream_s, redis_s, texts = (total / calls for total in self._sums)
        searches_us = sum(us for name, (_, us) in self.commands.items() if name == "ft.search")
        search_s = min(redis_s, searches_us / 1e6 / calls)
        stages = {
            "key": key_s,
            "embedding": embedding_s,
            "search": search_s,
            "redis": redis_s - search_s,
            "guards": guards_s,
            "upstream": upstream_s,
        }
        whole_s = self._whole_s / calls
        return {
            "whole_s": whole_s,
            "outside": {**stages, "rest": max(0.0, whole_s - sum(stages.values()))},
            "embedded_texts_per_call": texts,
            "commands": {
                name: {"per_call": count / calls, "server_us": us / count}
                for name, (count, us) in sorted(self.commands.items())
            },
        }
