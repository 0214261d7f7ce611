"""What the cache may add to one call: all its steps together draw on one budget."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from llm_cache._deadline import Deadline
from llm_cache.config import CacheConfig
from llm_cache.errors import OverBudget

_OWN_SHARE = 0.9
"""Of the budget, what the cache's own waits may take. The rest is for what nobody can call off:
timers are late, and the model's client has work to do before its request goes out
(`python -m benchmarks faults`)."""


def spendable_s(config: CacheConfig) -> float:
    """Return the seconds for which the cache may make one call wait."""
    return _OWN_SHARE * config.added_latency_budget_s


class Budget:
    """Seconds that the cache may still add to one call.

    Made when the exact layer has not answered: an exact hit needs none, its one round trip is
    bounded by itself.
    """

    __slots__ = ("_deadline", "_lap_s", "left_s")

    def __init__(self, left_s: float) -> None:
        self.left_s = max(0.0, left_s)
        """What is left, while nothing draws on it."""
        self._lap_s = 0.0
        self._deadline: Deadline | None = None

    @property
    def is_spent(self) -> bool:
        """Whether it has run out for what draws on it now, which is being cancelled for that."""
        return self._deadline is not None and self._deadline.is_over

    @asynccontextmanager
    async def drawn_on(self) -> AsyncIterator[None]:
        """Let the block take what is left, and no more.

        Raises:
            OverBudget: it ran out; the block was cancelled.
        """
        deadline = self._deadline = Deadline(self.left_s)
        try:
            async with deadline:
                yield
        except TimeoutError as error:
            if not deadline.is_over:
                raise
            raise OverBudget("the cache has added added_latency_budget_s to this call") from error
        finally:
            self._deadline = None
            self.left_s = max(0.0, deadline.left_s)

    @contextmanager
    def spared(self) -> Iterator[None]:
        """Let the block take as long as it does: it waits for what is not the cache's doing."""
        with self._stopped(least_s=0.0):
            yield

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Do what `spared` does, for one lap of a wait.

        Between two laps somebody has looked whether there is anything to wait for, and there was:
        such looks belong to the wait. Else whoever waits for a slow model would run out of budget
        by looking, and all who wait would go to the model at once.
        """
        if self._deadline is not None and not self.is_spent:
            self._lap_s = max(self._lap_s, self._deadline.left_s)
        with self._stopped(least_s=self._lap_s):
            yield

    @contextmanager
    def _stopped(self, *, least_s: float) -> Iterator[None]:
        deadline = self._deadline
        if deadline is None or deadline.is_over:
            yield
            return
        left_s = max(deadline.left_s, least_s)
        deadline.stop()
        try:
            yield
        finally:
            deadline.go_on(left_s)
