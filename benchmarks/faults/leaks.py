"""`python -m benchmarks leaks`: after so many requests, does this process hold more than before?

Exact hits, semantic hits, misses and streams, of which the model answers some and the cache most,
with some callers who leave before they are answered. What is stored lives for seconds, so that
Redis has nothing more to hold either. Memory, connections, tasks and objects are looked at ten
times in the second half, when everything that is kept for good has been made: the end may not be
above the middle.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.faults.load import MODEL, SYSTEM, Prompts, Question
from benchmarks.faults.stage import Settings, Stage, standalone
from benchmarks.micro.settings import Settings as Around
from benchmarks.micro.settings import record, table, write
from benchmarks.session import UpstreamProcess
from llm_cache import LLMCache

MOST_MB = 8.0
"""So much may memory differ between two looks without anything growing: the allocator's doing."""
MOST_OBJECTS = 0.02
_LOOKS = 20
_CALLERS = 32
_TTL_S = 20.0
COLUMNS = {
    "requests": "requests:,",
    "memory MB": "memory_mb:.1f",
    "objects": "objects:,",
    "tasks": "tasks",
    "open files": "files",
    "connections to the model": "model_connections",
    "clients of Redis": "clients",
    "Redis MB": "redis_mb:.1f",
}


@dataclass(frozen=True, slots=True)
class Look:
    """What there is at a moment when nothing is under way."""

    requests: int
    memory_mb: float
    """Of this process, resident."""
    objects: int
    """That the garbage collector knows."""
    tasks: int
    files: int
    """Without the connections to the model."""
    model_connections: int
    """As many as were needed at once in the last seconds: the SDK's client keeps them so long."""
    clients: int
    """Connections to Redis, as it sees them."""
    redis_mb: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path, metavar="DIR", help="keep results as DIR/leaks.json")


def run(arguments: argparse.Namespace) -> int:
    """Measure; return 1 where something grew."""
    return asyncio.run(_run(arguments.requests, arguments.seed, arguments.write))


async def _run(requests: int, seed: int, folder: Path | None) -> int:
    async with UpstreamProcess() as upstream:
        looks, statuses = await measure(requests, upstream.base_url, seed=seed)
    rows = [asdict(look) for look in looks]
    print(table(COLUMNS, rows))
    print(", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items())))
    if folder is not None:
        write(folder / "leaks.json", record("leaks", rows, Around(seed=seed), dict(statuses)))
    for growth in grown(looks):
        print(growth)
    return 1 if grown(looks) else 0


async def measure(
    requests: int, upstream_url: str, *, seed: int = 1
) -> tuple[list[Look], Counter[str]]:
    """Make so many requests, and return what was there along the way, and how they ended."""
    settings = replace(Settings.quickly(seed), workers=2)
    statuses: Counter[str] = Counter()
    async with standalone(
        settings,
        upstream_url,
        ttl_s=_TTL_S,
        stats_flush_s=1.0,
        # Nothing is bypassed because this machine is busy.
        redis_timeout_s=20.0,
        added_latency_budget_s=20.0,
    ) as stage:
        await _wait_for_another(*stage.caches)
        crowd = _Crowd(stage.caches[0], Prompts(known=500, seed=seed), seed, statuses)
        looks = []
        for look in range(1, _LOOKS + 1):
            await crowd.ask(requests // _LOOKS)
            looks.append(await _look(stage, upstream_url, requests * look // _LOOKS))
    return looks, statuses


async def _wait_for_another(cache: LLMCache, other: LLMCache) -> None:
    """Let *cache* wait for an answer that *other* is making.

    For that it subscribes, which is once and for good; left to chance, it might be late in a run.
    """
    is_asked = asyncio.Event()

    async def produce() -> str:
        is_asked.set()
        await asyncio.sleep(0.3)
        return "made"

    request = {"prompt": "what two workers ask"}
    made = asyncio.create_task(other.get_or_create(request, produce))
    await is_asked.wait()
    await cache.get_or_create(request, produce)
    await made


def grown(looks: Sequence[Look]) -> list[str]:
    """Return what is more at the end than in the middle, beyond what chance makes of it."""
    middle = looks[len(looks) // 2 - 2 : len(looks) // 2 + 2]
    end = looks[-4:]
    allowed = {
        "memory_mb": MOST_MB,
        "objects": MOST_OBJECTS * middle[0].objects,
        "tasks": 0,
        "files": 2,
        "model_connections": _CALLERS,
        "clients": 2,
        "redis_mb": MOST_MB,
    }
    told = []
    for name, most in allowed.items():
        # The least of each: a growth lifts even that, a peak does not.
        before, after = (min(getattr(look, name) for look in part) for part in (middle, end))
        if after - before > most:
            told.append(f"{name} grew from {before:,.1f} to {after:,.1f}")
    return told


class _Crowd:
    """Callers who ask until so many requests were made."""

    def __init__(
        self, cache: LLMCache, prompts: Prompts, seed: int, statuses: Counter[str]
    ) -> None:
        self._cache = cache
        self._prompts = prompts
        self._random = random.Random(seed)  # noqa: S311 - workloads, not secrets
        self._statuses = statuses
        self._left = 0

    async def ask(self, requests: int) -> None:
        self._left = requests
        await asyncio.gather(*(self._caller() for _ in range(_CALLERS)))

    async def _caller(self) -> None:
        while self._left > 0:
            self._left -= 1
            await self._one()

    async def _one(self) -> None:
        share = self._random.random()
        known = self._random.choice(self._prompts.known)
        if share < 0.93:
            await self._chat(known)
        elif share < 0.95:
            await self._chat(Question("", f"please {known.prompt}", known.wordings))
        elif share < 0.97:
            await self._stream(known)
        elif share < 0.985:
            await self._produced(self._prompts.new())
        elif share < 0.992:
            await self._chat(self._prompts.new())
        elif share < 0.996:
            await self._stream(self._prompts.new())
        else:
            await self._leave(self._prompts.new())

    async def _chat(self, question: Question) -> None:
        reply = await self._cache.chat(question.prompt, model=MODEL, system=SYSTEM)
        self._statuses[str(reply.status)] += 1

    async def _stream(self, question: Question) -> None:
        pieces = await self._cache.chat(question.prompt, model=MODEL, system=SYSTEM, stream=True)
        async for _ in pieces:
            pass
        self._statuses[f"stream, {pieces.status}"] += 1

    async def _produced(self, question: Question) -> None:
        async def produce() -> dict[str, str]:
            return {"to": question.prompt}

        reply = await self._cache.get_or_create({"prompt": question.prompt}, produce)
        self._statuses[f"value, {reply.status}"] += 1

    async def _leave(self, question: Question) -> None:
        call = asyncio.create_task(self._chat(question))
        await asyncio.sleep(self._random.uniform(0, 0.004))
        call.cancel()
        (ended,) = await asyncio.gather(call, return_exceptions=True)
        self._statuses["left" if isinstance(ended, asyncio.CancelledError) else "stayed"] += 1


async def _look(stage: Stage, upstream_url: str, requests: int) -> Look:
    # Who left may have left something that still winds up.
    await asyncio.wait_for(_settled(), 30)
    gc.collect()
    this = psutil.Process(os.getpid())
    info: dict[str, Any] = await stage.admin.info()
    port = urlsplit(upstream_url).port
    connections = this.net_connections("tcp")
    # Who listens has nobody at the other end.
    to_model = [it for it in connections if getattr(it.raddr, "port", None) == port]
    return Look(
        requests=requests,
        memory_mb=this.memory_info().rss / 1e6,
        objects=len(gc.get_objects()),
        tasks=len(asyncio.all_tasks()),
        files=this.num_fds() - len(to_model),
        model_connections=len(to_model),
        clients=int(info["connected_clients"]),
        redis_mb=int(info["used_memory"]) / 1e6,
    )


async def _settled() -> None:
    """Return when the number of tasks has not changed for a while."""
    since_s, tasks = time.monotonic(), len(asyncio.all_tasks())
    while time.monotonic() - since_s < 0.2:
        await asyncio.sleep(0.02)
        if len(asyncio.all_tasks()) != tasks:
            since_s, tasks = time.monotonic(), len(asyncio.all_tasks())
