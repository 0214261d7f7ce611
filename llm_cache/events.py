"""What the cache tells: frozen events, and the hook that hears them.

Events carry no prompt and no answer. A hook is any callable that takes one event; it runs on the
event loop, so it must return at once. An exception in a hook is logged and goes no further.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

_logger = logging.getLogger("llm_cache")


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A call was answered."""

    status: str
    """One of `exact`, `semantic`, `stale`, `miss`, `bypass`."""
    model: str
    tenant: str | None
    duration_s: float
    similarity: float | None = None
    reason: str | None = None
    """Why the call was bypassed or its answer not stored."""
    operation: str = "chat"
    """`chat`, `stream`, or `value` for what `get_or_create` and `cached` serve."""
    is_shared: bool = False
    """Whether another caller's call of the model answered this one too."""
    prompt_tokens: int | None = None
    """What the answer cost when it was made, as its `usage` says; `None` where it says nothing."""
    cached_prompt_tokens: int | None = None
    """Of `prompt_tokens`: those that the provider had in a cache of its own."""
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TextsEmbedded:
    """The embedder was asked for vectors."""

    model: str
    texts: int
    tokens: int
    """What is paid for; 0 where nothing is."""
    is_estimate: bool
    """Whether the tokens are a guess, because the embedder did not tell them."""
    duration_s: float


@dataclass(frozen=True, slots=True)
class DependencyFailed:
    """Redis or the embedder failed; the caller was served without it."""

    dependency: str
    """`redis`, `search`, `embedder`, `upstream`, or `policy` for one that cannot be followed."""
    operation: str
    """What was being done: `lookup_exact`, `lookup_semantic`, `embed`, `store`, …"""
    error: Exception


@dataclass(frozen=True, slots=True)
class BreakerChanged:
    """A dependency has failed so often that it is left alone for a while, or works again.

    While it is left alone it is tried once a second. That it still fails is not told again.
    """

    dependency: str
    """`redis`, `search` or `embedder`."""
    state: str
    """`open` where it is left alone from now on, `closed` where it works again."""
    error: Exception | None = None
    """What it failed with last; `None` where it works again."""


@dataclass(frozen=True, slots=True)
class StoreSkipped:
    """An answer was served but not stored."""

    reason: str
    """One of `policy.Refusal`."""
    model: str


@dataclass(frozen=True, slots=True)
class CandidateVerified:
    """A verifier was asked about a candidate in the grey band."""

    verdict: str
    """`yes`, `no`, `timeout`, `failed` or `nonsense`; only the first serves anybody."""
    model: str


@dataclass(frozen=True, slots=True)
class DecisionCompared:
    """In shadow mode, a decision was compared with what the model answered."""

    outcome: str
    """`right_hit`, `wrong_hit`, `missed_hit` or `right_miss`."""
    model: str


Event = (
    BreakerChanged
    | CallEnded
    | CandidateVerified
    | DecisionCompared
    | DependencyFailed
    | StoreSkipped
    | TextsEmbedded
)


@runtime_checkable
class EventHook(Protocol):
    """A callable that hears events.

    One that wants only some kinds may name them in an attribute `hears`, a tuple of event types:
    an exact hit is faster by the microsecond it takes to tell of it, where nobody hears.
    """

    def __call__(self, event: Event, /) -> None:
        """Take *event*; return at once."""


class LogHook:
    """Writes failures to the `llm_cache` logger: the first of a kind, then one a minute.

    Of a dependency that fails for long: one line when it is given up, one when it works again.
    """

    hears = (DependencyFailed, BreakerChanged)

    def __init__(self, *, interval_s: float = 60.0) -> None:
        self._interval_s = interval_s
        self._last_s: dict[tuple[str, str, type[Exception]], float] = {}

    def __call__(self, event: Event, /) -> None:
        """Log *event* if it is a failure that was not logged within the interval."""
        if isinstance(event, BreakerChanged):
            _log_breaker(event)
        elif isinstance(event, DependencyFailed):
            self._log_failure(event)

    def _log_failure(self, event: DependencyFailed) -> None:
        import time

        kind = (event.dependency, event.operation, type(event.error))
        now_s = time.monotonic()
        if now_s - self._last_s.get(kind, -self._interval_s) < self._interval_s:
            return
        self._last_s[kind] = now_s
        _logger.warning(
            "%s failed at %s, serving without it: %s: %s",
            event.dependency,
            event.operation,
            type(event.error).__name__,
            event.error,
        )


def _log_breaker(event: BreakerChanged) -> None:
    if event.error is None:
        _logger.warning("%s works again", event.dependency)
        return
    _logger.warning(
        "%s keeps failing, calls go on without it until it works again: %s: %s",
        event.dependency,
        type(event.error).__name__,
        event.error,
    )


def listeners(hooks: Iterable[EventHook], kind: type[Event]) -> tuple[EventHook, ...]:
    """Return those of *hooks* that hear events of *kind*."""
    return tuple(hook for hook in hooks if kind in getattr(hook, "hears", (kind,)))


def emit(hooks: tuple[EventHook, ...], event: Event) -> None:
    """Tell every hook that hears it; one that raises is logged and the others still hear."""
    for hook in listeners(hooks, type(event)):
        try:
            hook(event)
        except Exception:
            _logger.exception("event hook %r raised", type(hook).__name__)
