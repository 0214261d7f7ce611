"""The values the parts hand to each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf
from typing import Any, NamedTuple, Protocol

Json = Any
"""A JSON value: `None`, `bool`, `int`, `float`, `str`, or a list or dict of them."""

Completion = dict[str, Json]
"""A chat completion as the provider sent it, parsed from JSON and otherwise unchanged."""


class HasAnswer(Protocol):
    """Whatever has an answer."""

    @property
    def answer(self) -> Json:
        """The answer; the same object every time."""


class CacheStatus(StrEnum):
    """How a call ended. Exactly one status for every call; also the metric label."""

    EXACT = "exact"
    """Answered from an entry of the same request."""
    SEMANTIC = "semantic"
    """Answered from an entry whose prompt means the same, in the same scope."""
    STALE = "stale"
    """Answered from an entry past its TTL, where the caller allowed it."""
    MISS = "miss"
    """Looked, found nothing, asked the model."""
    BYPASS = "bypass"
    """Not looked, by plan or because a dependency failed; the model was asked."""


class Role(StrEnum):
    """The roles of a chat message that this release knows."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    FUNCTION = "function"


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A validated request: what the model will see, and what of it is compared.

    `messages` and `params` go to the model as they are here. `frame` is the canonical form of
    everything except the compared text; with `text` it is the identity of the request.
    """

    model: str
    messages: list[dict[str, Json]] = field(repr=False)
    params: Mapping[str, Any] = field(repr=False)
    """Everything else the SDK is called with: `temperature`, `tools`, `extra_headers`, …"""
    frame: bytes = field(repr=False)
    """Canonical bytes of all the model can see, without the compared text."""
    text: str | None = field(repr=False)
    """The last user turn, verbatim; `None` where the request does not end with one."""
    normalized: str = field(repr=False)
    """`text` after prompt normalisation; what the exact key holds."""

    def unstreamed(self) -> ChatRequest:
        """Return the same request for an answer that comes in one piece."""
        streaming = {"stream", "stream_options"}
        params = {name: value for name, value in self.params.items() if name not in streaming}
        return replace(self, params=params)


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored answer."""

    answer: Json = field(repr=False)
    """A chat completion, or whatever a producer of the caller's own returned."""
    created_s: float
    """Unix time at which the answer was stored."""
    stamp: str
    """The epoch that the storing request saw before it asked the model: 32 hexadecimal digits."""
    model: str
    fresh_until_s: float = inf
    """Unix time at which it turns stale; from then on it is served only where that is allowed."""
    tenant: str | None = None
    """What stands for the tenant in Redis."""
    shared_scope: str | None = None
    """The scope in which tenants share it, if they do."""
    prompt_version: str | None = None
    """Names the system prompt that it was made under."""
    tags: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()
    """What the answer was made from, and what that was made from."""
    origin: str | None = None
    """For an alias: the digest of the entry it is a copy of."""
    similarity: float | None = None
    """For an alias: the similarity with which it was promoted."""

    @property
    def about(self) -> Entry:
        """Itself, as one whose answer is not yet read has it."""
        return self

    def as_alias(self, origin: str, similarity: float | None) -> Entry:
        """Return a copy of this entry for another prompt, which it answers with *similarity*."""
        return replace(self, origin=origin, similarity=similarity)


class Candidate(NamedTuple):
    """A neighbour of the prompt in its own scope, nearest first, before threshold and guards."""

    key: str
    """Redis key of the semantic entry."""
    digest: str
    """Digest of the answer it leads to."""
    prompt: str
    similarity: float
    group: str = ""
    """What its answer says: equal for candidates whose answers are the same. Empty where nobody
    knows; then `digest` stands for it, and no two candidates agree."""
    signature: bytes = b""
    """What the guards need to know of the prompt, where it is kept."""

    def __repr__(self) -> str:
        """Tell nothing of the prompt."""
        return f"Candidate({self.key!r}, similarity={self.similarity!r}, group={self.group!r})"


def answer_text(answer: Json) -> str:
    """Return the text of a chat completion, or any other answer as JSON."""
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        text = None
    return text if isinstance(text, str) else json.dumps(answer, ensure_ascii=False)
