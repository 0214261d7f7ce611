"""Callers go away at any moment, and nothing of them stays behind."""

import asyncio
import gc
import os
import sys

import pytest

from llm_cache import CacheConfig, LLMCache
from llm_cache._background import Background
from llm_cache.errors import CacheClosed, ConfigurationError, UsedElsewhere
from llm_cache.testing import FakeEmbedder

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."


async def step(turns: int) -> None:
    """Let the event loop go round so many times."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def settled(cache) -> None:
    """Return when nothing is under way behind the calls."""
    engine = cache._engine
    while tasks := [*engine._under_way(), *engine._leases._tasks]:
        await asyncio.gather(*tasks, return_exceptions=True)
    await cache._epochs._reading.settle()


async def cancelled_everywhere(cache, begin, expect_idle, before=None) -> int:
    """Cancel a call after 0, 1, 2, … turns of the loop, until one is done before its turn."""
    for turns in range(10_000):
        if before is not None:
            await before(turns)
        call = asyncio.create_task(begin(turns))
        await step(turns)
        if call.done():
            call.result()
            return turns
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        if turns % 10 == 0:
            await expect_idle()
    raise AssertionError("the call never ended")


@pytest.fixture
def unraisable(monkeypatch):
    caught: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", caught.append)
    yield caught
    gc.collect()
    assert not caught


@pytest.fixture
async def answering(make_cache, embedder, redis):
    """A cache with an embedder and a producer that answer at once, and the check behind it."""
    embedder.similar(QUESTION, REPHRASED, 0.95)
    cache = await make_cache(max_connections=4).open()

    async def expect_idle() -> None:
        await settled(cache)
        pools = [lane.client.connection_pool for lane in cache._connection.lanes]
        assert not any(pool._in_use_connections for pool in pools)
        pattern = f"{cache.config.namespace}:lease:*"
        assert [key async for key in redis.scan_iter(pattern)] == []

    return cache, expect_idle


async def produce() -> str:
    await asyncio.sleep(0)
    return "Paris."


@pytest.mark.parametrize("is_shared", [True, False], ids=["shared", "alone"])
async def test_call_cancelled_at_each_of_its_awaits_leaves_nothing(
    answering, is_shared, unraisable
):
    cache, expect_idle = answering
    options = {} if is_shared else {"cache_control": "no-cache"}

    async def begin(turns: int) -> None:
        request = {"prompt": f"{QUESTION} {turns}", "turns": turns}
        await cache.get_or_create(request, produce, **options)

    assert await cancelled_everywhere(cache, begin, expect_idle) > 5
    await expect_idle()
    value = await cache.get_or_create({"prompt": QUESTION}, produce)
    assert (value.value, value.status) == ("Paris.", "miss")


async def test_semantic_hit_cancelled_at_each_of_its_awaits_leaves_nothing(
    answering, embedder, unraisable
):
    cache, expect_idle = answering

    async def begin(turns: int) -> None:
        request = {"prompt": REPHRASED, "turns": turns}
        assert (await cache.get_or_create(request, produce)).status in ("semantic", "exact")

    async def before(turns: int) -> None:
        await cache.get_or_create({"prompt": QUESTION, "turns": turns}, produce)

    assert await cancelled_everywhere(cache, begin, expect_idle, before) > 5
    await expect_idle()


async def test_stream_cancelled_at_each_of_its_awaits_leaves_nothing(
    answering, upstream, unraisable
):
    cache, expect_idle = answering

    async def begin(turns: int) -> None:
        async for _ in await cache.chat(f"{QUESTION} {turns}", stream=True):
            pass

    assert await cancelled_everywhere(cache, begin, expect_idle) > 5
    await expect_idle()


async def test_lease_whose_taker_went_away_is_given_back(answering, redis):
    cache, expect_idle = answering
    leases = cache._engine._leases
    for turns in range(60):
        taking = asyncio.create_task(leases.acquire(f"d{turns}"))
        await step(turns)
        taking.cancel()
        done, _ = await asyncio.wait([taking])
        for task in done:
            if not task.cancelled():
                leases.let_go(task.result())
    await expect_idle()


async def test_closing_at_any_moment_leaves_no_task_and_no_lease(make_cache, redis, unraisable):
    for turns in range(0, 120, 5):
        before = asyncio.all_tasks()
        cache = await make_cache(redis_timeout_s=5).open()
        calls = [
            asyncio.create_task(cache.get_or_create({"prompt": f"{QUESTION} {n}"}, produce))
            for n in range(3)
        ]
        await step(turns)
        await cache.aclose()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert all(not isinstance(end, Exception) or isinstance(end, CacheClosed) for end in ends)
        assert asyncio.all_tasks() == before
    pattern = f"{cache.config.namespace}:lease:*"
    assert [key async for key in redis.scan_iter(pattern)] == []


async def test_cache_that_was_closed_says_so(cache):
    await cache.aclose()
    await cache.aclose()
    for use in (cache.open(), cache.chat(QUESTION), cache.clear(), cache.explain(QUESTION)):
        with pytest.raises(CacheClosed, match="make a new one"):
            await use


def test_second_event_loop_is_told_what_to_do(redis_url, namespace):
    cache = LLMCache(redis_url, embedder=FakeEmbedder(), config=CacheConfig(namespace=namespace))

    async def again() -> None:
        for use in (cache.chat(QUESTION), cache.open(), cache.aclose()):
            with pytest.raises(UsedElsewhere, match=r"another event loop.*each event loop"):
                await use

    with asyncio.Runner() as one:
        one.run(cache.open())
        with asyncio.Runner() as two:
            two.run(again())
        one.run(cache.aclose())


def in_a_fork(test) -> int:
    """Run *test* in a forked child and return its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = test()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


async def test_fork_that_goes_on_with_the_same_loop_is_told_what_to_do(cache):
    await cache.chat(QUESTION)

    def child() -> int:
        call = cache.chat(QUESTION)
        try:
            call.send(None)
        except UsedElsewhere as error:
            return 0 if "another process" in str(error) else 2
        return 3

    assert in_a_fork(child) == 0
    assert (await cache.chat(QUESTION)).status == "exact"


async def test_fork_with_a_loop_of_its_own_is_told_what_to_do(cache):
    await cache.chat(QUESTION)

    def child() -> int:
        asyncio.set_event_loop(None)
        try:
            asyncio.run(cache.chat(QUESTION))
        except ConfigurationError as error:
            return 0 if "another process" in str(error) else 2
        return 3

    assert in_a_fork(child) == 0
    assert (await cache.chat(QUESTION)).status == "exact"


async def test_what_is_given_up_when_the_cache_closes_may_still_tidy_up():
    tidied = asyncio.Event()

    async def tidy() -> None:
        tidied.set()

    background = Background()
    given_up = background.spawn(asyncio.Event().wait(), name="given up")
    given_up.add_done_callback(lambda _: background.spawn(tidy(), name="tidy"))
    background.close()
    given_up.cancel()
    async with asyncio.timeout(20):
        await tidied.wait()
