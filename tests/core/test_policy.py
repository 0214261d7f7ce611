from typing import Any

import pytest

from llm_cache._core.policy import Purges, refusal
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


def asked(stamp: str, **fields: Any) -> tuple[str, Any]:
    """Return what is asked about an entry of these fields."""
    return stamp, entry(stamp, **fields).targets


def test_entry_of_the_current_epoch_lives():
    assert Purges(epoch="5", born="1").allow(*asked("5"))


def test_entry_older_than_the_table_is_dead():
    assert not Purges(epoch="5", born="4").allow(*asked("3"))
    assert Purges(epoch="5", born="4").allow(*asked("4"))


def test_entry_from_an_epoch_not_reached_is_dead():
    assert not Purges(epoch="5", born="1").allow(*asked("6"))


@pytest.mark.parametrize("target", ["all", "model:m", "tenant:t", "tag:a", "tag:b"])
def test_entry_with_a_target_purged_later_is_dead(target):
    stored = {"tenant": "t", "tags": ("a", "b")}
    purges = Purges(epoch="5", born="1", tokens={target: "4"})
    assert not purges.allow(*asked("3", **stored))
    assert purges.allow(*asked("4", **stored))
    assert Purges(epoch="5", born="1", tokens={"tag:c": "4"}).allow(*asked("3", **stored))
