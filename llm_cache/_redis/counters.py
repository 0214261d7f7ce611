"""Counters that add up over all workers: kept here, added to a hash in batches."""

from __future__ import annotations

from collections import Counter

from llm_cache._core.keys import Keys
from llm_cache._redis.connection import Connection


class Counters:
    """This process's counts, and what of them Redis has not been told yet."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self._connection = connection
        self._keys = keys
        self.local: Counter[str] = Counter()
        self._pending: Counter[str] = Counter()

    def add(self, name: str, amount: int = 1) -> None:
        """Count *amount* of *name*."""
        self.local[name] += amount
        self._pending[name] += amount

    async def flush(self) -> None:
        """Add what is pending to the shared counters. One round trip, none without news.

        Raises:
            StoreError: Redis did not take it; it stays pending, as it does when cancelled.
        """
        if not self._pending:
            return
        pipeline = self._connection.client.pipeline(transaction=True)
        pending, self._pending = self._pending, Counter()
        for name, amount in pending.items():
            pipeline.hincrby(self._keys.counters, name, amount)
        try:
            await self._connection.run(pipeline.execute())
        except BaseException:
            # Cancellation is among them: closing the cache ends the flusher wherever it stands.
            # It may have arrived although the reply did not; counting twice would be worse than
            # counting once, but losing an outage's worth of counts is worse than either.
            self._pending.update(pending)
            raise

    async def shared(self) -> dict[str, int]:
        """Return the counters of all workers. One round trip."""
        counts = await self._connection.run(self._connection.client.hgetall(self._keys.counters))
        return {_text(name): int(count) for name, count in counts.items()}


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()
