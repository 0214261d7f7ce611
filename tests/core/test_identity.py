"""What identifies a request: every part of it, and nothing else.

The named tests are failures that other caches have shipped.
"""

import inspect
from collections import OrderedDict
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage

from llm_cache import CacheConfig, LLMCache
from llm_cache._call import UNSET, Call
from llm_cache._core.canonical import encode
from llm_cache._core.types import ChatRequest
from llm_cache._plan import _NOTHING_SAID, Planner
from llm_cache.errors import InvalidRequest
from tests.core.services import Service

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
words = text.filter(lambda value: value.strip() != "")
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | numbers | text
json_values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
roles = st.sampled_from(["user", "assistant", "system", "developer"])
plain_turns = st.fixed_dictionaries({"role": roles, "content": words})
# Texts that look like what stands around a text in a frame.
confusing = st.sampled_from(
    ["user:", "1:a", "auser1:b", '{"content":0,"role":"user"}', "0", "", ":"]
)
other_turns = st.one_of(
    st.fixed_dictionaries({"role": roles, "content": confusing}),
    st.fixed_dictionaries({"role": roles, "content": words, "name": text}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": st.none()}),
    st.fixed_dictionaries(
        {
            "role": roles,
            "content": st.lists(
                st.fixed_dictionaries({"type": st.just("text"), "text": words | confusing}),
                min_size=2,
                max_size=3,
            ),
        }
    ),
)
messages = st.lists(plain_turns | other_turns, max_size=3)
params = st.dictionaries(
    st.sampled_from(["user", "stop", "metadata", "logit_bias", "top_k", "guided_json", "x"]),
    json_values,
    max_size=3,
)


@st.composite
def requests(draw: Any) -> dict[str, Any]:
    return {
        "model": draw(text),
        "messages": [*draw(messages), {"role": "user", "content": draw(words)}],
        **draw(params),
    }


def names(request: dict[str, Any], **options: Any) -> tuple[str, str]:
    """Return digest and scope of *request*."""
    given = deepcopy(request)
    config = CacheConfig(**{"normalization": "verbatim", **options.pop("config", {})})
    service = Service(options.pop("base_url", "http://u/"))
    call, _ = planned(
        given.pop("messages"), service, {**options, "model": given.pop("model")}, given, config
    )
    return call.digest, call.scope.name


def planned(
    prompt: Any,
    service: Service,
    options: dict[str, Any],
    params: dict[str, Any],
    config: CacheConfig | None = None,
) -> tuple[Call, ChatRequest]:
    """Return the call of these arguments, and its request, where nothing is remembered.

    With a rule of the caller's nothing may be, and every call is planned from its beginning.
    """
    config = replace(config or CacheConfig(), bypass=lambda _: False)
    call, request_of = Planner(config).chat(prompt, service, options, params)
    return call, request_of()


USER: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
REQUEST: dict[str, Any] = {"model": "m", "messages": USER}


def with_(**changes: Any) -> dict[str, Any]:
    return {**REQUEST, **changes}


def same(a: Any, b: Any) -> bool:
    return encode(a, "a") == encode(b, "b")


@given(requests(), requests())
def test_two_requests_share_a_key_only_if_they_are_one(a, b):
    assert (names(a)[0] == names(b)[0]) == same(a, b)


@given(
    st.lists(plain_turns | other_turns, max_size=3),
    st.lists(plain_turns | other_turns, max_size=3),
)
def test_two_histories_share_a_key_only_if_they_are_one(a, b):
    first, second = with_(messages=[*a, *USER]), with_(messages=[*b, *USER])
    assert (names(first)[0] == names(second)[0]) == same(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([("user", "auserb")], [("user", "a"), ("user", "b")]),
        ([("user", "auser1:b")], [("user", "a"), ("user", "b")]),
        ([("user", "a1:b")], [("user", "a"), ("user", "b")]),
        ([("user", "1:a")], [("user", "a")]),
        ([("user", ":")], [("user", ""), ("user", "")]),
        ([("user", '{"content":0,"role":"user"}')], []),
        ([("user", "")], []),
        ([("assistant", "aé")], [("assistant", "a"), ("system", "é")]),
    ],
)
def test_texts_that_look_like_frames_run_into_nothing(a, b):
    def turns(said: list[tuple[str, str]]) -> dict[str, Any]:
        return with_(messages=[*({"role": role, "content": text} for role, text in said), *USER])

    assert names(turns(a))[1] != names(turns(b))[1]


def test_frame_is_as_documented():
    named = {"role": "user", "name": "Al", "content": "Hé"}
    turns = [{"role": "system", "content": "Hé"}, named, {"role": "user", "content": "Hi"}]
    _, request = planned(turns, Service("u"), {"model": "m"}, {"temperature": 0.0})
    assert request.frame.decode() == (
        '["u","m",{"temperature":0},{},{}]system2:Hé{"content":"Hé","name":"Al","role":"user"}user:'
    )


class Said(str):
    """Text that stands for another where it is written as an enumeration is."""

    __slots__ = ()
    value = "user4:evilassistant"


def test_a_role_is_what_it_is_written_as():
    with pytest.raises(InvalidRequest, match="role must be one of"):
        names(with_(messages=[{"role": Said("user"), "content": "Hi"}, *USER]))


@given(requests(), st.data())
def test_any_change_of_any_field_changes_the_key(request_, data):
    field = data.draw(st.sampled_from([*request_, "new"]))
    changed = deepcopy(request_)
    if field == "messages":
        i = data.draw(st.integers(0, len(changed["messages"]) - 1))
        changed["messages"][i]["content"] = data.draw(words)
    else:
        changed[field] = data.draw(text if field == "model" else json_values)
    assume(not same(changed, request_))
    assert names(changed)[0] != names(request_)[0]


@given(requests(), words)
def test_scope_is_all_but_the_last_user_turn(request_, other):
    changed = deepcopy(request_)
    changed["messages"][-1]["content"] = other
    assert names(changed)[1] == names(request_)[1]


@given(requests(), st.data())
def test_any_change_before_the_last_turn_changes_the_scope(request_, data):
    changed = deepcopy(request_)
    changed["messages"].insert(0, {"role": data.draw(roles), "content": data.draw(words)})
    assert names(changed)[1] != names(request_)[1]


@given(requests())
def test_order_of_arguments_and_properties_does_not_matter(request_):
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return [turned(item) for item in value] if isinstance(value, list) else value

    assume("guided_json" not in request_)
    assume("properties" not in str(request_))
    assume(not any(key in str(request_) for key in ("schema", "parameters", "$defs")))
    assert names(turned(request_)) == names(request_)


@given(requests(), text, text)
def test_tenants_are_apart(request_, a, b):
    assume(a != b)
    places = [names(request_), names(request_, tenant=a), names(request_, tenant=b)]
    assert len({digest for digest, _ in places}) == 3
    assert len({scope for _, scope in places}) == 3


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def asking(*content: Any) -> dict[str, Any]:
    return with_(messages=[{"role": "user", "content": list(content)}])


TEXT = {"type": "text", "text": "What is this?"}
AB, BA = {"a": 1, "b": 2}, {"b": 2, "a": 1}
OTHER_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,BBBB"}}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (with_(temperature=0), with_(temperature=0.0)),
        (with_(temperature=1, top_p=1), with_(top_p=1, temperature=1)),
        (with_(seed=7), with_(seed=7.0)),
        (with_(top_k=5), with_(extra_body={"top_k": 5})),
        (with_(stream=True, timeout=3), REQUEST),
        (asking({"type": "text", "text": "Hi"}), REQUEST),
    ],
    ids=["0 and 0.0", "argument order", "7 and 7.0", "extra_body", "transport", "one text part"],
)
def test_spellings_of_one_request_share_a_key(a, b):
    assert names(a) == names(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (with_(user="atemperature: 0"), with_(user="a", temperature=0)),
        (with_(some_provider_parameter=1), REQUEST),
        (with_(extra_body={"reasoning": {"effort": "high"}}), REQUEST),
        (asking(TEXT, IMAGE), asking(TEXT, OTHER_IMAGE)),
        (asking(TEXT, IMAGE), asking(IMAGE, TEXT)),
        (asking(TEXT, TEXT), asking(TEXT)),
        (with_(stop=["a", "b"]), with_(stop=["b", "a"])),
        (with_(stop=["ab"]), with_(stop=["a", "b"])),
        (with_(n=1), with_(n=True)),
        (with_(logprobs=True), with_(logprobs=False)),
        (with_(seed=2**53), with_(seed=2**53 + 1)),
        (
            with_(tools=[{"parameters": {"a": 1, "b": 2}}]),
            with_(tools=[{"parameters": {"b": 2, "a": 1}}]),
        ),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_requests_that_others_confused_have_keys_of_their_own(a, b):
    def digest(request: dict[str, Any]) -> str:
        if request.get("n") is True:
            return "refused"
        return names(request)[0]

    assert digest(a) != digest(b)


def test_swapped_roles_have_keys_of_their_own():
    def turns(*roles_: str) -> dict[str, Any]:
        said = [{"role": role, "content": str(i)} for i, role in enumerate(roles_)]
        return with_(messages=[*said, {"role": "user", "content": "Hi"}])

    assert names(turns("user", "assistant")) != names(turns("assistant", "user"))


@pytest.mark.parametrize(
    "change",
    [
        {"base_url": "http://v/"},
        {"config": {"cache_version": "2"}},
        {"config": {"upstream_id": "u"}},
        {"tenant": "acme"},
    ],
    ids=str,
)
def test_surroundings_are_part_of_both(change):
    digest, scope = names(REQUEST)
    other_digest, other_scope = names(REQUEST, **change)
    assert digest != other_digest
    assert scope != other_scope


def test_system_prompt_is_part_of_the_scope():
    systems = ("Be brief.", "Be long.", None)
    calls = [planned("Hi", Service("u"), {"system": system}, {})[0] for system in systems]
    assert len({call.scope.name for call in calls}) == 3


def test_two_tool_calls_of_one_id_are_refused():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call, call]}
    with pytest.raises(ValueError, match="same id"):
        names(with_(messages=[turn, {"role": "user", "content": "Hi"}]))


scalars = st.none() | st.booleans() | numbers | text
plain_params = st.dictionaries(st.sampled_from(["user", "stop", "top_k", "x"]), scalars)
options = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["m", "n"]),
        "system": st.none() | words,
        "tenant": st.none() | text,
        "tags": st.just(()) | st.tuples(text),
        "ttl_s": st.sampled_from([None, 1, 1.0, 60]),
    }
)


@given(st.lists(st.tuples(words, options, plain_params), min_size=1, max_size=8))
def test_what_is_remembered_of_earlier_calls_changes_nothing(calls):
    planner, service = Planner(CacheConfig()), Service("u")
    for prompt, given_options, given_params in [*calls, *calls]:
        call, request_of = planner.chat(prompt, service, dict(given_options), dict(given_params))
        slow, request = planned(prompt, service, given_options, given_params)
        assert facts(call) == facts(slow)
        assert request_of() == request


@given(
    st.lists(st.tuples(st.lists(plain_turns, min_size=1, max_size=3), plain_params), min_size=1)
)
def test_lists_are_planned_alike_remembered_or_not(calls):
    planner, service = Planner(CacheConfig()), Service("u")
    for messages, params in [*calls, *calls]:
        call, request_of = planner.chat(messages, service, {"system": UNSET}, params)
        slow, request = planned(messages, service, {}, params)
        assert facts(call) == facts(slow)
        assert request_of() == request


def facts(call: Call) -> tuple[Any, ...]:
    return call.digest, call.text, call.scope.name, call.prompt_version, call.terms


@pytest.mark.parametrize(
    ("messages", "refused"),
    [
        ([{"role": "user", "content": " "}], "empty"),
        ([{"role": "user", "content": "x" * 51}], "51 characters"),
        ([{"role": "system", "content": "x" * 49}, {"role": "user", "content": "Hi"}], "51 char"),
        ([{"role": "user", "content": "\ud800"}], "surrogate"),
    ],
)
def test_short_lists_are_refused_as_plain_prompts_are(messages, refused):
    planner, service = Planner(CacheConfig(max_prompt_chars=50)), Service("u")
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=refused):
            planner.chat(messages, service, {}, {})


def test_a_system_prompt_beside_a_list_is_refused():
    planner, service = Planner(CacheConfig()), Service("u")
    with pytest.raises(InvalidRequest, match="put it into the message list"):
        planner.chat([{"role": "user", "content": "Hi"}], service, {"system": "Be brief."}, {})


@pytest.mark.parametrize("chars", [10_000, 10_001])
def test_long_system_prompts_are_not_kept(chars):
    planner, service = Planner(CacheConfig()), Service("u")
    system, turn = "x" * chars, {"role": "user", "content": "Hi"}
    planner.chat("Hi", service, {"system": system}, {})
    assert len(planner._known) == planner._opening.cache_info().currsize == (chars == 10_000)
    planner.chat([{"role": "system", "content": system}, turn], service, {}, {})
    assert planner._opening.cache_info().currsize == 2 * (chars == 10_000)


@pytest.mark.parametrize(
    ("prompt", "changes"),
    [
        ("", {}),
        (" \n", {}),
        ("x" * 51, {}),
        ("\ud800", {}),
        ("Hi", {"ttl_s": True}),
        ("Hi", {"tags": ("",)}),
        ("Hi", {"tenant": ""}),
    ],
)
def test_what_is_refused_is_refused_after_a_call_of_its_like(prompt, changes):
    planner, service = Planner(CacheConfig(max_prompt_chars=50, system=None)), Service("u")
    planner.chat("Hello", service, {"ttl_s": 1, "tags": (), "tenant": None}, {})
    options = {"ttl_s": 1, "tags": (), "tenant": None, **changes}
    with pytest.raises(InvalidRequest):
        planner.chat(prompt, service, options, {})


@pytest.mark.parametrize("value", [1, True])
def test_equal_values_of_two_kinds_are_kept_apart(value):
    planner, service = Planner(CacheConfig()), Service("u")
    digests = [planner.chat("Hi", service, {}, {"x": x})[0].digest for x in (1, True, value)]
    assert digests[0] != digests[1]
    assert digests[2] == digests[value is True]


def test_nothing_said_is_what_chat_takes_for_said_by_default():
    taken = inspect.signature(LLMCache.chat).parameters.values()
    defaults = {given.name: given.default for given in taken if given.kind is given.KEYWORD_ONLY}
    assert defaults.pop("stream") is False
    assert defaults == _NOTHING_SAID


def test_tags_in_an_array_are_tags():
    planner, service = Planner(CacheConfig()), Service("u")
    options = {**_NOTHING_SAID, "tags": np.array(["a", "b"])}
    for _ in range(2):
        assert planner.chat("Hi", service, dict(options), {})[0].terms.tags == ("a", "b")


def test_messages_of_one_call_are_not_those_of_the_next():
    planner, service = Planner(CacheConfig()), Service("u")
    first, second = (planner.chat("Hi", service, {}, {})[1]() for _ in range(2))
    first.messages[0]["content"] = "changed"
    assert second.messages[0]["content"] != "changed"
    assert planner.chat("Hi", service, {}, {})[1]() == second


def test_what_the_caller_changes_later_changes_no_call():
    parts, tool = ({"type": "text", "text": "Be brief."},), {"function": {"name": "f"}}
    system: dict[str, Any] = {"role": "system", "content": parts}
    messages = [system, {"role": "user", "content": "Hi"}]
    given = {"tools": [tool]}
    call, request_of = Planner(CacheConfig()).chat(messages, Service("u"), {}, given)
    version, before = call.prompt_version, deepcopy(request_of())
    parts[0]["text"] = "Be long."
    tool["function"]["name"] = "g"
    messages[1]["content"] = "Ho"
    assert call.prompt_version == version is not None
    assert request_of() == before


def test_objects_of_the_sdk_are_taken_over_as_what_they_are_sent_as():
    called = ChatCompletionMessage.model_validate(
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        }
    )
    turn: dict[str, Any] = {"role": "assistant", "tool_calls": called.tool_calls}
    given = [*USER, turn, OrderedDict(USER[0])]
    _, request_of = Planner(CacheConfig()).chat(given, Service("u"), {}, {})
    before = deepcopy(request_of().messages)
    assert called.tool_calls is not None
    called.tool_calls[0].id = "2"
    given[-1]["content"] = "Ho"
    assert request_of().messages == before
    assert before[1]["tool_calls"][0]["id"] == "1"


def test_what_is_done_with_one_request_is_not_done_with_the_next():
    planner, service = Planner(CacheConfig()), Service("u")
    _, request_of = planner.chat("Hi", service, {}, {"temperature": 0})
    cast("dict[str, Any]", request_of().params)["temperature"] = 1
    assert planner.chat("Hi", service, {}, {"temperature": 0})[1]().params == {"temperature": 0}


def test_many_names_are_not_kept():
    planner, service = Planner(CacheConfig()), Service("u")
    for name, kept in (("tags", 0), ("depends_on", 0), ("tags", 1)):
        names_ = tuple(f"{kept or 'long' * 10}-{i}" for i in range(250 if not kept else 10))
        planner.chat("Hi", service, {name: names_}, {})
        assert len(planner._known) == kept


def test_reprs_show_no_prompt():
    call, request_of = Planner(CacheConfig()).chat(
        [{"role": "system", "content": "secret"}, *USER, {"role": "user", "content": "secret"}],
        Service("u"),
        {},
        {},
    )
    assert "secret" not in repr(call) + repr(request_of)


def test_only_so_many_kinds_of_calls_are_remembered():
    planner, service = Planner(CacheConfig()), Service("u")
    for i in range(3_000):
        planner.chat("Hi", service, {"tenant": str(i)}, {})
    assert len(planner._known) == planner._opening.cache_info().currsize == 1024


def test_only_so_many_system_prompts_are_remembered():
    planner, service = Planner(CacheConfig()), Service("u")
    for i in range(3_000):
        turns = [{"role": "system", "content": str(i)}, {"role": "user", "content": "Hi"}]
        planner.chat(turns, service, {}, {})
    assert planner._opening.cache_info().currsize == 1024


def test_a_conversation_of_one_kind_is_one_wherever_it_was_remembered():
    planner, service = Planner(CacheConfig()), Service("u")
    turn = {"role": "user", "content": "Hi"}
    system = {"role": "system", "content": "Be brief."}
    for _ in range(2):
        calls = [
            planner.chat("Hi", service, {"system": "Be brief."}, {})[0],
            planner.chat([system, turn], service, {}, {})[0],
            planner.chat((system, turn), service, {}, {})[0],
        ]
        assert len({facts(call)[:4] for call in calls}) == 1
        assert (
            planner.chat([system, turn, turn], service, {}, {})[0].scope.name
            != calls[0].scope.name
        )
