"""Commands out and replies in, over a connection that redis-py has made.

Address, TLS, `AUTH` and `SELECT` are redis-py's. From then on what arrives goes straight from the
event loop into hiredis. The stream that redis-py reads from, and what it does around every reply,
made up a tenth of an exact hit and of a semantic look-up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hiredis import Reader, pack_command
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ReadOnlyError

from llm_cache._redis.lanes import is_outlived, lost_to

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

    from llm_cache._redis.connection import Command

_NOT_THERE_YET = object()


def packed(commands: Iterable[Command]) -> bytes:
    """Return *commands* as they are sent, in an eighth of the time that redis-py takes for it."""
    return b"".join([pack_command(command) for command in commands])


class Wire(asyncio.Protocol):
    """A connection that is up, for one user at a time.

    Args:
        connection: Connected, with RESP2, and no reply on its way. It is the wire's from now on.
    """

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        # Both have had these names in all releases of redis-py that we allow.
        writer, parser = connection._writer, connection._parser  # noqa: SLF001
        assert writer is not None  # noqa: S101 - it is connected
        self._replies = Reader(
            protocolError=InvalidResponse,
            replyError=parser.parse_error,
            notEnoughData=_NOT_THERE_YET,
        )
        self._loop = asyncio.get_running_loop()
        self._arrival: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._is_open = True
        self._transport: asyncio.WriteTransport = writer.transport
        # The one that redis-py waits for when it closes the connection.
        self._stream: asyncio.BaseProtocol = writer.transport.get_protocol()
        writer.transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        """Whether the connection is up, for all that is known here."""
        is_up = self._is_open and not self._transport.is_closing()
        return is_up and not is_outlived(self._connection)

    def post(self, packed: bytes) -> None:
        """Send commands, packed, without waiting for room."""
        self._transport.write(packed)

    async def send(self, packed: bytes) -> None:
        """Send commands, packed.

        Waits only where more is on its way than the system has room for.

        Raises:
            RedisConnectionError: the connection is lost.
        """
        if not self.is_open:
            raise _lost()
        self.post(packed)
        if self._room is not None:
            await self._room

    async def replies(self, count: int) -> list[Any]:
        """Return the next *count* replies; what was refused is among them as its error.

        Raises:
            RedisConnectionError: the connection is lost, or is to be given up, the server says.
            InvalidResponse: what has arrived is no reply.
        """
        replies: list[Any] = []
        while len(replies) < count:
            reply = self._replies.gets()
            if reply is _NOT_THERE_YET:
                await self._more()
            elif isinstance(reply, RedisConnectionError):
                raise reply
            elif isinstance(reply, ReadOnlyError):
                raise lost_to(self._connection, reply)
            else:
                replies.append(reply)
        return replies

    async def close(self, *, nowait: bool = False) -> None:
        """Close the connection; with *nowait*, without taking leave."""
        await self._connection.disconnect(nowait=nowait)

    async def _more(self) -> None:
        """Wait until more has arrived."""
        if not self._is_open:
            raise _lost()
        self._arrival = self._loop.create_future()
        try:
            await self._arrival
        finally:
            self._arrival = None

    # ------------------------------------------------------------------ told by the event loop

    def data_received(self, data: bytes) -> None:
        """Take in what has arrived."""
        self._replies.feed(data)
        _wake(self._arrival)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake whoever waits: there is nothing to wait for any more."""
        self._is_open = False
        self._stream.connection_lost(exc)
        _wake(self._arrival)
        self.resume_writing()

    def pause_writing(self) -> None:
        """Let whoever sends wait: more is on its way than the system has room for."""
        self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        """Let him go on."""
        room, self._room = self._room, None
        _wake(room)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _lost() -> RedisConnectionError:
    return RedisConnectionError("Connection closed by server.")
