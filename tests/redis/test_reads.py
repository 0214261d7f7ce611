"""Reads that travel together, over a connection of their own."""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError

from llm_cache._deadline import now_s
from llm_cache._redis.connection import Connection
from llm_cache._redis.reads import CoalescedReads, SplitReads, as_pair
from llm_cache.errors import StoreTimeout, StoreUnavailable


@pytest.fixture
async def connection(redis_url):
    connection = Connection(redis_url, max_connections=1, timeout_s=2)
    await connection.open()
    yield connection
    await connection.aclose()


@pytest.fixture
async def reads(connection, namespace):
    reads = CoalescedReads(connection, f"{namespace}:companion", as_pair)
    yield reads
    await reads.aclose()


async def ids(redis: Any) -> set[str]:
    """Return who is connected."""
    return {client["id"] for client in await redis.client_list()}


async def test_reads_leave_a_pool_of_one_to_others(connection, reads, namespace):
    await connection.execute("SET", f"{namespace}:a", "1", "PX", 60_000)

    assert await reads.get(f"{namespace}:a") == (b"1", None)
    assert await connection.execute("ECHO", "hello") == b"hello"


async def test_reads_ask_the_database_of_the_url(redis_url, namespace):
    connection = Connection(f"{redis_url}?db=1", max_connections=1, timeout_s=2)
    await connection.open()
    reads = CoalescedReads(connection, f"{namespace}:companion", as_pair)
    await connection.execute("SET", f"{namespace}:a", "1", "PX", 60_000)

    assert await reads.get(f"{namespace}:a") == (b"1", None)
    await reads.aclose()
    await connection.aclose()


async def test_connection_that_was_closed_is_made_anew(reads, redis, namespace):
    await reads.get(f"{namespace}:a")
    before = await ids(redis)
    await redis.client_kill_filter(_type="normal", skipme=True)

    assert await reads.get(f"{namespace}:a") == (None, None)
    assert await ids(redis) - before


async def test_closing_answers_who_waits_for_a_read_that_is_under_way(reads, monkeypatch):
    first_began, first_may_end, second_began = (asyncio.Event() for _ in range(3))
    exchange = reads._exchange

    async def hold(batch: Mapping[str, Any], wire: Any) -> None:
        if "first" in batch:
            first_began.set()
            await first_may_end.wait()
            await exchange(batch, wire)
        else:
            second_began.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(reads, "_exchange", hold)
    first, second = (asyncio.ensure_future(reads.get(key)) for key in ("first", "second"))
    await first_began.wait()
    first_may_end.set()
    await first
    await second_began.wait()

    await reads.aclose()

    with pytest.raises(StoreUnavailable, match="closed"):
        await second


async def test_reads_go_on_after_one_that_was_closed_before_it_began(reads, monkeypatch):
    first_began, first_may_end = asyncio.Event(), asyncio.Event()
    exchange = reads._exchange

    async def hold(batch: Mapping[str, Any], wire: Any) -> None:
        first_began.set()
        await first_may_end.wait()
        await exchange(batch, wire)

    monkeypatch.setattr(reads, "_exchange", hold)

    async def read_and_close() -> None:
        await reads.get("first")
        await reads.reset()

    first = asyncio.create_task(read_and_close())
    second = asyncio.ensure_future(reads.get("second"))
    await first_began.wait()
    first_may_end.set()
    await first
    with pytest.raises(StoreUnavailable, match="closed"):
        await second

    monkeypatch.setattr(reads, "_exchange", exchange)
    assert await reads.get("third") == (None, None)


@pytest.fixture
async def stored(connection, namespace):
    """Return the values of 700 keys, by key."""
    values = {f"{namespace}:{i}": b"%d" % i for i in range(700)}
    await connection.execute_all([("SET", k, v, "PX", 60_000) for k, v in values.items()])
    return values


async def test_each_of_a_crowd_gets_the_value_of_his_key(reads, stored):
    keys = [*stored, *stored][100:]

    found = await asyncio.gather(*map(reads.get, keys))

    assert found == [(stored[key], None) for key in keys]


async def test_value_that_cannot_be_read_is_an_error_of_its_own_callers_alone(
    connection, redis, stored, namespace
):
    numbers = {key: int(value) for key, value in stored.items()}
    broken = f"{namespace}:13"

    def as_number(key: str, value: bytes | None, _: bytes | None) -> int:
        if key == broken:
            raise LookupError(key)
        return int(value or 0)

    reads = CoalescedReads(connection, f"{namespace}:companion", as_number)
    keys = [*list(stored)[:100], broken]
    try:
        found = await asyncio.gather(*map(reads.get, keys), return_exceptions=True)
        before = await ids(redis)

        errors = [value for value in found if isinstance(value, LookupError)]
        assert len(errors) == keys.count(broken) == 2
        assert [v for v in found if v not in errors] == [numbers[k] for k in keys if k != broken]
        with pytest.raises(LookupError):
            await reads.get(broken)
        assert await reads.get(keys[0]) == 0
        assert await ids(redis) == before  # the connection is none the worse for it
    finally:
        await reads.aclose()


async def test_nothing_is_read_for_who_has_left(connection, stored, namespace):
    read: list[str] = []

    def as_key(key: str, *_: bytes | None) -> str:
        read.append(key)
        return key

    reads = CoalescedReads(connection, f"{namespace}:companion", as_key)
    first, left, last = list(stored)[:3]
    asked = {key: asyncio.ensure_future(reads.get(key)) for key in (first, left, last)}
    await asyncio.sleep(0)
    asked.pop(left).cancel()
    try:
        assert await asyncio.gather(*asked.values()) == read == [first, last]
    finally:
        await reads.aclose()


async def test_redis_goes_on_while_some_of_a_crowd_run(reads, stored, monkeypatch):
    happened: list[str] = []
    packed = reads._packed

    def ask(keys: Sequence[str]) -> Any:
        happened.append("asked")
        return packed(keys)

    monkeypatch.setattr(reads, "_packed", ask)

    async def call(key: str) -> None:
        for _ in range(5):
            assert await reads.get(key) == (stored[key], None)
            happened.append("ran")

    await asyncio.gather(*map(call, list(stored)[:100]))

    together = [len(list(events)) for what, events in groupby(happened) if what == "ran"]
    assert sum(together) == 500
    assert max(together) < 99  # never all but the one who went alone


async def test_connection_that_is_lost_amid_a_batch_costs_nobody_his_value(
    reads, stored, monkeypatch
):
    values = reads._values
    asked: list[int] = []

    async def lose_one(link: Any, count: int) -> Any:
        asked.append(count)
        if len(asked) == 3:  # one alone, half of the others, and the other half
            raise RedisConnectionError("lost")
        return await values(link, count)

    monkeypatch.setattr(reads, "_values", lose_one)
    keys = list(stored)[:100]

    assert await asyncio.gather(*map(reads.get, keys)) == [(stored[key], None) for key in keys]
    assert asked == [1, 50, 49, 25, 24]


async def test_read_after_a_doubtful_one_takes_a_new_connection(reads, redis, namespace):
    await reads.get(f"{namespace}:a")
    first = await ids(redis)
    await reads.get(f"{namespace}:a")
    assert await ids(redis) == first
    reads.doubt()
    await reads.get(f"{namespace}:a")
    assert len(await ids(redis) - first) == 1


async def test_what_has_moved_is_read_again_within_the_same_limit(connection, monkeypatch):
    async def hang(*_: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(connection, "execute", hang)
    reads = SplitReads(connection, "companion", as_pair, timeout_s=0.05)
    async with asyncio.timeout(2):
        with pytest.raises(StoreTimeout):
            await reads._found("key", MovedError("1 127.0.0.1:1"), now_s())
