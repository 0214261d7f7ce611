"""How long answers live, and when one that is past its time is served all the same."""

import asyncio
import time
from typing import Any

import openai
import pytest

from llm_cache import CacheConfig, LLMCache
from llm_cache.errors import ConfigurationError, InvalidRequest, OnlyIfCachedMiss
from llm_cache.events import DependencyFailed
from llm_cache.testing import Answer, FakeClock

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."
TEN_YEARS_S = 10 * 365 * 86_400


async def background(cache: LLMCache) -> None:
    """Return when nothing is under way behind the calls."""
    while tasks := cache._engine._background.tasks:
        await asyncio.gather(*tasks, return_exceptions=True)


async def text_of(stream: Any) -> str:
    return "".join([piece async for piece in stream])


# ---------------------------------------------------------------------------- lifetimes


async def test_hundred_hits_leave_the_expiry_where_it_was(cache, redis):
    key = (await cache.chat(QUESTION)).key
    expires_ms = await redis.pexpiretime(key)
    for _ in range(100):
        assert (await cache.chat(QUESTION)).status == "exact"
    assert await redis.pexpiretime(key) == expires_ms


@pytest.mark.parametrize(
    ("given", "model", "expected_s"),
    [(None, "m", 1_000), (None, "news", 50), (7, "m", 7), (7, "news", 7)],
)
async def test_lifetime_is_that_of_the_call_else_of_the_model_else_of_the_config(
    make_cache, redis, given, model, expected_s
):
    cache = make_cache(ttl_s=1_000, model_ttl_s={"news": 50})
    key = (await cache.chat(QUESTION, model=model, ttl_s=given)).key
    assert expected_s - 5 < await redis.ttl(key) <= expected_s


async def test_answer_is_no_hit_any_more_when_its_lifetime_is_over(make_cache):
    clock = FakeClock()
    cache = make_cache(clock=clock, ttl_s=10)
    await cache.chat(QUESTION)
    clock.advance(9.9)
    assert (await cache.chat(QUESTION)).age_s == pytest.approx(9.9)
    clock.advance(0.2)
    assert (await cache.chat(QUESTION)).status == "miss"


async def test_jitter_takes_at_most_its_share(make_cache, redis):
    cache = make_cache(ttl_s=1_000, ttl_jitter=0.5)
    keys = [(await cache.chat(f"question {i}")).key for i in range(30)]
    left_s = [await redis.ttl(key) for key in keys]
    assert all(495 <= ttl_s <= 1_000 for ttl_s in left_s)
    assert max(left_s) - min(left_s) > 50


async def test_answer_entry_and_references_expire_together(cache, embedder, redis, namespace):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await cache.chat(QUESTION, ttl_s=500)
    await cache.chat(REPHRASED)
    kinds = ("x", "s", "refs")
    names = [k for kind in kinds for k in await redis.keys(f"{namespace}:{kind}:*")]
    left = [await redis.pexpiretime(name) for name in names]
    assert len(left) == 4
    assert max(left) - min(left) < 1_000


# ---------------------------------------------------------------------------- sliding


async def test_hits_lengthen_a_sliding_life_up_to_its_greatest_age(make_cache, redis):
    clock = FakeClock(time.time())
    cache = make_cache(clock=clock, ttl_s=100, sliding_max_age_s=250)
    started_s = clock()
    key = (await cache.chat(QUESTION)).key
    ends = []
    for _ in range(4):
        clock.advance(60)
        assert (await cache.chat(QUESTION)).status == "exact"
        await cache._exact._sliding._tell()
        ends.append(await redis.pexpiretime(key) / 1000 - started_s)
    assert ends == pytest.approx([160, 220, 250, 250], abs=2)
    clock.advance(20)
    assert (await cache.chat(QUESTION)).status == "miss"


async def test_call_with_a_lifetime_of_its_own_slides_by_that(make_cache, redis):
    cache = make_cache(ttl_s=100, sliding_max_age_s=1_000)
    key = (await cache.chat(QUESTION, ttl_s=20)).key
    await cache.chat(QUESTION, ttl_s=20)
    await cache._exact._sliding._tell()
    assert await redis.ttl(key) <= 20


async def test_hit_of_an_alias_lengthens_the_life_of_its_origin_not_its_own(
    make_cache, embedder, redis
):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    clock = FakeClock(time.time())
    cache = make_cache(clock=clock, ttl_s=100, sliding_max_age_s=1_000)
    origin = (await cache.chat(QUESTION)).key
    await cache.chat(REPHRASED)
    await cache._exact._sliding._tell()
    alias = (await redis.smembers(origin.replace(":x:", ":refs:"))).pop()
    alias_end = await redis.pexpiretime(alias)
    clock.advance(50)
    reply = await cache.chat(REPHRASED)
    await cache._exact._sliding._tell()

    assert (reply.status, reply.origin) == ("exact", origin)
    assert await redis.pexpiretime(alias) == alias_end
    assert await redis.pexpiretime(origin) > alias_end + 40_000


async def test_absolute_lifetime_is_not_lengthened_by_a_worker_that_slides(make_cache, redis):
    key = (await make_cache(ttl_s=100).chat(QUESTION)).key
    before = await redis.pexpiretime(key)
    slides = make_cache(ttl_s=500, sliding_max_age_s=1_000)
    await slides.chat(QUESTION)
    await slides._exact._sliding._tell()
    assert await redis.pexpiretime(key) <= before + 1


# ---------------------------------------------------------------------------- stale answers


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def revalidating(make_cache, clock):
    return lambda **more: make_cache(clock=clock, ttl_s=10, stale_while_revalidate_s=60, **more)


async def test_stale_answer_comes_at_once_and_one_process_asks_anew(revalidating, clock, upstream):
    workers = [revalidating() for _ in range(3)]
    old = await workers[0].chat(QUESTION)
    clock.advance(20)
    upstream.hold()
    replies = await asyncio.gather(*(w.chat(QUESTION) for w in workers for _ in range(5)))
    assert {(r.status, r.text, r.age_s) for r in replies} == {("stale", old.text, 20.0)}
    await upstream.called(2)
    upstream.answer("new")
    await asyncio.gather(*map(background, workers))

    assert upstream.calls == 2
    for worker in workers:
        reply = await worker.chat(QUESTION)
        assert (reply.text, reply.status, reply.age_s) == ("new", "exact", 0.0)


async def test_worker_that_comes_after_the_refill_asks_no_second_time(
    revalidating, clock, upstream
):
    first, late = revalidating(), revalidating()
    await first.chat(QUESTION)
    clock.advance(20)
    acquire = late._engine._leases.acquire

    async def acquire_late(digest: str) -> Any:
        await first.chat(QUESTION)
        await background(first)
        return await acquire(digest)

    late._engine._leases.acquire = acquire_late
    assert (await late.chat(QUESTION)).status == "stale"
    await background(late)
    assert upstream.calls == 2


async def test_stale_stream_is_replayed_and_refilled(revalidating, clock, upstream):
    cache = revalidating()
    old = await cache.chat(QUESTION)
    clock.advance(20)
    upstream.answer("new")
    stream = await cache.chat(QUESTION, stream=True)

    assert (stream.status, stream.info.age_s) == ("stale", 20.0)
    assert await text_of(stream) == old.text
    await background(cache)
    assert (await cache.chat(QUESTION)).text == "new"
    assert not upstream.chat_requests[1].body.get("stream")


async def test_stale_answer_is_not_served_beyond_its_time(revalidating, clock):
    cache = revalidating()
    await cache.chat(QUESTION)
    clock.advance(69.9)
    assert (await cache.chat(QUESTION)).status == "stale"
    await background(cache)
    clock.advance(70.1)
    assert (await cache.chat(QUESTION)).status == "miss"


async def test_refill_that_fails_leaves_the_stale_answer_and_is_told(
    revalidating, clock, upstream, events
):
    cache = revalidating()
    await cache.chat(QUESTION)
    clock.advance(20)
    upstream.default = Answer(status=500)
    for _ in range(2):
        assert (await cache.chat(QUESTION)).status == "stale"
        await background(cache)
    assert upstream.calls == 3
    told = events.of(DependencyFailed)
    assert [(e.dependency, e.operation) for e in told] == [("upstream", "revalidate")] * 2


async def test_refill_needs_no_embedder(revalidating, clock, upstream, embedder):
    cache = revalidating()
    await cache.chat(QUESTION)
    clock.advance(20)
    embedder.fail_with = RuntimeError("down")
    assert (await cache.chat(QUESTION)).status == "stale"
    await background(cache)
    assert (await cache.chat(QUESTION)).status == "exact"


async def test_whoever_forbids_the_model_is_served_stale_without_a_refill(
    revalidating, clock, upstream
):
    cache = revalidating()
    await cache.chat(QUESTION)
    clock.advance(20)
    reply = await cache.chat(QUESTION, cache_control="only-if-cached")
    await background(cache)
    assert reply.status == "stale"
    assert upstream.calls == 1
    clock.advance(60)
    with pytest.raises(OnlyIfCachedMiss):
        await cache.chat(QUESTION, cache_control="only-if-cached")


@pytest.mark.parametrize(
    ("control", "status"),
    [("max-age=19", "miss"), ("max-age=20", "stale"), ("no-cache", "miss"), (None, "stale")],
)
async def test_reader_decides_how_old_a_stale_answer_may_be(revalidating, clock, control, status):
    cache = revalidating()
    await cache.chat(QUESTION)
    clock.advance(20)
    assert (await cache.chat(QUESTION, cache_control=control)).status == status


@pytest.mark.parametrize(("age_s", "status"), [(5.0, "exact"), (5.5, "miss")])
async def test_max_age_limits_fresh_answers_too(make_cache, clock, age_s, status):
    cache = make_cache(clock=clock)
    await cache.chat(QUESTION)
    clock.advance(age_s)
    assert (await cache.chat(QUESTION, cache_control="max-age=5")).status == status


async def test_rephrased_question_is_not_answered_with_a_stale_answer(
    revalidating, clock, embedder
):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    cache = revalidating()
    await cache.chat(QUESTION)
    clock.advance(20)
    assert (await cache.chat(REPHRASED)).status == "miss"


async def test_stale_answers_do_not_crowd_out_a_living_one(revalidating, clock, embedder):
    cache = revalidating()
    near = [f"Name the capital of France, please, variant {letter}" for letter in "abcdef"]
    for prompt in [*near, REPHRASED]:
        embedder.similar(QUESTION, prompt, 0.99 if prompt in near else 0.95)
    for prompt in near:
        await cache.chat(prompt, cache_control="no-cache")
    clock.advance(20)
    await cache.chat(REPHRASED, cache_control="no-cache")

    reply = await cache.chat(QUESTION)
    assert reply.status == "semantic"
    assert reply.similarity == pytest.approx(0.95, abs=0.001)


# ---------------------------------------------------------------------------- stale if error


@pytest.fixture
async def spoiled(make_cache, clock):
    """A cache whose only answer is past its time."""
    cache = make_cache(clock=clock, ttl_s=10, stale_if_error_s=60)
    await cache.chat(QUESTION)
    clock.advance(20)
    return cache


OUTAGES = [
    Answer(status=500),
    Answer(status=502),
    Answer(status=503),
    Answer(status=529),
    Answer(status=429),
    Answer(status=408),
    Answer(drop=True),
]


@pytest.mark.parametrize("outage", OUTAGES, ids=lambda a: "drop" if a.drop else str(a.status))
@pytest.mark.parametrize("stream", [False, True])
async def test_stale_answer_is_served_where_the_model_fails(
    spoiled, upstream, events, outage, stream
):
    upstream.default = outage
    reply = await spoiled.chat(QUESTION, stream=stream)
    info = reply.info if stream else reply

    assert (info.status, info.age_s, info.reason) == ("stale", 20.0, "upstream")
    assert (await text_of(reply) if stream else reply.text) != ""
    assert events.of(DependencyFailed)[-1].dependency == "upstream"
    assert spoiled.stats()["stale"] == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_stale_answer_is_served_where_the_model_takes_too_long(
    make_cache, clock, upstream, stream
):
    client = upstream.client(timeout=0.05)
    cache = make_cache(clock=clock, ttl_s=10, stale_if_error_s=60, client=client)
    await make_cache(clock=clock, ttl_s=10, stale_if_error_s=60).chat(QUESTION)
    clock.advance(20)
    upstream.hold()
    reply = await cache.chat(QUESTION, stream=stream)
    assert (reply.info if stream else reply).status == "stale"


async def test_stale_answer_is_served_where_nobody_listens(make_cache, clock, upstream):
    settings = {"clock": clock, "ttl_s": 10, "stale_if_error_s": 60, "upstream_id": "one"}
    await make_cache(**settings).chat(QUESTION)
    clock.advance(20)
    nowhere = upstream.client(base_url="http://127.0.0.1:1/v1")
    assert (await make_cache(client=nowhere, **settings).chat(QUESTION)).status == "stale"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
@pytest.mark.parametrize("stream", [False, True])
async def test_refused_request_is_not_hidden_by_a_stale_answer(spoiled, upstream, status, stream):
    upstream.default = Answer(status=status)
    with pytest.raises(openai.APIStatusError):
        await spoiled.chat(QUESTION, stream=stream)


async def test_every_waiter_is_told_that_the_answer_is_stale(spoiled, upstream):
    upstream.default = Answer(status=500)
    replies = await asyncio.gather(*(spoiled.chat(QUESTION) for _ in range(5)))
    assert {(r.status, r.age_s) for r in replies} == {("stale", 20.0)}
    assert upstream.calls == 2


async def test_failure_beyond_the_stale_time_reaches_the_caller(spoiled, clock, upstream):
    clock.advance(50.1)
    upstream.default = Answer(status=500)
    with pytest.raises(openai.InternalServerError):
        await spoiled.chat(QUESTION)


async def test_model_that_works_is_asked_although_a_stale_answer_is_there(spoiled, upstream):
    upstream.answer("new")
    reply = await spoiled.chat(QUESTION)
    assert (reply.text, reply.status) == ("new", "miss")


async def test_answer_that_is_invalidated_while_the_model_fails_is_not_served(spoiled, upstream):
    upstream.hold()
    call = asyncio.create_task(spoiled.chat(QUESTION))
    await upstream.called(2)
    await spoiled.clear()
    upstream.answer(Answer(status=500))
    with pytest.raises(openai.InternalServerError):
        await call


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("ttl_s", [0, -1, TEN_YEARS_S + 1, float("nan"), float("inf"), "1", True])
async def test_lifetime_that_cannot_be_is_refused(cache, redis, namespace, ttl_s):
    with pytest.raises(InvalidRequest, match="ttl_s"):
        await cache.chat(QUESTION, ttl_s=ttl_s)
    with pytest.raises(ConfigurationError, match="ttl_s"):
        CacheConfig(ttl_s=ttl_s)
    with pytest.raises(ConfigurationError, match="model_ttl_s"):
        CacheConfig(model_ttl_s={"m": ttl_s})
    assert await redis.keys(f"{namespace}:x:*") == []


@pytest.mark.parametrize("ttl_s", [0.001, TEN_YEARS_S])
async def test_shortest_and_longest_lifetime_are_taken(cache, ttl_s):
    assert (await cache.chat(QUESTION, ttl_s=ttl_s)).status == "miss"


@pytest.mark.parametrize(
    "settings",
    [
        {"ttl_jitter": 1},
        {"ttl_jitter": -0.1},
        {"stale_while_revalidate_s": -1},
        {"stale_if_error_s": float("nan")},
        {"stale_if_error_s": TEN_YEARS_S + 1},
        {"sliding_max_age_s": 10, "ttl_s": 11},
        {"sliding_max_age_s": 0},
        {"sliding_max_age_s": 1e6, "stale_if_error_s": 1},
        {"model_ttl_s": ["m"]},
        {"tenant_secret": "short"},
    ],
)
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        CacheConfig(**settings)


def test_lifetimes_of_models_are_a_copy():
    given = {"m": 1.0}
    config = CacheConfig(model_ttl_s=given)
    given["m"] = -1.0
    assert config.model_ttl_s == {"m": 1.0}
