"""The shapes of Redis that the tests of the public API run against, one of them in each run."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from redis import asyncio as redis_py
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.sentinel import Sentinel

from llm_cache._redis.address import read_address
from llm_cache._redis.embedded import EmbeddedRedis
from tests.topologies import servers

# What docs/topologies.md tells to give to a user, here for the namespaces of tests.
RULES = (
    *("resetchannels", "~t.*", "&t.*", "-@all"),
    *("+ping", "+hello", "+select", "+info", "+time", "+client|setinfo", "+multi", "+exec"),
    *("+get", "+mget", "+set", "+getex", "+getrange", "+unlink", "+del", "+exists", "+scan"),
    *("+pttl", "+expire", "+pexpire", "+pexpireat", "+pexpiretime", "+setex"),
    *("+hget", "+hset", "+hdel", "+hmget", "+hgetall", "+hincrby"),
    *("+sadd", "+smembers", "+scard", "+sismember"),
    *("+zadd", "+zrem", "+zscore", "+zremrangebyrank"),
    *("+xadd", "+xtrim", "+xrange", "+xlen", "+xdel"),
    *("+eval", "+evalsha", "+script|load", "+publish", "+subscribe", "+unsubscribe"),
    *("+ft._list", "+ft.create", "+ft.info", "+ft.search", "+ft.aggregate", "+ft.cursor"),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """A running Redis: how a cache reaches it, and how a test does, which may do everything."""

    url: str
    admin_url: str = ""

    def client(self) -> Any:
        """Return a client of redis-py's."""
        return client_of(self.admin_url or self.url)


class _Everywhere(RedisCluster):
    """Answers for all primaries together what a server answers for itself."""

    async def keys(self, pattern: Any = "*", **_: Any) -> Any:
        return await super().keys(pattern, target_nodes=RedisCluster.PRIMARIES)

    async def pubsub_channels(self, pattern: Any = "*", **_: Any) -> Any:
        return await super().pubsub_channels(pattern, target_nodes=RedisCluster.PRIMARIES)

    async def config_set(self, name: Any, value: Any, *_: Any, **__: Any) -> Any:
        return await super().config_set(name, value, target_nodes=RedisCluster.PRIMARIES)

    async def info(self, section: str | None = None, *_: str, **__: Any) -> Any:
        nodes = await super().info(section or "default", target_nodes=RedisCluster.PRIMARIES)
        total: dict[str, Any] = {}
        for about in nodes.values():
            for name, value in about.items():
                total[name] = _sum(total.get(name), value)
        return total


def _sum(known: Any, value: Any) -> Any:
    """Return numbers added up, and of anything else the last."""
    if isinstance(value, dict):
        return {name: _sum((known or {}).get(name), item) for name, item in value.items()}
    return (known or 0) + value if isinstance(value, (int, float)) else value


def client_of(url: str) -> Any:
    """Return a client of redis-py's for what a URL of ours leads to."""
    if url.startswith("redis+cluster://"):
        nodes = [ClusterNode(*host) for host in read_address(url).hosts]
        return _Everywhere(startup_nodes=nodes)
    if url.startswith("redis+sentinel://"):
        address = read_address(url)
        finder = Sentinel(address.hosts)  # type: ignore[no-untyped-call]
        host, port = finder.discover_master(address.service)  # type: ignore[no-untyped-call]
        for sentinel in finder.sentinels:
            sentinel.close()
        return redis_py.Redis(host=host, port=port)
    return redis_py.Redis.from_url(url)


@contextmanager
def _standalone() -> Iterator[Shape]:
    server = EmbeddedRedis()
    try:
        yield Shape(asyncio.run(server.start()))
    finally:
        asyncio.run(server.stop())


@contextmanager
def _cluster() -> Iterator[Shape]:
    with servers.Cluster() as redis:
        yield Shape(redis.url)


@contextmanager
def _sentinel() -> Iterator[Shape]:
    with servers.Sentinels() as redis:
        yield Shape(redis.url)


@contextmanager
def _tls() -> Iterator[Shape]:
    with servers.Tls() as redis:
        yield Shape(redis.url)


@contextmanager
def _acl() -> Iterator[Shape]:
    with servers.Acl(RULES) as redis:
        yield Shape(redis.url, redis.url_as(redis.ADMIN))


SHAPES: dict[str, Callable[[], AbstractContextManager[Shape]]] = {
    "standalone": _standalone,
    "cluster": _cluster,
    "sentinel": _sentinel,
    "tls": _tls,
    "acl": _acl,
}


def shape_of(name: str) -> AbstractContextManager[Shape]:
    """Return the shape of this name, started when it is entered."""
    return SHAPES[name]()
