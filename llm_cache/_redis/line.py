"""One connection for the commands of many callers.

A command that finds none under way goes out at once, and its caller reads the reply: as fast as a
connection can be. Those that are given meanwhile are sent by one task, which keeps a few of them
on their way, so that the server never waits for the next, and no more: a server carries out all
that has arrived on one connection before it looks at another, and whoever asks there would wait.

Only for commands that may be carried out twice: a lost connection is no reason to fail, once.

Behind the commands of each turn goes a `PING` with its name. One byte of a reply that was damaged
on its way may make it longer or shorter than it was, and from then on everybody would be given the
replies to what others had asked. Where a name is not what it should be, the connection is lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from secrets import token_bytes
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from llm_cache._deadline import lag_s
from llm_cache._redis.connection import Command, Connection, Lane, raise_first
from llm_cache._redis.link import Link, closed
from llm_cache._redis.wire import Wire, packed
from llm_cache.errors import StoreError, StoreTimeout

MOST_ON_THEIR_WAY = 4
"""Turns that are sent and not answered yet. From two on the server is busy all the time; what is
above that makes others wait (`python -m benchmarks micro line`)."""
_MOST_WHEN_LATE = 64
"""The same on an event loop that is late. It reads what has arrived once in a round, and a few
turns in each would be all it ever gets; the server is idle for most of the time, and looks at
other connections after each 16 KB (`PROTO_IOBUF_LEN`)."""
_TURN_S = 0.001
"""What a turn may cost the server: for as long as the loop is late, it can carry out so many."""


@dataclass(slots=True, eq=False)
class _Turn:
    """What one caller sends together."""

    commands: Sequence[Command]
    name: bytes


@dataclass(slots=True, eq=False)
class _Waiting(_Turn):
    """What has to wait for others, and who waits for it."""

    future: asyncio.Future[list[Any]]
    was_lost: bool = False
    """Whether a connection was lost with it once."""

    def end(self, answers: list[Any]) -> None:
        if not self.future.done():
            self.future.set_result(answers)

    def fail(self, error: StoreError) -> None:
        if not self.future.done():
            # Each its own: a shared exception would collect the traceback of every caller.
            self.future.set_exception(type(error)(*error.args))


class Line:
    """Carries commands to one server and their answers back. Opened when first needed.

    Args:
        connection: The way to Redis.
        lane: To which of its servers; default the only one.
        on_their_way: Turns that are sent and not answered yet, at most; by default as many as
            keep the server busy.
    """

    def __init__(
        self,
        connection: Connection,
        lane: Lane | None = None,
        *,
        on_their_way: int | None = None,
    ) -> None:
        self._connection = connection
        self._most = on_their_way
        self._waiting: deque[_Waiting] = deque()
        self._sent: deque[_Waiting] = deque()
        self._link = Link(connection, lane)
        self._serving: asyncio.Task[None] | None = None
        # What else a reply may hold is no such name.
        ours = token_bytes(8)
        self._names = (b"%b %d" % (ours, number) for number in count())
        self._is_busy = False
        self._is_closed = False

    async def execute(self, *command: Any) -> Any:
        """Run one command. One round trip; raises as `execute_all`."""
        return (await self.execute_all(command))[0]

    async def execute_all(self, *commands: Command) -> list[Any]:
        """Run *commands*, sent together, and return their answers. One round trip.

        They are no transaction: others may come between them, and where one is refused the others
        are carried out all the same.

        Raises:
            StoreTimeout: no answer within `redis_timeout_s`, the time in the queue included.
            StoreUnavailable: Redis refused one of them, or went away.
        """
        answers = await self.replies(commands)
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise_first(commands, answers)
        return answers

    async def replies(self, commands: Sequence[Command]) -> list[Any]:
        """Do what `execute_all` does, with what was refused among the answers as its error."""
        name = next(self._names)
        if self._is_busy:
            # Everybody waits for a future of his own, so that one who leaves takes nobody along.
            waiting = _Waiting(commands, name, asyncio.get_running_loop().create_future())
            self._waiting.append(waiting)
            return await self._connection.run(waiting.future)
        turn = _Turn(commands, name)
        self._is_busy = True
        try:
            # Sent before anything else is done: the server is at it while the time is taken.
            wire = self._link.wire
            if wire is not None:
                wire.post(_packed([turn]))
            return await self._connection.run(self._exchange(turn, wire))
        finally:
            self._go_on()

    async def aclose(self) -> None:
        """Let go of the connection. Whoever still waits gets an error."""
        self._is_closed = True
        serving, self._serving = self._serving, None
        if serving is not None:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
        for turn in [*self._sent, *self._waiting]:
            turn.fail(closed())
        self._sent.clear()
        self._waiting.clear()
        await self._link.aclose()

    def _go_on(self) -> None:
        """Serve whoever has come meanwhile, in one task for all of them."""
        if self._waiting and not self._is_closed:
            self._serving = asyncio.create_task(self._serve(), name="llm_cache.line")
        else:
            self._is_busy = False

    async def _serve(self) -> None:
        try:
            while self._waiting or self._sent:
                try:
                    await self._connection.run(self._step())
                except StoreError as error:
                    self._recover(error)
        finally:
            self._is_busy = False

    async def _step(self) -> None:
        """Send what there is room for, and read the answers of the turn that was sent first."""
        batch = list(self._next())
        self._sent.extend(batch)
        if not self._sent:
            return
        try:
            wire = await self._link.connected()
            if batch:
                await wire.send(_packed(batch))
            answers = await _read(wire, self._sent[0])
        except BaseException:
            # A reply may still be on its way; the next turn must not take it for its own.
            await self._link.hang_up()
            raise
        self._sent.popleft().end(answers)

    def _next(self) -> Iterator[_Waiting]:
        most = enough_on_their_way() if self._most is None else self._most
        room = most - len(self._sent)
        while self._waiting and room > 0:
            turn = self._waiting.popleft()
            # Whoever has left wants no answer, and the server need not make one.
            if not turn.future.done():
                room -= 1
                yield turn

    def _recover(self, error: StoreError) -> None:
        """Have what a lost connection took along sent once more; what was late has failed."""
        lost = list(self._sent)
        self._sent.clear()
        for turn in reversed(lost):
            if turn.was_lost or isinstance(error, StoreTimeout):
                turn.fail(error)
            else:
                turn.was_lost = True
                self._waiting.appendleft(turn)

    async def _exchange(self, turn: _Turn, wire: Wire | None) -> list[Any]:
        """Return the answers to *turn*, which was sent over *wire* already, if that is one."""
        try:
            return await self._once(turn, wire)
        except RedisConnectionError:
            # The server may have closed an idle connection; one fresh try tells that from an
            # outage.
            return await self._once(turn, None)

    async def _once(self, turn: _Turn, wire: Wire | None) -> list[Any]:
        try:
            if wire is None:
                wire = await self._link.connected()
                await wire.send(_packed([turn]))
            return await _read(wire, turn)
        except BaseException:
            await self._link.hang_up()
            raise


class Lines:
    """A line to each server of a connection; commands go where their first keys are.

    Its arguments are those of `Line`.
    """

    def __init__(self, connection: Connection, *, on_their_way: int | None = None) -> None:
        self._connection = connection
        self._on_their_way = on_their_way
        # It finds its server when it is first needed, which is after the connection was opened.
        self._only = None if connection.is_cluster else self._line()
        self._each: dict[Lane, Line] = {}
        self._is_closed = False

    async def execute(self, *command: Any) -> Any:
        """Run one command. One round trip; raises as `execute_all`."""
        return (await self.execute_all(command))[0]

    async def execute_all(self, *commands: Command) -> list[Any]:
        """Run *commands* as `Line.execute_all` does; on a cluster, each part at the same time."""
        if self._only is not None:
            return await self._only.execute_all(*commands)
        answers = await self._connection.run(self._connection.route(commands, self._send))
        raise_first(commands, answers)
        return answers

    async def aclose(self) -> None:
        """Let go of the connections. Whoever still waits gets an error."""
        self._is_closed = True
        lines = [*self._each.values()] if self._only is None else [self._only]
        await asyncio.gather(*(line.aclose() for line in lines))

    async def _send(self, lane: Lane, commands: Sequence[Command]) -> list[Any]:
        if self._is_closed:
            raise closed()
        line = self._each.get(lane)
        if line is None:
            # That of a server that is gone stays: it may come back, and its connection is closed.
            line = self._each[lane] = self._line(lane)
        return await line.replies(commands)

    def _line(self, lane: Lane | None = None) -> Line:
        return Line(self._connection, lane, on_their_way=self._on_their_way)


def enough_on_their_way() -> int:
    """Return how many turns keep the server busy, as late as the event loop is."""
    return min(_MOST_WHEN_LATE, MOST_ON_THEIR_WAY + int(lag_s() / _TURN_S))


def _packed(turns: Sequence[_Turn]) -> bytes:
    return packed(command for turn in turns for command in (*turn.commands, ("PING", turn.name)))


async def _read(wire: Wire, turn: _Turn) -> list[Any]:
    """Return the answers to *turn*; what was refused is among them as its error."""
    answers = await wire.replies(len(turn.commands) + 1)
    last = answers.pop()
    # A server that refuses even this refuses the others, too, and says why.
    if last != turn.name and not isinstance(last, ResponseError):
        raise RedisConnectionError("the replies belong to other commands")
    return answers
