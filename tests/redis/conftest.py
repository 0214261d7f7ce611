"""The parts of the cache that talk to Redis, one by one."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from llm_cache._core.codec import encode_entry
from llm_cache._core.keys import Keys
from llm_cache._core.types import Entry
from llm_cache._redis.connection import Connection
from llm_cache._redis.epoch import Epochs
from llm_cache._redis.exact import ExactStore
from llm_cache._redis.sliding import Sliding

PutEntry = Callable[..., Any]
SPACE = "space"


@pytest.fixture
async def connection(redis_url: str) -> AsyncIterator[Connection]:
    connection = Connection(redis_url, max_connections=5, timeout_s=5)
    await connection.open()
    yield connection
    await connection.aclose()


@pytest.fixture
def keys(namespace: str) -> Keys:
    return Keys(namespace)


@pytest.fixture
def epochs(connection: Connection, keys: Keys) -> Epochs:
    return Epochs(connection, keys)


@pytest.fixture
async def exact(connection: Connection, keys: Keys, epochs: Epochs) -> AsyncIterator[ExactStore]:
    sliding = Sliding(connection, keys, spaces=lambda: [SPACE])
    exact = ExactStore(connection, keys, epochs, sliding)
    yield exact
    await exact.aclose()


@pytest.fixture
def put(redis: Any, keys: Keys, epochs: Epochs) -> PutEntry:
    """Write an answer, with an entry that leads to it."""

    async def put(digest: str, *, ttl_s: float = 100.0, **fields: Any) -> None:
        stamp = (await epochs.current(None)).epoch
        about = {"answer": "x", "created_s": 1.0, "stamp": stamp, "model": "m"}
        entry = Entry(**{**about, **fields})
        await redis.set(keys.answer(digest), encode_entry(entry, digest), px=round(1000 * ttl_s))
        await redis.hset(keys.entry(SPACE, digest), mapping={"vector": "v"})
        await redis.pexpire(keys.entry(SPACE, digest), round(1000 * ttl_s))

    return put


def digest_of(number: int) -> str:
    return f"{number:028}"
