"""Hearing what other processes have landed, over one connection opened when first needed.

A waiter subscribes to the channel of its own digest. So what nobody waits for reaches nobody,
however many processes share the namespace, and every wait finds out anew whether the connection
still works. Channels nobody listens to any more are left in batches, not one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from llm_cache._redis.connection import Connection
from llm_cache.errors import StoreUnavailable

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

_MOST_STALE = 256
"""Channels without a listener that may stay subscribed before they are left."""


class Ear:
    """One waiter, listening to one channel."""

    def __init__(self, landings: Landings, channel: str) -> None:
        self._landings = landings
        self._channel = channel
        self._changed = asyncio.Event()
        self._lost: BaseException | None = None
        self.heard: bytes | None = None
        """The last message on the channel since this began to listen."""

    async def subscribed(self) -> None:
        """Return when every later message will be heard, or one has been.

        Raises:
            StoreUnavailable: the subscription was refused, or its connection failed.
        """
        # The connection may have been dying unnoticed; one fresh try tells that from an outage.
        for is_last_try in (False, True):
            self._lost = None
            while self._lost is None:
                if self.heard is not None or self._landings.hears(self._channel):
                    return
                self._landings.want(self._channel)
                await self._change()
            if is_last_try:
                raise StoreUnavailable(
                    f"cannot subscribe: {type(self._lost).__name__}: {self._lost}"
                ) from self._lost

    async def news(self) -> None:
        """Return when something was heard, or the connection was lost and with it who knows."""
        while self.heard is None and self._lost is None:
            await self._change()

    def tell(self, *, heard: bytes | None = None, lost: BaseException | None = None) -> None:
        """Wake the waiter, with what was *heard* or with why the connection was *lost*."""
        self.heard = self.heard if heard is None else heard
        self._lost = self._lost if lost is None else lost
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class _Line:
    """What one connection has been asked for, from its making to its loss."""

    def __init__(self) -> None:
        self.asked: set[str] = set()
        """Channels that were subscribed to, confirmed or not."""
        self.confirmed: set[str] = set()
        self.unsent: list[str] = []
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Landings:
    """All that this process listens to."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._ears: dict[str, set[Ear]] = {}
        self._line: _Line | None = None
        # A line that was given up still has its connection to close.
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @contextmanager
    def listen(self, channel: str) -> Iterator[Ear]:
        """Listen to *channel* for as long as the block lasts, however it ends."""
        ear = Ear(self, channel)
        ears = self._ears.setdefault(channel, set())
        ears.add(ear)
        try:
            yield ear
        finally:
            ears.remove(ear)
            if not ears:
                del self._ears[channel]

    def hears(self, channel: str) -> bool:
        """Tell whether the server has confirmed the subscription to *channel*."""
        return self._line is not None and channel in self._line.confirmed

    def want(self, channel: str) -> None:
        """See to a subscription to *channel*. Waits for nothing, and may be asked again."""
        if self._is_closed:
            raise StoreUnavailable("this cache was closed")
        line = self._line
        if line is None:
            line = self._line = _Line()
            line.task = asyncio.create_task(self._live(line), name="llm_cache.landings")
            self._tasks.add(line.task)
            line.task.add_done_callback(partial(self._ended, line))
        if channel not in line.asked:
            line.asked.add(channel)
            line.unsent.append(channel)
            line.wake.set()

    def hang_up(self, reason: BaseException) -> None:
        """Give the connection up: who listens is told *reason* and has to subscribe again."""
        if self._line is not None:
            self._lose(self._line, reason)

    async def aclose(self) -> None:
        """Close the connection. Who still listens gets `StoreUnavailable`."""
        self._is_closed = True
        self.hang_up(StoreUnavailable("this cache was closed"))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _live(self, line: _Line) -> None:
        """Connect, and hear until the connection is lost."""
        # On a cluster any node will do: what is published reaches all of them.
        link = self._connection.lane().dedicated(
            # Pub/sub knows no databases: no `SELECT`, and the first subscription is one command.
            db=0,
            # Silence is normal here; a `PING` would be answered in between of the messages.
            socket_timeout=None,
            health_check_interval=0,
        )
        try:
            await self._connection.run(link.connect())  # type: ignore[no-untyped-call]
            # Writing has a task of its own: one that reads cannot be interrupted, and a waiter
            # that was cancelled while it wrote would take the connection with it.
            writing = asyncio.create_task(self._write(line, link), name="llm_cache.landings.write")
            try:
                while True:
                    # For ever: this is where the process waits for news.
                    self._take(line, await link.read_response())
            finally:
                writing.cancel()
                # If it failed, it has closed the connection and so ended the reading.
                await asyncio.gather(writing, return_exceptions=True)
        finally:
            await link.disconnect(nowait=True)

    async def _write(self, line: _Line, link: AbstractConnection) -> None:
        while True:
            await line.wake.wait()
            line.wake.clear()
            if len(line.confirmed) - len(self._ears) > _MOST_STALE:
                stale = line.confirmed - self._ears.keys()
                # Forgotten before the command is sent: whoever listens to one of them from now on
                # subscribes again, and commands keep their order.
                line.confirmed -= stale
                line.asked -= stale
                await link.send_command("UNSUBSCRIBE", *stale)
            unsent, line.unsent = line.unsent, []
            if unsent:
                await link.send_command("SUBSCRIBE", *unsent)

    def _take(self, line: _Line, reply: Any) -> None:
        kind, name, message = reply
        channel = name.decode()
        if kind == b"subscribe":
            line.confirmed.add(channel)
        for ear in self._ears.get(channel, ()):
            ear.tell(heard=message if kind == b"message" else None)

    def _ended(self, line: _Line, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            error = task.exception()
            self._lose(line, error or ConnectionResetError("the subscription ended"))

    def _lose(self, line: _Line, reason: BaseException) -> None:
        if line is not self._line:
            return
        self._line = None
        if line.task is not None:
            line.task.cancel()
        for ears in self._ears.values():
            for ear in ears:
                ear.tell(lost=reason)
