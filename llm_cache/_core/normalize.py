"""From what the caller wrote to a `ChatRequest`: validated, and split at the compared text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from llm_cache._core import canonical
from llm_cache._core.types import ChatRequest, Json, Role
from llm_cache.config import Normalization, is_number
from llm_cache.errors import InvalidRequest

_TRANSPORT_PARAMS = frozenset({"stream", "stream_options", "timeout"})
"""How the answer travels, not what it is."""
_EXTRAS = ("extra_body", "extra_headers", "extra_query")
_TRANSPORT_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "api-key",
        "authorization",
        "cache-control",
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "idempotency-key",
        "proxy-authorization",
        "traceparent",
        "tracestate",
        "user-agent",
        "x-client-request-id",
        "x-request-id",
    }
)
# Credentials say who asks, not what is answered: a key that is rotated must not empty the cache.
_CREDENTIALS = ("-api-key", "-auth", "-authorization", "-token")
_NUMBERS = frozenset(
    {
        "frequency_penalty",
        "max_completion_tokens",
        "max_tokens",
        "n",
        "presence_penalty",
        "seed",
        "temperature",
        "top_logprobs",
        "top_p",
    }
)
_ROLES = frozenset(str(role) for role in Role)
_HOLE = 0
"""Stands for the compared text in the frame. In a chat request a text is never a number."""
_WHOLE = -1
"""The place of a text that is all of its content."""

Prompt = str | Iterable[Mapping[str, Any]]


def normalize(
    prompt: Prompt,
    *,
    model: Any,
    system: Any,
    params: Mapping[str, Any],
    base_url: str,
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
    normalization: Normalization = Normalization.WHITESPACE,
    max_chars: int = 1_000_000,
) -> ChatRequest:
    """Return the request that *prompt* and the arguments around it make.

    Args:
        prompt: The user's turn, or the whole list of messages.
        model: The model's name.
        system: System message to put before a plain prompt; `None` for none.
        params: Everything else the model is called with.
        base_url: Where the model is; part of the frame.
        defaults: `extra_headers` and `extra_query` that the client sends with every request.
        normalization: How the compared text is folded for the exact key.
        max_chars: Most characters the texts of all messages may have together.

    Raises:
        InvalidRequest: the request cannot work; the message names the part to change.
    """
    if not isinstance(model, str) or not model:
        raise InvalidRequest("model must be the name of a model")
    sent = {name: value for name, value in params.items() if not canonical.is_not_given(value)}
    if "messages" in sent or "model" in sent:
        raise InvalidRequest("messages and model are given once: pass the messages as the prompt")
    _check_numbers(sent)
    messages = _messages(prompt, system)
    _check_size(messages, max_chars)
    folded = [
        {"content": message["content"], "role": message["role"]}
        if is_plain(message)
        else _fold_message(message, i)
        for i, message in enumerate(messages)
    ]
    texts = _cut_texts(folded)
    frame = canonical.dump(
        [base_url, model, folded, *_fold_params(sent, defaults or {})], "the request"
    )
    return ChatRequest(
        model=model,
        messages=messages,
        params=sent,
        frame=frame,
        text="\n".join(texts) if texts else None,
        normalized=_join([fold_text(text, normalization) for text in texts]),
    )


def frame_value(
    request: Mapping[str, Any], *, producer: str, normalization: Normalization
) -> tuple[bytes, str | None, str]:
    """Return frame, compared text and normalised text of a request in anybody's own shape.

    What is compared is the text of the last entry of `messages` if that is a user's, as the APIs
    of Anthropic, Ollama and others have it, or else the text under `prompt`. A request with
    neither is only ever found exactly.

    Raises:
        InvalidRequest: the request is not JSON.
    """
    if not isinstance(request, Mapping):
        raise InvalidRequest("the request must be a mapping")
    folded = canonical.fold(request, "the request")
    texts, holes = _cut_value_texts(folded)
    # With the places of the holes, a hole is never taken for a value of the caller's.
    frame = canonical.dump(["value", producer, folded, holes], "the request")
    text = "\n".join(texts) if any(text.strip() for text in texts) else None
    return frame, text, _join([fold_text(text, normalization) for text in texts])


def _cut_value_texts(folded: dict[str, Json]) -> tuple[list[str], list[int]]:
    """Take the compared texts out of *folded*, and return them and where they were."""
    messages = folded.get("messages")
    if isinstance(messages, list) and messages:
        last = messages[-1]
        is_turn = isinstance(last, dict) and last.get("role") == "user"
        return _cut_content(last) if is_turn else ([], [])
    if isinstance(folded.get("prompt"), str):
        text: str = folded["prompt"]
        folded["prompt"] = _HOLE
        return [text], [_WHOLE]
    return [], []


def _cut_content(message: dict[str, Json]) -> tuple[list[str], list[int]]:
    """Take the texts out of the content of *message*, and return them and where they were."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = _HOLE
        return [content], [_WHOLE]
    texts, holes = [], []
    for i, part in enumerate(content if isinstance(content, list) else ()):
        is_text = isinstance(part, dict) and part.get("type") == "text"
        if is_text and isinstance(part.get("text"), str):
            texts.append(part["text"])
            holes.append(i)
            part["text"] = _HOLE
    return texts, holes


def fold_text(text: str, normalization: Normalization) -> str:
    """Return *text* as the exact key sees it.

    Text of several lines, and text with code or quotations in it, keeps its inner white space:
    there it may be what the question is about.
    """
    if normalization is Normalization.VERBATIM:
        return text
    if normalization is Normalization.WHITESPACE and _is_folded(text):
        return text
    folded = text if text.isascii() else unicodedata.normalize("NFC", text)
    folded = folded.strip()
    if len(folded.splitlines()) == 1 and "`" not in folded and '"' not in folded:
        folded = " ".join(folded.split())
    return folded.casefold() if normalization is Normalization.CASEFOLD else folded


def _is_folded(text: str) -> bool:
    """Tell of most texts that they are folded already, in a fraction of the time that takes."""
    return (
        text.isascii()
        # Of all white space only the blank is printable.
        and text.isprintable()
        and "  " not in text
        and not text.startswith(" ")
        and not text.endswith(" ")
    )


def _join(texts: list[str]) -> str:
    """Return the compared texts as one; JSON keeps ["a b", "c"] and ["a", "b c"] apart."""
    if len(texts) == 1:
        return texts[0]
    return canonical.dump(texts, "the last message").decode() if texts else ""


def _messages(prompt: Prompt, system: str | None) -> list[dict[str, Json]]:
    if isinstance(prompt, str):
        if system is not None and not isinstance(system, str):
            raise InvalidRequest("system must be text, or None for no system message")
        turn = [{"role": "user", "content": prompt}]
        return turn if system is None else [{"role": "system", "content": system}, *turn]
    if system is not None:
        raise InvalidRequest("system= goes with a plain prompt; put it into the message list")
    if isinstance(prompt, bytes | Mapping) or not isinstance(prompt, Iterable):
        raise InvalidRequest("the prompt must be text or a list of messages")
    messages = [
        message.copy() if is_plain(message) else _message(message, i)
        for i, message in enumerate(prompt)
    ]
    if not messages:
        raise InvalidRequest("the list of messages is empty")
    return messages


def is_plain(message: Any) -> TypeGuard[dict[str, Json]]:
    """Tell whether *message* is a role and a text, as most are: then there is little to check."""
    return (
        type(message) is dict
        and len(message) == 2
        and type(message.get("content")) is str
        and type(message.get("role")) is str
        and message["role"] in _ROLES
    )


def _message(message: Any, index: int) -> dict[str, Json]:
    as_json = message if isinstance(message, Mapping) else canonical.to_json(message)
    if not isinstance(as_json, Mapping):
        raise InvalidRequest(f"messages[{index}] must be a mapping with a role and a content")
    role = as_json.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequest(
            f"messages[{index}].role must be one of {', '.join(sorted(_ROLES))}; got {role!r:.40}"
        )
    _check_tool_calls(as_json.get("tool_calls"), f"messages[{index}].tool_calls")
    return dict(as_json)


def _check_tool_calls(calls: Any, where: str) -> None:
    if not isinstance(calls, list | tuple):
        return
    ids = [call["id"] for call in calls if isinstance(call, Mapping) and "id" in call]
    if any(call_id in ids[:i] for i, call_id in enumerate(ids)):
        raise InvalidRequest(f"{where} has two calls of the same id")


def _fold_message(message: dict[str, Json], index: int) -> dict[str, Json]:
    """Return the canonical form of one message; one bare text part is the same as its text."""
    folded: dict[str, Json] = canonical.fold(message, f"messages[{index}]")
    parts = folded.get("content")
    if isinstance(parts, list):
        for i, part in enumerate(parts):
            _check_part(part, f"messages[{index}].content[{i}]")
        if len(parts) == 1 and parts[0].keys() == {"type", "text"} and parts[0]["type"] == "text":
            folded["content"] = parts[0]["text"]
    elif parts is not None and not isinstance(parts, str):
        raise InvalidRequest(f"messages[{index}].content must be text or a list of parts")
    return folded


def _check_part(part: Json, where: str) -> None:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise InvalidRequest(f"{where} must be a mapping with a type")
    if part["type"] == "text" and not isinstance(part.get("text"), str):
        raise InvalidRequest(f"{where}.text must be text")


def _cut_texts(folded: list[dict[str, Json]]) -> list[str]:
    """Take the texts of the last user turn out of *folded*, leaving holes, and return them.

    Nothing is taken when the list ends with anything but a user turn: then the whole request is
    frame, and only the very same request finds its answer.
    """
    last = folded[-1]
    if last["role"] != "user":
        return []
    content = last.get("content")
    texts, _ = _cut_content(last)
    is_text_alone = isinstance(content, str) or not content or len(texts) == len(content)
    if is_text_alone and not any(text.strip() for text in texts):
        raise InvalidRequest("the prompt is empty")
    return texts


def _fold_params(sent: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> list[Json]:
    """Return the rest of the request body, the headers and the query that the model could see.

    The SDK lays `extra_body` over the body, so a parameter given there is the same parameter.
    """
    body = {
        name: value
        for name, value in sent.items()
        if name not in _TRANSPORT_PARAMS and name not in _EXTRAS
    }
    over_body = _mapping(sent.get("extra_body"), "extra_body")
    return [
        canonical.fold({**body, **over_body}, "the request"),
        *fold_headers_and_query(sent, defaults),
    ]


def fold_headers_and_query(
    sent: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]
) -> list[Json]:
    """Return the headers and the query that the model could see, of the call and the client."""
    extra = {name: _mapping(sent.get(name), name) for name in ("extra_headers", "extra_query")}
    given = [*defaults.get("extra_headers", {}).items(), *extra["extra_headers"].items()]
    headers = {name.lower(): value for name, value in given if not is_transport(name.lower())}
    query = {**defaults.get("extra_query", {}), **extra["extra_query"]}
    return [canonical.fold(headers, "extra_headers"), canonical.fold(query, "extra_query")]


def is_transport(header: str) -> bool:
    """Tell whether *header*, in lower case, says how an answer travels or who asks for it."""
    # The SDK tells its platform, retries and helpers in headers of one prefix.
    is_named = header in _TRANSPORT_HEADERS or header.startswith("x-stainless-")
    return is_named or header.endswith(_CREDENTIALS)


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidRequest(f"{name} must be a mapping of names to values")
    return value


def _check_numbers(sent: Mapping[str, Any]) -> None:
    for name in _NUMBERS & sent.keys():
        value = sent[name]
        if value is not None and not is_number(value):
            raise InvalidRequest(f"{name} must be a number; got {type(value).__name__}")


def _check_size(messages: list[dict[str, Json]], max_chars: int) -> None:
    chars = 0
    for message in messages:
        content = message.get("content")
        chars += len(content) if type(content) is str else _text_chars(content)
    if chars > max_chars:
        raise InvalidRequest(
            f"the texts of the messages have {chars:,} characters, more than"
            f" max_prompt_chars={max_chars:,}: raise it in CacheConfig, or shorten the prompt"
        )


def _text_chars(content: Json) -> int:
    if not isinstance(content, list | tuple):
        return 0
    return sum(
        len(part["text"])
        for part in content
        if isinstance(part, Mapping) and isinstance(part.get("text"), str)
    )
