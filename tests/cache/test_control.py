"""What the reader allows: `Cache-Control`, the bypass policy, and looking without asking."""

import asyncio

import pytest

from llm_cache._core.control import CacheControl, parse_cache_control
from llm_cache.errors import InvalidRequest, OnlyIfCachedMiss
from llm_cache.testing import FakeClock

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."


async def test_no_cache_asks_the_model_again_and_stores_its_answer(cache, upstream):
    upstream.answer("old")
    upstream.answer("new")
    await cache.chat(QUESTION)

    reply = await cache.chat(QUESTION, cache_control="no-cache")

    assert (reply.text, reply.status) == ("new", "miss")
    assert (await cache.chat(QUESTION)).text == "new"


async def test_no_cache_looks_at_no_semantic_entry_either(cache, upstream, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await cache.chat(QUESTION)

    assert (await cache.chat(REPHRASED, cache_control="no-cache")).status == "miss"
    assert upstream.calls == 2


async def test_no_store_leaves_the_cache_out(cache, upstream, embedder):
    reply = await cache.chat(QUESTION, cache_control="no-store")

    assert (reply.status, reply.reason, reply.key) == ("bypass", "no-store", None)
    assert embedder.calls == 0
    assert (await cache.chat(QUESTION)).status == "miss"
    assert (await cache.chat(QUESTION, cache_control="no-store")).status == "bypass"


async def test_bypassed_calls_are_never_shared(cache, upstream):
    await asyncio.gather(*(cache.chat(QUESTION, cache_control="no-store") for _ in range(3)))
    assert upstream.calls == 3


async def test_only_if_cached_never_asks_the_model(cache, upstream, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    with pytest.raises(OnlyIfCachedMiss):
        await cache.chat(QUESTION, cache_control="only-if-cached")
    await cache.chat(QUESTION)

    assert (await cache.chat(QUESTION, cache_control="only-if-cached")).status == "exact"
    assert (await cache.chat(REPHRASED, cache_control="only-if-cached")).status == "semantic"
    assert upstream.calls == 1


async def test_only_if_cached_says_so_without_a_redis_too(make_cache):
    with pytest.raises(OnlyIfCachedMiss):
        await make_cache("redis://127.0.0.1:1").chat(QUESTION, cache_control="only-if-cached")


async def test_max_age_takes_no_older_entry(make_cache, upstream):
    clock = FakeClock()
    cache = make_cache(clock=clock)
    await cache.chat(QUESTION)
    clock.advance(60)
    assert (await cache.chat(QUESTION, cache_control="max-age=60")).status == "exact"

    clock.advance(1)
    assert (await cache.chat(QUESTION, cache_control="max-age=60")).status == "miss"
    assert (await cache.chat(QUESTION, cache_control="max-age=60")).age_s == 0


async def test_header_says_the_same_and_is_no_part_of_the_key(cache):
    await cache.chat(QUESTION)
    headers = {"cache-control": "only-if-cached, max-age=3600"}
    assert (await cache.chat(QUESTION, extra_headers=headers)).status == "exact"


@pytest.mark.parametrize(
    ("text", "control"),
    [
        ("", CacheControl()),
        ("No-Cache", CacheControl(no_cache=True)),
        ("no-store, max-age=0", CacheControl(no_store=True, max_age_s=0)),
        (' only-if-cached ,max-age="60"', CacheControl(only_if_cached=True, max_age_s=60)),
        ("private, s-maxage=9, x=y", CacheControl()),
    ],
)
def test_directives_are_read_as_the_standard_has_them(text, control):
    assert parse_cache_control(text) == control
    assert parse_cache_control(str(control)) == control


@pytest.mark.parametrize("value", ["", "=", "=-1", "=1.5", "=x"])
def test_age_that_is_no_number_is_refused(value):
    with pytest.raises(InvalidRequest, match="max-age"):
        parse_cache_control(f"max-age{value}")


async def test_control_of_another_kind_is_refused(cache):
    with pytest.raises(InvalidRequest, match="cache_control"):
        await cache.chat(QUESTION, cache_control=3)


async def test_policy_can_leave_calls_out(make_cache, upstream):
    cache = make_cache(bypass=lambda request: request.get("temperature", 0) > 1)
    for _ in range(2):
        reply = await cache.chat(QUESTION, temperature=1.5)
        assert (reply.status, reply.reason) == ("bypass", "policy")
    await cache.chat(QUESTION, temperature=1)
    assert (await cache.chat(QUESTION, temperature=1)).status == "exact"


async def test_single_flight_can_be_switched_off(make_cache, upstream):
    cache = make_cache(single_flight=False)
    upstream.hold()
    calls = [asyncio.create_task(cache.chat(QUESTION)) for _ in range(2)]
    await upstream.called(2)
    upstream.release()
    await asyncio.gather(*calls)
    assert upstream.calls == 2
