"""Where the time of a call goes: told by the cache in its events, and seen from outside."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.embedding import MeteredEmbedder
from benchmarks.histograms import Latencies

if TYPE_CHECKING:
    from redis import asyncio as redis_py


class ToldStages:
    """A hook that keeps the durations of stages from events that carry them.

    An event may have `stages`, a mapping of names to seconds, or be of one stage, with `stage` and
    `duration_s`.
    """

    wants_stages = True

    def __init__(self) -> None:
        self._kept: defaultdict[str, Latencies] = defaultdict(Latencies)

    def __call__(self, event: Any, /) -> None:
        """Keep what *event* tells."""
        stages = getattr(event, "stages", None)
        if isinstance(stages, Mapping):
            for name, duration_s in stages.items():
                self._kept[str(name)].add(duration_s)
        stage = getattr(event, "stage", None)
        if isinstance(stage, str):
            self._kept[stage].add(event.duration_s)

    def take(self) -> dict[str, Latencies]:
        """Return what was kept since the last time."""
        taken, self._kept = dict(self._kept), defaultdict(Latencies)
        return taken


class TimedClient:
    """Makes clients of the SDK whose requests are timed, from sending to the head's arrival."""

    def __init__(self) -> None:
        self.spent_s = 0.0
        self.requests = 0
        self._sent_s = 0.0

    def make(self, base_url: str) -> Any:
        """Return an `AsyncOpenAI` for *base_url*; whoever asked closes it."""
        import openai

        async def sent(_request: Any) -> None:
            self._sent_s = time.perf_counter()

        async def answered(_response: Any) -> None:
            self.spent_s += time.perf_counter() - self._sent_s
            self.requests += 1

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


class Spent:
    """Sums over the calls of one scene of what is seen from outside."""

    def __init__(self, embedder: MeteredEmbedder, client: TimedClient) -> None:
        self._embedder = embedder
        self._client = client
        self.calls = 0
        self.whole_s = 0.0
        self.embedding_s = 0.0
        self.upstream_s = 0.0
        self.embedded_texts = 0
        self.commands: dict[str, list[float]] = {}
        self.told: dict[str, Latencies] = {}

    def snapshot(self) -> tuple[float, float, int]:
        """Return the meters."""
        return self._embedder.spent_s, self._client.spent_s, self._embedder.texts

    def add(self, before: tuple[float, float, int], *, calls: int, whole_s: float) -> None:
        """Add what the meters moved since *before*."""
        self.calls += calls
        self.whole_s += whole_s
        self.embedding_s += self._embedder.spent_s - before[0]
        self.upstream_s += self._client.spent_s - before[1]
        self.embedded_texts += self._embedder.texts - before[2]

    def hear(self, told: Mapping[str, Latencies]) -> None:
        """Add what events told."""
        for name, latencies in told.items():
            self.told.setdefault(name, Latencies()).merge(latencies)

    def figures(self) -> dict[str, Any]:
        """Return means per call, in seconds."""
        calls = max(1, self.calls)
        search_us = sum(us for name, (_, us) in self.commands.items() if name == "ft.search")
        search_s = search_us / 1e6
        rest_s = self.whole_s - self.embedding_s - self.upstream_s - search_s
        return {
            "whole_s": self.whole_s / calls,
            "outside": {
                "embedding": self.embedding_s / calls,
                "upstream": self.upstream_s / calls,
                "search": search_s / calls,
                "rest": max(0.0, rest_s) / calls,
            },
            "told": {name: each.figures() for name, each in sorted(self.told.items())},
            "embedded_texts_per_call": self.embedded_texts / calls,
            "commands": {
                name: {"per_call": count / calls, "server_us": us / count}
                for name, (count, us) in sorted(self.commands.items())
            },
        }
