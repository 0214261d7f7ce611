"""Counts reach Redis once, or stay where they are."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from llm_cache._core.counts import NOBODY, OTHER, Counts, Row, Table
from llm_cache._core.keys import Keys
from llm_cache._redis import counters as counters_module
from llm_cache._redis.connection import Connection
from llm_cache._redis.counters import DAY_S, HOUR_S, Counters
from llm_cache.errors import ConfigurationError, StoreUnavailable
from llm_cache.testing import FakeClock

HIT = Row(NOBODY, "exact", "gpt-4o mini: an odd name")


@pytest.fixture
async def connection(redis_url):
    connection = Connection(redis_url, max_connections=2, timeout_s=5)
    yield connection
    await connection.aclose()


@pytest.fixture
def clock():
    return FakeClock(start=1000 * DAY_S + 12.5 * HOUR_S)


@pytest.fixture
def make(connection, namespace, clock):
    def make(max_tenants=3):
        return Counters(connection, Keys(namespace), max_tenants=max_tenants, clock=clock)

    return make


def table(*rows: Row, **counts: int) -> Table:
    made = Table()
    for row in rows:
        made.add(row, Counts(**(counts or {"calls": 1})))
    return made


async def shared(counters: Counters, window: str | None = None) -> dict[Row, int]:
    counted = await counters.shared(window)
    return {row: counts.calls for row, counts in counted.rows}


async def test_counts_come_back_as_they_were_made(connection, make):
    await connection.open()
    counters = make()
    counters.add(table(HIT, calls=3, prompt=2**40, cached=5, completion=7, unknown=1))
    await counters.flush()

    ((row, counts),) = (await counters.shared()).rows
    assert row == HIT
    assert counts == Counts(calls=3, prompt=2**40, cached=5, completion=7, unknown=1)


async def test_counts_of_a_cancelled_flush_stay_waiting(connection, make, monkeypatch):
    await connection.open()
    counters = make()
    counters.add(table(HIT, calls=2))
    is_under_way = asyncio.Event()

    async def hang(operation: Coroutine[Any, Any, Any]) -> None:
        operation.close()
        is_under_way.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(connection, "run", hang)
        flushing = asyncio.create_task(counters.flush())
        await is_under_way.wait()
        counters.add(table(HIT))
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)

    await counters.flush()
    assert await shared(counters) == {HIT: 3}


async def test_counts_stay_waiting_while_there_is_no_connection(connection, make):
    counters = make()
    counters.add(table(HIT))
    with pytest.raises(StoreUnavailable):
        await counters.flush()

    await connection.open()
    await counters.flush()
    assert await shared(counters) == {HIT: 1}


async def test_a_flush_that_arrived_without_an_answer_counts_once(connection, make, monkeypatch):
    await connection.open()
    counters = make()
    counters.add(table(HIT))
    run = connection.run

    async def lose_the_answer(operation: Coroutine[Any, Any, Any]) -> None:
        await run(operation)
        raise StoreUnavailable("the answer was lost")

    with monkeypatch.context() as patched:
        patched.setattr(connection, "run", lose_the_answer)
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await counters.flush()
            counters.add(table(HIT))

    await counters.flush()
    assert await shared(counters) == {HIT: 4}


async def test_workers_add_up(connection, make):
    await connection.open()
    for worker in (make(), make()):
        for _ in range(2):
            worker.add(table(HIT))
            await worker.flush()
    assert await shared(make()) == {HIT: 4}


async def test_two_flushes_at_once_count_once(connection, make):
    await connection.open()
    counters = make()
    counters.add(table(HIT))
    await asyncio.gather(counters.flush(), counters.flush())
    assert await shared(counters) == {HIT: 1}


async def test_a_flush_is_one_round_trip_and_none_without_news(connection, make, redis):
    await connection.open()
    counters = make()
    counters.add(table(*(Row(NOBODY, "exact", f"model {i}") for i in range(50))))
    counters.add(table(HIT))
    await redis.config_resetstat()
    await counters.flush()
    await counters.flush()
    assert (await redis.info("commandstats"))["cmdstat_eval"]["calls"] == 1


async def test_many_rows_go_in_several_batches(connection, make, monkeypatch):
    monkeypatch.setattr(counters_module, "_ROWS_AT_ONCE", 10)
    await connection.open()
    rows = [Row(NOBODY, f"bypass:{i}", "m") for i in range(35)]
    counters = make()
    counters.add(table(*rows))
    await counters.flush()
    assert await shared(counters) == dict.fromkeys(rows, 1)


async def test_first_tenants_have_names_the_same_in_all_workers(connection, make):
    await connection.open()
    tenants = [Row(f"t{i}", "exact", "m") for i in range(5)]
    for worker, order in ((make(), tenants), (make(), tenants[::-1])):
        worker.add(table(*order))
        await worker.flush()

    counted = await shared(make())
    assert {row.tenant: calls for row, calls in counted.items()} == {
        "t0": 2,
        "t1": 2,
        "t2": 2,
        OTHER: 4,
    }


async def test_models_beyond_the_first_share_a_name(connection, make, monkeypatch):
    monkeypatch.setattr(counters_module, "MAX_MODELS", 2)
    await connection.open()
    counters = make()
    counters.add(table(*(Row(NOBODY, "exact", f"m{i}") for i in range(4))))
    await counters.flush()
    counted = await shared(counters)
    assert {row.model: calls for row, calls in counted.items()} == {"m0": 1, "m1": 1, OTHER: 2}


async def test_window_begins_with_the_hour_it_cuts(connection, make, clock):
    await connection.open()
    counters = make()
    for _ in range(30):
        counters.add(table(HIT))
        await counters.flush()
        clock.advance(HOUR_S)
    clock.advance(-HOUR_S)

    assert await shared(counters, "1h") == {HIT: 2}
    assert await shared(counters, "24h") == {HIT: 25}
    assert await shared(counters, "72h") == {HIT: 30}
    assert await shared(counters, "7d") == {HIT: 30}
    assert await shared(counters) == {HIT: 30}
    assert (await counters.shared("72h")).from_s == 1000 * DAY_S + 12 * HOUR_S


async def test_counts_of_an_outage_belong_to_the_hours_they_were_made_in(connection, make, clock):
    counters = make()
    for _ in range(3):
        counters.add(table(HIT))
        with pytest.raises(StoreUnavailable):
            await counters.flush()
        clock.advance(HOUR_S)

    await connection.open()
    await counters.flush()
    assert await shared(counters, "1h") == {HIT: 1}
    assert await shared(counters, "2h") == {HIT: 2}


async def test_an_outage_with_many_names_does_not_fill_the_memory(connection, make, monkeypatch):
    monkeypatch.setattr(counters_module, "_MAX_WAITING_ROWS", 10)
    counters = make(max_tenants=100)
    for i in range(50):
        counters.add(table(Row(f"t{i}", "exact", f"m{i}")))
        with pytest.raises(StoreUnavailable):
            await counters.flush()

    await connection.open()
    await counters.flush()
    counted = await shared(counters)
    assert sum(counted.values()) == 50
    assert counted[Row(OTHER, "exact", OTHER)] == 40


async def test_hours_and_days_expire_and_the_total_stays(connection, make, redis, namespace):
    await connection.open()
    counters = make()
    counters.add(table(HIT))
    await counters.flush()

    left = {key: await redis.ttl(key) async for key in redis.scan_iter(f"{namespace}:stats:*")}
    by_part = {key.decode().split(":")[3]: ttl for key, ttl in left.items()}
    assert by_part.pop("total") == by_part.pop("models") == -1
    assert by_part.keys() == {"hour", "day", "sent"}
    assert all(0 < ttl <= 401 * DAY_S for ttl in by_part.values())


@pytest.mark.parametrize("window", ["72h", "400d", "1h", "9600h"])
async def test_windows_within_what_is_kept(connection, make, window):
    await connection.open()
    assert await shared(make(), window) == {}


@pytest.mark.parametrize("window", ["", "0h", "24", "h", "401d", "9601h", "1w", "-1h", "1.5h"])
async def test_any_other_window_is_an_error(make, window):
    with pytest.raises(ConfigurationError, match="24h or 7d"):
        await make().shared(window)
