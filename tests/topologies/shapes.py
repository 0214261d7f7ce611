"""The shapes of Redis that the tests of the public API run against, one of them in each run."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from redis import asyncio as redis_py
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.sentinel import Sentinel

from llm_cache._redis.embedded import EmbeddedRedis
from tests.topologies import servers

# What docs/topologies.md tells to give to a user, here for the namespaces of tests.
RULES = (
    *("resetchannels", "~t.*", "&t.*", "-@all"),
    *("+ping", "+hello", "+select", "+info", "+time", "+client|setinfo", "+multi", "+exec"),
    *("+get", "+mget", "+set", "+getex", "+getrange", "+unlink", "+del", "+exists", "+scan"),
    *("+pttl", "+expire", "+pexpire", "+pexpireat", "+pexpiretime", "+setex"),
    *("+hget", "+hset", "+hdel", "+hgetall", "+hincrby"),
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
    client: Callable[[], Any]


@contextmanager
def _standalone() -> Iterator[Shape]:
    server = EmbeddedRedis()
    url = asyncio.run(server.start())
    try:
        yield Shape(url, lambda: redis_py.Redis.from_url(url))
    finally:
        asyncio.run(server.stop())


@contextmanager
def _cluster() -> Iterator[Shape]:
    with servers.Cluster() as redis:
        nodes = [ClusterNode(servers.HOST, server.port) for server in redis.servers]
        yield Shape(redis.url, lambda: RedisCluster(startup_nodes=nodes))


@contextmanager
def _sentinel() -> Iterator[Shape]:
    with servers.Sentinels() as redis:
        sentinels = [(servers.HOST, sentinel.port) for sentinel in redis.sentinels]
        finder = Sentinel(sentinels)  # type: ignore[no-untyped-call]
        yield Shape(redis.url, lambda: finder.master_for(servers.SERVICE))


@contextmanager
def _tls() -> Iterator[Shape]:
    with servers.Tls() as redis:
        yield Shape(redis.url, lambda: redis_py.Redis.from_url(redis.url))


@contextmanager
def _acl() -> Iterator[Shape]:
    with servers.Acl(RULES) as redis:
        admin = redis.url_as(redis.ADMIN)
        yield Shape(redis.url, lambda: redis_py.Redis.from_url(admin))


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
