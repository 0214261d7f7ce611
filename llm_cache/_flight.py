"""Single-flight: callers of one key in this process share one task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class SingleFlight(Generic[_T]):
    """Runs one task for each key at a time; whoever asks meanwhile shares its end.

    The task belongs to nobody: when the caller that started it goes away, it goes on for the
    others, and so that its answer is stored. An exception reaches every caller, and the next call
    starts anew.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[_T]] = {}

    async def run(
        self, key: str, produce: Callable[[], Coroutine[Any, Any, _T]]
    ) -> tuple[_T, bool]:
        """Return what *produce* makes, and whether somebody else had started it."""
        task = self._tasks.get(key)
        is_follower = task is not None
        if task is None:
            task = asyncio.create_task(produce(), name="llm_cache.fill")
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._land(key, done))
        # Awaiting the task itself would let one caller that is cancelled cancel it for all.
        return await asyncio.shield(task), is_follower

    async def aclose(self, *, wait_s: float) -> None:
        """Wait for what is in flight, at most *wait_s* seconds, then cancel it."""
        tasks = list(self._tasks.values())
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=wait_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _land(self, key: str, task: asyncio.Task[_T]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            # Read, so that asyncio does not report an exception which no caller stayed to see.
            task.exception()
