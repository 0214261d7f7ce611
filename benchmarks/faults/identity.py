"""A thousand clients ask the same questions and each has answers of his own, while things break.

Nothing but the tenant tells their requests apart, in the exact layer and in the semantic one: an
answer in the wrong hands is seen at once, because it names its owner.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.faults.load import Prompts, Question
from benchmarks.faults.measure import Row
from benchmarks.faults.proxy import Trouble
from benchmarks.faults.scenarios import Setting, flushed, resharded
from benchmarks.faults.stage import Settings, Stage, cluster, standalone
from llm_cache import LLMCache

NAME = "identity"
_PRODUCER_S = 0.005
_TROUBLES = (
    Trouble(reset=0.2),
    Trouble(corrupt=0.2),
    Trouble(delay_s=0.05),
    Trouble(cut=0.2),
    Trouble(withhold=True),
    Trouble(),
)


@dataclass
class Crowd:
    """Clients, and what came of their calls."""

    stage: Stage
    clients: int
    questions: list[Question]
    prompts: Prompts
    chance: random.Random
    foreign: int = 0
    """Answers that were somebody else's."""
    wrong: int = 0
    """Answers to another question."""
    errors: list[str] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    asked: set[int] = field(default_factory=set)

    async def caller(self, number: int, ends_s: float, think_s: float) -> None:
        """Be one client after the other until it is time to end."""
        cache = self.stage.caches[number % len(self.stage.caches)]
        while time.perf_counter() < ends_s:
            await asyncio.sleep(self.chance.uniform(0, 2 * think_s))
            await self._call(cache, self.chance.randrange(self.clients))

    async def _call(self, cache: LLMCache, client: int) -> None:
        which = self.chance.randrange(len(self.questions))
        question = self.questions[which]
        if self.chance.random() < 0.3:
            question = self.prompts.rephrased(question)

        async def produce() -> dict[str, int]:
            await asyncio.sleep(_PRODUCER_S)
            return {"owner": client, "question": which}

        self.asked.add(client)
        try:
            reply = await cache.get_or_create(
                {"prompt": question.prompt}, produce, tenant=f"client-{client}"
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller has no answer
            self.errors.append(f"{type(error).__name__}: {error}"[:200])
            return
        self.statuses[str(reply.status)] += 1
        self.foreign += reply.value["owner"] != client
        self.wrong += reply.value["question"] != which


async def measure(settings: Settings, *, clients: int = 1_000, on_cluster: bool = False) -> Row:
    """Let a thousand clients ask while the network, or the cluster, is in trouble."""
    seconds = 3.0 if settings.quick else 60.0
    make: Setting = cluster if on_cluster else standalone
    async with make(settings, "http://127.0.0.1:9") as stage:  # nobody asks that model
        prompts = Prompts(known=0, seed=settings.seed)
        # Few, so that much is hit; and so many that a wrong one is worth as much as a right one.
        questions = [prompts.new() for _ in range(2 if settings.quick else 5)]
        chance = random.Random(settings.seed)  # noqa: S311 - workloads, not secrets
        crowd = Crowd(stage, clients, questions, prompts, chance)
        ends_s = time.perf_counter() + seconds
        think_s = 0.3 if settings.quick else 0.8
        async with _breaking(stage, seconds):
            callers = (crowd.caller(i, ends_s, think_s) for i in range(settings.callers))
            await asyncio.gather(*callers)
    return _row(crowd, on_cluster=on_cluster)


def _breaking(stage: Stage, seconds: float) -> AbstractAsyncContextManager[Any]:
    return resharded(stage) if stage.proxy is None else _Weather(stage, seconds)


class _Weather:
    """Troubles of the network that follow each other, with a FLUSHALL in the middle."""

    def __init__(self, stage: Stage, seconds: float) -> None:
        self._stage = stage
        self._each_s = seconds / (2 * len(_TROUBLES))

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        assert self._stage.proxy is not None  # noqa: S101 - looked at before
        while True:
            for trouble in _TROUBLES:
                await self._stage.proxy.suffer(trouble)
                await asyncio.sleep(self._each_s)
            async with flushed(self._stage):
                pass


def _row(crowd: Crowd, *, on_cluster: bool) -> Row:
    what = "slots move" if on_cluster else "a bad network"
    row: Row = {
        "scenario": f"{NAME}-cluster" if on_cluster else NAME,
        "about": f"{crowd.clients:,} clients, {what}",
        "clients": crowd.clients,
        "clients_that_asked": len(crowd.asked),
        "calls": sum(crowd.statuses.values()) + len(crowd.errors),
        "failed": len(crowd.errors),
        "foreign": crowd.foreign,
        "wrong": crowd.wrong,
        "hits": sum(crowd.statuses[name] for name in ("exact", "semantic", "stale")),
        "statuses": dict(sorted(crowd.statuses.items())),
        "errors": sorted(set(crowd.errors))[:5],
    }
    row["broken_promises"] = [
        f"{row[name]} {name}" for name in ("failed", "foreign", "wrong") if row[name]
    ]
    return row
