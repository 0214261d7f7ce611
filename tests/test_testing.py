"""The public doubles, through the real SDK over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import openai
import pytest

from llm_cache import testing
from llm_cache.testing import (
    Answer,
    Choice,
    FakeClock,
    FakeEmbedder,
    Quirks,
    RecordingHook,
    ScriptedUpstream,
    expected_answer,
    tool_call,
)

MODEL = "gpt-4o-mini"


def ask(text: str = "What is six times seven?", **params: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **params}


@pytest.fixture
def client(upstream):
    return upstream.client()


async def streamed(client: openai.AsyncOpenAI, **body: Any) -> list[Any]:
    stream = await client.chat.completions.create(**body, stream=True)
    return await rest_of(stream)


async def rest_of(stream: Any, seen: list[Any] | None = None) -> list[Any]:
    """Read a stream to its end; *seen* has what came, even if the end is an error."""
    seen = [] if seen is None else seen
    async for chunk in stream:
        seen.append(chunk)
    return seen


def joined(chunks: list[Any], field: str, index: int = 0) -> str:
    choices = [c for chunk in chunks for c in chunk.choices if c.index == index]
    return "".join(getattr(c.delta, field) or "" for c in choices)


def assembled(events: list[Any]) -> list[dict[str, Any]]:
    """Add up the deltas of a stream, as any client has to."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in (event for event in events if isinstance(event, dict)):
        for part in chunk["choices"]:
            add(part, choices.setdefault(part["index"], {"calls": {}, "logprobs": {}}))
    return [choices[index] for index in sorted(choices)]


def add(part: dict[str, Any], choice: dict[str, Any]) -> None:
    choice["finish"] = part["finish_reason"] or choice.get("finish")
    for kind, tokens in (part["logprobs"] or {}).items():
        choice["logprobs"].setdefault(kind, []).extend(tokens or [])
    for field in ("content", "refusal"):
        if part["delta"].get(field) is not None:
            choice[field] = choice.get(field, "") + part["delta"][field]
    for delta in part["delta"].get("tool_calls", ()):
        if "id" in delta:
            choice["calls"][delta["index"]] = {k: v for k, v in delta.items() if k != "index"}
        else:
            function = choice["calls"][delta["index"]]["function"]
            function["arguments"] += delta["function"]["arguments"]


# --- plain answers ---


async def test_every_request_gets_its_own_checkable_answer(upstream, client):
    reply = await client.chat.completions.create(**ask("one"))
    other = await client.chat.completions.create(**ask("two"))

    assert reply.choices[0].message.content == expected_answer(ask("one"))
    assert other.choices[0].message.content == expected_answer(ask("two"))
    assert reply.choices[0].message.content != other.choices[0].message.content
    assert upstream.calls == 2


@pytest.mark.parametrize(
    "other",
    [
        ask("What is six times seven!"),
        ask() | {"model": "gpt-4o"},
        ask() | {"messages": [{"role": "system", "content": ""}, *ask()["messages"]]},
        ask() | {"messages": [{"role": "system", "content": "What is six times seven?"}]},
    ],
)
def test_the_expected_answer_depends_on_model_and_messages(other):
    assert expected_answer(other) != expected_answer(ask())


def test_the_expected_answer_is_the_same_for_plain_and_streamed_requests():
    assert expected_answer(ask(stream=True, temperature=0)) == expected_answer(ask())


async def test_scripted_answers_come_in_order_and_then_the_default(upstream, client):
    upstream.answer("first")
    upstream.answer(Answer(text="second", finish_reason="length"))

    first, second, third = [await client.chat.completions.create(**ask()) for _ in range(3)]

    assert first.choices[0].message.content == "first"
    assert first.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content == "second"
    assert second.choices[0].finish_reason == "length"
    assert third.choices[0].message.content == expected_answer(ask())


async def answer_later(body: dict[str, Any]) -> str:
    await asyncio.sleep(0)
    return str(body["model"]).upper()


@pytest.mark.parametrize(
    ("default", "text"),
    [
        ("always", "always"),
        (Answer(text="an answer"), "an answer"),
        (lambda body: body["messages"][-1]["content"][::-1], "olleh"),
        (lambda _: Answer(text="made"), "made"),
        (answer_later, "GPT-4O-MINI"),
    ],
)
async def test_the_default_is_an_answer_or_a_function_of_the_request(
    upstream, client, default, text
):
    upstream.default = default
    reply = await client.chat.completions.create(**ask("hello"))
    assert reply.choices[0].message.content == text


async def test_a_plain_answer_is_what_the_sdk_expects(upstream, client):
    upstream.answer("Forty-two.")
    raw = await client.chat.completions.with_raw_response.create(**ask())
    reply = raw.parse()

    assert raw.headers["content-type"] == "application/json"
    assert reply._request_id == "req_1"
    assert reply.object == "chat.completion"
    assert reply.model == MODEL
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.refusal is None
    assert reply.choices[0].logprobs is None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    # What this project reads, the SDK's own types accept without coercion.
    type(reply).model_validate_json(raw.text, strict=False)


async def test_answers_have_distinct_ids(client):
    replies = [await client.chat.completions.create(**ask()) for _ in range(3)]
    assert len({reply.id for reply in replies}) == 3


async def test_usage_and_model_can_be_scripted_or_left_out(upstream, client):
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    upstream.answer(Answer(usage=usage, model="gpt-4o-mini-2024-07-18"))
    upstream.answer(Answer(usage=None))

    counted = await client.chat.completions.create(**ask())
    uncounted = await client.chat.completions.create(**ask())

    assert counted.usage.model_dump(exclude_none=True) == usage
    assert counted.model == "gpt-4o-mini-2024-07-18"
    assert uncounted.usage is None


async def test_tool_calls_come_without_content(upstream, client):
    upstream.answer(Answer(tool_calls=[tool_call("weather", {"city": "Paris"})]))
    choice = (await client.chat.completions.create(**ask())).choices[0]

    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls[0].function.name == "weather"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Paris"}


def test_a_tool_call_keeps_arguments_that_are_no_json():
    call = tool_call("weather", '{"city": ', call_id="call_7")
    assert call["id"] == "call_7"
    assert call["function"] == {"name": "weather", "arguments": '{"city": '}
    assert tool_call("weather")["id"] != tool_call("time")["id"]


async def test_several_choices_can_be_told_apart(upstream, client):
    upstream.answer("heads")
    reply = await client.chat.completions.create(**ask(n=3))
    assert [c.message.content for c in reply.choices] == ["heads", "heads [1]", "heads [2]"]
    assert [c.index for c in reply.choices] == [0, 1, 2]


async def test_the_answer_may_have_other_choices_than_asked_for(upstream, client):
    upstream.answer(Answer(n=1))
    upstream.answer(Answer(choices=()))
    upstream.answer(Answer(choices=[Choice(text="a"), Choice(refusal="No.")]))

    counts = [len((await client.chat.completions.create(**ask(n=2))).choices) for _ in range(3)]

    assert counts == [1, 0, 2]


async def test_a_refusal_comes_without_content(upstream, client):
    upstream.answer(Answer(refusal="I cannot help with that."))
    message = (await client.chat.completions.create(**ask())).choices[0].message
    assert message.refusal == "I cannot help with that."
    assert message.content is None


async def test_logprobs_are_made_up_when_asked_for(upstream, client):
    upstream.answer("six times seven")
    logprobs = (await client.chat.completions.create(**ask(logprobs=True))).choices[0].logprobs
    assert "".join(token.token for token in logprobs.content) == "six times seven"
    assert logprobs.refusal is None


def test_an_answer_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="do not add up"):
        Answer(text="ab", chunks=["a", "c"])
    with pytest.raises(ValueError, match="do not add up"):
        Choice(text="ab", chunks=["a"])
    with pytest.raises(ValueError, match="status of 400"):
        Answer(error="broken")
    with pytest.raises(ValueError, match="not both"):
        Answer(text="a", choices=[Choice(text="b")])


# --- streams ---

ANSWERS = {
    "text": Answer(text="The answer is  42.\n\nReally.\n"),
    "expected": Answer(),
    "empty text": Answer(text=""),
    "blank text": Answer(text="  \n"),
    "unicode": Answer(text="Größe: 42 🙂 – café"),
    "given chunks": Answer(chunks=["The an", "swer", "", " is 42"]),
    "tool calls": Answer(
        tool_calls=[
            tool_call("weather", {"city": "Zürich", "days": [1, 2, 3]}),
            tool_call("time", ""),
            tool_call("units", "not json"),
        ]
    ),
    "text and tool call": Answer(text="Let me look.", tool_calls=[tool_call("look", {"a": 1})]),
    "refusal": Answer(refusal="I cannot do that."),
    "three choices": Answer(text="a b c", n=3),
    "mixed choices": Answer(
        choices=[
            Choice(text="one two three four"),
            Choice(text="x", finish_reason="length"),
            Choice(tool_calls=[tool_call("f")]),
            Choice(),
        ]
    ),
    "no choices": Answer(choices=()),
    "explicit logprobs": Answer(
        text="a b",
        logprobs={"content": [{"token": str(i), "logprob": -0.1 * i} for i in range(5)]},
    ),
}


@pytest.mark.parametrize("first_chunk", ["openai", "role-only", "merged"])
@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_the_deltas_add_up_to_the_plain_answer(answer, logprobs, first_chunk):
    fields = {name: getattr(answer, name) for name in answer.__slots__}
    answer = Answer(**fields | {"quirks": Quirks(first_chunk=first_chunk)})
    body = ask(logprobs=logprobs)
    plain = answer.completion(body)["choices"]
    added = assembled(answer.events(body | {"stream": True}))

    assert [c.get("content") for c in added] == [c["message"]["content"] for c in plain]
    assert [c.get("refusal") for c in added] == [c["message"]["refusal"] for c in plain]
    assert [c["finish"] for c in added] == [c["finish_reason"] for c in plain]
    calls = [[c["calls"][i] for i in sorted(c["calls"])] for c in added]
    assert calls == [c["message"].get("tool_calls", []) for c in plain]
    for one, other in zip(added, plain, strict=True):
        wanted = {k: v for k, v in (other["logprobs"] or {}).items() if v}
        assert {k: v for k, v in one["logprobs"].items() if v} == wanted


async def test_a_stream_begins_with_the_role_and_ends_with_the_finish_reason(upstream, client):
    upstream.answer("The answer is 42")
    chunks = await streamed(client, **ask())

    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert deltas[0].content == ""
    assert [d.content for d in deltas[1:-1]] == ["The ", "answer ", "is ", "42"]
    assert deltas[-1].content is None
    assert [c.choices[0].finish_reason for c in chunks] == [None] * 5 + ["stop"]
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


async def test_plain_and_streamed_answers_say_the_same(upstream, client):
    plain = await client.chat.completions.create(**ask("hello"))
    assert joined(await streamed(client, **ask("hello")), "content") == (
        plain.choices[0].message.content
    )


async def test_usage_comes_in_a_last_chunk_of_its_own_if_asked_for(upstream, client):
    plain = await client.chat.completions.create(**ask())
    chunks = await streamed(client, **ask(stream_options={"include_usage": True}))

    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage
    assert all(chunk.usage is None and chunk.choices for chunk in chunks[:-1])


async def test_no_usage_no_usage_chunk(upstream, client):
    upstream.answer(Answer(usage=None))
    chunks = await streamed(client, **ask(stream_options={"include_usage": True}))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


async def test_the_sdk_assembles_a_streamed_tool_call(upstream, client):
    upstream.answer(Answer(tool_calls=[tool_call("weather", {"city": "Paris", "days": 3})]))
    async with client.chat.completions.stream(**ask()) as stream:
        final = await stream.get_final_completion()

    call = final.choices[0].message.tool_calls[0]
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Paris", "days": 3}


async def test_tool_call_deltas_have_index_and_id_first_and_then_pieces(upstream, client):
    calls = [tool_call("one", {"argument": "value"}), tool_call("two", {"argument": "value"})]
    upstream.answer(Answer(tool_calls=calls))
    chunks = await streamed(client, **ask())

    deltas = [d for c in chunks for d in c.choices[0].delta.tool_calls or ()]
    heads = [(d.index, d.id, d.function.name) for d in deltas if d.id]
    assert heads == [(0, calls[0]["id"], "one"), (1, calls[1]["id"], "two")]
    assert all(d.function.name is None for d in deltas if not d.id)
    assert len(deltas) > 4


async def test_choices_take_turns_in_a_stream(upstream, client):
    upstream.answer("a b c")
    chunks = await streamed(client, **ask(n=2))

    assert [c.choices[0].index for c in chunks[:4]] == [0, 1, 0, 1]
    assert joined(chunks, "content", 0) == "a b c"
    assert joined(chunks, "content", 1) == "a b c [1]"


async def test_a_refusal_is_streamed_as_a_refusal(upstream, client):
    upstream.answer(Answer(refusal="I cannot do that."))
    chunks = await streamed(client, **ask())
    assert joined(chunks, "refusal") == "I cannot do that."
    assert all(chunk.choices[0].delta.content is None for chunk in chunks)


async def test_logprobs_are_streamed_with_their_text(upstream, client):
    upstream.answer("six times seven")
    chunks = await streamed(client, **ask(logprobs=True))
    said = [(c.choices[0].delta.content, c.choices[0].logprobs) for c in chunks]
    assert all([t.token for t in probs.content] == [text] for text, probs in said if probs)
    assert sum(probs is not None for _, probs in said) == 3


async def test_an_unfinished_stream_lacks_the_done_event(upstream, client):
    upstream.answer(Answer(text="a b", quirks=Quirks(done=False)))
    assert joined(await streamed(client, **ask()), "content") == "a b"
    assert "[DONE]" not in Answer(quirks=Quirks(done=False)).events(ask())
    assert Answer().events(ask())[-1] == "[DONE]"


async def test_the_quirks_of_other_servers_still_make_streams(upstream, client):
    odd = Quirks(
        empty_choices_first=True,
        first_chunk="role-only",
        usage="finish-chunk",
        comments=True,
        crlf=True,
    )
    upstream.answer(Answer(text="a b", quirks=odd))
    chunks = await streamed(client, **ask())

    assert chunks[0].choices == []
    assert chunks[1].choices[0].delta.content is None
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens > 0
    assert joined(chunks, "content") == "a b"


async def test_a_merged_first_chunk_has_role_and_text(upstream, client):
    upstream.answer(Answer(text="a b", quirks=Quirks(first_chunk="merged")))
    first, *_ = await streamed(client, **ask())
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "a ")


async def test_the_events_of_a_stream_can_be_given_one_by_one(upstream, client):
    events = Answer(text="a b c").events(ask())
    broken = [*events[:2], {"error": {"message": "overloaded", "type": "server_error"}}]
    upstream.answer(Answer(stream_events=broken))

    stream = await client.chat.completions.create(**ask(), stream=True)
    with pytest.raises(openai.APIError, match="overloaded"):
        await rest_of(stream)


async def test_events_may_be_bytes_that_are_no_json(upstream, client):
    upstream.answer(Answer(stream_events=[b"data: {broken\n\n"]))
    stream = await client.chat.completions.create(**ask(), stream=True)
    with pytest.raises(json.JSONDecodeError):
        await rest_of(stream)


# --- holding and timing ---


async def test_a_held_upstream_thinks_until_it_is_told_what_to_say():
    async with ScriptedUpstream(hold=True) as upstream:
        client = upstream.client()
        thinking = asyncio.create_task(client.chat.completions.create(**ask()))
        await upstream.called()
        assert not thinking.done()
        upstream.answer("42")
        assert (await thinking).choices[0].message.content == "42"
        assert upstream.calls == 1


async def test_a_held_upstream_gives_an_answer_scripted_before():
    async with ScriptedUpstream(hold=True) as upstream:
        upstream.answer("42")
        reply = await upstream.client().chat.completions.create(**ask())
        assert reply.choices[0].message.content == "42"


async def test_held_requests_are_answered_in_the_order_of_their_arrival(upstream, client):
    upstream.hold()
    tasks = []
    for number in range(3):
        tasks.append(asyncio.create_task(client.chat.completions.create(**ask(f"{number}"))))
        await upstream.called(number + 1)
    for text in ("a", "b", "c"):
        upstream.answer(text)
    replies = await asyncio.gather(*tasks)
    assert [reply.choices[0].message.content for reply in replies] == ["a", "b", "c"]


async def test_the_end_of_holding_gives_the_default_answer(upstream, client):
    with upstream.hold():
        thinking = asyncio.create_task(client.chat.completions.create(**ask()))
        await upstream.called()
    assert (await thinking).choices[0].message.content == expected_answer(ask())
    assert (await client.chat.completions.create(**ask())).choices


async def test_a_request_whose_client_left_takes_no_answer_along(upstream, client):
    upstream.hold()
    leaving = asyncio.create_task(client.chat.completions.create(**ask()))
    await upstream.called()
    leaving.cancel()
    await upstream.disconnected()

    upstream.answer("42")

    assert (await client.chat.completions.create(**ask())).choices[0].message.content == "42"
    assert upstream.disconnects == 1


async def test_a_gate_holds_one_answer(upstream, client):
    gate = asyncio.Event()
    upstream.answer(Answer(text="slow", gate=gate))
    slow = asyncio.create_task(client.chat.completions.create(**ask()))
    await upstream.called()

    assert (await client.chat.completions.create(**ask())).choices
    assert not slow.done()
    gate.set()
    assert (await slow).choices[0].message.content == "slow"


async def test_a_gate_within_a_stream_lets_the_first_events_pass(upstream, client):
    gate = asyncio.Event()
    upstream.answer(Answer(text="a b c", gate=gate, gate_after=3))
    stream = await client.chat.completions.create(**ask(), stream=True)

    seen = [await anext(stream) for _ in range(3)]
    assert joined(seen, "content") == "a b "
    rest = asyncio.ensure_future(anext(stream))
    assert (await client.chat.completions.create(**ask())).choices  # a round trip later …
    assert not rest.done()  # … nothing more has come
    gate.set()
    assert joined([await rest, *await rest_of(stream)], "content") == "c"


async def test_a_stream_closed_early_is_a_disconnect(upstream, client):
    upstream.answer(Answer(gate=asyncio.Event(), gate_after=1))
    stream = await client.chat.completions.create(**ask(), stream=True)
    await anext(stream)
    await stream.close()
    await upstream.disconnected()
    assert upstream.disconnects == 1


async def test_waiting_for_calls_that_do_not_come_is_bounded(upstream, client):
    await client.chat.completions.create(**ask())
    await upstream.called(1)
    with pytest.raises(TimeoutError, match=r"1 of 2 chat requests within 0\.01 s"):
        await upstream.called(2, timeout_s=0.01)
    with pytest.raises(TimeoutError, match="0 of 1 disconnects"):
        await upstream.disconnected(timeout_s=0.01)


async def test_the_model_takes_its_time(upstream, client):
    upstream.answer(Answer(delay_s=0.05))
    started_s = time.perf_counter()
    await client.chat.completions.create(**ask())
    assert time.perf_counter() - started_s >= 0.05


async def test_delays_may_be_drawn(upstream, client):
    drawn: list[float] = []
    source = random.Random(7)

    def draw() -> float:
        drawn.append(source.uniform(0.001, 0.002))
        return drawn[-1]

    upstream.default = Answer(delay_s=draw)
    await asyncio.gather(*(client.chat.completions.create(**ask()) for _ in range(5)))
    assert len(set(drawn)) == 5


async def test_the_first_token_and_every_chunk_take_their_time(upstream, client):
    upstream.answer(Answer(text="a b", first_token_delay_s=0.05, chunk_delay_s=0.02))
    stream = await client.chat.completions.create(**ask(), stream=True)
    opened_s = time.perf_counter()
    await anext(stream)
    assert time.perf_counter() - opened_s >= 0.04
    assert len(await rest_of(stream)) == 3
    assert time.perf_counter() - opened_s >= 0.04 + 3 * 0.02


# --- faults ---


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_status_is_an_error_of_the_sdk(upstream, client, status, error, stream):
    upstream.answer(Answer(status=status, error="not today"))
    with pytest.raises(error, match="not today") as raised:
        await client.chat.completions.create(**ask(), stream=stream)
    assert raised.value.body["message"] == "not today"


async def test_the_fields_of_an_error_and_its_headers_can_be_scripted(upstream, client):
    upstream.answer(
        Answer(
            status=429,
            error={"code": "insufficient_quota", "type": "insufficient_quota"},
            headers={"Retry-After": "7"},
        )
    )
    with pytest.raises(openai.RateLimitError) as raised:
        await client.chat.completions.create(**ask())
    assert raised.value.code == "insufficient_quota"
    assert raised.value.response.headers["retry-after"] == "7"


async def test_the_sdk_retries_when_the_test_says_so(upstream):
    upstream.answer(Answer(status=500, headers={"retry-after-ms": "1"}))
    reply = await upstream.client(max_retries=1).chat.completions.create(**ask())
    assert reply.choices
    assert upstream.calls == 2
    assert upstream.requests[1].headers["x-stainless-retry-count"] == "1"


async def test_a_connection_cut_within_a_plain_answer(upstream, client):
    upstream.answer(Answer(cut_after=20))
    with pytest.raises(openai.APIConnectionError):
        await client.chat.completions.create(**ask())
    assert (await client.chat.completions.create(**ask())).choices
    assert upstream.disconnects == 0


@pytest.mark.parametrize("within_event", [0, 25])
async def test_a_connection_cut_within_a_stream(upstream, client, within_event):
    events = Answer(text="a b c").events(ask(), answer_id="chatcmpl-1")
    size_bytes = sum(len(testing._answers.encode_event(event)) for event in events[:3])
    upstream.answer(Answer(text="a b c", cut_after=size_bytes + within_event))

    stream = await client.chat.completions.create(**ask(), stream=True)
    seen: list[Any] = []
    with pytest.raises(openai.APIConnectionError):
        await rest_of(stream, seen)
    assert joined(seen, "content") == "a b "


async def test_a_connection_cut_before_the_first_byte_of_the_body(upstream, client):
    upstream.default = Answer(cut_after=0)
    with pytest.raises(openai.APIConnectionError):
        await client.chat.completions.create(**ask())
    with pytest.raises(openai.APIConnectionError):
        await streamed(client, **ask())


async def test_a_connection_dropped_without_an_answer(upstream, client):
    upstream.answer(Answer(drop=True))
    with pytest.raises(openai.APIConnectionError):
        await client.chat.completions.create(**ask())
    assert (upstream.calls, upstream.disconnects) == (1, 0)


async def test_the_body_can_be_any_bytes(upstream, client):
    upstream.answer(Answer(raw_body=b"<html>502 Bad Gateway</html>", status=502))
    upstream.answer(Answer(raw_body=b'{"choices": []}'))
    upstream.answer(Answer(raw_body=b"data: [DONE]\n\n"))

    with pytest.raises(openai.InternalServerError) as raised:
        await client.chat.completions.create(**ask())
    assert raised.value.response.content == b"<html>502 Bad Gateway</html>"
    assert (await client.chat.completions.create(**ask())).choices == []
    assert await streamed(client, **ask()) == []


async def test_a_failing_handler_is_reported_to_the_client(upstream, client, caplog):
    upstream.default = lambda _: 1 / 0
    with pytest.raises(openai.InternalServerError, match="ZeroDivisionError"):
        await client.chat.completions.create(**ask())
    assert "ZeroDivisionError" in caplog.text

    upstream.default = Answer(text="a", chunk_delay_s=lambda: 1 / 0)
    with pytest.raises(openai.APIConnectionError):
        await streamed(client, **ask())


# --- what arrived ---


async def test_requests_are_recorded(upstream, client):
    await client.chat.completions.create(
        **ask("hello", temperature=0),
        extra_headers={"X-Team": "blue"},
        extra_query={"version": "2"},
        extra_body={"custom": [1]},
    )
    (request,) = upstream.requests
    assert (request.method, request.path, request.query) == (
        "POST",
        "/v1/chat/completions",
        "version=2",
    )
    assert request.headers["x-team"] == "blue"
    assert request.headers["authorization"] == "Bearer test"
    assert request.body == ask("hello", temperature=0, custom=[1])
    assert json.loads(request.raw) == request.body
    assert upstream.chat_requests == [request]


async def test_without_recording_the_counts_remain():
    async with ScriptedUpstream(record=False) as upstream:
        client = upstream.client()
        await client.chat.completions.create(**ask())
        await client.embeddings.create(model="e", input="x")
        assert (upstream.calls, upstream.embedding_calls) == (1, 1)
        assert (upstream.requests, upstream.embedding_inputs) == ([], [])


async def test_two_hundred_concurrent_calls_each_get_their_own_answer(upstream, client):
    bodies = [ask(f"question {number}") for number in range(200)]
    with upstream.hold():
        tasks = [asyncio.create_task(client.chat.completions.create(**body)) for body in bodies]
        await upstream.called(200, timeout_s=30)
    replies = await asyncio.gather(*tasks)

    assert [r.choices[0].message.content for r in replies] == [*map(expected_answer, bodies)]
    assert upstream.calls == 200


# --- embeddings ---


async def test_embeddings_are_the_same_in_base64_and_float(upstream, client):
    usual = await client.embeddings.create(model="e", input=["hello world", "bye"])
    floats = await client.embeddings.create(
        model="e", input=["hello world", "bye"], encoding_format="float"
    )
    assert [row.index for row in usual.data] == [0, 1]
    assert len(usual.data[0].embedding) == 1536
    assert [row.embedding for row in usual.data] == [row.embedding for row in floats.data]
    assert usual.usage.prompt_tokens > 0
    assert upstream.requests[0].body["encoding_format"] == "base64"
    assert upstream.calls == 0
    assert upstream.embedding_calls == 2
    assert upstream.embedding_inputs == ["hello world", "bye"] * 2


async def test_embeddings_shorten_as_the_real_ones_do(client):
    long = await client.embeddings.create(model="e", input="hello wide world", dimensions=512)
    short = await client.embeddings.create(model="e", input="hello wide world", dimensions=100)
    start = np.array(long.data[0].embedding[:100])
    np.testing.assert_allclose(
        short.data[0].embedding, start / np.linalg.norm(start), rtol=0, atol=1e-6
    )


async def test_an_embedding_is_the_fake_embedders(client):
    reply = await client.embeddings.create(model="e", input="Hello, World", dimensions=64)
    expected = (await FakeEmbedder().embed(["hello world"]))[0]
    np.testing.assert_array_equal(np.array(reply.data[0].embedding, np.float32), expected)


async def test_embeddings_take_tokens_and_refuse_nothing_at_all(upstream, client):
    one = await client.embeddings.create(model="e", input=[1, 2, 3])
    two = await client.embeddings.create(model="e", input=[[1, 2], [3]])
    assert (len(one.data), len(two.data)) == (1, 2)
    assert upstream.embedding_inputs == ["1 2 3", "1 2", "3"]
    nothings: list[Any] = ["", [], ["a", ""], [{}]]
    for nothing in nothings:
        with pytest.raises(openai.BadRequestError):
            await client.embeddings.create(model="e", input=nothing)


async def test_embeddings_can_be_scripted(upstream, client):
    upstream.embeddings = lambda texts, _: [[float(len(text)), 0.5] for text in texts]
    reply = await client.embeddings.create(model="e", input=["a", "bb"])
    assert [row.embedding for row in reply.data] == [[1.0, 0.5], [2.0, 0.5]]

    upstream.embeddings = lambda _, __: [[float("nan")]]
    reply = await client.embeddings.create(model="e", input=["a", "b"])
    assert len(reply.data) == 1
    assert np.isnan(reply.data[0].embedding).all()


async def test_embeddings_can_fail_and_be_slow(upstream, client):
    gate = asyncio.Event()
    upstream.embeddings = lambda _, __: Answer(status=429)
    with pytest.raises(openai.RateLimitError):
        await client.embeddings.create(model="e", input="a")

    upstream.embeddings = lambda _, __: Answer(gate=gate)
    slow = asyncio.create_task(client.embeddings.create(model="e", input="a", dimensions=8))
    await client.chat.completions.create(**ask())
    assert not slow.done()
    gate.set()
    assert len((await slow).data[0].embedding) == 8


# --- other endpoints, and HTTP itself ---


async def http(upstream: ScriptedUpstream, request: bytes, *, responses: int = 1) -> list[bytes]:
    """Send bytes as they are; return each response whole."""
    port = int(upstream.origin.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return [await read_response(reader) for _ in range(responses)]
    finally:
        writer.close()
        await writer.wait_closed()


async def read_response(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    if b"content-length: " not in head:
        return head + await reader.read()
    length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def test_other_paths_can_be_added(upstream, client):
    async def ollama(body: Any) -> bytes:
        await asyncio.sleep(0)
        return json.dumps({"response": body["prompt"][::-1]}).encode()

    upstream.route("/v1/messages", lambda body: {"said": body})
    upstream.route("/api/generate", ollama)
    upstream.route("/api/tags", lambda body: {"body": body}, method="GET")
    upstream.route("/busy", lambda _: Answer(status=529, error="overloaded"))
    upstream.route("/azure/chat/completions", lambda _: Answer(text="from there"))

    assert (await http(upstream, post("/v1/messages", b"[1]")))[0].endswith(b'{"said":[1]}')
    (generated,) = await http(upstream, post("/api/generate", b'{"prompt": "abc"}'))
    assert generated.endswith(b'{"response": "cba"}')
    (tags,) = await http(upstream, b"GET /api/tags HTTP/1.1\r\nHost: x\r\n\r\n")
    assert tags.endswith(b'{"body":null}')
    (busy,) = await http(upstream, post("/busy", b"{}"))
    assert busy.startswith(b"HTTP/1.1 529 \r\n")
    assert b'"overloaded"' in busy
    there = upstream.client(base_url=f"{upstream.origin}/azure")
    assert (await there.chat.completions.create(**ask())).choices[0].message.content == (
        "from there"
    )
    assert upstream.calls == 0
    assert len(upstream.requests) == 5


async def test_an_unknown_path_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="Unknown request URL") as raised:
        await client.models.list()
    assert raised.value.code == "unknown_url"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"messages": "hello"}', b"\xff"])
async def test_a_body_without_messages_is_refused(upstream, body):
    (response,) = await http(upstream, post("/v1/chat/completions", body))
    assert response.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b'"invalid_request_error"' in response
    assert upstream.calls == 0


async def test_the_wrong_method_is_refused(upstream):
    (response,) = await http(upstream, b"GET /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 405 ")


async def test_a_head_request_gets_no_body(upstream):
    port = int(upstream.origin.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"HEAD /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    response = await reader.read()
    assert b"connection: close" in response
    assert response.endswith(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("noise", [b"\x16\x03\x01\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n"])
async def test_what_is_not_http_is_refused(upstream, noise):
    (response,) = await http(upstream, noise)
    assert response.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in response


async def test_requests_sent_ahead_are_answered_in_turn(upstream):
    bodies = [json.dumps(ask(str(number))).encode() for number in range(3)]
    sent = b"".join(post("/v1/chat/completions", body) for body in bodies)
    responses = await http(upstream, sent, responses=3)
    for body, response in zip(bodies, responses, strict=True):
        assert expected_answer(json.loads(body)).encode() in response


async def test_a_request_may_come_in_pieces(upstream):
    port = int(upstream.origin.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = post("/v1/chat/completions", json.dumps(ask()).encode(), "Expect: 100-continue")
    head, _, body = request.partition(b"\r\n\r\n")
    writer.write(head[:40])
    await upstream.client().embeddings.create(model="e", input="a round trip")
    writer.write(head[40:] + b"\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body[:10])
    await upstream.client().embeddings.create(model="e", input="a round trip")
    writer.write(body[10:])
    assert expected_answer(ask()).encode() in await read_response(reader)
    writer.close()
    await writer.wait_closed()


async def test_an_old_client_gets_a_stream_that_ends_by_closing(upstream):
    body = json.dumps(ask(stream=True)).encode()
    request = post("/v1/chat/completions", body).replace(b"HTTP/1.1", b"HTTP/1.0")
    (response,) = await http(upstream, request)
    assert b"chunked" not in response
    assert response.endswith(b"data: [DONE]\n\n")


async def test_a_large_stream_waits_for_a_slow_reader(upstream, client):
    pieces = ["x" * 100_000] * 100
    upstream.answer(Answer(chunks=pieces))
    assert len(joined(await streamed(client, **ask()), "content")) == 10_000_000


# --- the end ---


async def test_closing_breaks_off_what_is_open():
    upstream = ScriptedUpstream(hold=True)
    await upstream.open()
    client = upstream.client()
    thinking = asyncio.create_task(client.chat.completions.create(**ask()))
    await upstream.called()
    upstream.answer(Answer(gate=asyncio.Event(), gate_after=1))
    upstream.answer(Answer(gate=asyncio.Event(), gate_after=1))
    stream = await client.chat.completions.create(**ask(), stream=True)
    await anext(stream)

    await upstream.aclose()
    await upstream.aclose()

    with pytest.raises(openai.APIConnectionError):
        await thinking
    with pytest.raises(openai.APIConnectionError):
        await anext(stream)
    assert client.is_closed()
    assert upstream.disconnects == 0


async def test_the_port_is_free_after_closing():
    async with ScriptedUpstream() as upstream:
        port = int(upstream.origin.rsplit(":", 1)[1])
        await upstream.client().chat.completions.create(**ask())
    async with ScriptedUpstream(port=port) as successor:
        assert successor.base_url == upstream.base_url


async def test_before_it_is_opened_it_has_no_address():
    upstream = ScriptedUpstream()
    with pytest.raises(RuntimeError, match="before open"):
        _ = upstream.base_url
    await upstream.aclose()
    async with ScriptedUpstream() as opened:
        with pytest.raises(RuntimeError, match="opened before"):
            await opened.open()


@pytest.mark.parametrize("how", ["stdin", "sigterm"])
def test_it_serves_from_a_process_of_its_own(how):
    arguments = ["--delay-ms", "10", "--jitter-ms", "5", "--embedding-ms", "1"]
    arguments += ["--dimensions", "32"]
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "llm_cache.testing", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    url = process.stdout.readline().decode().strip()
    with openai.OpenAI(base_url=url, api_key="test", max_retries=0) as client:
        reply = client.chat.completions.create(**ask("hello"))
        assert reply.choices[0].message.content == expected_answer(ask("hello"))
        vectors = client.embeddings.create(model="e", input="hello").data
        assert len(vectors[0].embedding) == 32
        stats: Any = client.get(f"{url.removesuffix('/v1')}/stats", cast_to=object)
        assert stats == {"calls": 1, "embedding_calls": 1, "disconnects": 0}
    if how == "sigterm":
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    assert errors == b""


# --- the embedder ---


def cosine(a: Any, b: Any) -> float:
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


async def test_texts_of_the_same_words_are_close():
    embedder = FakeEmbedder()
    near, same, other = await embedder.embed(
        ["What is the capital of France?", "of france, the CAPITAL is what", "Bake some bread"]
    )
    assert cosine(near, same) == pytest.approx(1.0)
    assert abs(cosine(near, other)) < 0.5
    more = embedder.vector("What is the capital of France today?")
    assert 0.8 < cosine(near, more) < 1.0


@pytest.mark.parametrize("dimensions", [1, 2, 7, 64, 1536])
async def test_vectors_have_unit_length_and_the_stated_shape(dimensions):
    embedder = FakeEmbedder(dimensions)
    vectors = await embedder.embed(["hello", "", "?!", "a b c d e f g", "😀"])
    assert vectors.shape == (5, dimensions)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert (await embedder.embed([])).shape == (0, dimensions)


def test_vectors_are_the_same_in_every_process():
    assert FakeEmbedder(8).vector("hello").tolist() == pytest.approx(
        [(1 if sign == "+" else -1) / 8**0.5 for sign in "---+--+-"]
    )


@pytest.mark.parametrize("similarity", [-1.0, -0.3, 0.0, 0.8999, 0.9, 0.9001, 0.97, 1.0])
@pytest.mark.parametrize("dimensions", [2, 3, 64, 1536])
async def test_two_texts_can_be_placed_at_an_exact_similarity(similarity, dimensions):
    embedder = FakeEmbedder(dimensions)
    before = embedder.vector("one text")
    embedder.similar("one text", "quite another", similarity)
    a, b = await embedder.embed(["one text", "quite another"])
    assert cosine(a, b) == pytest.approx(similarity, abs=1e-6)
    np.testing.assert_array_equal(a, before)
    assert np.linalg.norm(b) == pytest.approx(1.0, abs=1e-6)


def test_several_texts_placed_around_one_go_in_different_directions():
    embedder = FakeEmbedder()
    embedder.similar("a", "b", 0.95)
    embedder.similar("a", "c", 0.95)
    embedder.similar("b", "d", 0.9)
    assert cosine(embedder.vector("b"), embedder.vector("c")) < 0.95
    assert cosine(embedder.vector("b"), embedder.vector("d")) == pytest.approx(0.9, abs=1e-6)


def test_a_text_is_placed_even_where_its_own_direction_is_taken():
    embedder = FakeEmbedder()
    embedder.set("a", embedder.vector("b"))  # "b" has nothing of its own left
    embedder.similar("a", "b", 0.5)
    assert cosine(embedder.vector("a"), embedder.vector("b")) == pytest.approx(0.5, abs=1e-6)


def test_a_vector_can_be_set_and_is_left_as_it_is():
    embedder = FakeEmbedder(2)
    embedder.set("a", [3, 4])
    assert embedder.vector("a").tolist() == [3.0, 4.0]
    with pytest.raises(ValueError, match="shape"):
        embedder.set("a", [1, 2, 3])
    with pytest.raises(ValueError, match="between -1 and 1"):
        embedder.similar("a", "b", 1.01)
    with pytest.raises(ValueError, match="two different"):
        embedder.similar("a", "a", 0.5)
    with pytest.raises(ValueError, match="at least 1"):
        FakeEmbedder(0)


async def test_the_embedder_counts_waits_and_fails_as_told():
    gate = asyncio.Event()
    embedder = FakeEmbedder(4, gate=gate)
    embedding = asyncio.create_task(embedder.embed(["a", "b"]))
    await embedder.called()
    assert not embedding.done()
    gate.set()
    await embedding

    embedder.fail_with = ConnectionError("no network")
    with pytest.raises(ConnectionError, match="no network"):
        await embedder.embed(["c"])
    embedder.fail_with = None
    embedder.returns = np.full((1, 4), np.nan, np.float32)
    assert await embedder.embed(["d"]) is embedder.returns

    assert embedder.calls == 3
    assert embedder.texts == ["a", "b", "c", "d"]
    with pytest.raises(TimeoutError):
        await embedder.called(4, timeout_s=0.01)


async def test_without_recording_the_embedder_counts_its_calls_all_the_same():
    embedder = FakeEmbedder(record=False)
    await embedder.embed(["x"])
    assert (embedder.calls, embedder.texts) == (1, [])


def test_the_embedder_says_what_it_is():
    embedder = FakeEmbedder(8, model_id="toy", similarity_threshold=0.5)
    assert (embedder.model_id, embedder.dimensions) == ("toy", 8)
    assert embedder.similarity_threshold == 0.5


# --- clock and hook ---


def test_the_clock_moves_when_told_to():
    clock = FakeClock(100)
    assert clock() == 100.0
    clock.advance(2.5)
    clock.advance(-0.5)
    assert clock() == 102.0


def test_the_hook_keeps_events_by_type():
    hook = RecordingHook()
    with pytest.raises(LookupError):
        _ = hook.last
    for event in (1, "a", True, 2):
        hook(event)
    assert hook.events == [1, "a", True, 2]
    assert hook.of(str) == ["a"]
    assert hook.of(int) == [1, True, 2]
    assert hook.last == 2


def test_every_public_name_is_exported():
    public = {name for name in dir(testing) if not name.startswith("_")} - {"annotations"}
    assert sorted(testing.__all__) == list(testing.__all__)
    assert set(testing.__all__) == public
