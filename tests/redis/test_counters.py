"""Counts reach Redis once, or stay where they are."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from llm_cache._core.keys import Keys
from llm_cache._redis.connection import Connection
from llm_cache._redis.counters import Counters
from llm_cache.errors import StoreUnavailable


@pytest.fixture
async def connection(redis_url):
    connection = Connection(redis_url, max_connections=2, timeout_s=5)
    yield connection
    await connection.aclose()


@pytest.fixture
def counters(connection, namespace):
    return Counters(connection, Keys(namespace))


async def test_counts_of_a_cancelled_flush_stay_pending(connection, counters, monkeypatch):
    await connection.open()
    counters.add("exact", 2)
    is_under_way = asyncio.Event()

    async def hang(operation: Coroutine[Any, Any, Any]) -> None:
        operation.close()
        is_under_way.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(connection, "run", hang)
        flushing = asyncio.create_task(counters.flush())
        await is_under_way.wait()
        counters.add("exact")
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)

    await counters.flush()
    assert await counters.shared() == {"exact": 3}


async def test_counts_stay_pending_while_there_is_no_connection(connection, counters):
    counters.add("exact")
    with pytest.raises(StoreUnavailable):
        await counters.flush()

    await connection.open()
    await counters.flush()
    assert await counters.shared() == {"exact": 1}
