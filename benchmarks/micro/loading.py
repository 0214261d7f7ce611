"""A cache filled fast, with exactly what the product writes.

Entries go through `store_semantic`. What is different is the way to Redis: commands that are given
while the event loop is busy travel together as one pipeline, where the product's pool sends each
on a connection of its own. That has no public door: the client inside the cache is replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from redis import asyncio as redis  # noqa: TC002 - one import reads better than two places

from llm_cache import LLMCache

_MOST_TOGETHER = 256


class _Together:
    """A client whose commands share pipelines. Everything else is the client's own."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._sender: asyncio.Task[None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def execute_command(self, *command: Any, **_: Any) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, future))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        return await future

    async def _send(self) -> None:
        while self._waiting:
            batch = self._waiting[:_MOST_TOGETHER]
            del self._waiting[:_MOST_TOGETHER]
            pipeline = self._client.pipeline(transaction=False)
            for command, _ in batch:
                pipeline.execute_command(*command)
            answers = await pipeline.execute(raise_on_error=False)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)


@asynccontextmanager
async def fast(cache: LLMCache) -> AsyncIterator[None]:
    """Within it, what is stored through *cache* at the same time travels together."""
    await cache.open()
    connection = cache._connection
    lane = connection._lane
    assert lane is not None  # noqa: S101 - opened above
    connection._lane = replace(lane, client=_Together(lane.client))  # type: ignore[arg-type]
    try:
        yield
    finally:
        connection._lane = lane


async def each(jobs: Iterable[Callable[[], Awaitable[object]]], *, at_once: int = 256) -> None:
    """Run *jobs*, at most *at_once* at the same time; the first failure ends all."""
    queue = iter(jobs)

    async def work() -> None:
        for job in queue:
            await job()

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())
