from typing import Any

import pytest

from llm_cache import CacheConfig, Normalization
from llm_cache._core.normalize import fold_text
from llm_cache._core.types import ChatRequest
from llm_cache._plan import Planner
from llm_cache.errors import InvalidRequest
from tests.core.services import Service

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def request(prompt: Any = "Hi", **given: Any) -> ChatRequest:
    """Return what the model is asked, as a call without anything remembered has it."""
    config = CacheConfig(max_prompt_chars=given.get("max_chars", 1_000))
    options = {"model": given.get("model", "m"), "system": given.get("system")}
    if not isinstance(prompt, str) and "system" not in given:
        del options["system"]
    service = Service(given.get("base_url", "http://u/"))
    _, request_of = Planner(config).chat(prompt, service, options, given.get("params", {}))
    return request_of()


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def test_plain_prompt_becomes_a_user_turn_behind_the_system_message():
    made = request("Hi", system="Be brief.")
    assert made.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    assert made.text == "Hi"


def test_frame_does_not_hold_the_compared_text():
    assert request("one").frame == request("another").frame


@pytest.mark.parametrize(
    "other",
    [
        {"model": "n"},
        {"base_url": "http://v/"},
        {"system": "Be brief."},
        {"params": {"temperature": 0.5}},
        {"params": {"anything_new": 1}},
        {"params": {"extra_headers": {"X-Feature": "on"}}},
        {"params": {"extra_query": {"api-version": "1"}}},
        {"params": {"tools": [{"type": "function", "function": {"name": "f"}}]}},
    ],
)
def test_frame_holds_all_else_that_the_model_could_see(other):
    assert request().frame != request(**other).frame


@pytest.mark.parametrize(
    "params",
    [
        {"stream": False},
        {"stream_options": {"include_usage": True}},
        {"timeout": 5},
        {"extra_headers": {"Cache-Control": "no-cache", "Authorization": "Bearer x"}},
        {"extra_headers": {"X-Request-Id": "1", "User-Agent": "u"}},
    ],
)
def test_frame_leaves_out_what_is_only_transport(params):
    assert request().frame == request(params=params).frame


@pytest.mark.parametrize(
    "name",
    [
        *("Cookie", "Proxy-Authorization", "X-Api-Key", "Ocp-Apim-Api-Key", "X-Auth"),
        *("Helicone-Auth", "X-Forwarded-Authorization", "X-Amz-Security-Token", "api-key"),
    ],
)
def test_rotated_credentials_empty_no_cache(name):
    old, new = (request(params={"extra_headers": {name: value}}) for value in ("old", "new"))
    assert old.frame == new.frame == request().frame


@pytest.mark.parametrize("name", ["X-Author", "X-Tokens", "Auth-Mode", "Cookie-Policy"])
def test_what_only_looks_like_a_credential_is_held(name):
    assert request(params={"extra_headers": {name: "a"}}).frame != request().frame


def test_repr_shows_no_prompt():
    made = request("Hi secret", system="Be secret", params={"user": "secret"})
    assert "secret" not in repr(made)


def test_header_names_have_no_case():
    a = request(params={"extra_headers": {"X-Feature": "on"}})
    b = request(params={"extra_headers": {"x-feature": "on"}})
    assert a.frame == b.frame


def test_body_field_is_not_mistaken_for_a_header():
    a = request(params={"extra_body": {"x": "1"}})
    b = request(params={"extra_headers": {"x": "1"}})
    c = request(params={"extra_query": {"x": "1"}})
    assert len({a.frame, b.frame, c.frame}) == 3


def test_extra_body_is_the_body():
    a = request(params={"top_k": 5})
    b = request(params={"extra_body": {"top_k": 5}})
    assert a.frame == b.frame


def test_extra_body_wins_over_the_parameter_it_overlays():
    a = request(params={"temperature": 0, "extra_body": {"temperature": 1}})
    assert a.frame == request(params={"temperature": 1}).frame


def test_one_bare_text_part_is_the_same_as_its_text():
    a, b = request(user("Hi")), request(user([{"type": "text", "text": "Hi"}]))
    assert (a.frame, a.text, a.normalized) == (b.frame, b.text, b.normalized)


def test_image_beside_the_same_text_is_another_frame():
    part = {"type": "text", "text": "What is this?"}
    other = {"type": "image_url", "image_url": {"url": "data:image/png;base64,BBBB"}}
    a, b = request(user([part, IMAGE])), request(user([part, other]))
    assert a.text == b.text == "What is this?"
    assert a.frame != b.frame


def test_image_without_text_is_not_compared():
    assert request(user([IMAGE])).text is None


def test_texts_of_several_parts_do_not_run_together():
    def parts(*texts: str) -> ChatRequest:
        return request(user([{"type": "text", "text": text} for text in texts]))

    assert parts("a b", "c").normalized != parts("a", "b c").normalized
    assert parts("a", "b").frame != request(user("a\nb")).frame


@pytest.mark.parametrize("role", ["assistant", "tool", "system"])
def test_list_that_does_not_end_with_a_user_turn_is_compared_as_a_whole(role):
    messages = [*user("Hi"), {"role": role, "content": "x"}]
    made = request(messages)
    assert made.text is None
    assert made.frame != request([*user("Ho"), {"role": role, "content": "x"}]).frame


def test_swapped_roles_are_another_frame():
    a = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, *user("z")]
    b = [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}, *user("z")]
    assert request(a).frame != request(b).frame


def test_messages_reach_the_model_as_they_came():
    given = user("  a  b ")
    made = request(given)
    assert made.messages == given
    assert made.messages[0] is not given[0]


def test_caller_keeps_his_own_list():
    given = user([{"type": "text", "text": "Hi"}])
    request(given)
    assert given == user([{"type": "text", "text": "Hi"}])


@pytest.mark.parametrize("prompt", ["", "   ", "\n", user(""), user([]), user(None)])
def test_empty_prompt_is_refused(prompt):
    with pytest.raises(InvalidRequest, match="empty"):
        request(prompt)


def test_empty_list_is_refused():
    with pytest.raises(InvalidRequest, match="list of messages is empty"):
        request([])


@pytest.mark.parametrize("prompt", [42, None, b"Hi", {"role": "user", "content": "Hi"}])
def test_prompt_of_another_kind_is_refused(prompt):
    with pytest.raises(InvalidRequest, match="text or a list of messages"):
        request(prompt)


@pytest.mark.parametrize("message", ["Hi", None, 3, ["user", "Hi"]])
def test_message_that_is_no_mapping_is_refused(message):
    with pytest.raises(InvalidRequest, match=r"messages\[0\] must be a mapping"):
        request([message])


@pytest.mark.parametrize("role", ["robot", "", None, 3])
def test_unknown_role_is_refused(role):
    with pytest.raises(InvalidRequest, match=r"messages\[0\].role must be one of assistant"):
        request([{"role": role, "content": "Hi"}])


@pytest.mark.parametrize("content", [3, {"text": "Hi"}, [{"text": "Hi"}], ["Hi"]])
def test_content_of_another_kind_is_refused(content):
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.content"):
        request(user(content))


@pytest.mark.parametrize("value", ["hot", True, [1], {}])
def test_sampling_parameter_that_is_no_number_is_refused(value):
    with pytest.raises(InvalidRequest, match="temperature must be a number"):
        request(params={"temperature": value})


def test_system_beside_a_list_is_refused():
    with pytest.raises(InvalidRequest, match="put it into the message list"):
        request(user("Hi"), system="Be brief.")


@pytest.mark.parametrize("model", ["", b"m", 3])
def test_model_must_be_a_name(model):
    with pytest.raises(InvalidRequest, match="model"):
        request(model=model)


def test_prompt_of_just_the_cap_is_allowed_and_a_longer_one_is_not():
    request("x" * 10, max_chars=10)
    with pytest.raises(InvalidRequest, match="max_prompt_chars=10"):
        request("x" * 11, max_chars=10)


def test_cap_counts_all_texts_together():
    with pytest.raises(InvalidRequest, match="max_prompt_chars=10"):
        request("x" * 6, system="y" * 5, max_chars=10)


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("  a   b\t c ", "a b c"),
        ("e\u0301", "é"),
        ("def f():\n    return  1\n", "def f():\n    return  1"),
        ("`a  b`", "`a  b`"),
        ('how many blanks are in "a  b"', 'how many blanks are in "a  b"'),
        ("A b", "A b"),
    ],
)
def test_whitespace_folding(text, folded):
    assert fold_text(text, Normalization.WHITESPACE) == folded


def test_casefold_folds_case_too():
    assert fold_text(" WHAT  is ", Normalization.CASEFOLD) == "what is"


def test_verbatim_folds_nothing():
    assert fold_text("  A  b ", Normalization.VERBATIM) == "  A  b "
