"""Streams: forwarded as they arrive, stored after a clean end, replayed faithfully."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Any

import openai
import pytest

from llm_cache import ChatStream, LLMCache
from llm_cache.testing import Answer, Quirks, tool_call
from llm_cache.testing._answers import encode_event

QUESTION = "What is the capital of France?"


async def read(cache: LLMCache, **options: Any) -> tuple[str, ChatStream[str]]:
    stream = await cache.chat(QUESTION, stream=True, **options)
    return "".join([piece async for piece in stream]), stream


async def test_stream_of_a_miss_is_stored_and_replayed(cache, upstream):
    upstream.answer("Paris is the capital.")

    text, stream = await read(cache)
    assert (text, stream.status) == ("Paris is the capital.", "miss")
    assert stream.info.key

    text, stream = await read(cache)
    assert (text, stream.status) == ("Paris is the capital.", "exact")
    assert upstream.calls == 1


async def test_one_entry_serves_both_modes(cache, upstream):
    text, _ = await read(cache)
    assert (await cache.chat(QUESTION)).text == text
    assert (await cache.chat(QUESTION)).status == "exact"

    await cache.chat(QUESTION, temperature=0)
    _, stream = await read(cache, temperature=0)
    assert stream.status == "exact"
    assert upstream.calls == 2


async def test_rephrased_stream_is_a_semantic_hit(cache, embedder):
    embedder.similar(QUESTION, "Tell me the capital city of France.", 0.95)
    text, _ = await read(cache)

    stream = await cache.chat("Tell me the capital city of France.", stream=True)
    assert stream.status == "semantic"
    assert "".join([piece async for piece in stream]) == text


async def test_pieces_arrive_before_the_model_is_done(cache, upstream):
    gate = asyncio.Event()
    upstream.answer(Answer(text="one two three", gate=gate, gate_after=2))
    stream = await cache.chat(QUESTION, stream=True)

    assert await anext(stream) == "one "
    assert not gate.is_set()
    gate.set()
    assert "".join([piece async for piece in stream]) == "two three"


async def test_followers_hear_the_leaders_stream_from_its_first_chunk(cache, upstream):
    gate = asyncio.Event()
    upstream.answer(Answer(text="one two three", gate=gate, gate_after=2))
    leader = await cache.chat(QUESTION, stream=True)
    assert await anext(leader) == "one "

    follower = await cache.chat(QUESTION, stream=True)
    assert follower.info.shared
    assert await anext(follower) == "one "
    gate.set()

    for stream in (leader, follower):
        assert "".join([piece async for piece in stream]) == "two three"
    assert upstream.calls == 1


async def test_follower_goes_on_when_the_leader_leaves(cache, upstream):
    gate = asyncio.Event()
    upstream.answer(Answer(text="one two three", gate=gate, gate_after=2))
    leader = await cache.chat(QUESTION, stream=True)
    follower = await cache.chat(QUESTION, stream=True)
    await anext(leader)
    await leader.aclose()
    gate.set()

    assert "".join([piece async for piece in follower]) == "one two three"
    assert (await cache.chat(QUESTION)).status == "exact"


async def test_stream_that_everybody_left_is_closed_and_not_stored(cache, upstream):
    gate = asyncio.Event()
    upstream.answer(Answer(text="one two three", gate=gate, gate_after=2))
    async with await cache.chat(QUESTION, stream=True) as stream:
        await anext(stream)
    await upstream.disconnected()

    assert await cache.lookup_exact(QUESTION) is None
    assert (await cache.chat(QUESTION)).status == "miss"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(text="cut", finish_reason="length"),
        Answer(text="filtered", finish_reason="content_filter"),
        Answer(text="", finish_reason="stop"),
    ],
)
async def test_incomplete_stream_is_forwarded_but_not_stored(cache, upstream, answer):
    upstream.answer(answer)
    text, stream = await read(cache)

    assert text == answer.text
    assert stream.info.key is None
    assert stream.info.reason == (answer.finish_reason if answer.text else "empty")
    assert await cache.lookup_exact(QUESTION) is None


async def test_error_before_the_first_chunk_reaches_the_caller(cache, upstream):
    upstream.answer(Answer(status=500))
    with pytest.raises(openai.InternalServerError):
        await cache.chat(QUESTION, stream=True)
    assert (await read(cache))[1].status == "miss"


@pytest.mark.parametrize(
    "quirks",
    [
        Quirks(done=False),
        Quirks(empty_choices_first=True),
        Quirks(first_chunk="role-only"),
        Quirks(first_chunk="merged"),
        Quirks(usage="finish-chunk"),
        Quirks(comments=True),
        Quirks(crlf=True),
    ],
    ids=str,
)
async def test_unusual_streams_are_forwarded_and_stored_as_a_whole(cache, upstream, quirks):
    upstream.answer(Answer(text="Paris is the capital.", quirks=quirks))
    text, _ = await read(cache)

    assert text == "Paris is the capital."
    found = await cache.lookup_exact(QUESTION)
    assert found is None or found.text == text


async def test_stream_cut_anywhere_is_never_stored_in_part(make_cache, upstream):
    """Cut the body after every byte in turn: what is stored is whole, or nothing is."""
    cache = await make_cache(semantic=False).open()
    whole = Answer(text="Paris, yes.", chunks=("Paris", ", yes."))
    body = {"model": "m", "messages": [{"role": "user", "content": QUESTION}], "stream": True}
    size = sum(len(encode_event(event)) for event in whole.events(body))
    stored = 0
    for cut in range(1, size):
        upstream.answer(replace(whole, cut_after=cut))
        with suppress(openai.APIError):
            await read(cache, seed=cut)
        found = await cache.lookup_exact(QUESTION, seed=cut)
        if found is not None:
            stored += 1
            assert found.text == "Paris, yes."
            assert found.data["choices"][0]["finish_reason"] == "stop"
    assert stored < size / 4


async def test_tool_calls_survive_the_stream(cache, upstream):
    answer = Answer(
        text=None,
        finish_reason="tool_calls",
        tool_calls=[tool_call("weather", {"city": "Paris"}), tool_call("time", {"city": "Rome"})],
    )
    upstream.answer(answer)
    await read(cache)

    calls = (await cache.chat(QUESTION)).completion.choices[0].message.tool_calls
    assert [(c.function.name, c.function.arguments) for c in calls] == [
        ("weather", '{"city": "Paris"}'),
        ("time", '{"city": "Rome"}'),
    ]


async def test_replay_can_be_paced(make_cache, upstream):
    cache = make_cache(replay_chunks_per_s=1e6)
    first, _ = await read(cache)
    again, stream = await read(cache)
    assert (again, stream.status) == (first, "exact")


async def test_closing_the_cache_ends_streams_under_way(make_cache, upstream, monkeypatch):
    from llm_cache import cache as module
    from llm_cache.errors import CacheClosed

    monkeypatch.setattr(module, "_DRAIN_S", 0.01)
    upstream.answer(Answer(text="one two", gate=asyncio.Event(), gate_after=2))
    cache = make_cache()
    stream = await cache.chat(QUESTION, stream=True)
    await anext(stream)
    await cache.aclose()

    with pytest.raises(CacheClosed):
        await anext(stream)
