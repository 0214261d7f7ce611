"""What the cache may add to one call: all its steps together draw on one budget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from llm_cache.errors import OverBudget


class Budget:
    """Seconds that the cache may still add to one call.

    Made when the exact layer has not answered: an exact hit needs none, its one round trip is
    bounded by itself.
    """

    __slots__ = ("_ends_s", "_scope", "left_s")

    def __init__(self, left_s: float) -> None:
        self.left_s = max(0.0, left_s)
        """What is left, while nothing draws on it."""
        self._ends_s = 0.0
        self._scope: asyncio.Timeout | None = None

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
        self._ends_s = loop.time() + self.left_s
        try:
            async with asyncio.timeout_at(self._ends_s) as self._scope:
                yield
        except TimeoutError as error:
            if not self.is_spent:
                raise
            raise OverBudget("the cache has added added_latency_budget_s to this call") from error
        finally:
            self._scope = None
            self.left_s = max(0.0, self._ends_s - loop.time())

    @contextmanager
    def spared(self) -> Iterator[None]:
        """Let the block take as long as it does: it waits for what is not the cache's doing."""
        scope = self._scope
        if scope is None or scope.expired():
            yield
            return
        loop = asyncio.get_running_loop()
        left_s = self._ends_s - loop.time()
        scope.reschedule(None)
        try:
            yield
        finally:
            self._ends_s = loop.time() + left_s
            scope.reschedule(self._ends_s)
