"""A circuit breaker as a state machine. Pure: times come in as arguments.

A dependency that fails again and again is left alone for a while, so that nobody waits for it in
vain; then one caller tries it, and what that finds decides. Every change of state begins a new
generation: whoever was let through in an older one may tell what he likes, it changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Whether a dependency is asked."""

    CLOSED = "closed"
    """Everybody asks it."""
    OPEN = "open"
    """Nobody does."""
    HALF_OPEN = "half_open"
    """One asks it, to find out."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a breaker opens, and for how long.

    A streak is failures without a success in between. It opens the breaker when it has so many
    and has lasted so long: a burst of callers that fail together says little, and so do a few
    failures in a quiet hour. Time-outs have a streak of their own, which has to last longer: a
    busy event loop looks like a slow server.
    """

    refusals: int = 5
    refusals_last_s: float = 0.5
    timeouts: int = 5
    timeouts_last_s: float = 1.0
    open_s: float = 1.0
    """Seconds from opening to the first probe, and from a probe that failed to the next."""
    probe_s: float = 30.0
    """Seconds after which a probe that nobody has told the end of no longer counts."""


@dataclass(slots=True)
class _Streak:
    count: int = 0
    since_s: float = 0.0

    def add(self, now_s: float) -> None:
        if not self.count:
            self.since_s = now_s
        self.count += 1

    def is_over(self, count: int, lasting_s: float, now_s: float) -> bool:
        return self.count >= count and now_s - self.since_s >= lasting_s


class Breaker:
    """Whether one dependency is asked. Whoever is let through tells how it went."""

    __slots__ = (
        *("_limits", "_refusals", "_since_s", "_timeouts"),
        *("generation", "is_quiet", "state"),
    )

    def __init__(self, limits: Limits = Limits()) -> None:
        self._limits = limits
        self.state = State.CLOSED
        self.generation = 0
        self.is_quiet = True
        """Whether it is closed, and nothing has failed since the last success."""
        self._since_s = 0.0
        """When it opened, or when the probe was let through."""
        self._forget()

    def admit(self, now_s: float) -> int | None:
        """Return the generation in which somebody may ask the dependency; `None` for not now.

        While it is half open only the one probe may.
        """
        if self.state is State.CLOSED:
            return self.generation
        patience_s = self._limits.open_s if self.state is State.OPEN else self._limits.probe_s
        if now_s - self._since_s < patience_s:
            return None
        self._move(State.HALF_OPEN, now_s)
        return self.generation

    def succeed(self, generation: int, now_s: float) -> bool:
        """Take in that the dependency worked; return whether this closed the breaker."""
        if generation != self.generation:
            return False
        if self.state is State.CLOSED:
            self._forget()
            return False
        self._move(State.CLOSED, now_s)
        return True

    def fail(self, generation: int, now_s: float, *, is_timeout: bool) -> bool:
        """Take in that the dependency failed; return whether this opened a closed breaker."""
        if generation != self.generation:
            return False
        if self.state is not State.CLOSED:
            self._move(State.OPEN, now_s)
            return False
        self.is_quiet = False
        (self._timeouts if is_timeout else self._refusals).add(now_s)
        limits = self._limits
        if not (
            self._refusals.is_over(limits.refusals, limits.refusals_last_s, now_s)
            or self._timeouts.is_over(limits.timeouts, limits.timeouts_last_s, now_s)
        ):
            return False
        self._move(State.OPEN, now_s)
        return True

    def leave(self, generation: int, now_s: float) -> None:
        """Take in that whoever was let through went away before there was anything to tell."""
        if generation == self.generation and self.state is State.HALF_OPEN:
            # As if it had not been tried: the next caller is the probe.
            self._move(State.OPEN, now_s - self._limits.open_s)

    def _move(self, state: State, now_s: float) -> None:
        self.state = state
        self.generation += 1
        self._since_s = now_s
        self._forget()

    def _forget(self) -> None:
        self.is_quiet = self.state is State.CLOSED
        self._refusals = _Streak()
        self._timeouts = _Streak()
