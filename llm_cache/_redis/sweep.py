"""Walks over the answers of a namespace, to count what is meant or to remove what is dead.

What was invalidated is dead at once for every reader; removing it gives the memory back. It is
done by whoever invalidated, in the background, in small batches with pauses between them, and by
one process at a time. `SCAN` is used here and nowhere on the path of a call.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from llm_cache._core.codec import HEADER_BYTES, Sealed, peek
from llm_cache._core.keys import Keys
from llm_cache._core.policy import Purges
from llm_cache._redis.connection import Connection
from llm_cache._redis.epoch import Epochs
from llm_cache._redis.lease import Script
from llm_cache.errors import CorruptEntry

_BATCH = 500
_START_BYTES = 4096
"""Holds header and details, unless an answer has hundreds of tags; that waits for its TTL."""
_PAUSE_S = 0.005
_TURN_S = 30.0

# An answer that was replaced meanwhile is another one; what leads to it follows its expiry.
_REMOVE = Script("""
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then return 0 end
return redis.call('UNLINK', unpack(KEYS))
""")
_LEAVE = Script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
""")


@dataclass(frozen=True, slots=True)
class Stored:
    """An answer as it stands in Redis."""

    digest: str
    start: bytes
    """Its first bytes, which tell it from any that replaced it."""
    entry: Sealed
    """Without the answer."""


class Sweeper:
    """Walks over one namespace.

    Args:
        spaces: The vector spaces this process knows, whose entries go along with their answers.
        pause_s: Between two batches, so that callers have Redis to themselves in between.
    """

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        epochs: Epochs,
        *,
        spaces: Callable[[], Sequence[str]],
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._epochs = epochs
        self._spaces = spaces
        self._pause_s = pause_s
        self._task: asyncio.Task[None] | None = None
        self._is_wanted = False

    def start(self) -> None:
        """Remove what is dead by now, in the background. Returns at once."""
        self._is_wanted = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._sweep(), name="llm_cache.sweep")

    async def settle(self) -> None:
        """Wait until what was started is done."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def aclose(self) -> None:
        """Stop. What is dead stays dead, and goes with its TTL or the next sweep."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def count(self, is_meant: Callable[[Stored], bool]) -> int:
        """Return how many living answers are meant. Walks over all of them."""
        purges = await self._epochs.current(None)
        total = 0
        async for batch in self._answers():
            total += sum(
                not stored.entry.is_alias and _lives(stored, purges) and is_meant(stored)
                for stored in batch
            )
        return total

    async def remove_dead(self) -> int:
        """Remove every dead answer with all that leads to it; return how many. Takes its time."""
        removed = 0
        async for batch in self._answers():
            purges = await self._epochs.current(None)
            for stored in batch:
                if not _lives(stored, purges):
                    removed += await self._remove(stored)
        return removed

    async def _sweep(self) -> None:
        token = secrets.token_hex(8)
        client = self._connection.client
        while self._is_wanted:
            self._is_wanted = False
            turn = client.set(self._keys.sweep, token, nx=True, px=round(1000 * _TURN_S))
            if not await self._connection.run(turn):
                # Whoever is at it has begun before this invalidation; what it leaves is dead
                # all the same, and is removed by the next sweep or by its TTL.
                return
            try:
                await self.remove_dead()
                await self._epochs.prune()
            finally:
                await _LEAVE.run(self._connection, [self._keys.sweep], [token])

    async def _remove(self, stored: Stored) -> bool:
        keys = [self._keys.answer(stored.digest), self._keys.refs(stored.digest)]
        keys += [self._keys.entry(space, stored.digest) for space in self._spaces()]
        return bool(await _REMOVE.run(self._connection, keys, [stored.start[:HEADER_BYTES]]))

    async def _answers(self) -> AsyncIterator[list[Stored]]:
        """Yield all answers and aliases, in batches."""
        pattern, cursor = self._keys.answer_pattern, 0
        while True:
            cursor, names = await self._connection.execute(
                "SCAN", cursor, "MATCH", pattern, "COUNT", _BATCH, "TYPE", "string"
            )
            if names:
                yield await self._read([_text(name) for name in names])
            if not int(cursor):
                return
            await asyncio.sleep(self._pause_s)

    async def _read(self, names: Sequence[str]) -> list[Stored]:
        """Return what the first bytes of these answers tell. One round trip."""
        pipeline = self._connection.client.pipeline(transaction=False)
        for name in names:
            pipeline.getrange(name, 0, _START_BYTES - 1)
        starts = await self._connection.run(pipeline.execute())
        return [
            Stored(digest, start, entry)
            for name, start in zip(names, starts, strict=True)
            if (digest := self._keys.digest(name)) and (entry := peek(start))
        ]


def _lives(stored: Stored, purges: Purges) -> bool:
    try:
        return purges.allow(stored.entry, stored.digest)
    except CorruptEntry:
        # Readers take it for a miss, and whoever stores next replaces it.
        return False


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()
