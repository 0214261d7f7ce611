"""From the messages as the caller wrote them to `Turns`: validated, split at the compared text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeGuard

from llm_cache._core import canonical
from llm_cache._core.types import Json, Role
from llm_cache.config import Normalization
from llm_cache.errors import InvalidRequest

_ROLES = frozenset(str(role) for role in Role)
_HOLE = 0
"""Stands for the compared text in the frame. In a chat request a text is never a number."""
_WHOLE = -1
"""The place of a text that is all of its content."""

Prompt = str | Iterable[Mapping[str, Any]]


class Turns(NamedTuple):
    """The messages of a request, checked, and split at the compared text."""

    messages: list[dict[str, Json]]
    """As the caller wrote them, in lists and dicts of their own."""
    frame: bytes
    """Canonical bytes of all messages, without the compared text."""
    text: str | None
    """The last user turn, verbatim; `None` where the list does not end with one."""
    normalized: str
    """`text` after prompt normalisation."""

    def __repr__(self) -> str:
        """Tell nothing of what they say."""
        return f"Turns({len(self.messages)} messages)"


def read_messages(
    prompt: Prompt,
    *,
    system: Any,
    normalization: Normalization = Normalization.WHITESPACE,
    max_chars: int = 1_000_000,
) -> Turns:
    """Return what *prompt* and the *system* message before it, if any, say.

    Args:
        prompt: The user's turn, or the whole list of messages.
        system: System message to put before a plain prompt; `None` for none.
        normalization: How the compared text is folded for the exact key.
        max_chars: Most characters the texts of all messages may have together.

    Raises:
        InvalidRequest: the messages cannot work; the message names the part to change.
    """
    messages, others = [], []
    for i, given in enumerate(_given(prompt, system)):
        if is_plain(given):
            messages.append(given.copy())
        else:
            messages.append(_message(given, i))
            others.append(i)
    if not messages:
        raise InvalidRequest("the list of messages is empty")
    _check_size(messages, max_chars)
    folded = messages.copy()
    for i in others:
        folded[i] = _fold_message(messages[i], i)
        messages[i] = canonical.copied(messages[i])
    folded[-1], texts = _cut_texts(folded[-1])
    return Turns(
        messages,
        frame=canonical.utf8("".join(map(_written, folded)), "the request"),
        text="\n".join(texts) if texts else None,
        normalized=_join([fold_text(text, normalization) for text in texts]),
    )


def without_compared(messages: list[dict[str, Json]]) -> list[dict[str, Json]]:
    """Return checked *messages* as a scope has them: a number stands for every compared text."""
    folded = [_fold_message(message, i) for i, message in enumerate(messages)]
    folded[-1], _ = _cut_texts(folded[-1])
    return folded


def _written(message: dict[str, Json]) -> str:
    """Return the canonical form of a folded message, which tells itself where it ends.

    JSON, but for a role with a text, as most messages are: writing those as JSON takes most of the
    time that planning a long conversation does. A role begins with a letter, and JSON does not.
    """
    text = message.get("content")
    if len(message) == 2:
        if type(text) is str:
            return f"{message['role']}{len(text)}:{text}"
        if text == _HOLE:
            return f"{message['role']}:"
    return canonical.dumps(message, "the request")


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
    if normalization is Normalization.WHITESPACE and _is_folded(text):
        return text
    if normalization is Normalization.VERBATIM:
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


def _given(prompt: Prompt, system: Any) -> Iterable[Any]:
    if isinstance(prompt, str):
        if system is not None and not isinstance(system, str):
            raise InvalidRequest("system must be text, or None for no system message")
        turn = [{"role": "user", "content": prompt}]
        return turn if system is None else [{"role": "system", "content": system}, *turn]
    if system is not None:
        raise InvalidRequest("system= goes with a plain prompt; put it into the message list")
    if isinstance(prompt, bytes | Mapping) or not isinstance(prompt, Iterable):
        raise InvalidRequest("the prompt must be text or a list of messages")
    return prompt


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
    # As it will be written: an enumeration may be text and stand for another.
    role = canonical.fold(as_json.get("role"), f"messages[{index}].role")
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


def _cut_texts(last: dict[str, Json]) -> tuple[dict[str, Json], list[str]]:
    """Return the *last* message with holes for the texts of a user's turn, and those texts.

    There are none where the list ends with anything but a user's turn: then the whole request is
    frame, and only the very same request finds its answer.
    """
    if last["role"] != "user":
        return last, []
    content = last.get("content")
    cut = dict(last)
    texts, _ = _cut_content(cut)
    is_text_alone = isinstance(content, str) or not content or len(texts) == len(content)
    if is_text_alone and not any(text.strip() for text in texts):
        raise InvalidRequest("the prompt is empty")
    return cut, texts


def _check_size(messages: list[dict[str, Json]], max_chars: int) -> None:
    chars = 0
    for message in messages:
        content = message.get("content")
        chars += len(content) if isinstance(content, str) else _text_chars(content)
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
