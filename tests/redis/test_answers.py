"""Single answers: looking into them, removing, rejecting, copying."""

import asyncio

import pytest

from llm_cache._core.targets import Kind, target
from llm_cache._redis.answers import Answers
from llm_cache._redis.exact import pair
from llm_cache.testing import FakeClock

SPACE = "space"
A, B, C = (letter * 28 for letter in "abc")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def answers(connection, keys, exact, clock):
    return Answers(connection, keys, exact, clock=clock)


async def test_entries_of_dead_answers_are_none(answers, put, epochs):
    await put(A, tags=("t",))
    await put(B)
    await epochs.purge([target(Kind.TAG, "t")])
    one, two, three = await answers.entries([A, B, C])
    assert (one, three) == (None, None)
    assert (two.model, two.answer) == ("m", None)


async def test_removal_takes_all_keys_and_all_aliases(answers, put, redis, keys, namespace):
    await redis.execute_command(
        *("FT.CREATE", keys.index(SPACE), "PREFIX", 1, keys.entry_prefix(SPACE)),
        *("SCHEMA", "scope", "TAG"),
    )
    await put(A)
    await put(B)
    assert await answers.copy(A, C)
    await answers.remove([A, B])
    left = {name async for name in redis.scan_iter(f"{namespace}:*")}
    assert left == {keys.epoch.encode(), keys.purges.encode()}


async def test_copy_lives_as_long_as_its_origin_and_no_chain_of_copies(answers, put, redis, keys):
    await put(A, ttl_s=50)
    assert await answers.copy(A, C)
    assert await answers.aliases(A) == [C]
    assert (await answers.entry(C)).origin == A
    for key in (keys.answer(C), keys.refs(A)):
        assert abs(await redis.pexpiretime(key) - await redis.pexpiretime(keys.answer(A))) < 1_000
    assert not await answers.copy(B, C)


async def test_list_of_aliases_never_stands_without_an_expiry(answers, put, redis, keys):
    await put(A)
    async with redis.monitor() as monitor:
        await answers.copy(A, C)
        await redis.echo("the end")
        commands = []
        while "the end" not in (seen := await monitor.next_command())["command"]:
            commands.append((seen["client_type"], seen["command"].split()[0]))
    # `SADD` and `PEXPIRE` are in one script, whoever is killed.
    assert ("lua", "SADD") in commands
    assert ("lua", "PEXPIRE") in commands


async def test_alias_of_what_was_replaced_meanwhile_is_taken_back(
    answers, exact, put, redis, keys
):
    await put(A)
    (found,) = await exact.lookup_many([A])
    await put(A, created_s=2.0)
    await exact.promote(C, A, b"copy", copied=found.entry, left_ms=1_000, replaces=False)
    assert not await redis.exists(keys.answer(C))


async def test_oldest_rejections_are_forgotten_first(answers, redis, keys, clock):
    await answers.reject(A, [f"{n:028}" for n in range(9_990)])
    clock.advance(1)
    await answers.reject(B, [f"{n:028}" for n in range(20)])
    assert await redis.zcard(keys.rejected) == 10_000
    for number in range(20):
        assert await redis.zscore(keys.rejected, pair(f"{number:028}", B)) is not None
    await answers.pardon(B, f"{0:028}")
    assert await redis.zcard(keys.rejected) == 9_999


async def test_sources_are_closed_over_what_they_were_made_from(answers, put, keys):
    await put(A, depends_on=("doc:1@v2", "doc:2"))
    key = keys.answer(A)
    assert await answers.sources(["doc:3", key]) == ("doc:3", key, "doc:1@v2", "doc:2")
    assert await answers.sources(["doc:3"]) == ("doc:3",)
    assert await answers.sources(["doc:3", keys.answer(B)]) is None
    assert await answers.copy(A, C)
    alias = keys.answer(C)
    assert await answers.sources([alias]) == (alias, key, "doc:1@v2", "doc:2")


async def test_answers_without_an_index_are_known_until_the_last_has_expired(
    answers, redis, clock, epochs
):
    assert not await answers.has_unindexed()
    await redis.config_resetstat()
    for _ in range(50):
        await answers.note_unindexed(clock() + 10, 10)
        clock.advance(0.1)
    stats = await redis.info("commandstats")
    assert stats["cmdstat_eval"]["calls"] == 1
    clock.advance(14)
    assert await answers.has_unindexed()
    clock.advance(2)
    assert not await answers.has_unindexed()


async def test_two_processes_note_the_later_end(connection, keys, exact, clock, redis_url):
    one = Answers(connection, keys, exact, clock=clock)
    await asyncio.gather(
        one.note_unindexed(clock() + 500, 0), one.note_unindexed(clock() + 100, 0)
    )
    clock.advance(499)
    assert await one.has_unindexed()
