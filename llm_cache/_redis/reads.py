"""Reads that travel together.

A read that finds none in flight goes out at once, as fast as a bare command. Those that arrive
meanwhile wait for it and are sent together, so that a hundred callers cost two round trips.
All of it goes over one connection of its own, which no other command holds up.

On a cluster there is one such connection to each primary. A key and its companion are then two
reads, each of which travels with what else is read there (`SplitReads`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain, islice
from typing import Any, Generic, TypeVar

from redis.exceptions import AskError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from llm_cache._deadline import now_s
from llm_cache._flight import observe
from llm_cache._redis.connection import Connection, Lane, raise_first
from llm_cache._redis.link import Link, closed
from llm_cache._redis.wire import Wire, packed
from llm_cache.errors import StoreError

_MOST_KEYS = 512
"""Keys that are asked for at once: enough to make the round trip cheap, few enough not to hold up
others."""
_LEAST_PART, _MOST_PART = 16, 64
"""Keys in one `MGET`. A batch is sent in two or more, so that Redis goes on with the next while
the callers of the first run; otherwise Redis and they would wait for each other in turn."""

_T = TypeVar("_T")
ReadAs = Callable[[str, bytes | None, bytes | None], _T]
"""What callers are given, made of a key, its value, and that of the companion key."""
_Batch = dict[str, list[asyncio.Future[_T]]]
"""Who waits for the value of which key."""
Pair = tuple[bytes | None, bytes | None]


def as_pair(_: str, value: bytes | None, companion: bytes | None) -> Pair:
    """Return the values of a key and of the companion as they were read, at one moment."""
    return value, companion


class CoalescedReads(Generic[_T]):
    """Reads keys from one server, each together with one *companion* key, if there is one.

    Without a companion the reads are those of one primary of a cluster (*lane*): the keys of a
    batch have slots of their own, so that they are read by as many `GET`, sent together, and what
    was refused comes back as its error in the place of the value. A batch takes *timeout_s* at
    most; default `redis_timeout_s`.

    *read_as* makes what a caller is given of the bytes, for each caller anew. It is called for all
    of a batch in a row, which takes half the time of the same between the steps of the callers.
    What it raises is raised by `get`, for the callers of that key alone.
    """

    _loop: asyncio.AbstractEventLoop
    """The one that callers wait in. Asked for once for a batch: it takes a call of the system."""

    def __init__(
        self,
        connection: Connection,
        companion: str | None,
        read_as: ReadAs[_T],
        *,
        lane: Lane | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self._connection = connection
        self._companion = companion
        self._read_as = read_as
        self._link = Link(connection, lane)
        self._timeout_s = timeout_s
        self._waiting: _Batch[_T] = {}
        self._waiting_since_s = 0.0
        self._is_busy = False
        self._is_answering = True
        """Whether Redis has answered the last time."""
        self._is_doubtful = False
        self._drain: asyncio.Task[None] | None = None

    @property
    def is_in_use(self) -> bool:
        """Whether anything has been read."""
        return self._link.is_up or self._is_busy

    def get(self, key: str) -> Awaitable[_T]:
        """Return what *key* and the companion are read as. At most one round trip of its own.

        Raises:
            StoreUnavailable: Redis did not answer, or not in time.
            Exception: whatever `read_as` raises.
        """
        return self._join(key) if self._is_busy else self._get_alone(key)

    def ask(self, key: str) -> asyncio.Future[_T]:
        """Return what will have the value of *key*, of a read that begins from now on.

        Not alone even if none is in flight: whoever asks in this turn of the loop travels along.
        """
        future = self._join(key)
        if not self._is_busy:
            self._is_busy = True
            self._go_on()
        return future

    def doubt(self) -> None:
        """Have the next read make a new connection: a value belongs to another key, it seems.

        One byte of a reply that was damaged on its way may have put all that follow out of step.
        """
        self._is_doubtful = True

    async def aclose(self) -> None:
        """Let go of the connection for good. Whoever still waits gets an error."""
        await self.reset()
        await self._link.aclose()

    async def reset(self) -> None:
        """Let go of the connection. Whoever still waits gets an error."""
        drain, self._drain = self._drain, None
        if drain is not None and not drain.done():
            drain.cancel()
            await asyncio.gather(drain, return_exceptions=True)
            # One that was cancelled before it began did not say so itself.
            self._is_busy = False
        self._fail(self._next_batch(len(self._waiting)), closed())
        await self._link.reset()

    def _join(self, key: str) -> asyncio.Future[_T]:
        """Return what will have the value of *key* from the next batch."""
        if not self._waiting:
            self._waiting_since_s, self._loop = now_s(), asyncio.get_running_loop()
        # Everybody waits for a future of his own, so that one who leaves takes nobody along. How
        # long is up to whoever serves them: a timer for each would cost more than the read.
        future: asyncio.Future[_T] = self._loop.create_future()
        waiters = self._waiting.get(key)
        if waiters is None:
            self._waiting[key] = [future]
        else:
            waiters.append(future)
        return future

    async def _get_alone(self, key: str) -> _T:
        if self._is_busy:
            # Somebody came first since this was begun.
            return await self._join(key)
        self._is_busy = True
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        try:
            # Sent before anything else is done: the server is at it while the time is taken.
            wire = None if self._is_doubtful else self._link.wire
            if wire is not None:
                wire.post(self._packed([key]))
            await self._connection.run(
                self._fetch({key: [future]}, wire), timeout_s=self._timeout_s
            )
        finally:
            self._go_on()
        return future.result()

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
                batch = self._next_batch(_MOST_KEYS)
                try:
                    await self._connection.run(
                        self._fetch(batch), since_s=since_s, timeout_s=self._timeout_s
                    )
                except StoreError as error:
                    self._fail(batch, error)
                except asyncio.CancelledError:
                    self._fail(batch, closed())
                    raise
        finally:
            self._is_busy = False

    def _next_batch(self, most: int) -> _Batch[_T]:
        """Take the keys that are next."""
        if len(self._waiting) <= most:
            batch, self._waiting = self._waiting, {}
            return batch
        return {key: self._waiting.pop(key) for key in list(islice(self._waiting, most))}

    def _fail(self, batch: _Batch[_T], error: StoreError) -> None:
        for future in chain.from_iterable(batch.values()):
            if not future.done():
                # Each its own: a shared exception would collect the traceback of every caller.
                future.set_exception(type(error)(*error.args))

    async def _fetch(self, batch: _Batch[_T], wire: Wire | None = None) -> None:
        """Give those who wait in *batch* their values, and take them out of it.

        *wire* is what they were asked for over already, if they were.
        """
        try:
            await self._exchange(batch, wire)
        except RedisConnectionError:
            # The server may have closed an idle connection; one fresh try tells that from an
            # outage.
            await self._exchange(batch, None)

    async def _exchange(self, batch: _Batch[_T], wire: Wire | None) -> None:
        parts = _parts(list(batch))
        try:
            if wire is None:
                if self._is_doubtful:
                    self._is_doubtful = False
                    await self._link.hang_up()
                wire = await self._link.connected()
                await wire.send(b"".join([self._packed(keys) for keys in parts]))
            for keys in parts:
                self._hand_out(batch, keys, await self._values(wire, len(keys)))
                if batch:
                    # These run first, even where the next are there as well.
                    await asyncio.sleep(0)
        except BaseException:
            self._is_answering = False
            # A reply may still be on its way; the next read must not take it for its own.
            await self._link.hang_up()
            raise
        self._is_answering = True

    def _packed(self, keys: Sequence[str]) -> bytes:
        """Return what asks for the values of *keys*, with the companion all of one moment."""
        commands: list[tuple[Any, ...]] = [("GET", key) for key in keys]
        if self._companion is not None:
            commands = [("MGET", *keys, self._companion)]
        return packed(commands)

    async def _values(self, wire: Wire, count: int) -> list[Any]:
        """Return the values of so many keys that were asked for, and that of the companion."""
        if self._companion is None:
            return [*await wire.replies(count), None]
        (reply,) = await wire.replies(1)
        if isinstance(reply, ResponseError):
            raise reply
        if type(reply) is not list or len(reply) != count + 1:
            raise RedisConnectionError("the reply to MGET has another shape")
        return reply

    def _hand_out(self, batch: _Batch[_T], keys: Sequence[str], values: Sequence[Any]) -> None:
        """Give those who wait for *keys* their *values*, of which the last is the companion's."""
        companion = values[-1]
        for key, value in zip(keys, values, strict=False):
            for future in batch.pop(key):
                if future.done():
                    continue
                try:
                    future.set_result(self._read_as(key, value, companion))
                except Exception as error:  # noqa: BLE001 - whose value it is hears of it alone
                    future.set_exception(error)


class SplitReads(Generic[_T]):
    """Reads keys of a cluster, each together with one *companion* key that has its own server.

    The two are read at the same time, not at one moment. That is enough for a key that has to be
    judged by its companion: both reads begin after the call of `get`, so that whatever had changed
    the companion by then is seen. What changes it later could as well have come after the call.
    The other way round, a companion read before the call, what it has missed would stay in force.
    A value that is newer than its companion was written by somebody who knew a later one, and
    carries that with it.
    """

    def __init__(
        self,
        connection: Connection,
        companion: str,
        read_as: ReadAs[_T],
        *,
        timeout_s: float | None = None,
    ) -> None:
        self._connection = connection
        self._companion = companion
        self._read_as = read_as
        self._timeout_s = timeout_s
        self._each: dict[Lane, CoalescedReads[Pair]] = {}
        self._is_closed = False

    @property
    def is_in_use(self) -> bool:
        """Whether anything has been read."""
        return any(reads.is_in_use for reads in self._each.values())

    async def get(self, key: str) -> _T:
        """Return what *key* and the companion are read as: one round trip to each of the two.

        What has moved to another primary is read once more, there.

        Raises:
            StoreUnavailable: one of them did not answer, or not in time.
        """
        since_s = now_s()
        about_key, about_companion = self._ask(key), self._ask(self._companion)
        value, _ = await about_key
        companion, _ = await about_companion
        return self._read_as(
            key,
            await self._found(key, value, since_s),
            await self._found(self._companion, companion, since_s),
        )

    def doubt(self) -> None:
        """Have the next reads make new connections, as `CoalescedReads.doubt` does."""
        for reads in self._each.values():
            reads.doubt()

    async def aclose(self) -> None:
        """Let go of the connections for good. Whoever still waits gets an error."""
        self._is_closed = True
        await self.reset()

    async def reset(self) -> None:
        """Let go of the connections. Whoever still waits gets an error."""
        each, self._each = self._each, {}
        await asyncio.gather(*(reads.aclose() for reads in each.values()))

    def _ask(self, key: str) -> asyncio.Future[Pair]:
        lane = self._connection.lane(key)
        reads = self._each.get(lane)
        if reads is None:
            if self._is_closed:
                raise closed()
            reads = self._each[lane] = CoalescedReads(
                self._connection, None, as_pair, lane=lane, timeout_s=self._timeout_s
            )
        asked = reads.ask(key)
        # Whoever leaves before, by an error or a cancellation, does not look at it any more.
        asked.add_done_callback(observe)
        return asked

    async def _found(self, key: str, value: Any, since_s: float) -> bytes | None:
        if isinstance(value, AskError):  # as is `MovedError`
            # Asked there again by way of the pool, which finds out where to.
            again = self._connection.execute("GET", key)
            found: bytes | None = await self._connection.run(
                again, since_s=since_s, timeout_s=self._timeout_s
            )
            return found
        raise_first([("GET", key)], [value])
        known: bytes | None = value
        return known


def _parts(keys: list[str]) -> list[list[str]]:
    size = min(max((len(keys) + 1) // 2, _LEAST_PART), _MOST_PART)
    return [keys[start : start + size] for start in range(0, len(keys), size)]
