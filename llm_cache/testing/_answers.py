"""What the scripted upstream says: from an `Answer` to the JSON and the events of OpenAI's API.

Everything here is a function of its arguments: no sockets, no time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import asyncio

Json: TypeAlias = dict[str, Any]
Seconds: TypeAlias = float | Callable[[], float]
"""A duration, or what to call for one, say a seeded distribution."""
Event: TypeAlias = Mapping[str, Any] | str | bytes
"""A server-sent event: a JSON payload, the text after `data:`, or bytes to send as they are."""

# Fixed, so that the same script gives the same bytes on every run.
_CREATED = 1_750_000_000
_FINGERPRINT = "fp_scripted"

_WORDS = re.compile(r"\S+\s*|\s+")
_ARGUMENT_PIECES = re.compile(r".{1,8}", re.DOTALL)

_ERRORS: Mapping[int, tuple[str, str | None]] = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "unsupported_country_region_territory"),
    404: ("invalid_request_error", "not_found"),
    429: ("requests", "rate_limit_exceeded"),
}


def expected_answer(body: Mapping[str, Any]) -> str:
    """Return what a `ScriptedUpstream` says to *body* unless told otherwise.

    A function of the model and of the role and content of every message: two conversations that
    differ in one character have different answers, so whoever gets somebody else's answer can
    see that it is.
    """
    messages = body["messages"]
    said = [body.get("model"), [[turn.get("role"), turn.get("content")] for turn in messages]]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:24]
    return f"{body.get('model')} gives answer {digest} to {len(messages)} message(s)."


def tool_call(
    name: str, arguments: str | Mapping[str, Any] = "{}", *, call_id: str | None = None
) -> Json:
    """Return a call of function *name* as it stands in a message.

    *arguments* may be text, which is what models send and need not be JSON, or a mapping. The id
    is derived from name and arguments unless one is given.
    """
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    if call_id is None:
        call_id = "call_" + hashlib.sha256(f"{name} {text}".encode()).hexdigest()[:24]
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}


def error_payload(
    status: int, error: str | Mapping[str, Any] | None = None, *, code: str | None = None
) -> Json:
    """Return an error body of OpenAI's shape; *error* is its message, or fields that win."""
    kind, usual_code = _ERRORS.get(status, ("server_error", None))
    payload: Json = {
        "message": error if isinstance(error, str) else f"Scripted error {status}.",
        "type": kind,
        "param": None,
        "code": code or usual_code,
    }
    if isinstance(error, Mapping):
        payload.update(error)
    return {"error": payload}


def encode_json(payload: object) -> bytes:
    """Return *payload* as JSON, without blanks."""
    return json.dumps(payload, separators=(",", ":")).encode()


def encode_event(event: Event) -> bytes:
    """Return *event* as it travels in a `text/event-stream`."""
    if isinstance(event, bytes):
        return event
    data = event.encode() if isinstance(event, str) else encode_json(event)
    return b"data: " + data + b"\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirks:
    """Departures of a stream from what OpenAI sends; other servers are known for each of them.

    Attributes:
        done: end with `data: [DONE]`. Without it the stream just ends.
        empty_choices_first: begin with a chunk whose `choices` is empty.
        first_chunk: `"openai"` sends the role with empty content, `"role-only"` the role alone,
            `"merged"` the role together with the first piece of text.
        usage: `"own-chunk"` sends the usage in a last chunk of its own if the request asked for
            it, `"finish-chunk"` on the chunk with the last finish reason, asked for or not.
        comments: a comment line before every event, as sent to keep proxies awake.
        crlf: lines end with CR LF.
    """

    done: bool = True
    empty_choices_first: bool = False
    first_chunk: Literal["openai", "role-only", "merged"] = "openai"
    usage: Literal["own-chunk", "finish-chunk"] = "own-chunk"
    comments: bool = False
    crlf: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One choice of an answer, for `Answer.choices`.

    Attributes:
        text: the message's content; None is sent as null.
        finish_reason: None is `"tool_calls"` if there are tool calls, else `"stop"`.
        tool_calls: as they stand in a message, see `tool_call`.
        refusal: the message's refusal.
        logprobs: as they stand in a choice. None makes some up if the request asks for them.
        chunks: how a stream splits the text; None splits it into words.
    """

    text: str | None = None
    finish_reason: str | None = None
    tool_calls: Sequence[Mapping[str, Any]] = ()
    refusal: str | None = None
    logprobs: Mapping[str, Any] | None = None
    chunks: Sequence[str] | None = None

    def __post_init__(self) -> None:
        _check_chunks(self.text, self.chunks)

    @property
    def pieces(self) -> list[str]:
        """The text as a stream splits it."""
        if self.chunks is not None:
            return list(self.chunks)
        return [] if self.text is None else _WORDS.findall(self.text)

    @property
    def refusal_pieces(self) -> list[str]:
        """The refusal as a stream splits it."""
        return [] if self.refusal is None else _WORDS.findall(self.refusal)

    @property
    def finish(self) -> str:
        """The finish reason as sent."""
        if self.finish_reason is not None:
            return self.finish_reason
        return "tool_calls" if self.tool_calls else "stop"

    def message(self) -> Json:
        """Return the choice's message, as a plain answer has it."""
        message: Json = {
            "role": "assistant",
            "content": self.text,
            "refusal": self.refusal,
            "annotations": [],
        }
        if self.tool_calls:
            message["tool_calls"] = list(self.tool_calls)
        return message

    def token_count(self) -> int:
        """Return how many tokens the choice has, near enough."""
        called = sum(len(encode_json(call)) for call in self.tool_calls)
        return len(self.pieces) + len(self.refusal_pieces) + called // 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the upstream answers to one request, and how.

    The fields of `Choice` describe the message: `text`, `finish_reason`, `tool_calls`, `refusal`,
    `logprobs`, `chunks`. Here a `text` of None means `expected_answer`, or null beside tool calls
    or a refusal. A stream's deltas add up to the plain answer.

    Attributes:
        n: how many choices; None is as many as the request asks for. The second and later ones
            have their index after the text, so that they can be told apart.
        choices: the choices one by one, in place of the fields above; empty is none at all.
        usage: as in the answer; `"count"` makes up plausible numbers, None leaves it out.
        model: None is the request's.
        status: from 400 on an error is sent rather than a message.
        error: the error's message, or its fields.
        headers: added to the response's, replacing those of the same name.
        gate: waited for before anything is sent, or once a stream has sent `gate_after` events.
        gate_after: how many events of a stream do not wait for the gate.
        delay_s: from the open gate to the head of the response: the model "thinks".
        first_token_delay_s: from the head to the first event of a stream.
        chunk_delay_s: before each later event of a stream.
        quirks: how a stream departs from OpenAI's.
        stream_events: exactly the events of a stream, nothing added; a plain request ignores it.
        raw_body: exactly the bytes of the body, whatever was asked.
        cut_after: close the connection after so many bytes of the body, chunk framing left out.
        drop: close the connection instead of an answer, without a single byte.
    """

    text: str | None = None
    finish_reason: str | None = None
    tool_calls: Sequence[Mapping[str, Any]] = ()
    refusal: str | None = None
    logprobs: Mapping[str, Any] | None = None
    chunks: Sequence[str] | None = None
    n: int | None = None
    choices: Sequence[Choice] | None = None
    usage: Mapping[str, Any] | Literal["count"] | None = "count"
    model: str | None = None
    status: int = 200
    error: str | Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    gate: asyncio.Event | None = None
    gate_after: int = 0
    delay_s: Seconds = 0.0
    first_token_delay_s: Seconds = 0.0
    chunk_delay_s: Seconds = 0.0
    quirks: Quirks = Quirks()
    stream_events: Sequence[Event] | None = None
    raw_body: bytes | None = None
    cut_after: int | None = None
    drop: bool = False

    def __post_init__(self) -> None:
        _check_chunks(self.text, self.chunks)
        if self.error is not None and self.status < 400:
            raise ValueError("an error needs a status of 400 or more")
        if self.choices is not None and any(
            getattr(self, name) != none for name, none in _NO_MESSAGE.items()
        ):
            raise ValueError("give the choices, or the fields of a single one, not both")

    def completion(self, body: Mapping[str, Any], *, answer_id: str = "chatcmpl-1") -> Json:
        """Return the `chat.completion` that answers *body*."""
        choices = self._choices(body)
        completion = self._envelope(body, answer_id, "chat.completion")
        completion["choices"] = [
            {
                "index": index,
                "message": choice.message(),
                "logprobs": choice.logprobs,
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(choices)
        ]
        if self.usage is not None:
            completion["usage"] = self._usage(body, choices)
        return completion

    def events(self, body: Mapping[str, Any], *, answer_id: str = "chatcmpl-1") -> list[Event]:
        """Return the events that answer *body* with `"stream": true`, `[DONE]` included."""
        if self.stream_events is not None:
            return list(self.stream_events)
        events: list[Event] = [*self._chunks(body, answer_id)]
        if self.quirks.done:
            events.append("[DONE]")
        if self.quirks.crlf:
            events = [encode_event(event).replace(b"\n", b"\r\n") for event in events]
        if self.quirks.comments:
            events = [b": keep-alive\n\n" + encode_event(event) for event in events]
        return events

    def _chunks(self, body: Mapping[str, Any], answer_id: str) -> list[Json]:
        choices = self._choices(body)
        usage_asked = bool((body.get("stream_options") or {}).get("include_usage"))
        envelope = self._envelope(body, answer_id, "chat.completion.chunk")
        own_chunk = usage_asked and self.usage is not None and self.quirks.usage == "own-chunk"
        # Once usage is asked for, every chunk has the field; it is null in all but the last.
        rest: Json = {"usage": None} if own_chunk else {}

        streams = [_deltas(index, choice, self.quirks) for index, choice in enumerate(choices)]
        turns = zip_longest(*streams)  # the choices take turns, as the tokens of a batch do
        parts = [[part] for turn in turns for part in turn if part is not None]
        if self.quirks.empty_choices_first:
            parts.insert(0, [])
        chunks = [{**envelope, "choices": part, **rest} for part in parts]
        if own_chunk:
            chunks.append({**envelope, "choices": [], "usage": self._usage(body, choices)})
        elif chunks and self.usage is not None and self.quirks.usage == "finish-chunk":
            chunks[-1]["usage"] = self._usage(body, choices)
        return chunks

    def _envelope(self, body: Mapping[str, Any], answer_id: str, kind: str) -> Json:
        return {
            "id": answer_id,
            "object": kind,
            "created": _CREATED,
            "model": body.get("model") if self.model is None else self.model,
            "service_tier": "default",
            "system_fingerprint": _FINGERPRINT,
        }

    def _choices(self, body: Mapping[str, Any]) -> list[Choice]:
        choices = self._same_choices(body) if self.choices is None else list(self.choices)
        if body.get("logprobs"):
            return [_with_logprobs(choice) for choice in choices]
        return choices

    def _same_choices(self, body: Mapping[str, Any]) -> list[Choice]:
        text = "".join(self.chunks) if self.text is None and self.chunks is not None else self.text
        if text is None and not self.tool_calls and self.refusal is None:
            text = expected_answer(body)
        first = Choice(
            text=text,
            finish_reason=self.finish_reason,
            tool_calls=self.tool_calls,
            refusal=self.refusal,
            logprobs=self.logprobs,
            chunks=self.chunks,
        )
        count = self.n if self.n is not None else body.get("n") or 1
        if text is None:
            return [first] * count
        others = [replace(first, text=f"{text} [{i}]", chunks=None) for i in range(1, count)]
        return [first, *others][:count]

    def _usage(self, body: Mapping[str, Any], choices: Sequence[Choice]) -> Json:
        if isinstance(self.usage, Mapping):
            return dict(self.usage)
        said = sum(len(str(turn.get("content"))) // 4 + 4 for turn in body["messages"])
        spoken = sum(choice.token_count() for choice in choices)
        return {
            "prompt_tokens": said,
            "completion_tokens": spoken,
            "total_tokens": said + spoken,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }


_NO_MESSAGE: Mapping[str, Any] = {
    "text": None,
    "finish_reason": None,
    "tool_calls": (),
    "refusal": None,
    "logprobs": None,
    "chunks": None,
    "n": None,
}


def _check_chunks(text: str | None, chunks: Sequence[str] | None) -> None:
    if text is not None and chunks is not None and "".join(chunks) != text:
        raise ValueError("the chunks do not add up to the text")


def _with_logprobs(choice: Choice) -> Choice:
    if choice.logprobs is not None:
        return choice
    return replace(
        choice,
        logprobs={
            "content": None if choice.text is None else _tokens(choice.pieces),
            "refusal": None if choice.refusal is None else _tokens(choice.refusal_pieces),
        },
    )


def _tokens(pieces: Sequence[str]) -> list[Json]:
    return [
        {"token": piece, "logprob": -0.5, "bytes": list(piece.encode()), "top_logprobs": []}
        for piece in pieces
    ]


def _deltas(index: int, choice: Choice, quirks: Quirks) -> list[Json]:
    """Return the chunk choices of one choice, from its role to its finish reason."""
    parts = _spoken_parts(choice, quirks)
    for call_index, call in enumerate(choice.tool_calls):
        parts += [_part({"tool_calls": [delta]}) for delta in _call_deltas(call_index, call)]

    role: Json = {"role": "assistant"}
    if quirks.first_chunk == "merged" and parts:
        parts[0]["delta"] = role | parts[0]["delta"]
    elif quirks.first_chunk == "openai":
        empty = None if choice.text is None else ""
        parts.insert(0, _part({**role, "content": empty, "refusal": None}))
    else:
        parts.insert(0, _part(role))
    parts.append(_part({}))
    parts[-1]["finish_reason"] = choice.finish
    return [{"index": index, **part} for part in parts]


def _spoken_parts(choice: Choice, quirks: Quirks) -> list[Json]:
    pieces = choice.pieces
    if choice.text == "" and quirks.first_chunk != "openai":
        pieces = [""]  # otherwise nothing would tell the empty text from none
    probs = choice.logprobs or {}
    return [
        *_with_tokens([_part({"content": p}) for p in pieces], "content", probs),
        *_with_tokens([_part({"refusal": p}) for p in choice.refusal_pieces], "refusal", probs),
    ]


def _part(delta: Json) -> Json:
    return {"delta": delta, "logprobs": None, "finish_reason": None}


def _with_tokens(parts: list[Json], kind: str, logprobs: Mapping[str, Any]) -> list[Json]:
    """Hand out the tokens one a part, and those that are left to the last part."""
    tokens = logprobs.get(kind)
    if tokens is None:
        return parts
    last = len(parts) - 1
    for number, part in enumerate(parts):
        share = tokens[number:] if number == last else tokens[number : number + 1]
        part["logprobs"] = {"content": None, "refusal": None, kind: share}
    return parts


def _call_deltas(index: int, call: Mapping[str, Any]) -> list[Json]:
    """Return the id and name of a tool call, then its arguments piece by piece."""
    kind = call["type"]
    payload = call[kind]
    field_name = "input" if kind == "custom" else "arguments"
    head = {"index": index, **call, kind: {**payload, field_name: ""}}
    pieces = _ARGUMENT_PIECES.findall(payload[field_name])
    return [head, *({"index": index, kind: {field_name: piece}} for piece in pieces)]
