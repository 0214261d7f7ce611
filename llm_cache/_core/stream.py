"""Streams: the chunks of a stream ⇄ the one completion that is stored.

`Accumulator` adds up the chunks that pass by, `replay` makes a stream of what was stored. Both
deal in JSON as it travels (`chat.completion.chunk` and `chat.completion`), so a field of tomorrow
gets through as well as one of today.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from typing import Any

from llm_cache._core.types import Completion, Json

Chunk = dict[str, Json]
"""A `chat.completion.chunk`, parsed from JSON and otherwise unchanged."""
_Tokens = dict[str, list[Json]]
"""The logprobs that go with one delta: those of `content` or of `refusal`."""

_FIRST_WINS = frozenset({"id", "created", "model"})
"""Fields of a chunk that some servers count up from chunk to chunk, or leave empty at first."""
_NOT_OF_THE_ANSWER = frozenset({"choices", "object", "usage", "obfuscation"})
"""Fields of a chunk that say nothing about the answer as a whole, or are dealt with apart."""
_OF_A_PART = frozenset({"index", "delta", "logprobs", "finish_reason", "message"})
_WHOLE = frozenset({"role", "type", "id", "name", "format"})
"""Text that never arrives in pieces, though many servers repeat it in every chunk."""
_CALLS = (("function", "arguments"), ("custom", "input"))
"""The kinds of tool call, each with the field whose text arrives in pieces."""

_EMPTY = {"id": "", "created": 0, "model": ""}
_ON_EVERY_CHUNK = ("service_tier", "system_fingerprint")
_ORDER = {"content": 1, "refusal": 2, "function_call": 3, "tool_calls": 4}
"""A model thinks before it speaks, and speaks before it calls."""

_MAX_DEPTH = 32
_MAX_PIECES = 256
_REST_OF_WORD = 32


class _Malformed(Exception):
    """The stream cannot be added up with certainty; the message says why."""


class Accumulator:
    """Adds up the chunks of one stream, to the completion that a plain call would have returned.

    Takes whatever a server sends and never raises. Where chunks cannot be added up with certainty
    (tool calls that change their name, text after the finish reason, an error in mid-stream),
    `problem` says so, for good: the stream may be served, and must not be stored.

    The chunks are not kept and not changed. An `add` costs 1.3 µs for a piece of text.
    """

    def __init__(self) -> None:
        self.problem: str | None = None
        """Why the stream cannot be stored: for people, and without a word of the answer. `None`
        while nothing speaks against it."""
        self._fields: dict[str, Json] = {}
        self._choices: dict[int, _Choice] = {}
        self._unnumbered = False

    def add(self, chunk: Chunk) -> None:
        """Take in the next chunk."""
        if self.problem is not None:
            return
        try:
            self._add(chunk)
        except _Malformed as why:
            self.problem = str(why)

    def completion(self, *, choices: int = 1, usage_expected: bool = False) -> Completion | None:
        """Return the whole completion, or `None` while any of it is missing or for a `problem`.

        Args:
            choices: How many the request asked for (`n`). There must be so many, no more and no
                fewer, each with its finish reason.
            usage_expected: The request asked for usage, which comes after the last finish
                reason: without it, the stream was cut.
        """
        usage = self._fields.get("usage")
        if (
            self.problem is not None
            or self._choices.keys() != set(range(choices))
            or not all(choice.finish_reason for choice in self._choices.values())
            or (self._unnumbered and choices > 1)
            or (usage_expected and usage is None)
        ):
            return None
        known = {k: v for k, v in self._fields.items() if k not in _NOT_OF_THE_ANSWER}
        answers = [self._choices[index].value(index) for index in range(choices)]
        counted = {} if usage is None else {"usage": usage}
        return {**known, "object": "chat.completion", "choices": answers, **counted}

    def _add(self, chunk: Chunk) -> None:
        if not isinstance(chunk, dict):
            raise _Malformed("a chunk is not an object")
        fields = self._fields
        for name, value in chunk.items():
            if value is None:
                fields.setdefault(name, None)
            elif name not in _FIRST_WINS or not fields.get(name):
                fields[name] = value
        if fields.get("error"):
            raise _Malformed("the upstream reported an error in mid-stream")
        if not isinstance(fields.get("usage"), dict | None):
            raise _Malformed("usage is not an object")

        parts = chunk.get("choices")
        if not isinstance(parts, list | None):
            raise _Malformed("choices is not a list")
        for part in parts or ():
            if not isinstance(part, dict):
                raise _Malformed("a choice is not an object")
            self._choice(part.get("index"), alone=len(parts or ()) == 1).add(part)

    def _choice(self, index: Json, *, alone: bool) -> _Choice:
        if index is None and alone:
            # Not every server numbers a single choice; of several, nobody could tell which it is.
            self._unnumbered, index = True, 0
        choice = self._choices.get(index) if type(index) is int else None
        if choice is None:
            choice = self._choices[_position(index, "a choice")] = _Choice()
        return choice


def _position(index: Json, what: str) -> int:
    if type(index) is not int or index < 0:
        raise _Malformed(f"{what} has no valid index")
    return index


class _Choice:
    """One choice of a stream, as far as it has come."""

    __slots__ = ("_calls", "_extras", "_has_logprobs", "_logprobs", "_message", "finish_reason")

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._message = _Object()
        self._calls: dict[int, _Object] = {}
        self._extras: dict[str, Json] = {}
        self._has_logprobs = False
        self._logprobs: dict[str, Json] | None = None

    def add(self, part: dict[str, Json]) -> None:
        delta = part.get("delta")
        if delta:
            self._say(delta)
        elif part.get("message"):
            raise _Malformed("a choice has a message in place of a delta")
        if "logprobs" in part:
            self._has_logprobs = True
            if part["logprobs"] is not None:
                self._logprobs = _extended(self._logprobs or {}, part["logprobs"])
        if not part.keys() <= _OF_A_PART:
            extras = {name: value for name, value in part.items() if name not in _OF_A_PART}
            if extras.get("error"):
                raise _Malformed("the upstream reported an error in mid-stream")
            _extended(self._extras, extras)
        finish_reason = part.get("finish_reason")
        if finish_reason is not None and finish_reason != "":
            self._finish(finish_reason)

    def value(self, index: int) -> dict[str, Json]:
        """Return the choice as it stands in a completion."""
        message = {"role": "assistant", **self._message.value()}
        message["role"] = message["role"] or "assistant"
        if self._calls:
            message["tool_calls"] = [_call(self._calls[at]) for at in sorted(self._calls)]
        choice = {"index": index, "message": message, **_copied(self._extras)}
        if self._has_logprobs:
            choice["logprobs"] = None if self._logprobs is None else _copied(self._logprobs)
        return {**choice, "finish_reason": self.finish_reason}

    def _say(self, delta: Json) -> None:
        if not isinstance(delta, dict):
            raise _Malformed("a delta is not an object")
        # Whoever goes on talking after the finish reason sends one with every chunk: a stream of
        # theirs that is cut looks complete. (The last update of an audio answer is its expiry.)
        if self.finish_reason is not None and any(
            value and name not in ("role", "audio") for name, value in delta.items()
        ):
            raise _Malformed("a choice goes on after its finish reason")
        calls = delta.get("tool_calls")
        if calls:
            self._call(calls)
            delta = {name: value for name, value in delta.items() if name != "tool_calls"}
        self._message.add(delta)

    def _call(self, calls: Json) -> None:
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise _Malformed("tool_calls is not a list of objects")
        for call in calls:
            index = _position(call.get("index"), "a tool call")
            held = self._calls.setdefault(index, _Object())
            held.add({name: value for name, value in call.items() if name != "index"})

    def _finish(self, reason: Json) -> None:
        if not isinstance(reason, str) or self.finish_reason not in (None, reason):
            raise _Malformed("a choice has an invalid finish reason, or two")
        if not all(_is_named(_call(call)) for call in self._calls.values()):
            raise _Malformed("a tool call has no name")
        self.finish_reason = reason


def _extended(held: dict[str, Json], more: Json) -> dict[str, Json]:
    """Add *more* to *held*: lists grow; of anything else, the last that is not null holds."""
    if not isinstance(more, dict):
        raise _Malformed("logprobs is not an object")
    for name, value in more.items():
        before = held.get(name)
        if not isinstance(value, list):
            if value is not None or name not in held:
                held[name] = value
        elif isinstance(before, list):
            before.extend(value)
        else:
            held[name] = [*value]
    return held


def _copied(held: dict[str, Json]) -> dict[str, Json]:
    return {name: [*v] if isinstance(v, list) else v for name, v in held.items()}


def _call(held: _Object) -> dict[str, Json]:
    """Return a tool call as it stands in a message, with what its kind cannot be without."""
    call = held.value()
    for kind, text in _CALLS:
        payload = call.get(kind)
        if isinstance(payload, dict):
            if payload.get(text) is None:
                payload[text] = ""
            if call.get("type") is None:
                call["type"] = kind
    return call


def _is_named(call: dict[str, Json]) -> bool:
    payloads = (call.get(kind) for kind, _ in _CALLS)
    return any(isinstance(payload, dict) and payload.get("name") for payload in payloads)


class _Object:
    """A JSON object that arrives in pieces: text is joined, objects and lists are merged.

    Of numbers and booleans the last holds, and null is as good as nothing. What is text in one
    chunk and an object in the next is malformed.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        # A text is held as the list of its pieces, a list as `_Items`.
        self._held: dict[str, Any] = {}

    def add(self, more: dict[str, Json], depth: int = 0) -> None:
        held = self._held
        for name, value in more.items():
            before = held.get(name)
            if isinstance(value, str) and name not in _WHOLE:
                if type(before) is list:
                    before.append(value)
                else:
                    held[name] = _first(before, [value], name)
            elif isinstance(value, dict | list):
                held[name] = _merged(before, value, name, depth)
            elif value is None or value == "":
                held.setdefault(name, value)
            else:
                held[name] = _single(before, value, name)

    def value(self) -> dict[str, Json]:
        return {name: _value(value) for name, value in self._held.items()}


class _Items:
    """A JSON list that arrives in pieces. Objects of the same `index` are one."""

    __slots__ = ("_held", "_numbered")

    def __init__(self) -> None:
        self._held: list[Any] = []
        self._numbered: dict[int, _Object] = {}

    def add(self, more: list[Json], depth: int) -> None:
        for item in more:
            index = item.get("index") if isinstance(item, dict) else None
            if type(index) is not int:
                self._held.append(item)
                continue
            if index not in self._numbered:
                self._numbered[index] = _Object()
                self._held.append(self._numbered[index])
            self._numbered[index].add(item, depth)

    def value(self) -> list[Json]:
        # Not `_value`: a plain list in here is an item, not a text.
        return [item.value() if isinstance(item, _Object) else item for item in self._held]


def _merged(before: Any, more: Json, name: str, depth: int) -> Any:
    """Return *before* with the object or list *more* added to it."""
    if depth >= _MAX_DEPTH:
        raise _Malformed(f"a chunk is nested deeper than {_MAX_DEPTH} levels")
    kind: type[_Object | _Items] = _Object if isinstance(more, dict) else _Items
    into: Any = before if isinstance(before, kind) else _first(before, kind(), name)
    into.add(more, depth + 1)
    return into


def _first(before: Any, value: Any, name: str) -> Any:
    """Return *value*, which nothing of another kind may have come before."""
    if before is not None and before != "":
        raise _Malformed(f"{name} changes its type")
    return value


def _single(before: Any, value: Json, name: str) -> Json:
    if isinstance(before, list | _Object | _Items):
        raise _Malformed(f"{name} changes its type")
    # Calls in parallel that all claim to be the first look like this.
    if name in _WHOLE and before not in (None, "", value):
        raise _Malformed(f"{name} changes")
    return value


def _value(held: Any) -> Json:
    if type(held) is list:
        return "".join(held)
    return held.value() if isinstance(held, _Object | _Items) else held


def replay(completion: Completion, *, include_usage: bool) -> Iterator[Chunk]:
    """Yield the stream that would have brought *completion*.

    Each choice begins with its role and ends with its finish reason; several take turns. Text and
    arguments come in pieces that join to the original exactly: a word or so each, and never more
    than 256 of them. Where the tokens of the logprobs are known to be the text, they are the
    pieces. What a stored answer lacks is empty, never made up: `id` and `model` `""`, `created` 0.

    As in OpenAI's streams, `annotations` only appear when there are some. The chunks share
    values with *completion*: they are for reading.

    Args:
        completion: A completion that `policy.refusal` has no objection to.
        include_usage: The caller asked for it: a last chunk without choices has the usage, where
            it is known, and in all others it is null.
    """
    usage = completion.get("usage")
    extras = {k: v for k, v in completion.items() if k not in _NOT_OF_THE_ANSWER}
    envelope = {name: extras.pop(name, None) or empty for name, empty in _EMPTY.items()}
    envelope["object"] = "chat.completion.chunk"
    envelope |= {name: extras.pop(name) for name in _ON_EVERY_CHUNK if name in extras}
    if include_usage:
        envelope["usage"] = None

    for turn in zip_longest(*(_parts(*numbered) for numbered in _numbered(completion))):
        for part in turn:
            if part is not None:
                yield {**envelope, "choices": [part], **extras}
                extras = {}
    if include_usage and usage is not None:
        yield {**envelope, "choices": [], "usage": usage, **extras}


def _numbered(completion: Completion) -> list[tuple[int, dict[str, Json]]]:
    """Return the choices with their indexes, in the order in which they have to begin."""
    choices = [choice for choice in completion.get("choices") or () if isinstance(choice, dict)]
    by_index = {c["index"]: c for c in choices if type(c.get("index")) is int}
    if by_index.keys() != set(range(len(choices))):
        return list(enumerate(choices))
    return sorted(by_index.items())


def _parts(index: int, choice: dict[str, Json]) -> Iterator[dict[str, Json]]:
    """Yield what the chunks have under `choices` for one choice."""
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    part: dict[str, Json] = {"index": index, "delta": {}, "finish_reason": None}
    logprobs = choice.get("logprobs")
    if "logprobs" in choice:
        part["logprobs"] = None
    known = logprobs if isinstance(logprobs, dict) else {}
    texts = ("content", "refusal")
    spoken = {k: known[k] for k in texts if _are_the_text(known.get(k), message.get(k))}
    extras = {k: v for k, v in choice.items() if k not in _OF_A_PART}
    end = {**extras, "finish_reason": choice.get("finish_reason")}

    # The SDK counts logprobs twice that come with the very first chunk of a later choice.
    yield {**part, "delta": _opening(message)}
    unspoken = {k: v for k, v in known.items() if k not in spoken}
    pending = isinstance(logprobs, dict)
    for delta, tokens in chain(_deltas(message, spoken), [({}, {})]):
        sent = {**part, "delta": delta, **({} if delta else end)}
        if pending or tokens:
            sent["logprobs"] = {**dict.fromkeys(known), **unspoken, **tokens}
            pending, unspoken = False, {}
        yield sent


def _opening(message: dict[str, Json]) -> dict[str, Json]:
    """Return the delta that begins a choice: its role, and all that does not come in pieces."""
    opening: dict[str, Json] = {"role": "assistant"}
    for name, value in message.items():
        if not value or not _comes_in_pieces(name, value):
            opening[name] = value
        elif isinstance(value, str):
            opening[name] = "" if name == "content" else None
    if opening.get("annotations") == []:
        del opening["annotations"]
    return opening


def _comes_in_pieces(name: str, value: Json) -> bool:
    if name == "tool_calls":
        return isinstance(value, list) and all(isinstance(call, dict) for call in value)
    if name == "function_call":
        return isinstance(value, dict)
    return isinstance(value, str) and name not in _WHOLE


def _deltas(
    message: dict[str, Json], spoken: _Tokens
) -> Iterator[tuple[dict[str, Json], _Tokens]]:
    """Yield the deltas between role and finish reason, with the tokens that are *spoken* there."""
    for name in sorted(message, key=lambda name: _ORDER.get(name, 0)):
        value = message[name]
        if not value or not _comes_in_pieces(name, value):
            continue
        if name in spoken:
            for run in _runs(spoken[name]):
                yield {name: "".join(token["token"] for token in run)}, {name: run}
        elif isinstance(value, str):
            yield from (({name: piece}, {}) for piece in _pieces(value))
        elif name == "function_call":
            yield from (({name: delta}, {}) for delta in _payload_deltas(value, "arguments"))
        else:
            for index, call in enumerate(value):
                for delta in _call_deltas(call):
                    yield {name: [{"index": index, **delta}]}, {}


def _call_deltas(call: dict[str, Json]) -> Iterator[dict[str, Json]]:
    """Yield a tool call: what it is, then its arguments piece by piece."""
    head = {name: value for name, value in call.items() if name != "index"}
    for kind, text in _CALLS:
        payload = call.get(kind)
        if isinstance(payload, dict):
            first, *others = _payload_deltas(payload, text)
            yield {**head, kind: first}
            yield from ({kind: delta} for delta in others)
            return
    yield head


def _payload_deltas(payload: dict[str, Json], text: str) -> Iterator[dict[str, Json]]:
    said = payload.get(text)
    if not isinstance(said, str):
        yield payload
        return
    yield {**payload, text: ""}
    yield from ({text: piece} for piece in _pieces(said))


def _are_the_text(tokens: Json, text: Json) -> bool:
    """Tell whether the tokens of logprobs join to *text*.

    They do not where a character is spread over two tokens, nor do those of every server.
    """
    if not text or not isinstance(text, str) or not isinstance(tokens, list):
        return False
    said: list[Any] = [t.get("token") if isinstance(t, dict) else None for t in tokens]
    return all(isinstance(word, str) for word in said) and "".join(said) == text


def _runs(tokens: Sequence[Json]) -> Iterator[list[Json]]:
    size = -(-len(tokens) // _MAX_PIECES)
    for start in range(0, len(tokens), size):
        yield list(tokens[start : start + size])


def _pieces(text: str) -> list[str]:
    """Split *text* behind words; the pieces join to it exactly."""
    # So many characters at least that the pieces do not get too many, then the rest of the word
    # (unless it is one of those scripts that do without blanks) and the blanks behind it.
    least = len(text) // _MAX_PIECES + 1
    return re.findall(rf"(?s:.{{1,{least}}})\S{{0,{_REST_OF_WORD}}}\s*", text)
