"""Single-flight: callers of one key in this process share one task, and one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
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

    def is_running(self, key: str) -> bool:
        """Tell whether a task for *key* is under way."""
        return key in self._tasks

    async def run(
        self, key: str, produce: Callable[[], Coroutine[Any, Any, _T]]
    ) -> tuple[_T, bool]:
        """Return what *produce* makes, and whether somebody else had started it."""
        is_follower = self.is_running(key)
        if not is_follower:
            task = asyncio.create_task(produce(), name="llm_cache.fill")
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._land(key, done))
        return await self.join(key), is_follower

    async def join(self, key: str) -> _T:
        """Return what the task for *key* makes, which is under way."""
        # Awaiting the task itself would let one caller that is cancelled cancel it for all.
        return await asyncio.shield(self._tasks[key])

    async def aclose(self, *, wait_s: float) -> None:
        """Wait for what is in flight, at most *wait_s* seconds, then cancel it."""
        await finish(list(self._tasks.values()), wait_s=wait_s)

    def _land(self, key: str, task: asyncio.Task[_T]) -> None:
        del self._tasks[key]
        observe(task)


class SharedStream(Generic[_T]):
    """What one source has said so far and goes on saying, for any number of listeners.

    Every listener hears everything, from the first item on and as it arrives. When the last one
    leaves before the end, *abandon* is called: nobody pays for what nobody hears.
    """

    def __init__(self, abandon: Callable[[], object]) -> None:
        self._abandon = abandon
        self._items: list[_T] = []
        self._listeners = 0
        self._is_over = False
        self._error: BaseException | None = None
        self._news = asyncio.Event()

    def say(self, item: _T) -> None:
        """Add *item* for everybody."""
        self._items.append(item)
        self._tell()

    def end(self, error: BaseException | None = None) -> None:
        """Say that nothing follows, because of *error* if one is given."""
        if not self._is_over:
            self._is_over, self._error = True, error
            self._tell()

    def listen(self) -> AsyncIterator[_T]:
        """Return everything from the beginning. It counts as a listener until it is closed."""
        self._listeners += 1
        return self._hear()

    def leave(self) -> None:
        """Count one listener less."""
        self._listeners -= 1
        if self._listeners == 0 and not self._is_over:
            self._abandon()

    async def _hear(self) -> AsyncIterator[_T]:
        heard = 0
        while True:
            while heard < len(self._items):
                heard += 1
                yield self._items[heard - 1]
            if self._is_over:
                break
            await self._news.wait()
        if self._error is not None:
            raise self._error

    def _tell(self) -> None:
        # Whoever waits holds the old event; a new one takes its place for what comes next.
        self._news.set()
        self._news = asyncio.Event()


async def finish(tasks: list[asyncio.Task[Any]], *, wait_s: float) -> None:
    """Wait for *tasks*, at most *wait_s* seconds, then cancel what is left."""
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=wait_s)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)


def observe(future: asyncio.Future[Any]) -> None:
    """Read the exception of *future*, so that asyncio does not report one nobody stayed to see."""
    if not future.cancelled():
        future.exception()
