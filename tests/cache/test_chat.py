"""The path of `chat()` through the public API, against a real Redis and a real HTTP upstream."""

import asyncio
from typing import Any

import pytest

from llm_cache import CacheStatus
from llm_cache.errors import NotStorable
from llm_cache.testing import Answer, FakeClock

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."


async def test_first_call_asks_the_model_and_the_second_does_not(cache, upstream):
    upstream.answer("Paris.")

    text, status = await cache.chat(QUESTION)
    assert (text, status) == ("Paris.", CacheStatus.MISS)

    again = await cache.chat(QUESTION)
    assert (again.text, again.status) == ("Paris.", "exact")
    assert upstream.calls == 1


async def test_rephrased_question_is_answered_from_the_first(cache, upstream, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    first = await cache.chat(QUESTION)

    reply = await cache.chat(REPHRASED)

    assert reply.status == "semantic"
    assert reply.text == first.text
    assert reply.similarity == pytest.approx(0.95, abs=0.001)
    assert reply.key == first.key
    assert upstream.calls == 1


async def test_semantic_hit_is_written_back_as_an_exact_alias(cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    first = await cache.chat(QUESTION)
    await cache.chat(REPHRASED)

    reply = await cache.chat(REPHRASED)

    assert reply.status == "exact"
    assert reply.key == reply.origin == first.key
    assert reply.similarity == pytest.approx(0.95, abs=0.001)
    assert embedder.calls == 2


async def test_alias_has_no_semantic_entry_of_its_own(cache, upstream, embedder):
    embedder.similar(QUESTION, "near", 0.92)
    embedder.similar("near", "far", 0.92)  # near "near", and far from the question
    await cache.chat(QUESTION)
    assert (await cache.chat("near")).status == "semantic"

    assert (await cache.chat("far")).status == "miss"
    assert upstream.calls == 2


async def test_alias_expires_with_its_origin(cache, redis, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    first = await cache.chat(QUESTION, ttl_s=600)
    await cache.chat(REPHRASED, ttl_s=86_400)

    origin_ms = await redis.pexpiretime(first.key)
    answers = [key async for key in redis.scan_iter(f"{cache.config.namespace}:x:*")]
    assert len(answers) == 2
    for key in answers:
        assert abs(await redis.pexpiretime(key) - origin_ms) < 50


@pytest.mark.parametrize("similarity", [0.8999, 0.5, 0.0])
async def test_prompt_below_the_threshold_is_a_miss(cache, upstream, embedder, similarity):
    embedder.similar(QUESTION, REPHRASED, similarity)
    await cache.chat(QUESTION)

    assert (await cache.chat(REPHRASED)).status == "miss"
    assert upstream.calls == 2


async def test_prompt_just_above_the_threshold_is_a_hit(cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.901)
    await cache.chat(QUESTION)

    assert (await cache.chat(REPHRASED)).status == "semantic"


async def test_threshold_of_one_means_identical(make_cache):
    cache = make_cache(similarity_threshold=1.0)
    await cache.store_semantic(QUESTION, "Paris.")

    assert (await cache.lookup_semantic(QUESTION)).text == "Paris."
    assert await cache.lookup_semantic("What is the capital of Spain?") is None


async def test_guards_veto_a_near_prompt_with_another_number(cache, upstream, embedder):
    embedder.similar("What is 10 percent of 50?", "What is 20 percent of 50?", 0.99)
    await cache.chat("What is 10 percent of 50?")

    assert (await cache.chat("What is 20 percent of 50?")).status == "miss"
    assert upstream.calls == 2


async def test_guards_can_be_switched_off(make_cache, embedder):
    cache = make_cache(guards=False)
    embedder.similar("What is 10 percent of 50?", "What is 20 percent of 50?", 0.99)
    await cache.chat("What is 10 percent of 50?")

    assert (await cache.chat("What is 20 percent of 50?")).status == "semantic"


async def test_nearest_of_several_candidates_answers(cache, upstream, embedder):
    near, nearer = "Which city is the capital of France?", REPHRASED
    embedder.similar(QUESTION, near, 0.91)
    embedder.similar(QUESTION, nearer, 0.97)
    await cache.store_semantic(near, "of the near one")
    await cache.store_semantic(nearer, "of the nearer one")

    assert (await cache.chat(QUESTION)).text == "of the nearer one"
    assert upstream.calls == 0


async def test_message_list_of_several_turns_is_cached(cache, upstream):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": QUESTION},
    ]

    assert (await cache.chat(messages)).status == "miss"
    assert (await cache.chat(iter(messages))).status == "exact"
    assert upstream.requests[0].body["messages"] == messages


async def test_default_model_and_system_are_sent(cache, upstream):
    await cache.chat(QUESTION)

    body = upstream.requests[0].body
    assert body["model"] == "gpt-4o-mini"
    assert body["messages"] == [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": QUESTION},
    ]


async def test_system_none_sends_no_system_message(cache, upstream):
    await cache.chat(QUESTION, system=None)

    assert [m["role"] for m in upstream.requests[0].body["messages"]] == ["user"]


async def test_what_reaches_the_model_is_never_normalised(cache, upstream):
    await cache.chat("  What  is\tthis? ")

    assert upstream.requests[0].body["messages"][-1]["content"] == "  What  is\tthis? "
    assert (await cache.chat("What is this?")).status == "exact"


async def test_unknown_parameters_go_to_the_model_and_into_the_key(cache, upstream):
    await cache.chat(QUESTION, top_k=5)

    assert upstream.requests[0].body["top_k"] == 5
    assert (await cache.chat(QUESTION, top_k=5)).status == "exact"
    assert (await cache.chat(QUESTION, top_k=6)).status == "miss"
    assert (await cache.chat(QUESTION, extra_body={"top_k": 5})).status == "exact"


async def test_answers_live_for_their_ttl_from_the_moment_they_are_stored(cache, redis):
    reply = await cache.chat(QUESTION, ttl_s=100)
    for _ in range(3):
        await cache.chat(QUESTION)

    assert 99_000 < await redis.pttl(reply.key) <= 100_000


async def test_every_key_of_an_answer_expires(cache, redis, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await cache.chat(QUESTION)
    await cache.chat(REPHRASED)

    controls = {f"{cache.config.namespace}:epoch", f"{cache.config.namespace}:purges"}
    keys = {key.decode() async for key in redis.scan_iter(f"{cache.config.namespace}:*")}
    assert len(keys - controls) == 4  # answer, alias, entry, references
    for key in keys - controls:
        assert 0 < await redis.pttl(key) <= 86_400_000


async def test_age_is_told(make_cache):
    clock = FakeClock()
    cache = make_cache(clock=clock)
    assert (await cache.chat(QUESTION)).age_s == 0
    clock.advance(90)

    assert (await cache.chat(QUESTION)).age_s == pytest.approx(90)


async def test_completion_is_the_sdks_object(cache, upstream):
    fresh = (await cache.chat(QUESTION)).completion
    cached = (await cache.chat(QUESTION)).completion

    assert cached == fresh
    assert cached.choices[0].message.content == fresh.choices[0].message.content
    assert cached.usage.total_tokens == fresh.usage.total_tokens


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(text="cut", finish_reason="length"), "length"),
        (Answer(text="", finish_reason="stop"), "empty"),
        (Answer(text="no", finish_reason="content_filter"), "content_filter"),
        (Answer(choices=()), "no_choices"),
    ],
)
async def test_incomplete_answers_are_served_but_not_stored(cache, upstream, answer, reason):
    upstream.answer(answer)

    reply = await cache.chat(QUESTION)

    assert (reply.status, reply.reason, reply.key) == ("miss", reason, None)
    assert (await cache.chat(QUESTION)).status == "miss"
    assert upstream.calls == 2


async def test_answer_of_just_the_size_cap_is_stored_and_a_larger_one_is_not(make_cache, redis):
    def sized(max_entry_bytes: int) -> Any:
        return make_cache(max_entry_bytes=max_entry_bytes, clock=FakeClock())

    size = await redis.strlen(await sized(10_000).store_exact(QUESTION, "x" * 100))

    await sized(size).store_exact(QUESTION, "x" * 100)
    with pytest.raises(NotStorable, match="too_large"):
        await sized(size - 1).store_exact(QUESTION, "x" * 100)


async def test_errors_of_the_model_reach_the_caller_and_are_not_cached(cache, upstream):
    import openai

    upstream.answer(Answer(status=429))
    with pytest.raises(openai.RateLimitError):
        await cache.chat(QUESTION)

    assert (await cache.chat(QUESTION)).status == "miss"


async def test_concurrent_calls_of_one_prompt_share_one_answer(cache, upstream):
    replies = await asyncio.gather(*(cache.chat(QUESTION) for _ in range(20)))

    assert upstream.calls == 1
    assert {reply.text for reply in replies} == {replies[0].text}
    assert sum(reply.shared for reply in replies) == 19


async def test_follower_survives_a_cancelled_leader(make_cache, upstream):
    upstream.hold()
    cache = make_cache()
    leader = asyncio.create_task(cache.chat(QUESTION))
    await upstream.called()
    follower = asyncio.create_task(cache.chat(QUESTION))
    await asyncio.sleep(0)

    leader.cancel()
    upstream.answer("42")

    assert (await follower).text == "42"
    assert upstream.calls == 1


@pytest.mark.one_server("a cluster is asked for answer and epoch apart")
async def test_exact_hit_costs_one_redis_command(cache, redis, embedder):
    await cache.chat(QUESTION)
    calls = embedder.calls
    await redis.config_resetstat()

    assert (await cache.chat(QUESTION)).status == "exact"

    ran = await redis.info("commandstats")
    counted = {name: stat["calls"] for name, stat in ran.items() if "config" not in name}
    assert counted == {"cmdstat_mget": 1}
    assert embedder.calls == calls


async def test_bytes_of_another_key_make_the_next_look_up_take_a_new_connection(
    cache, redis, monkeypatch
):
    """As after a reply that was damaged on its way, so that all that follow are out of step."""
    key, other = [(await cache.chat(text)).key for text in (QUESTION, "Who are you?")]
    await redis.set(key, await redis.get(other), ex=60)
    doubts = []
    monkeypatch.setattr(cache._exact._reads, "doubt", lambda: doubts.append(1))

    reply = await cache.chat(QUESTION)
    assert (reply.status, reply.reason) == ("bypass", "corrupt")
    assert doubts
    assert (await cache.chat(QUESTION)).status == "exact"
    assert len(doubts) <= 2


@pytest.mark.one_server("a cluster is asked for answer and epoch apart")
async def test_exact_hit_starts_no_task(cache):
    await cache.chat(QUESTION)
    started = []

    def start(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        started.append(coro)
        return asyncio.Task(coro, loop=loop, **options)

    asyncio.get_running_loop().set_task_factory(start)
    reply = await cache.chat(QUESTION)
    asyncio.get_running_loop().set_task_factory(None)

    assert reply.status == "exact"
    assert started == []


async def test_semantic_layer_can_be_left_out_of_one_call(cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await cache.chat(QUESTION)

    assert (await cache.chat(REPHRASED, semantic=False)).status == "miss"


async def test_dead_entries_do_not_stand_before_a_living_one(cache, redis, embedder):
    living = "question of which the answer lives"
    embedder.similar(QUESTION, living, 0.91)
    await cache.store_semantic(living, "alive")
    for i in range(6):
        embedder.similar(QUESTION, f"dead {'abcdef'[i]}", 0.95)
        await redis.delete(await cache.store_semantic(f"dead {'abcdef'[i]}", "dead"))

    assert (await cache.chat(QUESTION)).text == "alive"


async def test_one_embedding_serves_look_up_and_store(cache, embedder):
    await cache.chat(QUESTION)

    assert embedder.texts == [QUESTION]
