"""What may be stored, and what may still be served. Pure decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from llm_cache._core.targets import Kind, fold, matcher, owners, parts, targets_of
from llm_cache._core.types import Entry, Json
from llm_cache.errors import LLMCacheError

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
    SOURCE_GONE = "source_gone"
    """An answer that it was made from is no longer there."""
    ABANDONED = "abandoned"
    """Everybody had left the stream before its end."""
    SHED = "shed"
    """More answers than `store_queue_size` were waiting to be stored."""
    BREAKER = "breaker"
    """Redis kept failing, and was left alone."""


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
class Lifetime:
    """How long an answer lives."""

    fresh_until_s: float
    """Unix time."""
    kept_ms: int
    """For how long Redis keeps it, stale or not."""
    longest_ms: int
    """For how long it may be kept after all hits."""


def lifetime(
    now_s: float,
    ttl_s: float,
    *,
    stale_s: float = 0.0,
    sliding_max_age_s: float | None = None,
    jitter: float = 0.0,
    chance: float = 0.0,
) -> Lifetime:
    """Return how long an answer that is stored at *now_s* lives.

    Args:
        now_s: Unix time.
        ttl_s: For how long it is fresh; where it slides, for how long after its last hit.
        stale_s: For how long after that it may still be served where that is allowed.
        sliding_max_age_s: At which age a sliding answer ends whatever its hits.
        jitter: The largest share of its TTL that an answer loses, so that many which are stored
            together do not end together.
        chance: From 0 to 1: the share of the jitter.
    """
    ttl_s *= 1 - jitter * chance
    if sliding_max_age_s is None:
        kept_ms = max(1, round(1000 * (ttl_s + stale_s)))
        return Lifetime(now_s + ttl_s, kept_ms, kept_ms)
    longest_ms = max(1, round(1000 * sliding_max_age_s))
    kept_ms = min(max(1, round(1000 * ttl_s)), longest_ms)
    return Lifetime(now_s + sliding_max_age_s, kept_ms, longest_ms)


_SERVER_ERROR = 500
_PASSING = frozenset({408, 429})
"""A time-out, and too many requests."""


def is_outage(error: Exception) -> bool:
    """Tell whether *error* says that the model could not answer, not that it would not.

    RFC 5861 names the statuses 500 to 504; errors of other kinds (no connection, a time-out) have
    no status at all. A request that was refused is wrong, and a stale answer would hide that; so
    would one in place of an error of this library's own.
    """
    if isinstance(error, LLMCacheError):
        return False
    response = getattr(error, "response", None)
    # As the SDKs, aiohttp, and httpx and requests have it.
    found = (getattr(it, n, None) for it in (error, response) for n in ("status_code", "status"))
    status = next((value for value in found if isinstance(value, int)), None)
    return not isinstance(status, int) or status >= _SERVER_ERROR or status in _PASSING


_NOT_BY_NAME = (f"{Kind.AGE} ", f"{Kind.PATTERN} ")


class Dated(Protocol):
    """What decides whether a stored answer lives."""

    @property
    def stamp(self) -> str:
        """The epoch that its request saw."""

    @property
    def created_s(self) -> float:
        """When it was stored."""

    @property
    def about(self) -> Entry:
        """All of it but the answer."""


@dataclass(frozen=True, slots=True)
class PurgedPattern:
    """A pattern of prompts that was invalidated."""

    token: str
    whose: str
    matches: Callable[[str], Any]
    """Tells of a folded prompt whether it is meant."""


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
    """Of the kind `AGE`, the Unix time before which answers are dead."""
    _before_s: Mapping[str, float] = field(init=False, repr=False, compare=False)
    _patterns: tuple[PurgedPattern, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Set apart what is not found by its name."""
        before_s, patterns = {}, []
        for name, token in self.tokens.items():
            if name.startswith(_NOT_BY_NAME):
                kind, whose, value = parts(name)
                if kind == Kind.AGE:
                    before_s[whose] = float(token)
                else:
                    patterns.append(PurgedPattern(token, whose, matcher(value)))
        object.__setattr__(self, "_before_s", before_s)
        object.__setattr__(self, "_patterns", tuple(patterns))

    def allow(self, entry: Dated, digest: str, prompt: str | None = None) -> bool:
        """Tell whether *entry*, read under this epoch from the key of *digest*, may be served.

        *prompt* is the text of the request that it is stored for; without it, patterns that were
        invalidated reach nothing.

        An entry is as old as the epoch that its request saw before it asked the model. It is dead
        when one of its targets was purged later, when it is older than the table, and when it
        claims to come from an epoch that this Redis has not reached (the table it knew is lost).
        """
        stamp = entry.stamp
        if not self.born <= stamp <= self.epoch:
            return False
        if not self.tokens or (stamp == self.epoch and not self._before_s):
            # The model was asked after all that was invalidated, or nothing was.
            return True
        return not self._was_purged(entry, digest, prompt)

    def _was_purged(self, entry: Dated, digest: str, prompt: str | None) -> bool:
        tokens, stamp, whole = self.tokens, entry.stamp, entry.about
        if any(tokens.get(name, "") > stamp for name in targets_of(whole, digest)):
            return True
        whose = owners(whole)
        if any(entry.created_s < self._before_s.get(owner, 0.0) for owner in whose):
            return True
        later = [p for p in self._patterns if p.token > stamp and p.whose in whose]
        if not later or prompt is None:
            return False
        folded = fold(prompt)
        return any(pattern.matches(folded) for pattern in later)
