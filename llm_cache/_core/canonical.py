"""Canonical JSON: one byte string for every way to spell the same value.

Two values have equal bytes exactly when a model could not tell them apart:

- Property order does not matter, except inside JSON schemas, whose order a model reads.
- `0`, `0.0` and `-0.0` are one number; `True` and `1` are two values. Integers keep every digit.
- Lists keep their order; a tuple is a list.
- Pydantic models (the SDK's own message objects) count as the JSON they are sent as, and the SDK's
  "not given" markers as absent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llm_cache.errors import InvalidRequest

_MAX_DEPTH = 64
_EXACT_FLOAT = 2**53
_SCHEMA_KEYS = frozenset(
    {"parameters", "schema", "json_schema", "input_schema", "inputSchema", "guided_json"}
)
"""Properties whose value is a JSON schema by the conventions of one API or another."""
_SCHEMA_MARKS = frozenset({"properties", "$schema", "$defs"})
"""Properties that show, wherever it stands, that an object is a JSON schema."""

_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def encode(value: Any, where: str) -> bytes:
    """Return the canonical bytes of *value*; *where* names it in errors.

    Raises:
        InvalidRequest: *value* holds something that is not JSON, a number that is not finite, text
            that is not Unicode, or is nested deeper than 64 levels (a cycle, say).
    """
    return dump(fold(value, where), where)


def dump(folded: Any, where: str) -> bytes:
    """Return the bytes of a value that `fold` returned."""
    return utf8(dumps(folded, where), where)


def dumps(folded: Any, where: str) -> str:
    """Return the text of a value that `fold` returned."""
    try:
        return _encoder.encode(folded)
    except ValueError as error:  # an int of more digits than Python turns into text
        raise InvalidRequest(f"{where} holds a number that cannot be written: {error}") from None


def is_unicode(text: str) -> bool:
    """Tell whether *text* can be written down: a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def utf8(text: str, where: str) -> bytes:
    """Return the bytes of *text*; *where* names it in errors.

    Raises:
        InvalidRequest: it holds a lone surrogate.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        pass  # Its own exception is raised outside, without a context: this one holds the text.
    raise InvalidRequest(f"{where} holds a lone surrogate, which is not Unicode text")


def fold(value: Any, where: str, *, depth: int = 0, ordered: bool = False) -> Any:
    """Return *value* with every spelling folded into one, ready for `dump`."""
    kind = type(value)
    if kind is str or value is None or kind is bool or kind is int:
        return value
    if kind is float:
        return _fold_float(value, where)
    if depth >= _MAX_DEPTH:
        raise InvalidRequest(f"{where} is nested deeper than {_MAX_DEPTH} levels, or cyclic")
    if kind is dict or isinstance(value, Mapping):
        return _fold_mapping(value, where, depth=depth, ordered=ordered)
    if kind is list or kind is tuple:
        return [
            fold(item, f"{where}[{i}]", depth=depth + 1, ordered=ordered)
            for i, item in enumerate(value)
        ]
    return _fold_other(value, where, depth=depth, ordered=ordered)


def _fold_float(value: float, where: str) -> int | float:
    if value - value != 0:  # true of infinities and of NaN alone
        raise InvalidRequest(f"{where} must be a finite number")
    # Beyond 2**53 neighbouring integers share one float, so only below it is the integer exact.
    return int(value) if value.is_integer() and abs(value) <= _EXACT_FLOAT else value


def _fold_mapping(
    value: Mapping[Any, Any], where: str, *, depth: int, ordered: bool
) -> dict[str, Any]:
    ordered = ordered or not _SCHEMA_MARKS.isdisjoint(value)
    folded: dict[str, Any] = {}
    for key in value if ordered else _sorted(value, where):
        if not isinstance(key, str):
            raise InvalidRequest(f"{where} has a property name that is not text: {key!r}")
        item = value[key]
        if type(item) is str:  # most are, and need no more
            folded[key] = item
            continue
        if is_not_given(item):
            continue
        folded[key] = fold(
            item,
            f"{where}.{key}",
            depth=depth + 1,
            ordered=ordered or (key in _SCHEMA_KEYS and isinstance(item, Mapping)),
        )
    return folded


def _sorted(value: Mapping[Any, Any], where: str) -> list[Any]:
    try:
        return sorted(value)
    except TypeError:
        raise InvalidRequest(f"{where} has property names that are not all text") from None


def _fold_other(value: Any, where: str, *, depth: int, ordered: bool) -> Any:
    """Fold what is rare: subclasses of the JSON types, and pydantic models."""
    if isinstance(value, str):
        return str(value.value) if hasattr(value, "value") else str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _fold_float(float(value), where)
    if isinstance(value, list | tuple):
        return fold(list(value), where, depth=depth, ordered=ordered)
    as_json = to_json(value)
    if as_json is not None:
        return fold(as_json, where, depth=depth, ordered=ordered)
    raise InvalidRequest(
        f"{where} is a {type(value).__name__}, which is not JSON: pass text, numbers, lists, dicts"
    )


def to_json(value: Any) -> Any:
    """Return what a pydantic model is sent as, or `None` for anything else."""
    dump_model = getattr(value, "model_dump", None)
    if dump_model is None or isinstance(value, type):
        return None
    return dump_model(mode="json", exclude_unset=True)


def copied(value: Any) -> Any:
    """Return *value* in lists and objects of its own, which nobody else can change.

    It is one that `fold` takes, which is not nested too deeply for this. Pydantic models become
    what they are sent as.
    """
    if isinstance(value, Mapping):
        return {name: copied(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [copied(item) for item in value]
    as_json = to_json(value)
    return value if as_json is None else as_json


def as_data(value: Any, where: str) -> Any:
    """Return *value* as the plain JSON it would be read back as: lists for tuples, and its own.

    Raises:
        InvalidRequest: it is not JSON.
    """
    encode(value, where)
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        raise InvalidRequest(f"{where} holds objects that are not JSON data") from None


def is_not_given(value: Any) -> bool:
    """Tell whether *value* is one of the SDK's markers for an argument that is not sent."""
    # Compared by name: importing the SDK here would cost every `import llm_cache` half a second.
    kind = type(value)
    return kind.__name__ in {"NotGiven", "Omit"} and kind.__module__.partition(".")[0] == "openai"
