"""Connections to a server that was a master and is a replica now."""

from contextlib import aclosing
from typing import Any

import pytest

from llm_cache._redis.connection import Connection
from llm_cache._redis.line import Line
from llm_cache.errors import StoreUnavailable


@pytest.fixture
async def private():
    """Return a connection to a server of the test's own."""
    connection = Connection("embedded://", max_connections=2, timeout_s=5)
    await connection.open()
    yield connection
    await connection.aclose()


WRITES: list[tuple[Any, ...]] = [
    ("SET", "key", "value"),
    ("EVAL", "return redis.call('SET', KEYS[1], 'value')", 1, "key"),
]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write[0])
async def test_server_that_became_a_replica_is_left(private, write):
    """As after a failover behind one name, where the old master keeps its connections."""
    async with aclosing(Line(private)) as line, aclosing(Line(private)) as reads:

        async def numbers() -> set[int]:
            asks = (private.execute, line.execute, reads.execute)
            return {await ask("CLIENT", "ID") for ask in asks}

        before = await numbers()
        await private.execute("REPLICAOF", "127.0.0.1", "1")
        for refused in (line.execute(*write), private.execute_all([("GET", "key"), write])):
            with pytest.raises(StoreUnavailable, match="replica by now"):
                await refused
        # Those that only read are made anew, too.
        assert not before & await numbers()
        await private.execute("REPLICAOF", "NO", "ONE")
        assert await private.execute(*write) == b"OK"


async def test_connections_to_a_server_that_stays_a_replica_are_not_made_anew_all_the_time(
    private,
):
    async with aclosing(Line(private)) as line:
        await private.execute("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(StoreUnavailable):
            await private.execute("SET", "key", "value")
        number = await line.execute("CLIENT", "ID")
        for _ in range(5):
            with pytest.raises(StoreUnavailable):
                await private.execute("SET", "key", "value")
        assert await line.execute("CLIENT", "ID") == number
