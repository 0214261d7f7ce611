"""Walks over the answers of a namespace, to count what is meant or to remove what is dead.

What was invalidated is dead at once for every reader; removing it gives the memory back. It is
done by whoever invalidated, in the background, in small batches with pauses between them. One
process walks at a time, and for those who invalidate meanwhile or soon after, one of them walks
again, after a rest: a stream of invalidations does not keep Redis busy with walks. `SCAN` is used
here and nowhere on the path of a call.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from llm_cache._core.codec import HEADER_BYTES, Sealed, peek
from llm_cache._core.keys import Keys
from llm_cache._core.policy import Purges
from llm_cache._redis.connection import Connection
from llm_cache._redis.epoch import Epochs
from llm_cache._redis.lease import Script
from llm_cache._redis.replies import text
from llm_cache.errors import CorruptEntry, StoreError

_BATCH = 500
_START_BYTES = 1024
"""Holds header and details, unless an answer has dozens of tags."""
_LONGEST_START_BYTES = HEADER_BYTES + 2**16
"""Holds them in any case."""
_AT_ONCE = 10
"""Answers that are removed by one command after the other without a pause for other callers.
Taking a vector out of an index takes Redis longest."""
_PAUSE_S = 0.005
_TURN_S = 30.0
_REST_S = 30.0
_PRUNE_S = 600.0
_EPOCH_CHARS = 32

# An answer that was replaced meanwhile is another one; what leads to it follows its expiry.
_REMOVE = Script("""
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then return 0 end
redis.call('UNLINK', unpack(KEYS))
return 1
""")
# Only whoever has the turn may lengthen it; for 0 ms, give it back.
_HOLD = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
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
        spaces: Returns the vector spaces whose entries go along with their answers; asked once a
            walk.
        failed: Told where Redis failed; what is dead is then left to the next walk or its TTL.
        pause_s: Between two batches, so that callers have Redis to themselves in between.
        rest_s: Between two walks, whoever makes them.
        clock: Tells seconds.
    """

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        epochs: Epochs,
        *,
        spaces: Callable[[], Awaitable[Sequence[str]]],
        failed: Callable[[StoreError], object] = lambda _: None,
        pause_s: float = _PAUSE_S,
        rest_s: float = _REST_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._epochs = epochs
        self._spaces = spaces
        self._failed = failed
        self._pause_s = pause_s
        self._rest_s = rest_s
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._is_wanted = False
        self._pruned_at_s = -inf

    def start(self, *, walk: bool = True) -> None:
        """Tidy up in the background after an invalidation. Returns at once.

        Old lines leave the purge table; with *walk*, what is dead by now leaves Redis.
        """
        self._is_wanted |= walk
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
        return sum([removed async for removed in self._removals()])

    async def _removals(self) -> AsyncIterator[int]:
        """Remove what is dead; yield after each batch how much of it was."""
        spaces = await self._spaces()
        async for batch in self._answers():
            purges = await self._epochs.current(None)
            dead = [stored for stored in batch if not _lives(stored, purges)]
            removed = 0
            for start in range(0, len(dead), _AT_ONCE):
                some = dead[start : start + _AT_ONCE]
                calls = [self._removal(stored, spaces) for stored in some]
                removed += sum(await _REMOVE.run_each(self._connection, calls))
            yield removed

    async def _sweep(self) -> None:
        try:
            while True:
                if self._is_wanted:
                    self._is_wanted = False
                    await self._walk()
                await self._prune()
                # Nothing is waited for after this look: what is wanted later starts anew.
                if not self._is_wanted:
                    return
        except StoreError as error:
            self._failed(error)

    async def _prune(self) -> None:
        if self._clock() - self._pruned_at_s >= _PRUNE_S:
            self._pruned_at_s = self._clock()
            await self._epochs.prune()

    async def _walk(self) -> None:
        """Remove what is dead when it is this process's turn, unless another has done it."""
        epoch = (await self._epochs.current(None)).epoch
        # Whoever walks shows since when: what was invalidated before is taken along.
        name = f"{epoch}:{secrets.token_hex(8)}"
        rest_s = 0.0
        try:
            if not await self._take_turn(name, epoch):
                return
            async for _ in self._removals():
                await self._hold(name, _TURN_S)
            rest_s = self._rest_s
        finally:
            # Whoever is stopped while he takes the turn does not know whether he has it.
            await self._hold(name, rest_s)

    async def _take_turn(self, name: str, epoch: str) -> bool:
        """Wait until nobody walks; return whether there is anything left to walk for."""
        while True:
            turn = ("SET", self._keys.sweep, name, "NX", "GET", "PX", _ms(_TURN_S))
            holder: Any = await self._connection.execute(*turn)
            if holder is None:
                return True
            if text(holder)[:_EPOCH_CHARS] >= epoch:
                return False
            left_ms = await self._connection.execute("PTTL", self._keys.sweep)
            await asyncio.sleep(max(1, left_ms) / 1000)

    async def _hold(self, name: str, for_s: float) -> None:
        await _HOLD.run(self._connection.execute, [self._keys.sweep], [name, _ms(for_s)])

    def _removal(self, stored: Stored, spaces: Sequence[str]) -> tuple[list[str], list[bytes]]:
        keys = self._keys.belongings(stored.digest, spaces)
        return keys, [stored.start[:HEADER_BYTES]]

    async def _answers(self) -> AsyncIterator[list[Stored]]:
        """Yield all answers and aliases, in batches."""
        pattern, position = self._keys.answer_pattern, 0
        while True:
            position, names = await self._connection.scan(
                position, "MATCH", pattern, "COUNT", _BATCH, "TYPE", "string"
            )
            if names:
                yield await self._read([text(name) for name in names])
            if not position:
                return
            await asyncio.sleep(self._pause_s)

    async def _read(self, names: Sequence[str]) -> list[Stored]:
        """Return what the first bytes of these answers tell. One round trip, seldom two."""
        ours = {name: digest for name in names if (digest := self._keys.digest(name))}
        starts = await self._starts(list(ours), _START_BYTES)
        long = [
            name
            for name, start in starts.items()
            if len(start) == _START_BYTES and peek(start) is None
        ]
        starts |= await self._starts(long, _LONGEST_START_BYTES)
        return [
            Stored(digest, starts[name], entry)
            for name, digest in ours.items()
            if (entry := peek(starts[name]))
        ]

    async def _starts(self, names: Sequence[str], size_bytes: int) -> dict[str, bytes]:
        if not names:
            return {}
        commands = [("GETRANGE", name, 0, size_bytes - 1) for name in names]
        return dict(zip(names, await self._connection.execute_all(commands), strict=True))


def _lives(stored: Stored, purges: Purges) -> bool:
    try:
        return purges.allow(stored.entry, stored.digest)
    except CorruptEntry:
        # Readers take it for a miss, and whoever stores next replaces it.
        return False


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
