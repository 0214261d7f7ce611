"""Who may share what another call makes, and what it costs the others when one leaves."""

import asyncio
from typing import Any

import openai
import pytest

from llm_cache._core.targets import Kind, target
from llm_cache.errors import CacheClosed, InvalidRequest, StoreUnavailable
from llm_cache.events import DependencyFailed
from llm_cache.testing import Answer, FakeClock

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."


def slow(text: str = "one two three") -> tuple[Answer, asyncio.Event]:
    """Return an answer whose stream stands still after its first word, and what lets it go on."""
    gate = asyncio.Event()
    return Answer(text=text, gate=gate, gate_after=2), gate


def parts(*texts: Any) -> list[dict[str, Any]]:
    content = [{"type": "text", "text": text} for text in texts]
    return [{"role": "user", "content": content}]


async def test_stream_that_was_given_up_is_handed_to_nobody(cache, upstream):
    for _ in range(10):
        upstream.answer(slow()[0])
        stream = await cache.chat(QUESTION, stream=True)
        await anext(stream)
        await stream.aclose()

        again = await cache.chat(QUESTION, stream=True)
        text = "".join([piece async for piece in again])
        assert text
        assert again.status in ("miss", "exact")
        await cache._connection.execute("UNLINK", again.info.key)


async def test_stream_left_before_its_first_step_is_closed(make_cache, upstream):
    cache = make_cache(single_flight=False)
    upstream.answer(slow()[0])
    stream = await cache.chat(QUESTION, stream=True)
    await stream.aclose()
    await upstream.disconnected()

    assert cache.not_stored() == {"abandoned": 1}


async def test_stream_whose_only_caller_is_cancelled_while_it_opens_is_given_up(cache, upstream):
    gate = asyncio.Event()
    upstream.answer(Answer(text="one two", gate=gate))
    call = asyncio.create_task(cache.chat(QUESTION, stream=True))
    await upstream.called()
    call.cancel()
    gate.set()
    while not cache.not_stored():  # noqa: ASYNC110 - only the count tells
        await asyncio.sleep(0)
    assert cache.not_stored() == {"abandoned": 1}


async def test_stream_left_at_its_last_word_is_stored(cache, upstream):
    client = cache.wrap(upstream.client())
    messages = [{"role": "user", "content": QUESTION}]
    stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
    async with stream:
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].finish_reason:
                break
    while await cache.lookup_exact(messages, model="m") is None:  # noqa: ASYNC110 - as above
        await asyncio.sleep(0)


@pytest.mark.parametrize("control", ["no-store", "no-cache"])
async def test_stream_of_a_call_that_is_not_shared_is_heard_by_nobody_else(
    cache, upstream, control
):
    answer, gate = slow()
    upstream.answer(answer)
    alone = await cache.chat(QUESTION, stream=True, cache_control=control)
    await anext(alone)
    upstream.answer("another answer")
    other = await cache.chat(QUESTION, stream=True)

    assert not other.info.shared
    assert "".join([piece async for piece in other]) == "another answer"
    gate.set()
    assert upstream.calls == 2


async def test_semantic_answer_is_given_to_nobody_who_wants_none(cache, embedder, upstream):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await cache.chat(QUESTION)

    near, exact_only = await asyncio.gather(
        cache.chat(REPHRASED), cache.chat(REPHRASED, semantic=False)
    )
    assert (near.status, exact_only.status) == ("semantic", "miss")
    assert (await cache.chat(REPHRASED, semantic=False)).text == exact_only.text


async def test_alias_is_no_answer_for_a_call_without_the_semantic_layer(make_cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await make_cache().chat(QUESTION)
    assert (await make_cache().chat(REPHRASED)).status == "semantic"

    assert await make_cache().lookup_exact(REPHRASED, semantic=False) is None
    assert (await make_cache(semantic=False).chat(REPHRASED)).status == "miss"
    assert (await make_cache().chat(REPHRASED)).similarity is None


async def test_age_limit_holds_for_those_who_wait_too(make_cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    clock = FakeClock()
    cache = make_cache(clock=clock)
    await cache.chat(QUESTION)
    clock.advance(1_000)

    _, fresh = await asyncio.gather(
        cache.chat(REPHRASED), cache.chat(REPHRASED, cache_control="max-age=10")
    )
    assert fresh.age_s == 0


async def test_promotion_leaves_an_answer_of_ones_own_alone(make_cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    clock = FakeClock()
    cache = make_cache(clock=clock)
    await cache.store_exact(REPHRASED, "own")
    clock.advance(100)
    await cache.store_semantic(QUESTION, "another's")

    near = await cache.chat(REPHRASED, cache_control="max-age=10")
    assert (near.text, near.status) == ("another's", "semantic")
    assert (await cache.chat(REPHRASED)).text == "own"


async def test_promotion_takes_the_place_of_a_dead_answer(cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await cache.store_exact(REPHRASED, "dead", tags=["old"])
    await cache._epochs.purge([target(Kind.TAG, "old")])
    await cache.store_semantic(QUESTION, "living")

    assert (await cache.chat(REPHRASED)).status == "semantic"
    assert (await cache.chat(REPHRASED)).status == "exact"


async def test_everybody_gets_an_answer_of_his_own(cache):
    async def produce() -> Any:
        await asyncio.sleep(0)
        return {"items": [1, (2, 3)]}

    one, two = await asyncio.gather(
        *(cache.get_or_create({"prompt": "x"}, produce) for _ in range(2))
    )
    assert one.value == two.value == {"items": [1, [2, 3]]}
    one.value["items"].append("mine")
    assert two.value == {"items": [1, [2, 3]]}
    assert (await cache.get_or_create({"prompt": "x"}, produce)).value == two.value


async def test_what_one_does_with_an_answer_at_once_is_not_done_to_the_others(cache, upstream):
    async def footed() -> Any:
        reply = await cache.chat(QUESTION)
        # Before anything else is awaited: the others have not woken up yet.
        reply.data["choices"][0]["message"]["content"] += " (cached)"
        return reply.text

    upstream.answer(Answer(text="Paris.", delay_s=0.05))
    assert await asyncio.gather(*(footed() for _ in range(3))) == ["Paris. (cached)"] * 3
    assert (await cache.chat(QUESTION)).text == "Paris."


async def test_nor_to_those_whose_exact_hits_are_read_in_one_batch(cache):
    await cache.store_exact(QUESTION, "Paris.")

    async def footed() -> Any:
        reply = await cache.chat(QUESTION)
        reply.data["choices"][0]["message"]["content"] += " (cached)"
        return reply.text

    assert await asyncio.gather(*(footed() for _ in range(20))) == ["Paris. (cached)"] * 20


async def test_nor_to_those_who_share_a_semantic_hit(make_cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await make_cache().store_semantic(QUESTION, "Paris.")
    cache = make_cache()

    async def footed() -> Any:
        reply = await cache.chat(REPHRASED)
        reply.data["choices"][0]["message"]["content"] += " (cached)"
        return reply.text

    assert await asyncio.gather(*(footed() for _ in range(3))) == ["Paris. (cached)"] * 3


@pytest.mark.parametrize("control", [None, "no-cache"])
async def test_what_is_stored_behind_a_call_is_what_the_model_said(make_cache, upstream, control):
    cache = make_cache(store_in_background=True)
    upstream.answer("Paris.")
    reply = await cache.chat(QUESTION, cache_control=control)
    reply.data["choices"][0]["message"]["content"] = "Rome."
    assert (await cache.chat(QUESTION)).text == "Paris."


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"prompt": ""}, {"prompt": 0}),
        ({"prompt": "x", "y": 0}, {"prompt": 0, "y": "x"}),
        (
            {"messages": [{"role": "user", "content": ""}]},
            {"messages": [{"role": "user", "content": 0}]},
        ),
        ({"messages": parts("a", 0)}, {"messages": parts(0, "a")}),
    ],
)
async def test_text_is_never_taken_for_a_number(cache, a, b):
    async def one() -> str:
        return "of the first"

    async def two() -> str:
        return "of the second"

    await cache.get_or_create(a, one)
    assert (await cache.get_or_create(b, two)).value == "of the second"


async def test_answer_that_cannot_be_written_down_is_served(cache, upstream):
    upstream.answer(Answer(raw_body=RAW))
    reply = await cache.chat(QUESTION)

    assert reply.text == "ok \ud83d"
    assert (reply.status, reply.reason) == ("miss", "not_text")


RAW = (
    b'{"id":"1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,'
    b'"finish_reason":"stop","message":{"role":"assistant","content":"ok \\ud83d"}}]}'
)


async def test_rule_that_raises_costs_nobody_an_answer(cache):
    async def produce() -> Any:
        return {"text": "paid for"}

    found = await cache.get_or_create(
        {"prompt": "x"}, produce, store_if=lambda value: value["no such key"]
    )
    assert (found.value, found.reason) == ({"text": "paid for"}, "not_wanted")


async def test_prompt_that_cannot_be_written_down_is_refused_without_being_told(cache):
    with pytest.raises(InvalidRequest) as caught:
        await cache.chat("secret \ud800")
    assert "secret" not in repr(caught.value) + repr(caught.value.__context__)


async def test_answer_that_is_no_json_is_handed_on(cache, upstream):
    body = b"<html>a proxy says hello</html>"
    upstream.answer(Answer(raw_body=body, headers={"content-type": "text/html"}))
    messages: Any = [{"role": "user", "content": QUESTION}]
    reply = await cache.wrap(upstream.client()).chat.completions.create(
        model="m", messages=messages
    )
    assert reply == body.decode()
    assert cache.not_stored() == {"malformed": 1}


async def test_follower_out_of_patience_asks_the_model_itself(cache, upstream):
    gate = asyncio.Event()
    upstream.answer(Answer(text="late", gate=gate))
    upstream.answer("at once")
    leader = asyncio.create_task(cache.chat(QUESTION, timeout=30))
    await upstream.called()

    follower = await cache.chat(QUESTION, timeout=0.5)
    assert (follower.text, follower.status, follower.shared) == ("at once", "miss", False)
    gate.set()
    assert (await leader).text == "late"


async def test_time_out_of_the_model_itself_is_the_sdks(cache, upstream):
    upstream.hold()
    impatient = cache.wrap(upstream.client(max_retries=0, timeout=0.05))
    with pytest.raises(openai.APITimeoutError):
        await impatient.chat.completions.create(
            model="m", messages=[{"role": "user", "content": QUESTION}]
        )


async def test_call_under_way_when_the_cache_closes_says_so(make_cache, upstream, monkeypatch):
    from llm_cache import cache as module

    monkeypatch.setattr(module, "_DRAIN_S", 0.01)
    upstream.hold()
    cache = make_cache()
    call = asyncio.create_task(cache.chat(QUESTION))
    await upstream.called()
    await cache.aclose()

    with pytest.raises(CacheClosed):
        await call


async def test_usage_is_stored_for_those_who_come_later(cache, upstream):
    stream = await cache.chat(QUESTION, stream=True)
    assert "".join([piece async for piece in stream])

    assert (await cache.chat(QUESTION)).usage["total_tokens"] > 0
    assert upstream.requests[0].body["stream_options"] == {"include_usage": True}


async def test_service_that_refuses_to_tell_the_usage_is_asked_no_more(cache, upstream):
    def answer(body: Any) -> Answer:
        return Answer(status=400) if "stream_options" in body else Answer(text="Paris.")

    upstream.default = answer
    for question in (QUESTION, REPHRASED):
        stream = await cache.chat(question, stream=True)
        assert "".join([piece async for piece in stream]) == "Paris."
    assert upstream.calls == 3


async def test_explicit_store_tells_what_redis_said(cache, redis):
    await cache.open()
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreUnavailable):
            await cache.store_exact(QUESTION, "x")
    finally:
        await redis.config_set("maxmemory", 0)


async def test_leader_whose_answer_was_not_stored_keeps_nobody_waiting(
    make_cache, upstream, redis, namespace, events
):
    """Although somebody, here a hook, keeps the error, whose traceback leads to the lease."""
    leader, follower = [await make_cache().open() for _ in range(2)]
    upstream.hold()
    leading = asyncio.create_task(leader.chat(QUESTION))
    await upstream.called()
    following = asyncio.create_task(follower.chat(QUESTION))
    while not await redis.pubsub_channels(f"*{namespace}*"):
        pass
    await redis.config_set("maxmemory", 1)
    try:
        upstream.release()
        async with asyncio.timeout(20):
            await asyncio.gather(leading, following)
    finally:
        await redis.config_set("maxmemory", 0)
    assert upstream.calls == 2
    assert events.of(DependencyFailed)


async def test_stream_that_redis_fails_says_why(make_cache, events):
    stream = await make_cache("redis://127.0.0.1:1").chat(QUESTION, stream=True)
    assert (stream.status, stream.info.reason) == ("bypass", "redis")
    await stream.aclose()
    assert events.of(DependencyFailed)


async def test_piece_that_is_waited_for_in_vain_ends_only_that_wait(cache, upstream):
    upstream.answer(slow()[0])
    client = cache.wrap(upstream.client())
    messages: Any = [{"role": "user", "content": QUESTION}]
    stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
    for _ in range(2):
        await anext(stream)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(stream), 0.01)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_closing_that_is_cancelled_leaves_nothing_open(make_cache, upstream):
    upstream.hold()
    cache = make_cache()
    call = asyncio.create_task(cache.chat(QUESTION))
    await upstream.called()
    before = asyncio.all_tasks() - {call}

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(cache.aclose(), 0.01)
    await asyncio.gather(call, return_exceptions=True)
    await upstream.disconnected()

    names = {task.get_name() for task in asyncio.all_tasks() - before}
    assert not [name for name in names if name.startswith("llm_cache")]
    with pytest.raises(StoreUnavailable):
        _ = cache._connection.lanes
