from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cache._core.policy import Lifetime, Purges, is_outage, lifetime, refusal
from llm_cache._core.targets import ANYONE, Kind, target
from llm_cache._core.types import Entry

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def completion(*choices: Any) -> dict[str, Any]:
    return {"choices": list(choices)}


def choice(finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    return {"finish_reason": finish, "message": {"role": "assistant", **message}}


@pytest.mark.parametrize(
    "made",
    [
        completion(choice(content="42")),
        completion(choice("tool_calls", content=None, tool_calls=[CALL])),
        completion(choice("stop", content=None, refusal="I cannot help with that.")),
        completion(choice("function_call", content=None, function_call={"name": "f"})),
        completion(choice(content="a"), choice(content="b")),
    ],
)
def test_complete_answers_are_stored(made):
    assert refusal(made) is None


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (completion(), "no_choices"),
        ({}, "malformed"),
        ({"choices": "x"}, "malformed"),
        (completion("x"), "malformed"),
        (completion({"finish_reason": "stop"}), "malformed"),
        (completion(choice(content="")), "empty"),
        (completion(choice(content=None)), "empty"),
        (completion(choice("tool_calls", content=None, tool_calls=[])), "empty"),
        (completion(choice("length", content="cut")), "length"),
        (completion(choice("content_filter", content="cut")), "content_filter"),
        (completion(choice(None, content="cut")), "unfinished"),
        (completion(choice("error", content="x")), "unfinished"),
        (completion(choice(["stop"], content="x")), "unfinished"),  # type: ignore[arg-type]
        (completion(choice(content="a"), choice("length", content="b")), "length"),
    ],
)
def test_incomplete_answers_are_not(made, reason):
    assert refusal(made) == reason


def entry(stamp: str, **fields: Any) -> Entry:
    return Entry(answer={}, created_s=0, stamp=stamp, **{"model": "m", **fields})


DIGEST = "d" * 28


def lives(purges: Purges, stamp: str, **fields: Any) -> bool:
    return purges.allow(entry(stamp, **fields), DIGEST)


def test_entry_of_the_current_epoch_lives():
    assert lives(Purges(epoch="5", born="1"), "5")


def test_entry_older_than_the_table_is_dead():
    assert not lives(Purges(epoch="5", born="4"), "3")
    assert lives(Purges(epoch="5", born="4"), "4")


def test_entry_from_an_epoch_not_reached_is_dead():
    assert not lives(Purges(epoch="5", born="1"), "6")


STORED: dict[str, Any] = {
    "tenant": "t",
    "tags": ("a", "b c"),
    "depends_on": ("doc:42@v3", "mail@example.org@7"),
    "prompt_version": "v",
    "origin": "o",
}


@pytest.mark.parametrize("tenant", [ANYONE, "t"])
@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Kind.ALL, ""),
        (Kind.MODEL, "m"),
        (Kind.PROMPT, "v"),
        (Kind.KEY, "o"),
        (Kind.KEY, DIGEST),
        (Kind.TAG, "a"),
        (Kind.TAG, "b c"),
        (Kind.SOURCE, "doc:42@v3"),
        (Kind.SOURCE, "doc:42"),
        (Kind.SOURCE, "mail@example.org"),
    ],
)
def test_entry_with_a_target_purged_later_is_dead(kind, value, tenant):
    purges = Purges("5", "1", {target(kind, value, tenant_id=tenant): "4"})
    assert not lives(purges, "3", **STORED)
    assert lives(purges, "4", **STORED)


@pytest.mark.parametrize(
    "other",
    [
        target(Kind.TAG, "c"),
        target(Kind.TAG, "a", tenant_id="u"),
        target(Kind.TAG, "a", tenant_id=None),
        target(Kind.ALL, tenant_id=None),
        target(Kind.SOURCE, "doc:4"),
        target(Kind.SOURCE, "doc:42@v2"),
        target(Kind.MODEL, ""),
        target(Kind.KEY, "x"),
    ],
)
def test_what_was_purged_for_others_leaves_an_entry_alone(other):
    assert lives(Purges("5", "1", {other: "4"}), "3", **STORED)


def test_what_tenants_share_is_reached_as_nobodys_alone():
    shared = {"shared_scope": "s", "tags": ("a",)}
    for kind, value in ((Kind.SHARED, "s"), (Kind.TAG, "a"), (Kind.ALL, "")):
        assert not lives(Purges("5", "1", {target(kind, value): "4"}), "3", **shared)
        own = target(kind, value, tenant_id=None)
        assert lives(Purges("5", "1", {own: "4"}), "3", **shared)


@pytest.mark.parametrize("tenant", [ANYONE, "t"])
def test_entry_whose_prompt_looks_like_a_pattern_purged_later_is_dead(tenant):
    purges = Purges("5", "1", {target(Kind.PATTERN, "what is*", tenant_id=tenant): "4"})

    def lives(stamp: str, prompt: str | None) -> bool:
        return purges.allow(entry(stamp, tenant="t"), DIGEST, prompt)

    assert not lives("3", "WHAT  is this?")
    assert lives("3", "So what is this?")
    assert lives("3", None)
    assert lives("4", "What is this?")


def test_pattern_of_another_tenant_leaves_an_entry_alone():
    purges = Purges("5", "1", {target(Kind.PATTERN, "*a*", tenant_id="u"): "4"})
    assert purges.allow(entry("3", tenant="t"), DIGEST, "a")


@pytest.mark.parametrize("tenant", [ANYONE, None])
def test_entry_stored_before_the_age_that_was_purged_is_dead(tenant):
    purges = Purges("5", "1", {target(Kind.AGE, tenant_id=tenant): "0.5"})
    assert not lives(purges, "5")
    assert lives(Purges("5", "1", {target(Kind.AGE, tenant_id="u"): "0.5"}), "5")
    assert lives(Purges("5", "1", {target(Kind.AGE): "0.0"}), "5")


names = st.text(max_size=4)


@given(st.lists(st.tuples(st.sampled_from(list(Kind)), names, st.none() | names), max_size=4))
def test_no_two_targets_share_a_name(made):
    targets = {target(kind, value, tenant_id=tenant) for kind, value, tenant in made}
    targets |= {target(kind, value) for kind, value, _ in made}
    assert len(targets) == len(set(made)) + len({(kind, value) for kind, value, _ in made})


def test_lifetimes_are_absolute_unless_they_slide():
    assert lifetime(100.0, 10.0, stale_s=5.0) == Lifetime(110.0, 15_000, 15_000)
    assert lifetime(100.0, 10.0, sliding_max_age_s=60.0) == Lifetime(160.0, 10_000, 60_000)
    assert lifetime(100.0, 90.0, sliding_max_age_s=60.0).kept_ms == 60_000


@given(st.floats(0, 0.99), st.floats(0, 1))
def test_jitter_only_shortens(jitter, chance):
    made = lifetime(0.0, 100.0, jitter=jitter, chance=chance)
    assert 100.0 * (1 - jitter) - 0.001 <= made.fresh_until_s <= 100.0
    assert made.kept_ms == max(1, round(1000 * made.fresh_until_s))


class StatusError(Exception):
    def __init__(self, status_code: Any) -> None:
        super().__init__(status_code)
        self.status_code = status_code


@pytest.mark.parametrize("status", [None, 408, 429, 500, 503])
def test_a_model_that_cannot_answer_is_an_outage(status):
    assert is_outage(StatusError(status))
    assert is_outage(TimeoutError())


@pytest.mark.parametrize("status", [400, 401, 404, 422, 499])
def test_a_model_that_will_not_answer_is_none(status):
    assert not is_outage(StatusError(status))
