"""Reads that travel together.

A read that finds none in flight goes out at once, as fast as a bare command. Those that arrive
meanwhile wait for it and share the next `MGET`, so that a hundred callers cost two round trips.
All of it goes over one connection of its own, which no other command holds up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hiredis import pack_command
from redis.exceptions import ConnectionError as RedisConnectionError

from llm_cache._redis.connection import Connection, dedicated
from llm_cache.errors import StoreError, StoreUnavailable

_MOST_KEYS = 512
"""Keys in one `MGET`: enough to make the round trip cheap, few enough not to hold up others."""

Read = tuple[bytes | None, bytes | None]
"""The value of a key, and that of the companion key, read at one moment."""


class CoalescedReads:
    """Reads keys, each together with one *companion* key, in at most *timeout_s*."""

    def __init__(
        self, connection: Connection, companion: str, *, timeout_s: float | None = None
    ) -> None:
        self._connection = connection
        self._companion = companion
        self._timeout_s = timeout_s
        self._waiting: dict[str, list[asyncio.Future[Read]]] = {}
        self._waiting_since_s = 0.0
        self._is_busy = False
        self._is_answering = True
        """Whether Redis has answered the last time."""
        self._drain: asyncio.Task[None] | None = None
        self._line: Any = None

    @property
    def is_in_use(self) -> bool:
        """Whether anything has been read."""
        return self._line is not None or self._is_busy

    async def get(self, key: str) -> Read:
        """Return the values of *key* and of the companion. At most one round trip of its own.

        Raises:
            StoreUnavailable: Redis did not answer, or not in time.
        """
        if not self._is_busy:
            self._is_busy = True
            try:
                value, companion = await self._connection.run(
                    self._mget((key,)), timeout_s=self._timeout_s
                )
            finally:
                self._go_on()
            return value, companion
        loop = asyncio.get_running_loop()
        if not self._waiting:
            self._waiting_since_s = loop.time()
        # Everybody waits for a future of his own, so that one who leaves takes nobody along. How
        # long is up to whoever serves them: a timer for each would cost more than the read.
        future: asyncio.Future[Read] = loop.create_future()
        waiters = self._waiting.get(key)
        if waiters is None:
            self._waiting[key] = [future]
        else:
            waiters.append(future)
        return await future

    async def aclose(self) -> None:
        """Let go of the connection. Whoever still waits gets an error."""
        drain, self._drain = self._drain, None
        if drain is not None and not drain.done():
            drain.cancel()
            await asyncio.gather(drain, return_exceptions=True)
            # One that was cancelled before it began did not say so itself.
            self._is_busy = False
        self._fail(list(self._waiting), self._waiting, _closed())
        await self._hang_up()

    def _go_on(self) -> None:
        """Serve whoever has come meanwhile, in one task for all of them."""
        if self._waiting:
            self._drain = asyncio.create_task(self._serve(), name="llm_cache.reads")
        else:
            self._is_busy = False

    async def _serve(self) -> None:
        try:
            while self._waiting:
                # Those who come while Redis answers have waited for others of their own process.
                since_s = None if self._is_answering else self._waiting_since_s
                batch = self._next_batch()
                keys = list(batch)
                try:
                    *values, companion = await self._connection.run(
                        self._mget(keys), since_s=since_s, timeout_s=self._timeout_s
                    )
                except StoreError as error:
                    self._fail(keys, batch, error)
                    continue
                except asyncio.CancelledError:
                    self._fail(keys, batch, _closed())
                    raise
                for key, value in zip(keys, values, strict=True):
                    for future in batch[key]:
                        if not future.done():
                            future.set_result((value, companion))
        finally:
            self._is_busy = False

    def _next_batch(self) -> dict[str, list[asyncio.Future[Read]]]:
        """Take the keys that are next."""
        return {key: self._waiting.pop(key) for key in list(self._waiting)[:_MOST_KEYS]}

    def _fail(
        self, keys: Sequence[str], batch: dict[str, list[asyncio.Future[Read]]], error: StoreError
    ) -> None:
        for key in keys:
            for future in batch.pop(key):
                if not future.done():
                    # Each its own: a shared exception would collect the traceback of every caller.
                    future.set_exception(type(error)(*error.args))

    async def _mget(self, keys: Sequence[str]) -> list[bytes | None]:
        try:
            return await self._exchange(keys)
        except RedisConnectionError:
            # The server may have closed an idle connection; one fresh try tells that from an
            # outage.
            return await self._exchange(keys)

    async def _exchange(self, keys: Sequence[str]) -> list[bytes | None]:
        if self._line is None:
            self._line = dedicated(self._connection.client)
        line = self._line
        try:
            if not line.is_connected:
                await line.connect()
            command: tuple[Any, ...] = ("MGET", *keys, self._companion)
            # hiredis packs in an eighth of the time that the connection takes.
            await line.send_packed_command(pack_command(command), check_health=False)
            values = _checked(await line.read_response(), len(keys) + 1)
        except BaseException:
            self._is_answering = False
            # A reply may still be on its way; the next read must not take it for its own.
            await self._hang_up()
            raise
        self._is_answering = True
        return values

    async def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            await line.disconnect(nowait=True)


def _checked(reply: Any, count: int) -> list[bytes | None]:
    if type(reply) is not list or len(reply) != count:
        raise RedisConnectionError("the reply to MGET has another shape")
    return reply


def _closed() -> StoreUnavailable:
    return StoreUnavailable("the cache was closed")
