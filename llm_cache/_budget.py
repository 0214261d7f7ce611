"""What the cache may add to one call: all its steps together draw on one budget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from llm_cache._deadline import arm
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

    __slots__ = ("_ends_s", "_lap_s", "_scope", "_timer", "left_s")

    def __init__(self, left_s: float) -> None:
        self.left_s = max(0.0, left_s)
        """What is left, while nothing draws on it."""
        self._ends_s = 0.0
        self._lap_s = 0.0
        self._scope: asyncio.Timeout | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_spent(self) -> bool:
        """Whether it has run out for what draws on it now, which is being cancelled for that."""
        return self._scope is not None and self._scope.expired()

    @asynccontextmanager
    async def drawn_on(self) -> AsyncIterator[None]:
        """Let the block take what is left, and no more.

        Raises:
            OverBudget: it ran out; the block was cancelled.
        """
        loop = asyncio.get_running_loop()
        self._scope = asyncio.timeout(None)
        self._go_on(self.left_s)
        try:
            async with self._scope:
                yield
        except TimeoutError as error:
            if not self.is_spent:
                raise
            raise OverBudget("the cache has added added_latency_budget_s to this call") from error
        finally:
            self._stop()
            self._scope = None
            self.left_s = max(0.0, self._ends_s - loop.time())

    @contextmanager
    def spared(self) -> Iterator[None]:
        """Let the block take as long as it does: it waits for what is not the cache's doing."""
        if self._scope is None or self.is_spent:
            yield
            return
        left_s = self._ends_s - asyncio.get_running_loop().time()
        self._stop()
        try:
            yield
        finally:
            self._go_on(left_s)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Do what `spared` does, for one lap of a wait.

        Between two laps somebody has looked whether there is anything to wait for, and there was:
        such looks belong to the wait. Else whoever waits for a slow model would run out of budget
        by looking, and all who wait would go to the model at once.
        """
        if self._scope is not None and not self.is_spent:
            now_s = asyncio.get_running_loop().time()
            self._lap_s = max(self._lap_s, self._ends_s - now_s)
            self._ends_s = now_s + self._lap_s
        with self.spared():
            yield

    def _go_on(self, left_s: float) -> None:
        self._ends_s = asyncio.get_running_loop().time() + left_s
        if self._scope is not None:
            self._timer = arm(self._scope, self._ends_s)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
