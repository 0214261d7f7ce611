"""Deadlines in a time of which a busy event loop costs nobody more than a little.

While the loop stands still, or goes round slowly under load, nobody learns that he was answered.
Time that passes so says nothing of whom the cache waits for. To give up for it would be the worst
that can be done: the call of the model that takes the place of a look-up costs the same loop a
hundred times as much, which makes it later still, so that a process which has once fallen behind
would never catch up. So one round of the loop is charged with `_MOST_S` at most.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self
from weakref import WeakKeyDictionary, ref

_BEAT_S = 0.004
"""From one look at the clock to the next, as long as anybody asks for the time."""
_MOST_S = 0.006
"""What is charged for the time between two looks, however long it was: a look-up with all its
steps is a few dozen rounds, for which the shortest budget that makes sense is to suffice."""
_BEATS_ON = 250
"""Looks after which the clock stops when nobody has asked for the time: it is to be noticed that
the loop stood still during a wait, and an idle process is to sleep."""
_ROUNDS = 3
"""Of the loop, for which a deadline that has come is put off, as they take no time where the loop
is idle: one in which a reply is read, one in which its reader runs, and one to spare."""


class _Clock:
    """Tells the time of one event loop, without what the loop was late by."""

    __slots__ = ("_beats_left", "_is_beating", "_late_from_s", "_lost_s", "lag_s")

    def __init__(self) -> None:
        self.lag_s = 0.0
        """How late the last look was."""
        self._lost_s = 0.0
        self._is_beating = False
        self._late_from_s = 0.0
        """When the next look will be so late that it is not charged any more."""
        self._beats_left = 0

    def now_s(self, loop: asyncio.AbstractEventLoop) -> float:
        now_s = loop.time()
        self._beats_left = _BEATS_ON
        if not self._is_beating:
            self._beat_at(now_s + _BEAT_S, loop)
        if now_s < self._late_from_s:
            return now_s - self._lost_s
        # The next look is late, and time has stood still since.
        return self._late_from_s - self._lost_s

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        self.lag_s = max(0.0, now_s - self._late_from_s)
        self._lost_s += self.lag_s
        self._beats_left -= 1
        if self._beats_left > 0:
            self._beat_at(now_s + _BEAT_S, loop)
        else:
            self._is_beating, self.lag_s = False, 0.0

    def _beat_at(self, due_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._is_beating = True
        self._late_from_s = due_s + _MOST_S - _BEAT_S
        loop.call_at(due_s, self._beat, loop)


_clocks: WeakKeyDictionary[asyncio.AbstractEventLoop, _Clock] = WeakKeyDictionary()
_last: tuple[ref[asyncio.AbstractEventLoop] | None, _Clock] = (None, _Clock())
"""The clock that was asked last: most programs have one loop, and every call asks."""


def now_s() -> float:
    """Return the time of the running loop, in seconds, without what the loop was late by.

    Only the difference of two times means anything. It is at most what has really passed.
    """
    loop = asyncio.get_running_loop()
    last, clock = _last
    if last is None or last() is not loop:
        clock = _found(loop)
    return clock.now_s(loop)


def _found(loop: asyncio.AbstractEventLoop) -> _Clock:
    global _last  # noqa: PLW0603 - replaced as a whole, so that threads may race for it
    clock = _clocks.get(loop)
    if clock is None:
        clock = _clocks[loop] = _Clock()
    _last = ref(loop), clock
    return clock


def lag_s() -> float:
    """Return how late the running loop was of late, in seconds; 0 where nobody asks for the time.

    What is less than a few milliseconds is not counted.
    """
    clock = _clocks.get(asyncio.get_running_loop())
    return 0.0 if clock is None else clock.lag_s


class Deadline:
    """Lets a block take *limit_s* seconds by `now_s`, or as long as it does for `None`.

    Raises:
        TimeoutError: it took longer, and was cancelled.
    """

    __slots__ = ("_ends_s", "_handle", "_limit_s", "_rounds", "_scope")

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s
        self._scope = asyncio.timeout(None)
        self._handle: asyncio.Handle | None = None
        self._rounds = 0
        self._ends_s = float("inf")

    @property
    def is_over(self) -> bool:
        """Whether the block is being cancelled, or was, for the time it took."""
        return self._scope.expired()

    @property
    def left_s(self) -> float:
        """Seconds that the block has left."""
        return self._ends_s - now_s()

    def stop(self) -> None:
        """Let the block take as long as it does, until `go_on`."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def go_on(self, left_s: float) -> None:
        """Let the block take *left_s* seconds from now on."""
        self._ends_s = now_s() + left_s
        self._rounds = _ROUNDS
        self._look_in(left_s)

    async def __aenter__(self) -> Self:
        await self._scope.__aenter__()
        if self._limit_s is not None:
            self.go_on(self._limit_s)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        await self._scope.__aexit__(kind, error, traceback)

    def _look_in(self, seconds: float) -> None:
        self._handle = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        left_s = self._ends_s - now_s()
        if left_s > 0:
            self._look_in(left_s)
        elif self._rounds:
            self._rounds -= 1
            self._handle = loop.call_soon(self._look)
        else:
            self._handle = None
            self._scope.reschedule(loop.time())
