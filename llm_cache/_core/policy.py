"""What may be stored, and what may still be served. Pure decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from llm_cache._core.types import Json

StoreIf = Callable[[Any], bool]
"""A caller's own rule: whether an answer may be stored."""

_COMPLETE = frozenset({"stop", "tool_calls", "function_call"})


class Refusal(StrEnum):
    """Why an answer was served but not stored."""

    MALFORMED = "malformed"
    """It is not shaped as a chat completion."""
    NO_CHOICES = "no_choices"
    EMPTY = "empty"
    """A choice has neither text nor tool calls nor a refusal."""
    LENGTH = "length"
    """The model ran into its token limit: the answer is cut."""
    CONTENT_FILTER = "content_filter"
    UNFINISHED = "unfinished"
    """Any other reason to finish, or none."""
    TOO_LARGE = "too_large"
    """More bytes than `max_entry_bytes`."""
    NOT_WANTED = "not_wanted"
    """The caller's own rule (`store_if`) said no, or raised."""
    NOT_TEXT = "not_text"
    """It holds something that cannot be written down: a lone surrogate."""
    ABANDONED = "abandoned"
    """Everybody had left the stream before its end."""


_CUT = {"length": Refusal.LENGTH, "content_filter": Refusal.CONTENT_FILTER}


def refusal(completion: Json) -> Refusal | None:
    """Return why *completion* must not be stored, or `None` when it may be.

    Every choice must be complete: one that is cut makes the whole answer unusable.
    """
    choices = completion.get("choices") if isinstance(completion, dict) else None
    if not isinstance(choices, list):
        return Refusal.MALFORMED
    if not choices:
        return Refusal.NO_CHOICES
    return next((reason for choice in choices if (reason := _choice_refusal(choice))), None)


def _choice_refusal(choice: Json) -> Refusal | None:
    if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
        return Refusal.MALFORMED
    finish = choice.get("finish_reason")
    if not isinstance(finish, str):
        return Refusal.UNFINISHED
    if finish not in _COMPLETE:
        return _CUT.get(finish, Refusal.UNFINISHED)
    message = choice["message"]
    said = (message.get(name) for name in ("content", "tool_calls", "function_call", "refusal"))
    return None if any(said) else Refusal.EMPTY


def value_refusal(value: Json, store_if: StoreIf | None) -> Refusal | None:
    """Return why a producer's *value* must not be stored, or `None` when it may be."""
    if value is None:
        return Refusal.EMPTY
    return None if store_if is None or store_if(value) else Refusal.NOT_WANTED


@dataclass(frozen=True, slots=True)
class Purges:
    """What has been invalidated: for each target, the token of the last time.

    Tokens are made by Redis, of fixed width, and grow: a later one compares greater.
    """

    epoch: str
    """The epoch this copy of the table was read under."""
    born: str
    """Token of the table itself. What is older was stored before a table that is lost, and nobody
    knows any more what of it had been invalidated."""
    tokens: Mapping[str, str] = field(default_factory=dict)

    def allow(self, stamp: str, targets: Callable[[], Iterable[str]]) -> bool:
        """Tell whether an entry with this *stamp*, read under this epoch, may be served.

        An entry is as old as the epoch that its request saw before it asked the model. It is dead
        when one of its *targets* was purged later, when it is older than the table, and when it
        claims to come from an epoch that this Redis has not reached (the table it knew is lost).
        """
        if not self.born <= stamp <= self.epoch:
            return False
        tokens = self.tokens
        return not tokens or all(tokens.get(target, "") <= stamp for target in targets())
