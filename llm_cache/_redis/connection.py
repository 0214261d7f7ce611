"""The way to Redis, whatever its shape, bounded in connections and in time, with our errors."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    MovedError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from llm_cache._deadline import Deadline, now_s
from llm_cache._redis.address import Kind, mask, read_address
from llm_cache._redis.lanes import (
    Command,
    Lane,
    MasterPool,
    dedicated,
    lane_over,
    master_pool,
    node_pool,
    single_pool,
)
from llm_cache.errors import ConfigurationError, StoreError, StoreTimeout, StoreUnavailable

if TYPE_CHECKING:
    from llm_cache._redis.cluster import Cluster, Send
    from llm_cache._redis.embedded import EmbeddedRedis

__all__ = ["Command", "Connection", "Lane", "dedicated", "mask"]

_T = TypeVar("_T")
_MOST_SENTINEL_PATIENCE_S = 0.5


class Connection:
    """The way to one Redis: a server, a cluster, or what sentinels watch.

    A server is one *lane*, and so is the master of the moment behind sentinels; a cluster has one
    for each primary. What a command is sent over follows from its first key.

    Args:
        url: `redis://`, `rediss://`, `unix://`, `embedded://`, or the first two with `+cluster`
            or `+sentinel`.
        max_connections: Of the pool; on a cluster to each primary.
        timeout_s: For each operation, waiting for a connection included.

    Raises:
        ConfigurationError: *url* is not one of these, or has an option that cannot work.
    """

    def __init__(self, url: str, *, max_connections: int, timeout_s: float) -> None:
        self._address = read_address(url)
        self._embedded = _embedded(url) if self._address.kind is Kind.EMBEDDED else None
        self._max_connections = max_connections
        self._timeout_s = timeout_s
        self._lane: Lane | None = None
        self._cluster: Cluster | None = None
        if self._address.kind is Kind.CLUSTER:
            from llm_cache._redis.cluster import Cluster

            self._cluster = Cluster(
                self._address, max_connections=max_connections, timeout_s=timeout_s
            )
        if self._embedded is None:
            self._check_options()

    @property
    def url(self) -> str:
        """What was given; for `embedded://`, what redis-py connects to while the server runs."""
        url = self._address.url
        return url if self._embedded is None else self._embedded.url or url

    @property
    def is_cluster(self) -> bool:
        """Whether keys live on several servers, each with slots of its own."""
        return self._cluster is not None

    @property
    def database(self) -> int:
        """The number of the database."""
        pool = self.lanes[0].client.connection_pool
        return int(pool.connection_kwargs.get("db") or 0)

    @property
    def client(self) -> Redis:
        """The client of the only server, once `open` has returned."""
        return self._only().client

    @property
    def lanes(self) -> Sequence[Lane]:
        """The ways to all servers that have keys, once `open` has returned."""
        if self._cluster is None:
            return (self._only(),)
        if not self._cluster.lanes:
            raise _not_open()
        return self._cluster.lanes

    def lane(self, key: str | None = None) -> Lane:
        """Return the way to the server that has *key*, or without a key, to any."""
        if self._cluster is None:
            return self._only()
        return random.choice(self.lanes) if key is None else self._cluster.lane(key)  # noqa: S311

    async def open(self) -> None:
        """Start the embedded server if there is one, connect, and `PING`.

        Raises:
            EmbeddedRedisUnavailable: `embedded://` cannot start a server here.
            StoreUnavailable: no Redis answers at the URL, or it refuses us.
        """
        if self._cluster is not None:
            try:
                # That of its nodes which answer will do: others may be lost.
                await self._explained(self._cluster.open())
            except BaseException:
                await self._cluster.aclose()
                raise
            return
        url = self._address.url if self._embedded is None else await self._embedded.start()
        lane = lane_over("redis", self._pool(url))
        try:
            await self._explained(self.run(lane.client.execute_command("PING")))  # type: ignore[no-untyped-call]
        except BaseException:
            await lane.client.aclose()
            if self._embedded is not None:
                await self._embedded.stop()
            raise
        self._lane = lane

    async def aclose(self) -> None:
        """Close all connections, and stop the embedded server if there is one."""
        lane, self._lane = self._lane, None
        try:
            if self._cluster is not None:
                await self._cluster.aclose()
            if lane is not None:
                await lane.client.aclose()
        finally:
            if self._embedded is not None:
                await self._embedded.stop()

    async def execute(self, *command: Any) -> Any:
        """Run one command: one round trip. Raises as `run` does."""
        if self._cluster is not None:
            return (await self.execute_all([command]))[0]
        try:
            return await self.run(self.client.execute_command(*command))  # type: ignore[no-untyped-call]
        except StoreUnavailable as error:
            raise_naming(command, error)

    async def execute_all(
        self,
        commands: Sequence[Command],
        *,
        before: Command | None = None,
        raise_on_error: bool = True,
    ) -> list[Any]:
        """Run *commands*, sent together, and return their answers. One round trip.

        They are no transaction. Those of one server are carried out in their order; on a cluster
        each primary gets its own, at the same time. *before* is sent in front of them to each,
        for instance to load a script.

        Raises:
            StoreTimeout, StoreUnavailable: one of them failed; the others may have been carried
                out. Unless *raise_on_error*, its error is among the answers instead.
        """
        if not commands:
            return []
        if self._cluster is not None:
            answers = await self.run(self._cluster.route(commands, Lane.send, before=before))
        else:
            first = () if before is None else (before,)
            lane = self._only()
            answers = (await self.run(lane.send([*first, *commands])))[len(first) :]
        if raise_on_error:
            raise_first(commands, answers)
        return answers

    async def execute_then(
        self, first: Sequence[Command], then: Sequence[Command], *, before: Command | None = None
    ) -> tuple[list[Any], list[Any]]:
        """Run *then* when all of *first* have been carried out, and return both answers.

        One round trip to a single server, which keeps the order; two on a cluster, which has
        none. Raises as `execute_all`.
        """
        if self._cluster is None:
            answers = await self.execute_all([*first, *then], before=before)
            return answers[: len(first)], answers[len(first) :]
        return (
            await self.execute_all(first, before=before),
            await self.execute_all(then, before=before),
        )

    async def transact(self, commands: Sequence[Command]) -> list[Any]:
        """Run *commands* on keys of one slot, all of them or none. One round trip."""
        lane = self.lane(commands[0][1])
        answers = await self.run(lane.send(commands, transaction=True))
        raise_first(commands, answers)
        return answers

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of *keys*. One round trip.

        From a single server, all of one moment.
        """
        if not keys:
            return []
        if self._cluster is None:
            values: list[bytes | None] = await self.execute("MGET", *keys)
            return values
        # An `MGET` may not leave its slot, and hardly two keys share one.
        return await self.execute_all([("GET", key) for key in keys])

    async def each(self, *command: Any) -> list[Any]:
        """Run one command on every server, and return their answers, in the order of `lanes`."""
        answers: list[Any] = await self.run(
            asyncio.gather(*(lane.client.execute_command(*command) for lane in self.lanes))  # type: ignore[no-untyped-call]
        )
        return answers

    async def scan(self, position: int, *options: Any) -> tuple[int, list[bytes]]:
        """Walk on over the keys of all servers; return where to, 0 at the end, and some names.

        A *position* holds for as long as the servers stay the same. A key that moves to another
        server during the walk may be missed, or met twice. One round trip.
        """
        lanes = self.lanes
        cursor, at = divmod(position, len(lanes))
        found = lanes[at].client.execute_command("SCAN", cursor, *options)  # type: ignore[no-untyped-call]
        cursor, names = await self.run(found)
        if int(cursor):
            return int(cursor) * len(lanes) + at, names
        # The next server from its beginning, if there is one.
        return (at + 1) % len(lanes), names

    def route(self, commands: Sequence[Command], send: Send) -> Awaitable[list[Any]]:
        """Return the answers to *commands*, and errors, each part sent to its server by *send*.

        Of a cluster only; not bounded in time.
        """
        if self._cluster is None:
            raise TypeError("there are no routes to a single server")
        return self._cluster.route(commands, send)

    def learn(self, error: MovedError) -> None:
        """Take over where a slot of the cluster is now, from what a server has answered."""
        if self._cluster is not None:
            self._cluster.learn(error)

    async def run(
        self,
        operation: Awaitable[_T],
        *,
        since_s: float | None = None,
        timeout_s: float | None = None,
    ) -> _T:
        """Await *operation* for at most *timeout_s*, waiting for a connection included.

        The default is `redis_timeout_s`. The time counts from *since_s*, by `now_s`; default now.

        Raises:
            StoreTimeout: it took longer.
            StoreUnavailable: Redis refused, went away, or answered with an error.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        waited_s = 0.0 if since_s is None else now_s() - since_s
        try:
            async with Deadline(limit_s - waited_s):
                return await operation
        except (TimeoutError, RedisTimeoutError) as error:
            self._suspect()
            name = "redis_timeout_s" if timeout_s is None else "added_latency_budget_s"
            raise StoreTimeout(f"no answer within the {limit_s:g} s of {name}") from error
        except (RedisError, OSError) as error:
            self._suspect()
            raise _ours(error) from error

    def _suspect(self) -> None:
        if self._cluster is not None:
            self._cluster.suspect()

    def _only(self) -> Lane:
        if self._cluster is not None:
            raise TypeError("a cluster has no server that is the only one")
        if self._lane is None:
            raise _not_open()
        return self._lane

    def _pool(self, url: str) -> BlockingConnectionPool:
        if self._address.kind is Kind.SENTINEL:
            # Time is left to ask the next one.
            patience_s = self._timeout_s / (len(self._address.hosts) + 1)
            return master_pool(
                self._address,
                max_connections=self._max_connections,
                patience_s=min(patience_s, _MOST_SENTINEL_PATIENCE_S),
            )
        return single_pool(url, max_connections=self._max_connections)

    def _check_options(self) -> None:
        """Make a connection that is never connected: redis-py looks at its options only then."""
        try:
            if self._cluster is None:
                pool = self._pool(self._address.url)
            else:
                pool = node_pool(self._address, *self._address.hosts[0], max_connections=1)
            pool.make_connection()  # type: ignore[no-untyped-call]
        except (TypeError, ValueError, RedisError) as error:
            raise ConfigurationError(f"the Redis URL cannot work: {error}") from error

    async def _explained(self, opening: Awaitable[Any]) -> None:
        try:
            await opening
        except StoreUnavailable as error:
            raise type(error)(
                f"no usable Redis at {mask(self._address.url)}: {str(error).rstrip('.')}. Check"
                " the URL, start one with `docker compose up -d redis`, or use embedded://"
            ) from error.__cause__


async def client_of_one(url: str, *, timeout_s: float, **settings: Any) -> Redis:
    """Return a client of redis-py's to one server: to the master, or to some primary.

    For looking at a Redis from outside; nothing of it is shared with a cache.

    Raises:
        ConfigurationError: *url* cannot work.
        StoreUnavailable: no Redis told where that is.
    """
    address = read_address(url)
    if address.kind is Kind.SINGLE:
        return Redis.from_url(url, **settings)
    connection = Connection(url, max_connections=1, timeout_s=timeout_s)
    await connection.open()
    try:
        pool = connection.lane().client.connection_pool
        if isinstance(pool, MasterPool):
            host, port = await connection.run(pool.get_master_address())  # type: ignore[no-untyped-call]
        else:
            host, port = (pool.connection_kwargs[name] for name in ("host", "port"))
    finally:
        await connection.aclose()
    return Redis(host=host, port=port, ssl=address.is_secure, **{**address.options, **settings})


def _embedded(url: str) -> EmbeddedRedis:
    # Most programs have a server.
    from llm_cache._redis.embedded import EmbeddedRedis

    return EmbeddedRedis.from_url(url)


def raise_first(commands: Sequence[Command], answers: Sequence[Any]) -> None:
    """Raise the first error among the *answers* to *commands* as one of ours.

    Raises:
        StoreUnavailable: there is one.
    """
    for command, answer in zip(commands, answers, strict=True):
        if isinstance(answer, StoreError):
            raise answer
        if isinstance(answer, Exception):
            error = _ours(answer)
            error.__cause__ = answer
            raise_naming(command, error)


def raise_naming(command: Command, error: StoreUnavailable) -> None:
    """Raise *error*, with the name of the *command* where this user may not give it."""
    if not isinstance(error.__cause__, NoPermissionError):
        raise error
    raise type(error)(f"{command[0]}: {error}") from error.__cause__


def _ours(error: Exception) -> StoreUnavailable:
    if isinstance(error, (AuthenticationError, AuthorizationError, NoPermissionError)):
        return StoreUnavailable(f"Redis refused this user: {error}")
    if isinstance(error, AskError):
        # `MovedError` is one, too. On a cluster only a second one in a row comes here.
        return StoreUnavailable(
            f"Redis answered: {error}; this is a cluster, whose URL begins with redis+cluster://"
        )
    if isinstance(error, ResponseError):
        return StoreUnavailable(f"Redis answered: {error}")
    return StoreUnavailable(str(error) or type(error).__name__)


def _not_open() -> StoreUnavailable:
    return StoreUnavailable("the connection to Redis is not open")
