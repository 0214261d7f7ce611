"""Single-flight: callers of one key in this process share one task, and one stream."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from llm_cache.errors import CacheClosed

_T = TypeVar("_T")
UNDER_WAY = "the cache was closed while this call was under way"


class SingleFlight(Generic[_T]):
    """Runs one task for each key at a time; whoever asks meanwhile shares its end.

    The task belongs to nobody: when the caller that started it goes away, it goes on for the
    others, and so that its answer is stored. An exception reaches every caller, and the next call
    starts anew.

    Args:
        unclaimed: Called with what was made when nobody has stayed to take it.
    """

    def __init__(self, unclaimed: Callable[[_T], object] | None = None) -> None:
        self._tasks: dict[Hashable, asyncio.Task[_T]] = {}
        self._waiting: Counter[Hashable] = Counter()
        self._taken: set[asyncio.Task[_T]] = set()
        """Those that ended, and whose end somebody has taken while others still wait."""
        self._unclaimed = unclaimed

    async def run(
        self,
        key: Hashable,
        produce: Callable[..., Coroutine[Any, Any, _T]],
        *,
        patience_s: float | None,
    ) -> tuple[_T, bool]:
        """Return what *produce* makes, and whether somebody else had started it.

        Whoever finds it under way waits at most *patience_s* seconds; then he has it produced for
        himself, with ``may_wait=False``.
        """
        if key not in self._tasks:
            task = asyncio.create_task(produce(), name="llm_cache.fill")
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._land(key, done))
            return await self._joined(key), False
        shared = await patiently(self._joined(key), patience_s)
        if shared is None:
            return await produce(may_wait=False), False
        return shared, True

    async def _joined(self, key: Hashable) -> _T:
        """Return what the task for *key* makes, which is under way."""
        task = self._tasks[key]
        self._waiting[key] += 1
        try:
            made = await _end_of(task)
            self._taken.add(task)
            return made
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
                has_landed = task.done() and self._tasks.get(key) is not task
                if has_landed and task not in self._taken:
                    # Cancelled between the end and his own turn, for which he was counted on.
                    self._offer(task)
                self._taken.discard(task)

    @property
    def tasks(self) -> list[asyncio.Task[_T]]:
        """What is under way."""
        return list(self._tasks.values())

    def _land(self, key: Hashable, task: asyncio.Task[_T]) -> None:
        del self._tasks[key]
        observe(task)
        if not self._waiting[key]:
            self._offer(task)

    def _offer(self, task: asyncio.Task[_T]) -> None:
        """Give what *task* made to whoever takes what nobody has taken."""
        is_made = not task.cancelled() and task.exception() is None
        if is_made and self._unclaimed is not None:
            self._unclaimed(task.result())


class SharedRun(Generic[_T]):
    """Runs *produce* in one task at a time, whose end is shared by all who ask meanwhile.

    A failure reaches everybody who waits, and whoever asks next starts anew. One who is cancelled
    takes nobody along; what nobody waits for any more is cancelled, unless it *keeps_on*.
    """

    def __init__(
        self,
        produce: Callable[[], Coroutine[Any, Any, _T]],
        *,
        name: str,
        keeps_on: bool = False,
    ) -> None:
        self._produce = produce
        self._name = name
        self._keeps_on = keeps_on
        self._task: asyncio.Task[_T] | None = None
        self._waiting: Counter[asyncio.Task[_T]] = Counter()

    @property
    def is_running(self) -> bool:
        """Whether a task is under way."""
        return self._task is not None and not self._task.done()

    def begin(self) -> asyncio.Task[_T]:
        """Return the task that is under way, or a new one, without waiting for it."""
        # For the rest of the turn of the loop in which it ends, a task is done and still known.
        # What it has found is older than whoever comes then.
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._produce(), name=self._name)
            self._task.add_done_callback(self._ended)
        return self._task

    async def join(self) -> _T:
        """Return what the task makes that is under way, or a new one."""
        while self._task is not None and self._task.cancelling():
            # It was given up, and is still putting everything back in its place.
            await asyncio.wait([self._task])
        task = self.begin()
        self._waiting[task] += 1
        try:
            return await _end_of(task)
        finally:
            self._waiting[task] -= 1
            if not self._waiting[task]:
                del self._waiting[task]
                if not task.done() and not self._keeps_on:
                    task.cancel()
                    await asyncio.wait([task])

    async def drop(self) -> None:
        """Cancel the task that is under way, if nobody waits for it."""
        task = self._task
        if task is not None and not self._waiting[task]:
            # At once: whoever comes next must see that it was given up.
            task.cancel()
            await asyncio.wait([task])

    async def settle(self, *, wait_s: float | None = None) -> None:
        """Wait until the task that is under way has ended; cancel it after *wait_s* seconds."""
        if self._task is not None:
            await finish([self._task], wait_s=wait_s)

    def _ended(self, task: asyncio.Task[_T]) -> None:
        if self._task is task:
            self._task = None
        observe(task)


class SharedStream(Generic[_T]):
    """What one source has said so far and goes on saying, for any number of listeners.

    Every listener hears everything, from the first item on and as it arrives. When the last one
    leaves before the end, *abandon* is called: nobody pays for what nobody hears. At the end,
    *over* is called, before anybody hears of it.
    """

    def __init__(
        self, abandon: Callable[[], object], over: Callable[[], object] = lambda: None
    ) -> None:
        self._abandon = abandon
        self._over = over
        self._items: list[_T] = []
        self._listeners = 0
        self._is_abandoned = False
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
            self._over()
            self._tell()

    def join(self) -> bool:
        """Count one listener more; `False` where it is too late: it is over, or given up."""
        is_open = not self._is_over and not self._is_abandoned
        self._listeners += is_open
        return is_open

    def leave(self) -> None:
        """Count one listener less."""
        self._listeners -= 1
        self.give_up_unheard()

    def give_up_unheard(self) -> None:
        """Abandon the source if nobody listens."""
        if self._listeners <= 0 and not self._is_over and not self._is_abandoned:
            self._is_abandoned = True
            self._abandon()

    async def listen(self) -> AsyncIterator[_T]:
        """Yield everything, from the beginning, to somebody who has joined."""
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


async def patiently(work: Awaitable[_T], patience_s: float | None) -> _T | None:
    """Return what comes of *work*, or `None` if it takes longer than *patience_s* seconds.

    That is how whoever waits for somebody else's call of the model waits: the model has a time-out
    of its own, after which a call of one's own would have been given up.
    """
    scope = asyncio.timeout(patience_s)
    try:
        async with scope:
            return await work
    except TimeoutError:
        if not scope.expired():
            raise
    return None


async def finish(tasks: list[asyncio.Task[Any]], *, wait_s: float | None) -> None:
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


async def _end_of(task: asyncio.Task[_T]) -> _T:
    """Return what *task* makes, for one of several who wait.

    Awaiting the task itself would let one caller that is cancelled cancel it for all.

    Raises:
        CacheClosed: it was cancelled, and its caller was not.
    """
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        caller = asyncio.current_task()
        is_leaving = caller is not None and caller.cancelling() > 0
        if task.cancelled() and not is_leaving:
            raise CacheClosed(UNDER_WAY) from None
        raise
