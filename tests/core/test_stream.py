"""What the stream adds up to is compared with the SDK's own accumulator throughout."""

import copy
import itertools
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from llm_cache._core.policy import refusal
from llm_cache._core.stream import Accumulator, replay
from llm_cache.testing import Answer, Choice, Quirks, tool_call

Json = dict[str, Any]

CALLS = [
    tool_call("get_weather", {"city": "Île-de-France", "days": 3}),
    tool_call("get_time", "not { JSON"),
    tool_call("stop", "{}"),
]
CUSTOM = {"id": "c1", "type": "custom", "custom": {"name": "sql", "input": "select 1\nfrom t"}}
TOKENS = [
    {"token": word, "logprob": -0.1, "bytes": list(word.encode()), "top_logprobs": []}
    for word in ("Gr", "üße", ",\n", "  you 🙂")
]
ANSWERS = {
    "text": Answer(text="Grüße,\n\n  you 🙂 and you\n"),
    "default": Answer(),
    "empty text": Answer(text=""),
    "long text": Answer(text="A long text, without an end in sight. " * 30),
    "tool call": Answer(tool_calls=CALLS[:1]),
    "parallel tool calls": Answer(tool_calls=CALLS),
    "text and tool calls": Answer(text="Let me see.", tool_calls=CALLS),
    "refusal": Answer(refusal="I cannot help with that."),
    "n": Answer(text="one", n=3),
    "mixed choices": Answer(
        choices=[
            Choice(text="one two three"),
            Choice(tool_calls=CALLS),
            Choice(refusal="I'd rather not."),
        ]
    ),
    "logprobs": Answer(text="Grüße,\n  you 🙂", logprobs={"content": TOKENS, "refusal": None}),
    "logprobs of another text": Answer(text="x", logprobs={"content": TOKENS, "refusal": None}),
    "logprobs of nothing": Answer(text="x", logprobs={"content": [], "refusal": None}),
    "logprobs of two": Answer(text="one two", refusal="no no no", n=2),
    "no usage": Answer(text="x", usage=None),
}
BODIES: list[Json] = [{}, {"stream_options": {"include_usage": True}}, {"logprobs": True}]
QUIRKS = [
    Quirks(),
    Quirks(first_chunk="role-only", empty_choices_first=True),
    Quirks(first_chunk="merged", usage="finish-chunk"),
    Quirks(usage="finish-chunk", empty_choices_first=True),
]

answers = pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
bodies = pytest.mark.parametrize("extra", BODIES, ids=["bare", "usage", "logprobs"])


def body(extra: Json | None = None) -> Json:
    return {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **(extra or {})}


def live(answer: Answer, request: Json) -> list[Json]:
    """The chunks of a live stream, on their way through the SDK."""
    events = [event for event in answer.events(request) if isinstance(event, dict)]
    return [ChatCompletionChunk.construct(**e).model_dump(exclude_unset=True) for e in events]


def without_annotations(completion: Json) -> Json:
    completion = copy.deepcopy(completion)
    for choice in completion["choices"]:
        assert choice["message"].pop("annotations") == []
    return completion


def meant(value: Any) -> Any:
    """*value* without what is null or has nothing in it: no SDK tells these from each other."""
    if isinstance(value, dict):
        members = {name: meant(member) for name, member in value.items()}
        return {name: member for name, member in members.items() if member not in (None, {}, [])}
    return [meant(item) for item in value] if isinstance(value, list) else value


def added(chunks: Iterable[Json], **expected: Any) -> Json | None:
    accumulator = Accumulator()
    for chunk in chunks:
        accumulator.add(chunk)
    return accumulator.completion(**expected)


def problem(*chunks: Any) -> str | None:
    accumulator = Accumulator()
    for chunk in chunks:
        accumulator.add(chunk)
    assert (accumulator.problem is None) or accumulator.completion() is None
    return accumulator.problem


def added_by_sdk(chunks: Iterable[Json]) -> Json:
    """What the SDK makes of *chunks*, less the `index` that it leaves in tool calls."""
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.construct(**chunk))
    made: Json = meant(state.get_final_completion().to_dict())
    for choice in made["choices"]:
        for call in choice["message"].get("tool_calls", []):
            del call["index"]
    return made


def delta(text: str | None = None, index: Any = 0, **part: Any) -> Json:
    said = {} if text is None else {"content": text}
    given = {"index": index, "delta": said, "finish_reason": None, **part}
    return {"id": "1", "created": 1, "model": "m", "choices": [given]}


FINISH = delta(finish_reason="stop")


def said_by(*chunks: Json, **expected: Any) -> Json:
    """The first choice's message, of chunks that miss nothing but the finish."""
    made = added([*chunks, FINISH], **expected)
    assert made is not None
    message: Json = made["choices"][0]["message"]
    return message


# What was said, three ways


@answers
@bodies
@pytest.mark.parametrize("quirks", QUIRKS, ids=range(len(QUIRKS)))
def test_stream_adds_up_to_the_plain_answer(answer, extra, quirks):
    request = body(extra)
    expected = answer.completion(request)
    if quirks.usage == "own-chunk" and "stream_options" not in extra:
        expected.pop("usage", None)
    made = added(live(replace(answer, quirks=quirks), request), choices=len(expected["choices"]))
    assert meant(made) == meant(expected)


@answers
@bodies
def test_accumulator_agrees_with_the_sdk_on_live_streams(answer, extra):
    chunks = live(answer, body(extra))
    made = added(chunks, choices=len(answer.completion(body(extra))["choices"]))
    assert meant(made) == added_by_sdk(chunks)


@answers
@bodies
@pytest.mark.parametrize("stored_from", ["live", "plain"])
def test_sdk_cannot_tell_the_replay_from_the_live_stream(answer, extra, stored_from):
    request, asked = body(extra), "stream_options" in extra
    chunks, stored = live(answer, request), answer.completion(request)
    if stored_from == "live":
        stored = added(chunks, choices=len(stored["choices"]))
    replayed = list(replay(stored, include_usage=asked))
    assert added_by_sdk(replayed) == added_by_sdk(chunks)


@answers
@bodies
def test_replay_adds_up_to_what_was_stored(answer, extra):
    stored = answer.completion(body(extra))
    made = added(replay(stored, include_usage=True), choices=len(stored["choices"]))
    assert made == without_annotations(stored)


def test_custom_tool_calls_go_both_ways():
    answer = Answer(tool_calls=[CUSTOM, CALLS[0]])
    expected = without_annotations(answer.completion(body()))
    assert added(replay(expected, include_usage=True)) == expected
    made = added(live(answer, body()))
    assert made is not None
    assert made["choices"] == expected["choices"]


def test_function_call_of_old_goes_both_ways():
    call = {"name": "f", "arguments": '{"a": "b c d"}'}
    chunks = [
        delta(delta={"role": "assistant", "content": None}),
        delta(delta={"function_call": {"name": "f", "arguments": ""}}),
        *(delta(delta={"function_call": {"arguments": c}}) for c in call["arguments"]),
        delta(finish_reason="function_call"),
    ]
    made = added(chunks)
    assert made is not None
    assert made["choices"][0]["message"]["function_call"] == call
    assert added(replay(made, include_usage=False)) == made
    assert added_by_sdk(replay(made, include_usage=False)) == meant(made)


def test_fields_of_providers_get_through():
    message = {
        "role": "assistant",
        "content": "42",
        "reasoning_content": "Six times nine, or so.",
        "reasoning_details": [{"type": "reasoning.text", "text": "Six", "index": 0}],
        "annotations": [{"type": "url_citation", "url_citation": {"url": "u"}}],
        "audio": {"id": "a", "data": "AAAA", "expires_at": 5, "transcript": "42"},
        "tool_calls": None,
        "name": "deep thought",
    }
    choice = {"index": 0, "message": message, "finish_reason": "stop", "stop_reason": 7}
    stored: Json = {
        "id": "1",
        "created": 1,
        "model": "m",
        "citations": ["u"],
        "x_groq": {"id": "r"},
    }
    stored |= {"object": "chat.completion", "choices": [{**choice, "token_ids": [1, 2]}]}
    assert added(replay(stored, include_usage=False)) == stored
    assert added_by_sdk(replay(stored, include_usage=False))["citations"] == ["u"]


@given(text=st.text(), cuts=st.lists(st.integers(0, 50)))
def test_any_split_of_a_text_adds_up_to_it(text, cuts):
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds)]
    assert said_by(*map(delta, pieces)) == {"role": "assistant", "content": text}


# Any completion


TEXTS = st.text(max_size=40) | st.text("ab \n", max_size=600)
NAMES = st.text(min_size=1, max_size=8)
TOOL_CALLS = st.one_of(
    st.builds(
        lambda name, text: {"type": "function", "function": {"name": name, "arguments": text}},
        NAMES,
        TEXTS,
    ),
    st.builds(
        lambda name, text: {"type": "custom", "custom": {"name": name, "input": text}},
        NAMES,
        TEXTS,
    ),
)
IDENTIFIED = st.builds(lambda name, call: {"id": name, **call}, NAMES, TOOL_CALLS)
PROBS = st.builds(lambda word: {"token": word, "logprob": -1.5}, st.text(max_size=5))
LOGPROBS = st.none() | st.fixed_dictionaries(
    {"content": st.none() | st.lists(PROBS), "refusal": st.none() | st.lists(PROBS)}
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.none() | TEXTS},
    optional={
        "refusal": st.none() | TEXTS,
        "tool_calls": st.none() | st.lists(IDENTIFIED, max_size=3),
        "function_call": st.none() | st.fixed_dictionaries({"name": NAMES, "arguments": TEXTS}),
        "reasoning_content": st.none() | TEXTS,
        "audio": st.fixed_dictionaries({"id": NAMES, "data": TEXTS}),
    },
)


@st.composite
def choices(draw: st.DrawFn, index: int) -> Json:
    choice: Json = {"index": index, "message": draw(MESSAGES)}
    if draw(st.booleans()):
        choice["logprobs"] = draw(LOGPROBS)
    if draw(st.booleans()):  # the tokens of the text, as most servers send them
        probs = draw(st.lists(PROBS, max_size=300))
        choice["message"]["content"] = "".join(prob["token"] for prob in probs)
        choice["logprobs"] = {"content": probs, "refusal": None}
    reason = draw(st.sampled_from(["stop", "tool_calls", "length", "whatever"]))
    return {**choice, "finish_reason": reason}


@st.composite
def completions(draw: st.DrawFn) -> Json:
    count = draw(st.integers(1, 3))
    made: Json = {"id": draw(NAMES), "object": "chat.completion", "created": 1, "model": "m"}
    made["choices"] = [draw(choices(index)) for index in range(count)]
    made |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "usage": st.fixed_dictionaries({"total_tokens": st.integers(0)}),
                "system_fingerprint": st.none() | NAMES,
                "service_tier": st.sampled_from(["default", "flex"]),
                "provider": NAMES,
            },
        )
    )
    return made


@given(completions())
def test_any_completion_survives_its_replay(stored):
    before = copy.deepcopy(stored)
    made = added(replay(stored, include_usage=True), choices=len(stored["choices"]))
    assert made == stored == before


@given(completions())
def test_sdk_makes_of_any_replay_what_was_stored(stored):
    for choice in stored["choices"]:
        choice["finish_reason"] = "stop"  # for two of the others the SDK raises
        calls = choice["message"].get("tool_calls") or []
        assume(all(call["type"] == "function" for call in calls))  # it drops the others
    assert added_by_sdk(replay(stored, include_usage=True)) == meant(stored)


def text_of(replayed: list[Json]) -> str:
    """Return the text of the first choice."""
    parts = [part for chunk in replayed for part in chunk["choices"] if part["index"] == 0]
    return "".join(part["delta"].get("content") or "" for part in parts)


@given(completions(), st.booleans())
def test_chunks_are_what_the_sdk_takes_for_chunks(stored, include_usage):
    replayed = list(replay(stored, include_usage=include_usage))
    assert len({json.dumps([c["id"], c["created"], c["model"]]) for c in replayed}) == 1
    for chunk in replayed:
        assert chunk["object"] == "chat.completion.chunk"
        assert ("usage" in chunk) == include_usage
        ChatCompletionChunk.construct(**chunk)
    assert text_of(replayed) == (stored["choices"][0]["message"]["content"] or "")


@given(completions(), st.data())
def test_stream_without_its_tail_is_no_answer(stored, data):
    chunks = list(replay(stored, include_usage=True))
    if "usage" not in stored:
        chunks.append({**chunks[0], "choices": [], "usage": {"total_tokens": 1}})
    kept = data.draw(st.integers(0, len(chunks) - 1))
    count = len(stored["choices"])
    assert added(chunks[:kept], choices=count, usage_expected=True) is None
    made = added(chunks[:kept], choices=count)
    if kept < len(chunks) - 1:
        assert made is None
    else:
        assert made is not None
        assert made["choices"] == stored["choices"]


@pytest.mark.parametrize("strict", [False, True])
@answers
def test_replay_is_valid_by_the_types_of_the_sdk(answer, strict):
    for chunk in replay(answer.completion(body()), include_usage=True):
        ChatCompletionChunk.model_validate(chunk, strict=strict)


# What is missing


def test_stream_is_complete_with_its_last_finish_reason():
    chunks = live(Answer(text="one two", n=2), body())
    assert added(chunks, choices=2) is not None
    assert added(chunks[:-1], choices=2) is None


@pytest.mark.parametrize("asked", [0, 1, 3])
def test_stream_has_as_many_choices_as_were_asked_for(asked):
    chunks = live(Answer(text="one", n=2), body())
    assert added(chunks, choices=2) is not None
    assert added(chunks, choices=asked) is None


def test_usage_is_waited_for_where_it_was_asked_for():
    chunks = live(Answer(), body({"stream_options": {"include_usage": True}}))
    assert added(chunks, usage_expected=True) is not None
    assert added(chunks[:-1], usage_expected=True) is None
    assert added(chunks[:-1]) is not None


def test_nothing_is_no_answer():
    assert added([]) is None
    assert added([{}, {"choices": []}, {"choices": None}]) is None


@pytest.mark.parametrize("empty", [None, ""])
def test_empty_finish_reason_is_none(empty):
    assert added([delta("a"), delta(finish_reason=empty)]) is None


# Streams of other servers


def test_choices_may_come_in_any_order():
    chunks = live(Answer(text="one", n=3), body())
    expected = added(chunks, choices=3)
    by_choice = sorted(chunks, key=lambda chunk: -chunk["choices"][0]["index"])
    assert added(by_choice, choices=3) == expected


def test_several_choices_may_share_a_chunk():
    chunks = live(Answer(choices=[Choice(text="one two")] * 2), body())
    pairs = zip(chunks[::2], chunks[1::2], strict=True)
    shared = [{**a, "choices": a["choices"] + b["choices"]} for a, b in pairs]
    assert added(shared, choices=2) == added(chunks, choices=2)


def test_single_choice_needs_no_index():
    chunk = delta("42", finish_reason="stop")
    del chunk["choices"][0]["index"]
    made = added([chunk])
    assert made is not None
    assert made["choices"][0]["index"] == 0
    assert made["choices"][0]["message"]["content"] == "42"
    assert added([chunk, delta("43", 1, finish_reason="stop")], choices=2) is None


def test_role_repeated_in_every_chunk_is_one_role():
    chunks = [delta(delta={"role": "assistant", "content": word}) for word in "abc"]
    assert said_by(*chunks) == {"role": "assistant", "content": "abc"}


@pytest.mark.parametrize("said", [{}, {"role": None}, {"role": ""}])
def test_role_that_was_never_sent_is_the_assistants(said):
    assert said_by(delta(delta=said), delta("a"))["role"] == "assistant"


@pytest.mark.parametrize("nothing", [{}, None])
def test_deltas_may_be_empty(nothing):
    assert said_by(delta("a"), delta(delta=nothing), delta("b"))["content"] == "ab"


def test_first_chunk_without_identity_leaves_it_to_the_next():
    first = {"id": "", "created": 0, "model": "", "object": "", "choices": []}
    made = added([{**first, "prompt_filter_results": [1]}, delta("a"), FINISH])
    assert made is not None
    assert (made["id"], made["created"], made["model"]) == ("1", 1, "m")
    assert made["prompt_filter_results"] == [1]


def test_identity_that_changes_is_that_of_the_first_chunk():
    made = added([delta("a"), {**FINISH, "id": "2", "created": 2, "model": "m2"}])
    assert made is not None
    assert (made["id"], made["created"], made["model"]) == ("1", 1, "m")


def test_usage_that_is_counted_up_is_the_last():
    chunks = [{**delta("a"), "usage": {"total_tokens": 1}}, {**FINISH, "usage": {"total": 2}}]
    made = added([*chunks, {"choices": [], "usage": None}], usage_expected=True)
    assert made is not None
    assert made["usage"] == {"total": 2}


def test_fields_of_the_choice_are_the_last_and_lists_grow():
    first = delta("a", token_ids=[1], stop_reason=None, content_filter_results={})
    second = delta("b", token_ids=[2, 3], content_filter_results={"hate": False})
    made = added([first, second, {**FINISH, "choices": [{**FINISH["choices"][0], "x": 1}]}])
    assert made is not None
    expected = {"token_ids": [1, 2, 3], "stop_reason": None, "x": 1}
    assert made["choices"][0].items() >= expected.items()
    assert made["choices"][0]["content_filter_results"] == {"hate": False}


def test_padding_of_the_chunks_is_not_part_of_the_answer():
    made = added([{**delta("a"), "obfuscation": "xyz"}, FINISH])
    assert made is not None
    assert "obfuscation" not in made


def test_reasoning_is_joined_and_its_parts_are_merged_by_index():
    def thought(text: str) -> Json:
        part = {"type": "reasoning.text", "text": text, "format": "f-v1", "index": 0}
        return delta(delta={"reasoning": text, "reasoning_details": [part]})

    message = said_by(thought("Six "), thought("times"), delta("42"))
    assert message["reasoning"] == "Six times"
    whole = {"type": "reasoning.text", "text": "Six times", "format": "f-v1", "index": 0}
    assert message["reasoning_details"] == [whole]


def call_delta(index: Any = 0, **call: Any) -> Json:
    return delta(delta={"tool_calls": [{"index": index, **call}]})


def test_head_of_a_tool_call_may_be_repeated():
    pieces = [call_delta(id="1", function={"name": "f", "arguments": part}) for part in "{}"]
    [call] = said_by(*pieces)["tool_calls"]
    assert call == {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def test_tool_calls_are_ordered_by_index_wherever_they_begin():
    calls = [call_delta(at, id=str(at), function={"name": "f"}) for at in (2, 1)]
    made = said_by(*calls)["tool_calls"]
    assert [call["id"] for call in made] == ["1", "2"]
    assert made[0]["function"]["arguments"] == ""


def test_finish_reason_may_be_repeated():
    assert added([delta("a"), FINISH, FINISH]) == added([delta("a"), FINISH])


def test_audio_may_say_when_it_expires_after_the_finish():
    chunks = [delta(delta={"audio": {"id": "a", "data": "AA"}}), FINISH]
    made = added([*chunks, delta(delta={"audio": {"expires_at": 9}})])
    assert made is not None
    audio = made["choices"][0]["message"]["audio"]
    assert audio == {"id": "a", "data": "AA", "expires_at": 9}


# Streams that cannot be stored


def nested(depth: int) -> Json:
    value: Json = {}
    for _ in range(depth):
        value = {"a": value}
    return delta(delta=value)


@pytest.mark.parametrize(
    ("chunks", "says"),
    [
        (["x"], "not an object"),
        ([{"choices": "x"}], "not a list"),
        ([{"choices": ["x"]}], "not an object"),
        ([delta(delta="x")], "delta"),
        ([delta("a", -1)], "index"),
        ([delta("a", "0")], "index"),
        ([delta("a", True)], "index"),
        ([delta("a", 0.0)], "index"),
        ([delta("a", [])], "index"),
        ([{"choices": [{"delta": {}}, {"delta": {}}]}], "index"),
        ([delta(delta=None, message={"content": "x"})], "message"),
        ([delta(finish_reason=1)], "finish reason"),
        ([delta(logprobs=[])], "logprobs"),
        ([{"usage": 3}], "usage"),
        ([delta("a"), delta(delta={"content": ["b"]})], "content changes its type"),
        ([delta(delta={"content": {}}), delta("a")], "content changes its type"),
        ([delta(delta={"x": 1}), delta(delta={"x": []})], "x changes its type"),
        ([delta(delta={"x": []}), delta(delta={"x": 1})], "x changes its type"),
        ([delta(delta={"tool_calls": {"a": 1}})], "tool_calls"),
        ([delta(delta={"tool_calls": ["a"]})], "tool_calls"),
        ([call_delta(None, id="1")], "index"),
        ([call_delta(id="1"), call_delta(id="2")], "id changes"),
        ([call_delta(function={"name": "f"}), call_delta(function={"name": "g"})], "name changes"),
        ([call_delta(id="1", function={"arguments": "{}"}), FINISH], "no name"),
        ([call_delta(id="1"), FINISH], "no name"),
        ([{"error": {"message": "overloaded"}}], "error"),
        ([delta(error={"code": 502}, finish_reason="error")], "error"),
        ([delta("a", finish_reason="stop"), delta("b")], "goes on"),
        ([FINISH, call_delta(id="1")], "goes on"),
        ([FINISH, delta(delta={"reasoning": "hm"})], "goes on"),
        ([FINISH, delta(finish_reason="content_filter")], "finish reason"),
        ([nested(40)], "nested"),
    ],
)
def test_stream_with_a_problem_is_not_stored(chunks, says):
    assert says in (problem(*chunks, delta("a", finish_reason="stop")) or "")


def test_problem_stays():
    assert problem({"choices": "x"}, delta("a"), FINISH) == problem({"choices": "x"})


def test_problem_does_not_quote_the_answer():
    assert "secret" not in (problem(delta("secret"), delta(delta={"content": ["secret"]})) or "")


@pytest.mark.parametrize("depth", [32, 33])
def test_nesting_has_a_limit(depth):
    assert (problem(nested(depth)) is None) == (depth == 32)


FIELDS = st.sampled_from(["index", "role", "content", "tool_calls", "function", "name", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | st.sampled_from(["", "a"]),
    lambda value: st.lists(value, max_size=3) | st.dictionaries(FIELDS, value, max_size=4),
    max_leaves=12,
)
PARTS = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(0, 1) | JSON,
        "delta": st.dictionaries(FIELDS, JSON, max_size=3) | JSON,
        "finish_reason": st.sampled_from([None, "stop"]) | JSON,
        "logprobs": JSON,
        "message": JSON,
        "x": JSON,
    },
)
CHUNKS = st.fixed_dictionaries(
    {},
    optional={"choices": st.lists(PARTS, max_size=2) | JSON, "usage": JSON, "id": JSON, "x": JSON},
)


@given(st.lists(CHUNKS | JSON, max_size=6))
def test_no_chunk_is_an_error(chunks):
    before = copy.deepcopy(chunks)
    accumulator = Accumulator()
    for chunk in chunks:
        accumulator.add(chunk)
    made = accumulator.completion()
    assert repr(chunks) == repr(before)
    if made is not None:
        assert refusal(made) != "malformed"
        list(replay(made, include_usage=True))


# The shape of a replay


def test_replay_begins_with_the_role_and_ends_with_the_reason():
    stored = Answer(text="one two").completion(body())
    parts = [chunk["choices"][0] for chunk in replay(stored, include_usage=False)]
    assert [part["delta"] for part in parts] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "one "},
        {"content": "two"},
        {},
    ]
    assert [part["finish_reason"] for part in parts] == [None, None, None, "stop"]


def test_tool_calls_begin_with_what_they_are():
    stored = Answer(tool_calls=CALLS[:1]).completion(body())
    first, second = list(replay(stored, include_usage=False))[1:3]
    [head] = first["choices"][0]["delta"]["tool_calls"]
    assert head["function"] == {"name": "get_weather", "arguments": ""}
    assert second["choices"][0]["delta"]["tool_calls"][0].keys() == {"index", "function"}


def test_choices_of_a_replay_take_turns():
    stored = Answer(text="one", n=2).completion(body())
    replayed = replay(stored, include_usage=False)
    assert [chunk["choices"][0]["index"] for chunk in replayed][:6] == [0, 1] * 3


@pytest.mark.parametrize("asked", [False, True])
def test_usage_comes_last_and_only_when_asked_for(asked):
    stored = Answer().completion(body())
    *others, last = replay(stored, include_usage=asked)
    assert (last["choices"] == [] and last["usage"] == stored["usage"]) == asked
    assert all(chunk.get("usage", 0) == (None if asked else 0) for chunk in others)


def test_unknown_usage_is_not_made_up():
    stored = Answer(usage=None).completion(body())
    assert all(chunk["choices"] for chunk in replay(stored, include_usage=True))


def test_fingerprint_and_tier_are_on_every_chunk():
    for chunk in replay(Answer().completion(body()), include_usage=True):
        assert (chunk["system_fingerprint"], chunk["service_tier"]) == ("fp_scripted", "default")


def test_answer_without_an_identity_has_an_empty_one():
    stored = {"choices": [{"message": {"content": "42"}, "finish_reason": "stop"}]}
    replayed = list(replay(stored, include_usage=False))
    assert {(c["id"], c["created"], c["model"]) for c in replayed} == {("", 0, "")}
    ChatCompletionChunk.model_validate(replayed[0])
    final = added_by_sdk(replayed)["choices"][0]
    assert final["message"]["content"] == "42"


def test_logprobs_come_with_their_tokens():
    answer = Answer(text="one two", logprobs=None)
    stored = answer.completion(body({"logprobs": True}))
    parts = [chunk["choices"][0] for chunk in replay(stored, include_usage=False)]
    tokens = [(part["logprobs"] or {}).get("content") for part in parts]
    assert [t and t[0]["token"] for t in tokens] == [None, "one ", "two", None]


@pytest.mark.parametrize(
    "text",
    ["a" * 100_000, "ab " * 40_000, " " * 5_000, "\n\n" + "a \n" * 999, "", "a", "你好" * 5_000],
)
def test_pieces_are_few_and_join_to_the_text(text):
    stored = {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]}
    replayed = list(replay(stored, include_usage=False))
    assert text_of(replayed) == text
    assert len(replayed) <= 256 + 2


@given(st.text(max_size=2_000))
def test_no_text_has_too_many_pieces(text):
    stored = {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]}
    assert len(list(replay(stored, include_usage=False))) <= 256 + 2


@pytest.mark.parametrize("count", [256, 257, 5_000])
def test_many_tokens_share_chunks(count):
    probs = [{"token": "a", "logprob": 0.0}] * count
    logprobs = {"content": probs, "refusal": None}
    message = {"role": "assistant", "content": "a" * count}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}
    replayed = list(replay({"choices": [choice]}, include_usage=False))
    assert len(replayed) <= 256 + 2
    made = added(replayed)
    assert made is not None
    assert made["choices"] == [choice]


@pytest.mark.parametrize("indexes", [(1, 0), (0, 0), (None, None), ("a", []), (5, 6)])
def test_replay_begins_with_the_first_choice(indexes):
    parts = [{"index": i, "message": {"content": "x"}, "finish_reason": "stop"} for i in indexes]
    replayed = list(replay({"choices": parts}, include_usage=False))
    assert [chunk["choices"][0]["index"] for chunk in replayed][:2] == [0, 1]
    assert added(replayed, choices=2) is not None


@pytest.mark.parametrize(
    "message",
    [
        None,
        "x",
        {"content": [{"type": "text", "text": "a"}]},
        {"tool_calls": {"a": 1}},
        {"tool_calls": ["a"]},
        {"tool_calls": [{"type": "x"}]},
        {"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        {"function_call": "f"},
    ],
)
def test_odd_messages_are_replayed_as_well_as_can_be(message):
    choice = {"index": 0, "message": message, "logprobs": "x", "finish_reason": "stop"}
    replayed = list(replay({"choices": [choice]}, include_usage=False))
    for name in message if isinstance(message, dict) else ():
        assert any(chunk["choices"][0]["delta"].get(name) for chunk in replayed)


def test_structured_content_goes_both_ways():
    message = {"role": "assistant", "content": [{"type": "text", "text": "a"}]}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    made = added(replay({"choices": [choice]}, include_usage=False))
    assert made is not None
    assert made["choices"] == [choice]


def test_stored_answer_is_the_sdks_completion():
    made = added(live(Answer(tool_calls=CALLS), body()))
    assert ChatCompletion.model_validate(made).choices[0].message.tool_calls
