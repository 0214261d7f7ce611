"""Tasks that go on when the call that began them has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from llm_cache._flight import observe

_T = TypeVar("_T")


class Background:
    """Keeps tasks until they end: asyncio itself would forget them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether no call may begin anything any more."""
        return self._is_closed

    def close(self) -> None:
        """Let calls begin nothing from now on: what it would need is being closed.

        What ends may still have to tidy up, in a task of its own.
        """
        self._is_closed = True

    @property
    def tasks(self) -> list[asyncio.Task[Any]]:
        """What is under way."""
        return list(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, _T], *, name: str) -> asyncio.Task[_T]:
        """Begin *work*. Whoever wants to know of its exception looks at the task."""
        task = asyncio.create_task(work, name=f"llm_cache.{name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        observe(task)


async def done_within(task: asyncio.Task[Any], wait_s: float) -> bool:
    """Wait for *task*, at most *wait_s* seconds, and tell whether it has ended; it goes on."""
    if not task.done():
        await asyncio.wait([task], timeout=wait_s)
    return task.done()
