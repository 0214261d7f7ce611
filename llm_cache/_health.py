"""How the dependencies do: each has a guard before it, which lets nobody wait for it in vain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llm_cache._budget import Budget
from llm_cache._core.breaker import Breaker, Limits
from llm_cache._deadline import now_s
from llm_cache.errors import (
    DependencySkipped,
    EmbedderError,
    EmbedderTimeout,
    LLMCacheError,
    StoreTimeout,
    StoreUnavailable,
)
from llm_cache.events import BreakerChanged, Event

REDIS, SEARCH, EMBEDDER = "redis", "search", "embedder"
_FAIR_SHARE = 0.5
"""Share of the budget that a step must have had before its running out is held against it."""


class Guard:
    """A circuit breaker before one dependency, which tells when it opens and closes."""

    def __init__(
        self,
        dependency: str,
        *,
        budget_s: float,
        tell: Callable[[Event], None],
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dependency = dependency
        self._fair_s = _FAIR_SHARE * budget_s
        self._tell = tell
        self._clock = clock
        self._breaker = Breaker() if limits is None else Breaker(limits)
        self._last_error: str | None = None

    @property
    def state(self) -> str:
        """`closed`, `open` or `half_open`."""
        return str(self._breaker.state)

    def admit(self) -> int:
        """Return a ticket for asking the dependency: whoever has one says how it went.

        Raises:
            DependencySkipped: it is not to be asked now.
        """
        breaker = self._breaker
        if breaker.is_quiet:
            return breaker.generation
        ticket = breaker.admit(self._clock())
        if ticket is None:
            last = "" if self._last_error is None else f"; its last error: {self._last_error}"
            raise DependencySkipped(
                f"{self.dependency} keeps failing and is left alone, but for one call a second"
                f"{last}"
            )
        return ticket

    def worked(self, ticket: int) -> None:
        """Take in that the dependency did what it was asked to."""
        if not self._breaker.is_quiet and self._breaker.succeed(ticket, self._clock()):
            self._last_error = None
            self._tell(BreakerChanged(self.dependency, self.state))

    def failed(self, ticket: int | None, error: Exception) -> None:
        """Take in that it did not; without a ticket it was not asked."""
        if ticket is None:
            return
        self._last_error = str(error)
        is_timeout = isinstance(error, StoreTimeout | EmbedderTimeout)
        if self._breaker.fail(ticket, self._clock(), is_timeout=is_timeout):
            self._tell(BreakerChanged(self.dependency, self.state, error))

    def left(self, ticket: int | None) -> None:
        """Take in that whoever asked went away before there was an answer."""
        if ticket is not None:
            self._breaker.leave(ticket, self._clock())

    @contextmanager
    def asked(self, budget: Budget | None = None) -> Iterator[None]:
        """Let the block, which draws on *budget*, ask the dependency; take in how that goes.

        Raises:
            DependencySkipped: it is not to be asked now.
        """
        ticket, began_s = self.admit(), now_s()
        try:
            yield
        except asyncio.CancelledError:
            if budget is not None and budget.is_spent:
                self.used_up(ticket, now_s() - began_s)
            else:
                self.left(ticket)
            raise
        except LLMCacheError as error:
            self.failed(ticket, error)
            raise
        except TimeoutError:
            # The caller's own. Those of the dependency come as its errors.
            self.left(ticket)
            raise
        except Exception as error:
            # Whatever a damaged reply has broken here must not reach a caller.
            broken = self.broken(error)
            self.failed(ticket, broken)
            raise broken from error
        except BaseException:
            self.left(ticket)
            raise
        self.worked(ticket)

    def broken(self, error: Exception) -> LLMCacheError:
        """Return the error of a dependency whose answer nobody understood."""
        kind = EmbedderError if self.dependency == EMBEDDER else StoreUnavailable
        # What it answered may be a prompt, and is not shown.
        return kind(f"{self.dependency} answered nonsense: {type(error).__name__}")

    def used_up(self, ticket: int, seconds: float) -> None:
        """Take in that the budget of a call ran out when it had waited for *seconds*.

        That says nothing of a dependency which was given but the rest that others had left.
        """
        if seconds < self._fair_s:
            self.left(ticket)
            return
        kind = EmbedderTimeout if self.dependency == EMBEDDER else StoreTimeout
        self.failed(ticket, kind(f"{self.dependency} had no answer in {seconds:.3g} s"))


class Health:
    """The guards of one cache."""

    def __init__(self, *, budget_s: float, tell: Callable[[Event], None]) -> None:
        self.redis = Guard(REDIS, budget_s=budget_s, tell=tell)
        """Before look-ups, leases and stores."""
        self.search = Guard(SEARCH, budget_s=budget_s, tell=tell)
        """Before the search by vector: its module or its index may be gone where Redis is not."""
        self.embedder = Guard(EMBEDDER, budget_s=budget_s, tell=tell)

    def states(self) -> dict[str, str]:
        """Return what state each of them is in."""
        return {
            guard.dependency: guard.state for guard in (self.redis, self.search, self.embedder)
        }
