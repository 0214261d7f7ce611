"""One pool of Redis connections, bounded in number and in time, with our errors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from llm_cache._deadline import arm
from llm_cache._redis.embedded import EmbeddedRedis
from llm_cache.errors import ConfigurationError, StoreTimeout, StoreUnavailable

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

_T = TypeVar("_T")
_SCHEMES = ("redis", "rediss", "unix", "embedded")
# Of what redis-py takes, what can be said in text. `decode_responses` is taken and does nothing.
_OPTIONS = frozenset(
    {"client_name", "db", "decode_responses", "health_check_interval", "lib_name", "lib_version"}
    | {"max_connections", "password", "protocol", "retry_on_timeout", "socket_connect_timeout"}
    | {"socket_keepalive", "socket_read_size", "socket_timeout", "timeout", "username"}
)
_TLS_OPTION = "ssl_"


class Connection:
    """The way to one Redis: `redis://`, `rediss://`, `unix://` or `embedded://`.

    Raises:
        ConfigurationError: *url* is not one of these, or has an option that cannot work.
    """

    def __init__(self, url: str, *, max_connections: int, timeout_s: float) -> None:
        _check_url(url)
        self._embedded = EmbeddedRedis.from_url(url) if url.startswith("embedded:") else None
        self._url = url
        self._max_connections = max_connections
        self._timeout_s = timeout_s
        self._client: redis.Redis | None = None
        if self._embedded is None:
            self._check_options()

    @property
    def url(self) -> str:
        """What redis-py connects to; for `embedded://`, known while the server runs."""
        return self._url if self._embedded is None else self._embedded.url or self._url

    @property
    def client(self) -> redis.Redis:
        """The client, once `open` has returned."""
        if self._client is None:
            raise StoreUnavailable("the connection to Redis is not open")
        return self._client

    async def open(self) -> None:
        """Start the embedded server if there is one, connect, and `PING`.

        Raises:
            EmbeddedRedisUnavailable: `embedded://` cannot start a server here.
            StoreUnavailable: no Redis answers at the URL, or it refuses us.
        """
        url = self._url if self._embedded is None else await self._embedded.start()
        client = redis.Redis.from_pool(self._pool(url))
        try:
            await self._ping(client)
        except BaseException:
            await client.aclose()
            if self._embedded is not None:
                await self._embedded.stop()
            raise
        self._client = client

    def _pool(self, url: str) -> redis.BlockingConnectionPool:
        pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=self._max_connections,
            # `run` bounds every round trip as a whole; a limit here would only add to it.
            timeout=None,
            socket_timeout=None,
            socket_connect_timeout=None,
            # A server may have closed an idle connection; one fresh try tells that from an outage.
            retry=Retry(NoBackoff(), 1),
        )
        # What the URL says goes before what is said here, and entries are bytes.
        pool.connection_kwargs["decode_responses"] = False
        return pool

    def _check_options(self) -> None:
        """Make a connection that is never connected: redis-py looks at its options only then."""
        try:
            self._pool(self._url).make_connection()  # type: ignore[no-untyped-call]
        except (TypeError, ValueError, RedisError) as error:
            raise ConfigurationError(f"the Redis URL cannot work: {error}") from error

    async def _ping(self, client: redis.Redis) -> None:
        try:
            await self.run(client.execute_command("PING"))  # type: ignore[no-untyped-call]
        except StoreUnavailable as error:
            raise type(error)(
                f"no usable Redis at {mask(self._url)}: {str(error).rstrip('.')}. Check the URL,"
                " start one with `docker compose up -d redis`, or use embedded://"
            ) from error.__cause__

    async def aclose(self) -> None:
        """Close all connections, and stop the embedded server if there is one."""
        client, self._client = self._client, None
        try:
            if client is not None:
                await client.aclose()
        finally:
            if self._embedded is not None:
                await self._embedded.stop()

    async def execute(self, *command: Any) -> Any:
        """Run one command: one round trip. Raises as `run` does."""
        return await self.run(self.client.execute_command(*command))  # type: ignore[no-untyped-call]

    async def run(
        self,
        operation: Awaitable[_T],
        *,
        since_s: float | None = None,
        timeout_s: float | None = None,
    ) -> _T:
        """Await *operation* for at most *timeout_s*, waiting for a connection included.

        The default is `redis_timeout_s`. The time counts from *since_s*, by the clock of the event
        loop; default now.

        Raises:
            StoreTimeout: it took longer.
            StoreUnavailable: Redis refused, went away, or answered with an error.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            begin_s = asyncio.get_running_loop().time() if since_s is None else since_s
            scope = asyncio.timeout(None)
            timer = arm(scope, begin_s + limit_s)
            try:
                async with scope:
                    return await operation
            finally:
                timer.cancel()
        except (TimeoutError, RedisTimeoutError) as error:
            name = "redis_timeout_s" if timeout_s is None else "added_latency_budget_s"
            raise StoreTimeout(f"no answer within {name}={limit_s:g} s") from error
        except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
            raise StoreUnavailable(f"Redis refused this user: {error}") from error
        except ResponseError as error:
            raise StoreUnavailable(f"Redis answered: {error}") from error
        except (RedisError, OSError) as error:
            raise StoreUnavailable(str(error) or type(error).__name__) from error


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


def mask(url: str) -> str:
    """Return *url* as it may be shown: without its user, its password and its query.

    A password that should have been percent-encoded may hold any sign, so nothing before the last
    `@` is shown, and nothing at all where that may be within the query.
    """
    before, at, after = url.rpartition("@")
    shown = re.split(r"[?#]", after)[0]
    if not at:
        return shown
    scheme = re.match(r"[a-z]+://", before)
    rest = "" if "?" in before else f"@{shown}"
    return f"{scheme.group() if scheme else ''}***{rest}"


def _check_url(url: object) -> None:
    if not isinstance(url, str):
        raise ConfigurationError(f"the Redis URL must be text; got {type(url).__name__}")
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme not in _SCHEMES:
        raise ConfigurationError(
            f"the Redis URL must begin with {', '.join(f'{name}://' for name in _SCHEMES)};"
            f" got {mask(url)!r}"
        )
    if scheme in {"redis", "rediss"}:
        _check_address(url)
    if scheme != "embedded":
        _check_query(url)


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        port_is_fine = False
    if not port_is_fine:
        raise ConfigurationError(f"the Redis URL has no valid port: {mask(url)!r}")
    if not re.fullmatch(r"/?\d*", parts.path):
        raise ConfigurationError(
            f"the path of the Redis URL is the number of a database; got {mask(url)!r}"
        )


def _check_query(url: str) -> None:
    try:
        query, fragment = urlsplit(url)[3:]
        options = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        options, fragment = [], "unreadable"
    # Where a password has one of these signs, redis-py would ask another host without telling.
    if fragment:
        raise ConfigurationError(
            "the Redis URL has a `?` that begins no `name=value`, or a `#`; in a password they are"
            f" written %3F and %23: {mask(url)!r}"
        )
    for name, _ in options:
        if name not in _OPTIONS and not name.startswith(_TLS_OPTION):
            raise ConfigurationError(
                f"the Redis URL has an option that is not known: {name!r}; known are"
                f" {', '.join(sorted(_OPTIONS))} and those for TLS, which begin with ssl_"
            )
