"""What is dead is removed, behind the calls, by one process at a time."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from llm_cache._core.targets import Kind, target
from llm_cache._redis.connection import Connection
from llm_cache._redis.epoch import Epochs
from llm_cache._redis.sweep import Sweeper
from llm_cache.errors import StoreError, StoreUnavailable
from llm_cache.testing import FakeClock

SPACE = "space"


async def one() -> list[str]:
    return [SPACE]


async def none() -> list[str]:
    return []


def digest(number: int) -> str:
    return f"{number:028}"


@pytest.fixture
async def make_sweeper(connection, keys):
    made = []

    def make(**settings):
        options = {"spaces": one, "pause_s": 0, "rest_s": 0, **settings}
        made.append(Sweeper(connection, keys, Epochs(connection, keys), **options))
        return made[-1]

    yield make
    for sweeper in made:
        await sweeper.aclose()


async def test_dead_answers_go_with_all_that_leads_to_them(make_sweeper, put, epochs, redis, keys):
    for number in range(25):
        await put(digest(number), tags=("odd" if number % 2 else "even",))
        await redis.sadd(keys.refs(digest(number)), "x")
    await epochs.purge([target(Kind.TAG, "odd")])

    assert await make_sweeper().remove_dead() == 12
    for number in range(25):
        names = [f(digest(number)) for f in (keys.answer, keys.refs)]
        there = await redis.exists(*names, keys.entry(SPACE, digest(number)))
        assert there == (0 if number % 2 else 3)


async def test_answer_that_was_replaced_meanwhile_stays(make_sweeper, put, epochs, redis, keys):
    await put(digest(1))
    await epochs.purge([target(Kind.ALL)])
    sweeper = make_sweeper()
    batch = [batch async for batch in sweeper._answers()]
    await put(digest(1))
    sweeper._answers = lambda: _again(batch)

    assert await sweeper.remove_dead() == 0
    assert await redis.exists(keys.answer(digest(1)))


async def _again(batches: list[Any]) -> AsyncIterator[Any]:
    for batch in batches:
        yield batch


async def test_keys_of_others_and_broken_answers_stop_nobody(
    make_sweeper, put, epochs, *, redis, keys, namespace
):
    await put(digest(1))
    await redis.set(f"{namespace}:x:not ours", "x")
    await redis.set(f"{namespace}:x:".encode() + b"\xff\xfe", "x")
    await redis.set(keys.answer(digest(2)), b"\x02 too short")
    await redis.lpush(keys.answer(digest(3)), "a list")
    sweeper = make_sweeper()
    assert await sweeper.count(lambda _: True) == 1
    await epochs.purge([target(Kind.ALL)])
    assert await sweeper.remove_dead() == 1
    assert await redis.exists(keys.answer(digest(3)))


async def test_one_walk_covers_what_was_invalidated_before_it(
    make_sweeper, put, epochs, redis, keys
):
    """Ten processes invalidate; whoever finds a walk that began later leaves it at that."""
    sweepers = [make_sweeper(rest_s=60) for _ in range(10)]
    await put(digest(1))
    await epochs.purge([target(Kind.ALL)])
    walks: list[Sweeper] = []
    for sweeper in sweepers:
        sweeper._removals = _counted(sweeper, walks)
        sweeper.start()
    await asyncio.gather(*(sweeper.settle() for sweeper in sweepers))

    assert len(walks) == 1
    assert not await redis.exists(keys.answer(digest(1)))


def _counted(sweeper: Sweeper, walks: list[Sweeper]) -> Any:
    removals = sweeper._removals

    def counted() -> Any:
        walks.append(sweeper)
        return removals()

    return counted


async def test_walk_waits_for_its_turn_where_the_last_began_too_early(
    make_sweeper, put, epochs, redis, keys
):
    await redis.set(keys.sweep, f"{(await epochs.current(None)).epoch}:another", px=30)
    await put(digest(1))
    await epochs.purge([target(Kind.ALL)])
    sweeper = make_sweeper()
    sweeper.start()
    await sweeper.settle()
    assert not await redis.exists(keys.answer(digest(1)))


async def test_walk_that_ends_lets_others_rest_and_one_that_is_stopped_does_not(
    make_sweeper, put, redis, keys
):
    await put(digest(1))
    resting = make_sweeper(rest_s=60)
    resting.start()
    await resting.settle()
    assert 50_000 < await redis.pttl(keys.sweep) <= 60_000

    await redis.delete(keys.sweep)
    stopped = make_sweeper(rest_s=60, pause_s=60)
    for number in range(1_200):
        await put(digest(number))
    stopped.start()
    while not await redis.exists(keys.sweep):  # noqa: ASYNC110 - Redis tells nobody
        await asyncio.sleep(0)
    await stopped.aclose()
    assert not await redis.exists(keys.sweep)


async def test_start_during_a_walk_walks_again(make_sweeper, put, epochs, redis, keys):
    await put(digest(1))
    sweeper = make_sweeper()
    sweeper.start()
    await epochs.purge([target(Kind.ALL)])
    sweeper.start()
    await sweeper.settle()
    assert not await redis.exists(keys.answer(digest(1)))


async def test_walk_that_is_wanted_while_old_lines_leave_the_table_is_made(
    make_sweeper, put, redis, keys, monkeypatch
):
    await put(digest(1))
    sweeper = make_sweeper()
    prune, is_pruning, go_on = sweeper._epochs.prune, asyncio.Event(), asyncio.Event()

    async def late() -> Any:
        is_pruning.set()
        await go_on.wait()
        return await prune()

    monkeypatch.setattr(sweeper._epochs, "prune", late)
    sweeper.start(walk=False)
    await is_pruning.wait()
    await sweeper._epochs.purge([target(Kind.ALL)])
    sweeper.start()
    go_on.set()
    await sweeper.settle()
    assert not await redis.exists(keys.answer(digest(1)))


async def test_outage_is_told_and_the_next_walk_tries_again(connection, keys, epochs):
    told: list[StoreError] = []
    sweeper = Sweeper(connection, keys, epochs, spaces=none, failed=told.append, rest_s=0)
    run, failure = connection.run, StoreUnavailable("down")

    async def fail(operation):
        operation.close()
        raise failure

    connection.run = fail
    sweeper.start()
    await sweeper.settle()
    assert told == [failure]
    connection.run = run
    sweeper.start()
    await sweeper.settle()
    assert len(told) == 1


async def test_lines_leave_the_table_although_nobody_walks(redis_url, keys, redis):
    connection = Connection(redis_url, max_connections=2, timeout_s=5)
    await connection.open()
    epochs, clock = Epochs(connection, keys), FakeClock()
    await epochs.remember_for(1_000)
    await epochs.purge([target(Kind.TAG, "new")])
    long_ago = f"{1:016x}" + "0" * 16
    await redis.hset(keys.purges, ":" + target(Kind.TAG, "old"), long_ago)
    sweeper = Sweeper(connection, keys, epochs, spaces=none, clock=clock)
    sweeper.start(walk=False)
    await sweeper.settle()
    fields = {name for name in await redis.hgetall(keys.purges) if name.startswith(b":")}
    assert fields == {b":" + target(Kind.TAG, "new").encode()}

    await redis.hset(keys.purges, ":" + target(Kind.TAG, "old"), long_ago)
    sweeper.start(walk=False)
    await sweeper.settle()
    assert await redis.hexists(keys.purges, ":" + target(Kind.TAG, "old"))
    clock.advance(600)
    sweeper.start(walk=False)
    await sweeper.settle()
    assert not await redis.hexists(keys.purges, ":" + target(Kind.TAG, "old"))
    await connection.aclose()
