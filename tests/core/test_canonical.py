import json
import math
from collections import OrderedDict
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cache._core.canonical import encode
from llm_cache.errors import InvalidRequest

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=12,
)


def same(a: object, b: object) -> bool:
    return encode(a, "a") == encode(b, "b")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (0, 0.0),
        (0, -0.0),
        (7, 7.0),
        (2**53, float(2**53)),
        ((1, 2), [1, 2]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": {"x": 1, "y": 2}}, {"a": OrderedDict(y=2, x=1)}),
    ],
)
def test_spellings_of_one_value_are_equal(a, b):
    assert same(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, True),
        (0, False),
        (0, None),
        (1, "1"),
        (0.5, 0.25),
        (2**53, 2**53 + 1),
        (2**60, 2**60 + 1),
        ([1, 2], [2, 1]),
        ([[1], 2], [[1, 2]]),
        ({"a": 1}, {"a": 1, "b": None}),
        ("é", "e\u0301"),
        ({"ordered": [["properties", 1]]}, {"properties": 1}),
    ],
)
def test_different_values_are_not(a, b):
    assert not same(a, b)


@pytest.mark.parametrize("key", ["parameters", "schema", "json_schema", "input_schema"])
def test_order_counts_inside_a_schema(key):
    assert not same({key: {"a": 1, "b": 2}}, {key: {"b": 2, "a": 1}})
    assert not same({key: {"c": [{"a": 1, "b": 2}]}}, {key: {"c": [{"b": 2, "a": 1}]}})


def test_order_counts_deep_inside_a_schema():
    a = {"parameters": {"properties": {"x": {"type": "string", "title": "X"}}}}
    b = {"parameters": {"properties": {"x": {"title": "X", "type": "string"}}}}
    assert not same(a, b)


def test_object_with_properties_is_a_schema_wherever_it_stands():
    a = {"format": {"properties": {"x": 1, "y": 2}}}
    b = {"format": {"properties": {"y": 2, "x": 1}}}
    assert not same(a, b)


def test_order_does_not_count_beside_a_schema():
    schema = {"b": 1, "a": 2}
    assert same({"name": "f", "parameters": schema}, {"parameters": schema, "name": "f"})


@given(json_values)
def test_bytes_are_json_of_an_equal_value(value):
    assert json.loads(encode(value, "value")) == json.loads(json.dumps(value))


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_number_that_is_not_finite_is_refused(number):
    with pytest.raises(InvalidRequest, match=r"temperature.*finite"):
        encode(number, "temperature")


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object(), lambda: None, {"a": 1 + 2j}])
def test_what_is_not_json_is_refused_by_name(value):
    with pytest.raises(InvalidRequest, match=r"^x"):
        encode(value, "x")


def test_property_name_that_is_not_text_is_refused():
    with pytest.raises(InvalidRequest, match="not text"):
        encode({1: "a"}, "x")


def test_mixed_property_names_are_refused():
    with pytest.raises(InvalidRequest, match="not all text"):
        encode({1: "a", "b": 2}, "x")


def test_cycle_is_refused():
    cycle: list[object] = []
    cycle.append(cycle)
    with pytest.raises(InvalidRequest, match="cyclic"):
        encode(cycle, "x")


def test_sixty_four_levels_are_the_limit():
    def nested(levels: int) -> object:
        return [nested(levels - 1)] if levels else 1

    encode(nested(64), "x")
    with pytest.raises(InvalidRequest, match="64 levels"):
        encode(nested(65), "x")


def test_lone_surrogate_is_refused():
    with pytest.raises(InvalidRequest, match="surrogate"):
        encode("\ud800", "x")


def test_integer_too_long_to_write_is_refused():
    with pytest.raises(InvalidRequest, match="number"):
        encode(10**5000, "x")


def test_subclasses_of_json_types_are_what_they_stand_for():
    class Colour(StrEnum):
        RED = "red"

    assert same(Colour.RED, "red")


def test_sdk_objects_count_as_what_they_are_sent_as():
    from openai.types.chat import ChatCompletionMessage

    message = ChatCompletionMessage(role="assistant", content="Hi")
    assert same(message, {"role": "assistant", "content": "Hi"})


def test_markers_of_the_sdk_count_as_absent():
    from openai import NOT_GIVEN

    assert same({"a": 1, "b": NOT_GIVEN}, {"a": 1})
