"""One connection to one server, beside the pool."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from llm_cache._flight import SharedRun
from llm_cache._redis.wire import Wire
from llm_cache.errors import CacheClosed, StoreUnavailable

if TYPE_CHECKING:
    from llm_cache._redis.connection import Connection, Lane

_PARTING_S = 0.5
"""For how long a server is waited for that is told good-bye, as TLS wants it."""


class Link:
    """A connection that is made when it is first needed, and again when it was lost.

    For one user at a time. It can be closed at any moment: a connection that is just being made
    is given up, and none is made afterwards.

    Args:
        connection: The way to Redis.
        lane: To which of its servers; default the only one.
    """

    def __init__(self, connection: Connection, lane: Lane | None = None) -> None:
        self._connection = connection
        self._lane = lane
        self._made: Wire | None = None
        self._making = SharedRun(self._make, name="llm_cache.link")
        self._is_closed = False

    @property
    def is_up(self) -> bool:
        """Whether there is a connection."""
        return self._made is not None

    @property
    def wire(self) -> Wire | None:
        """The connection, if it is up."""
        made = self._made
        return made if made is not None and made.is_open else None

    async def connected(self) -> Wire:
        """Return the connection.

        Raises:
            StoreUnavailable: it was closed.
            RedisError, OSError: there is no way to the server.
        """
        if (made := self.wire) is not None:
            return made
        if self._is_closed:
            raise closed()
        # One that was lost by itself is not closed yet.
        await self.hang_up()
        try:
            made = await self._making.join()
        except CacheClosed:
            raise closed() from None
        # It may have been given up again before its user had his turn; if he sent something, it
        # would connect by itself, and nobody would know of it.
        if self._made is not made:
            raise closed()
        return made

    async def hang_up(self) -> None:
        """Close the connection; the next user gets a new one."""
        made, self._made = self._made, None
        if made is not None:
            await made.close(nowait=True)

    async def aclose(self) -> None:
        """Close the connection for good."""
        self._is_closed = True
        await self.reset()

    async def reset(self) -> None:
        """Close the connection, and give up one that is being made."""
        await self._making.settle(wait_s=0)
        made, self._made = self._made, None
        if made is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PARTING_S):
                    await made.close()

    async def _make(self) -> Wire:
        connection = (self._lane or self._connection.lane()).dedicated()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        made = self._made = Wire(connection)
        return made


def closed() -> StoreUnavailable:
    """Return what whoever uses a link is told that was closed."""
    return StoreUnavailable("the cache was closed")
