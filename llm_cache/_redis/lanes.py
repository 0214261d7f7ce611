"""The way to one server: a pool of connections, and connections beside it.

A standalone Redis and the master that sentinels name are one lane each; a cluster is one lane for
each primary (`cluster.py`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from redis import asyncio as redis
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError

from llm_cache._redis.address import Address

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

Command = tuple[Any, ...]
_Pool = TypeVar("_Pool", bound=redis.ConnectionPool)


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """The way to one server."""

    name: str
    client: redis.Redis

    def dedicated(self, **settings: Any) -> AbstractConnection:
        """Return a connection to the server, with other *settings*, not connected yet."""
        return dedicated(self.client, **settings)

    async def send(self, commands: Sequence[Command], *, transaction: bool = False) -> list[Any]:
        """Return the answers to *commands*, sent together. One round trip.

        What was refused is among them as its error.

        Raises:
            RedisError: the server did not answer.
        """
        pipeline = self.client.pipeline(transaction=transaction)
        for command in commands:
            pipeline.execute_command(*command)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers


def lane_over(name: str, pool: redis.ConnectionPool) -> Lane:
    """Return a lane over a *pool*, which is closed with it."""
    client = redis.Redis.from_pool(pool)
    # redis-py makes a truth value of it, unless it knows that `GET` was among the options.
    client.response_callbacks["SET"] = _as_it_is  # type: ignore[assignment]
    return Lane(name, client)


def _as_it_is(answer: Any, **_: Any) -> Any:
    return answer


def dedicated(client: redis.Redis, **settings: Any) -> AbstractConnection:
    """Return a connection of the client's kind, with other *settings*, that is not connected yet.

    It is outside the pool, where one that is kept would be missing for good. It speaks RESP2,
    which needs no `HELLO`.
    """
    pool = client.connection_pool
    # Maintenance notifications come with RESP3 alone.
    shared = {
        name: value
        for name, value in pool.connection_kwargs.items()
        if not name.startswith("maint")
    }
    link: AbstractConnection = pool.connection_class(**{**shared, "protocol": 2, **settings})
    # No `CLIENT SETINFO`. Releases of redis-py differ in what switches it off.
    for name in ("driver_info", "lib_name", "lib_version"):
        setattr(link, name, None)
    return link


class _OneContext:
    """A connection that shares the TLS context of its pool.

    redis-py makes one for each connection, which blocks the event loop for 26 ms: it loads the
    certificates of the whole system.
    """

    def __init__(self, *, contexts: list[Any], **settings: Any) -> None:
        super().__init__(**settings)
        contexts.append(getattr(self, "ssl_context"))  # noqa: B009 - of the other parent
        del contexts[1:]
        self.ssl_context = contexts[0]


class _SendsAtOnce:
    """A connection with a `socket_timeout`, which it has for replies alone.

    redis-py bounds sending with `asyncio.wait_for`, and that of Python 3.11 may swallow the
    cancellation of a caller. What is sent here fits into the buffers of a socket.
    """

    socket_timeout: float | None

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's
        limit_s, self.socket_timeout = self.socket_timeout, None
        try:
            await super().send_packed_command(command, check_health)  # type: ignore[misc]
        finally:
            self.socket_timeout = limit_s


_LEAVES_AGAIN_S = 1.0
"""A server that stays a replica would have all connections made anew for each write."""


class _LeavesReplicas:
    """A connection that ends where its server turns out to be a replica, with all of its pool's.

    After a failover behind one name, the old master may keep the connections that it has. It
    refuses every write on them, and would go on to answer reads with what is no more. (Those that
    ask sentinels are left by redis-py, and closed by the sentinels.)
    """

    # Each pool has a class of connections of its own, in which these are what all of them share.
    generation = 0
    left_s = -_LEAVES_AGAIN_S

    born = 0
    """Its generation."""

    @property
    def is_outlived(self) -> bool:
        """Whether the server has turned out to be a replica since this connection was made."""
        return self.born != self.generation

    async def connect(self) -> None:
        if self.is_outlived:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            self.born = self.generation
        await super().connect()  # type: ignore[misc]

    async def read_response(self, *args: Any, **settings: Any) -> Any:
        try:
            return await super().read_response(*args, **settings)  # type: ignore[misc]
        except ReadOnlyError as error:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise lost_to(self, error) from error


def lost_to(connection: object, error: ReadOnlyError) -> RedisConnectionError:
    """Return *error* as what it means for the *connection* it came over, and for its like."""
    if isinstance(connection, _LeavesReplicas):
        kind, now_s = type(connection), time.monotonic()
        if not connection.is_outlived and now_s - kind.left_s >= _LEAVES_AGAIN_S:
            kind.generation, kind.left_s = kind.generation + 1, now_s
    return RedisConnectionError(f"the server is a replica by now: {error}")


def is_outlived(connection: object) -> bool:
    """Tell whether *connection* leads to a server that has turned out to be a replica."""
    return isinstance(connection, _LeavesReplicas) and connection.is_outlived


def _adapted(pool: _Pool, *, parents: tuple[type, ...] = ()) -> _Pool:
    """Return *pool*, whose connections are of our kind, and of *parents*, from now on."""
    kind, settings = pool.connection_class, pool.connection_kwargs
    if issubclass(kind, SSLConnection):
        parents += (_OneContext,)
        settings["contexts"] = []
    if settings.get("socket_timeout") is not None:
        parents += (_SendsAtOnce,)
    if parents:
        pool.connection_class = type(kind.__name__, (*parents, kind), {})
    return pool


class MasterPool(SentinelConnectionPool, redis.BlockingConnectionPool):
    """Connections to the master of the moment; whoever finds none free waits."""

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's
        """Close the connections; with those in use, the ones to the sentinels too."""
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.connection_pool.disconnect()


def single_pool(url: str, *, max_connections: int) -> redis.BlockingConnectionPool:
    """Return the pool of one server."""
    pool = redis.BlockingConnectionPool.from_url(url, **_settings(max_connections))
    # What the URL says goes before what is said here, and entries are bytes.
    pool.connection_kwargs["decode_responses"] = False
    return _adapted(pool, parents=(_LeavesReplicas,))


def node_pool(
    address: Address, host: str, port: int, *, max_connections: int
) -> redis.BlockingConnectionPool:
    """Return the pool of one node of a cluster."""
    kind: Mapping[str, Any] = {"connection_class": SSLConnection} if address.is_secure else {}
    settings = {**_settings(max_connections), **address.options, **kind}
    return _adapted(redis.BlockingConnectionPool(host=host, port=port, **settings))


def master_pool(
    address: Address, *, max_connections: int, patience_s: float
) -> redis.BlockingConnectionPool:
    """Return the pool of the master that the sentinels name.

    They are asked whenever a connection is made, one after the other, and one that does not
    answer within *patience_s* is passed over. After a fail-over connections to the old master are
    closed, by its death or by the sentinels, and the next ones lead to the new one.
    """
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        address.hosts,
        sentinel_kwargs={
            **address.sentinel_options,
            **({"ssl": True} if address.is_secure else {}),
            "socket_timeout": patience_s,
            "socket_connect_timeout": patience_s,
            "retry": Retry(NoBackoff(), 0),
        },
    )
    for sentinel in sentinels.sentinels:
        _adapted(sentinel.connection_pool)
    settings = {**_settings(max_connections), **address.options}
    pool = MasterPool(  # type: ignore[no-untyped-call]
        address.service, sentinels, ssl=address.is_secure, **settings
    )
    return _adapted(pool)


def _settings(max_connections: int) -> dict[str, Any]:
    return {
        "max_connections": max_connections,
        # `Connection.run` bounds every round trip as a whole; a limit here would only add to it.
        "timeout": None,
        "socket_timeout": None,
        "socket_connect_timeout": None,
        # A server may have closed an idle connection; one fresh try tells that from an outage.
        "retry": Retry(NoBackoff(), 1),
    }
