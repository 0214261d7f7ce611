"""What the cache may add to a call, and what becomes of the rest."""

import asyncio
import time

import pytest

from llm_cache.errors import (
    CorruptEntry,
    DependencySkipped,
    EmbedderError,
    OnlyIfCachedMiss,
    OverBudget,
    StoreUnavailable,
)
from llm_cache.events import DependencyFailed, StoreSkipped
from llm_cache.testing import FakeEmbedder

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."
NOWHERE = "redis://127.0.0.1:1"


async def ended(cache) -> None:
    """Return when nothing is under way behind the calls."""
    while tasks := cache._engine._background.tasks:
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def held(make_cache, embedder):
    """A cache that has little time for an embedder that takes long."""
    embedder.similar(QUESTION, REPHRASED, 0.95)
    cache = await make_cache(added_latency_budget_s=0.2).open()
    embedder.gate = asyncio.Event()
    return cache


async def test_embedder_that_takes_long_costs_no_more_than_the_budget(held, events):
    started_s = time.monotonic()
    reply = await held.chat(QUESTION)

    # The model, the event loop and the other users of this machine take their time as well.
    assert 0.9 * 0.2 <= time.monotonic() - started_s < 2
    assert (reply.status, reply.reason) == ("bypass", "budget")
    (failed,) = events.of(DependencyFailed)
    assert failed.dependency == "embedder"
    assert isinstance(failed.error, OverBudget)


async def test_vector_that_comes_late_is_stored_with_the_answer(held, embedder):
    await held.chat(QUESTION)
    embedder.gate.set()
    await ended(held)

    assert (await held.chat(QUESTION)).status == "exact"
    assert (await held.chat(REPHRASED)).status == "semantic"


async def test_vector_that_comes_for_an_answer_that_is_gone_leads_nowhere(held, embedder, redis):
    await held.chat(QUESTION)
    await ended_but_for_embeddings(held)
    reply = await held.lookup_exact(QUESTION)
    await redis.delete(reply.key)
    embedder.gate.set()
    await ended(held)

    assert not [key async for key in redis.scan_iter(f"{held.config.namespace}:s:*")]


async def ended_but_for_embeddings(cache) -> None:
    while await cache.lookup_exact(QUESTION) is None:
        pass


async def test_wait_for_a_leader_in_another_process_does_not_count(make_cache, upstream):
    first, second = [await make_cache(added_latency_budget_s=1).open() for _ in range(2)]
    upstream.hold()
    leader = asyncio.create_task(first.chat(QUESTION))
    await upstream.called()
    follower = asyncio.create_task(second.chat(QUESTION))
    _, waiting = await asyncio.wait([follower], timeout=1.4)
    upstream.release()

    assert waiting == {follower}
    assert (await follower).shared
    await leader
    assert upstream.calls == 1


async def test_verifier_has_a_time_of_its_own(make_cache, embedder):
    class Slow:
        async def verify(self, new, cached, answer):
            await asyncio.sleep(1.2)
            return True

    embedder.similar(QUESTION, REPHRASED, 0.8)
    cache = await make_cache(verifier=Slow(), verify_from=0.7, added_latency_budget_s=1).open()
    await cache.chat(QUESTION)
    assert (await cache.chat(REPHRASED)).status == "semantic"


async def test_event_loop_that_others_keep_busy_is_no_reason_to_go_without_the_cache(
    make_cache, embedder, upstream
):
    async def busy() -> None:
        while True:
            time.sleep(0.05)  # noqa: ASYNC251 - the loop stands still
            await asyncio.sleep(0)

    embedder.similar(QUESTION, REPHRASED, 0.95)
    cache = await make_cache(added_latency_budget_s=0.2).open()
    assert (await cache.chat(QUESTION)).key
    others = asyncio.create_task(busy())
    began_s = time.monotonic()
    reply = await cache.chat(REPHRASED)
    took_s = time.monotonic() - began_s
    others.cancel()

    assert (reply.status, reply.reason) == ("semantic", None)
    # Else this shows nothing.
    assert took_s > 0.2
    assert upstream.calls == 1


async def test_cold_cache_is_opened_behind_the_first_call(make_cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)

    class Cold(FakeEmbedder):
        async def open(self):
            await gate.wait()

    gate, cold = asyncio.Event(), Cold()
    cold.similar(QUESTION, REPHRASED, 0.95)
    cache = make_cache(embedder=cold, added_latency_budget_s=0.2)
    assert (await cache.chat(QUESTION)).reason == "budget"
    gate.set()
    await ended(cache)
    await cache.open()
    assert (await cache.chat(QUESTION)).status == "exact"


# ---------------------------------------------------------------------------- fail_closed


async def test_whoever_prefers_an_error_gets_the_one_of_redis(make_cache, upstream):
    cache = make_cache(NOWHERE, fail_closed=True)
    with pytest.raises(StoreUnavailable):
        await cache.chat(QUESTION)
    assert upstream.calls == 0


async def test_whoever_prefers_an_error_gets_the_one_of_the_embedder(
    make_cache, embedder, upstream
):
    cache = await make_cache(fail_closed=True).open()
    embedder.fail_with = RuntimeError("down")
    with pytest.raises(EmbedderError):
        await cache.chat(QUESTION)
    assert upstream.calls == 0


async def test_whoever_prefers_an_error_gets_one_for_a_budget_that_is_spent(make_cache, embedder):
    cache = await make_cache(fail_closed=True, added_latency_budget_s=0.2).open()
    embedder.gate = asyncio.Event()
    with pytest.raises(OverBudget, match="added_latency_budget_s"):
        await cache.chat(QUESTION)


async def test_whoever_prefers_an_error_gets_one_for_bytes_that_are_no_entry(make_cache, redis):
    cache = await make_cache(fail_closed=True).open()
    key = (await cache.chat(QUESTION)).key
    await redis.set(key, b"\x01\x00garbage that is long enough to have a header", ex=60)
    with pytest.raises(CorruptEntry):
        await cache.chat(QUESTION)


async def test_dependency_that_is_left_alone_is_named_to_who_prefers_an_error(make_cache):
    cache = make_cache(NOWHERE, fail_closed=True)
    error: Exception | None = None
    while not isinstance(error, DependencySkipped):
        with pytest.raises((StoreUnavailable, DependencySkipped)) as caught:
            await cache.chat(QUESTION)
        error = caught.value
    assert "redis keeps failing" in str(error)
    assert "last error" in str(error)


async def test_paid_answer_is_returned_though_it_cannot_be_stored(make_cache, redis):
    cache = await make_cache(fail_closed=True).open()
    key = cache._keys.answer("x")
    await redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            await cache.chat(QUESTION)
        no_lease = await cache.chat(QUESTION, cache_control="no-cache", semantic=False)
    finally:
        await redis.config_set("maxmemory", "0")
    assert (no_lease.status, no_lease.reason) == ("miss", "redis")
    assert await redis.get(key) is None


# ---------------------------------------------------------------------------- only-if-cached


async def test_only_if_cached_needs_no_model(redis_url, namespace, embedder, monkeypatch):
    from llm_cache import CacheConfig, LLMCache

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = CacheConfig(namespace=namespace)
    async with LLMCache(redis_url, embedder=embedder, config=config) as cache:
        with pytest.raises(OnlyIfCachedMiss):
            await cache.chat(QUESTION, cache_control="only-if-cached")
        await cache.store_semantic(QUESTION, "Paris.")
        reply = await cache.chat(QUESTION, cache_control="only-if-cached")
        assert (reply.text, reply.status) == ("Paris.", "exact")


async def test_only_if_cached_without_a_redis_says_that_there_is_no_answer(make_cache, upstream):
    with pytest.raises(OnlyIfCachedMiss):
        await make_cache(NOWHERE).chat(QUESTION, cache_control="only-if-cached")
    assert upstream.calls == 0


# ---------------------------------------------------------------------------- the store queue


@pytest.fixture
async def lazy(make_cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    return await make_cache(store_in_background=True).open()


def slow_stores(cache) -> asyncio.Event:
    """Let no answer be written until the event is set."""
    gate = asyncio.Event()
    store = cache._engine._leases.store

    async def wait_and_store(*args, **kwargs):
        await gate.wait()
        return await store(*args, **kwargs)

    cache._engine._leases.store = wait_and_store
    return gate


async def test_answer_is_returned_before_it_is_stored(lazy, redis):
    gate = slow_stores(lazy)
    reply = await lazy.chat(QUESTION)
    assert (reply.status, reply.reason) == ("miss", None)
    assert await redis.get(reply.key) is None

    gate.set()
    await ended(lazy)
    assert await redis.get(reply.key) is not None


async def test_same_request_finds_what_is_still_in_the_queue(lazy, upstream):
    gate = slow_stores(lazy)
    await lazy.chat(QUESTION)
    again = asyncio.create_task(lazy.chat(QUESTION))
    other = await lazy.chat("something else")
    assert not again.done()
    gate.set()

    assert (await again).status == "exact"
    assert other.status == "miss"
    assert upstream.calls == 2


async def test_rephrased_request_finds_it_when_it_is_stored(lazy):
    await lazy.chat(QUESTION)
    await ended(lazy)
    assert (await lazy.chat(REPHRASED)).status == "semantic"


async def test_queue_that_is_full_sheds_and_tells(make_cache, events):
    cache = await make_cache(store_in_background=True, store_queue_size=2).open()
    gate = slow_stores(cache)
    replies = [await cache.chat(f"Question {n}") for n in range(4)]

    assert [reply.reason for reply in replies] == [None, None, "shed", "shed"]
    assert [reply.key is None for reply in replies] == [False, False, True, True]
    assert [event.reason for event in events.of(StoreSkipped)] == ["shed", "shed"]
    assert cache.not_stored() == {"shed": 2}
    gate.set()


async def test_closing_drains_the_queue(make_cache, redis):
    cache = await make_cache(store_in_background=True).open()
    keys = [(await cache.chat(f"Question {n}")).key for n in range(20)]
    await cache.aclose()
    assert await redis.exists(*keys) == 20


async def test_store_that_takes_longer_than_the_budget_goes_on_without_its_caller(
    make_cache, redis
):
    cache = await make_cache(added_latency_budget_s=0.2, semantic=False).open()
    gate = slow_stores(cache)
    reply = await cache.chat(QUESTION)
    assert (reply.status, reply.reason, reply.key) == ("miss", "budget", None)
    gate.set()
    await ended(cache)
    assert (await cache.chat(QUESTION)).status == "exact"
