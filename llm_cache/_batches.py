"""Batches: many callers, each with one key, share few requests for many keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

_V = TypeVar("_V")

_SPACING_S = 0.02
_DELIVERED_AT_A_TIME = 4
_CLOSING_S = 1.0


class Batches(Generic[_V]):
    """Asks for values in batches.

    A key goes out at once when nothing is in flight. Those that come meanwhile travel together:
    as soon as a request has ended, or they fill a batch, or the last request went out 20 ms ago.
    A key that is waiting or in flight is never asked for twice. There is a task for each request,
    none for a caller, and none when nothing is in flight.

    Args:
        ask: Returns one value for each key, in their order.
        max_keys: Most keys of one request.
        max_chars: Most characters of all keys of one request; a longer key travels alone.
        max_in_flight: Most requests at a time. `None` sends every key as it comes.
        is_refusal: Tells whether an exception of *ask* may be due to single keys. Such a batch is
            asked for again in halves, so that only the culprit's callers see the exception.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[str]], Awaitable[Sequence[_V]]],
        *,
        max_keys: int,
        max_chars: int,
        max_in_flight: int | None,
        is_refusal: Callable[[Exception], bool] = lambda _: False,
    ) -> None:
        self._ask = ask
        self._max_keys = max_keys
        self._max_chars = max_chars
        self._max_in_flight = max_in_flight
        self._is_refusal = is_refusal
        self._items: dict[str, _Item[_V]] = {}
        """What is waiting or in flight."""
        self._waiting: dict[str, _Item[_V]] = {}
        self._waiting_chars = 0
        self._requests: set[_Request[_V]] = set()
        self._sent_at_s = 0.0
        self._is_looking_soon = False
        self._look_later: asyncio.TimerHandle | None = None

    def __contains__(self, key: str) -> bool:
        """Tell whether *key* is waiting or in flight."""
        return key in self._items

    async def get(self, key: str) -> _V:
        """Return the value of *key*.

        A caller that is cancelled leaves the request to the others; when the last one has left,
        the request is cancelled.

        Raises:
            Exception: what *ask* raised, in an instance of the caller's own.
        """
        item = self._items.get(key)
        if item is None:
            item = self._items[key] = self._waiting[key] = _Item(key)
            self._waiting_chars += len(key)
            self._look_soon()
        # A future for each caller: a shared one would be cancelled with the first of them.
        waiter: asyncio.Future[_V] = asyncio.get_running_loop().create_future()
        item.waiters.add(waiter)
        try:
            return await waiter
        finally:
            item.waiters.discard(waiter)
            if not item.waiters:
                self._leave(item)

    async def aclose(self, error: Exception) -> None:
        """End what is waiting or in flight with *error*; wait at most 1 s for it to have ended."""
        self._fail(list(self._items.values()), error)
        self._waiting.clear()
        self._waiting_chars = 0
        tasks = [request.task for request in self._requests]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSING_S)

    # ------------------------------------------------------------------ when a request goes out

    def _look_soon(self) -> None:
        # Not at once: all who are about to run may come to ask, and then travel together.
        if not self._is_looking_soon:
            self._is_looking_soon = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        """Send what may go out, and see to it that the rest is looked at in time."""
        self._is_looking_soon = False
        if self._look_later is not None:
            self._look_later.cancel()
            self._look_later = None
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        while self._waiting and self._may_send(now_s):
            self._send(now_s)
        if self._waiting and len(self._requests) != self._max_in_flight:
            self._look_later = loop.call_at(self._sent_at_s + _SPACING_S, self._look)

    def _may_send(self, now_s: float) -> bool:
        if not self._requests or self._max_in_flight is None:
            return True
        # A request that takes long is not waited for: keys that come one by one would wait for
        # half a request on top of their own. By then, a burst has come together.
        is_due = self._is_full() or now_s >= self._sent_at_s + _SPACING_S
        return is_due and len(self._requests) < self._max_in_flight

    def _is_full(self) -> bool:
        return len(self._waiting) >= self._max_keys or self._waiting_chars >= self._max_chars

    def _send(self, now_s: float) -> None:
        items = self._take()
        request = _Request(items, asyncio.create_task(self._serve(items), name="llm_cache.batch"))
        for item in items:
            item.request = request
        self._requests.add(request)
        self._sent_at_s = now_s
        request.task.add_done_callback(lambda _: self._land(request))

    def _take(self) -> list[_Item[_V]]:
        items: list[_Item[_V]] = []
        chars = 0
        for item in islice(self._waiting.values(), self._max_keys):
            chars += len(item.key)
            if items and chars > self._max_chars:
                break
            items.append(item)
        for item in items:
            self._stop_waiting(item)
        return items

    def _stop_waiting(self, item: _Item[_V]) -> None:
        del self._waiting[item.key]
        self._waiting_chars -= len(item.key)

    # ------------------------------------------------------------------ how it ends

    async def _serve(self, items: list[_Item[_V]]) -> None:
        parts = [items]
        # Enough to find one culprit, and some more: a batch of 64 takes 19 requests at most.
        splits_left = len(items).bit_length() + 2
        while parts:
            part = parts.pop()
            try:
                values = await self._ask([item.key for item in part])
            # Whatever happened, every caller must hear of it: nobody else will wake them.
            except Exception as error:  # noqa: BLE001
                if len(part) > 1 and splits_left and self._is_refusal(error):
                    splits_left -= 1
                    parts += _halves(part)
                else:
                    self._fail(part, error)
            else:
                await self._deliver(part, values)

    async def _deliver(self, part: list[_Item[_V]], values: Sequence[_V]) -> None:
        for number, (item, value) in enumerate(zip(part, values, strict=True), start=1):
            for waiter in self._finish(item):
                waiter.set_result(value)
            # All who wake at once are run at once, and the event loop stands still for the others.
            if number % _DELIVERED_AT_A_TIME == 0:
                await asyncio.sleep(0)

    def _fail(self, part: list[_Item[_V]], error: Exception) -> None:
        for item in part:
            for waiter in self._finish(item):
                waiter.set_exception(_own(error))

    def _finish(self, item: _Item[_V]) -> list[asyncio.Future[_V]]:
        del self._items[item.key]
        waiters = [waiter for waiter in item.waiters if not waiter.done()]
        item.waiters.clear()
        return waiters

    def _leave(self, item: _Item[_V]) -> None:
        """Forget *item*, which nobody asks for any more, unless others travel with it."""
        if not self._is_open(item):
            return
        if item.request is None:
            self._finish(item)
            self._stop_waiting(item)
        elif not any(other.waiters for other in item.request.items):
            self._abandon(item.request)

    def _abandon(self, request: _Request[_V]) -> None:
        # Whoever comes for one of its keys from now on needs a new request.
        for item in filter(self._is_open, request.items):
            self._finish(item)
        request.task.cancel()

    def _land(self, request: _Request[_V]) -> None:
        self._requests.discard(request)
        # Nothing is open here unless somebody else cancelled the task, as when a loop is closed.
        for item in filter(self._is_open, request.items):
            for waiter in self._finish(item):
                waiter.cancel()
        if self._waiting:
            self._look_soon()

    def _is_open(self, item: _Item[_V]) -> bool:
        return self._items.get(item.key) is item


class _Item(Generic[_V]):
    """A key, and who waits for its value."""

    __slots__ = ("key", "request", "waiters")

    def __init__(self, key: str) -> None:
        self.key = key
        self.waiters: set[asyncio.Future[_V]] = set()
        self.request: _Request[_V] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class _Request(Generic[_V]):
    """Keys that are in flight together."""

    items: list[_Item[_V]]
    task: asyncio.Task[None]


def _halves(part: list[_Item[_V]]) -> list[list[_Item[_V]]]:
    """Return the halves of *part*, the one to be asked for first at the end.

    By length, as most keys that are refused are too long: several culprits then sit together, and
    most others are served by the first request.
    """
    part = sorted(part, key=lambda item: len(item.key))
    middle = len(part) // 2
    return [part[middle:], part[:middle]]


def _own(error: Exception) -> Exception:
    """Return a copy of *error*: raised by many callers, one instance would grow its traceback."""
    copy = error.__class__.__new__(error.__class__, *error.args)
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error if error.__cause__ is None else error.__cause__
    return copy
