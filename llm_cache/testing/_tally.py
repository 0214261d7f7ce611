"""A count that can be waited for."""

from __future__ import annotations

import asyncio


class Tally:
    """Counts arrivals and wakes whoever waits for the n-th of them."""

    def __init__(self, what: str) -> None:
        self.count = 0
        self._what = what
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    def add(self) -> None:
        """Count one more."""
        self.count += 1
        for n, reached in self._waiters:
            if n <= self.count and not reached.done():
                reached.set_result(None)

    async def reached(self, n: int, timeout_s: float) -> None:
        """Return once at least *n* were counted.

        Raises:
            TimeoutError: fewer than *n* were counted within *timeout_s*.
        """
        if self.count >= n:
            return
        waiter = (n, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter[1]
        except TimeoutError:
            message = f"{self.count} of {n} {self._what} within {timeout_s:g} s"
            raise TimeoutError(message) from None
        finally:
            self._waiters.remove(waiter)
