"""Single answers from outside the path of calls: what is known of them, removing and rejecting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from llm_cache._core.codec import encode_entry
from llm_cache._core.keys import Keys, answer_digest
from llm_cache._core.types import Entry
from llm_cache._redis.connection import Connection
from llm_cache._redis.exact import ExactStore, pair
from llm_cache._redis.line import Line
from llm_cache.errors import StoreUnavailable

_PROMPTS_AT_ONCE = 1_000
_MOST_REJECTED = 10_000
"""Pairs of a request and an answer that are remembered as wrong; the oldest go first."""


class Answers:
    """The answers of one namespace, by their digests.

    Args:
        clock: Tells the Unix time in seconds.
    """

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        exact: ExactStore,
        *,
        compress: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._compress = compress
        self._connection = connection
        self._keys = keys
        self._exact = exact
        self._clock = clock
        self._unindexed_until_s = 0.0

    async def entry(self, digest: str) -> Entry | None:
        """Return all but the answer of what lives under *digest*. One round trip."""
        (entry,) = await self.entries([digest])
        return entry

    async def entries(self, digests: Sequence[str]) -> list[Entry | None]:
        """Return what `entry` does for each of *digests*; one round trip for all."""
        found = await self._exact.lookup_many(digests)
        return [None if lookup.entry is None else lookup.entry.about for lookup in found]

    async def aliases(self, digest: str) -> list[str]:
        """Return the digests of the aliases of an answer. One round trip."""
        names = await self._connection.execute("SMEMBERS", self._keys.refs(digest))
        return [alias for name in names if (alias := self._keys.digest(_text(name)))]

    async def spaces(self) -> list[str]:
        """Return the vector spaces in which this namespace has entries. One round trip.

        None where Redis has no search module: then there are no entries.
        """
        try:
            names = await self._connection.execute("FT._LIST")
        except StoreUnavailable as error:
            if "unknown command" not in str(error).lower():
                raise
            return []
        start = self._keys.index("")
        return sorted(_text(n).removeprefix(start) for n in names if _text(n).startswith(start))

    async def prompts(self) -> AsyncIterator[list[tuple[str, str]]]:
        """Yield the digest of the answer and the prompt of every semantic entry, in batches.

        One round trip for a thousand entries, and one for the list of indexes.
        """
        spaces = await self.spaces()
        line = Line(self._connection)
        try:
            for index in map(self._keys.index, spaces):
                rows, cursor = await line.execute(
                    *("FT.AGGREGATE", index, "*", "LOAD", 2, "@__key", "prompt"),
                    *("WITHCURSOR", "COUNT", _PROMPTS_AT_ONCE, "DIALECT", 2),
                )
                yield _prompts(rows)
                while cursor:
                    rows, cursor = await line.execute("FT.CURSOR", "READ", index, cursor)
                    yield _prompts(rows)
        finally:
            await line.aclose()

    async def remove(self, digests: Sequence[str]) -> None:
        """Remove answers with their aliases and what leads to them. Three round trips."""
        spaces = await self.spaces()
        pipeline = self._connection.client.pipeline(transaction=False)
        for digest in digests:
            pipeline.smembers(self._keys.refs(digest))
        references = await self._connection.run(pipeline.execute())
        pipeline = self._connection.client.pipeline(transaction=False)
        for digest, aliases in zip(digests, references, strict=True):
            # The keys of one answer share a slot; each alias has its own.
            entries = [self._keys.entry(space, digest) for space in spaces]
            pipeline.unlink(self._keys.answer(digest), self._keys.refs(digest), *entries)
            for alias in aliases:
                pipeline.unlink(alias)
        await self._connection.run(pipeline.execute())

    async def reject(self, origin: str, requests: Sequence[str]) -> None:
        """Remember that the answer *origin* is wrong for *requests*. One round trip, or none."""
        if not requests:
            return
        now_s = self._clock()
        pipeline = self._connection.client.pipeline(transaction=False)
        pairs = {pair(request, origin): now_s for request in requests}
        pipeline.zadd(self._keys.rejected, pairs)
        pipeline.zremrangebyrank(self._keys.rejected, 0, -_MOST_REJECTED - 1)
        await self._connection.run(pipeline.execute())

    async def pardon(self, origin: str, request: str) -> None:
        """Forget that the answer *origin* was wrong for *request*. One round trip."""
        await self._connection.execute("ZREM", self._keys.rejected, pair(request, origin))

    async def copy(self, origin: str, request: str) -> bool:
        """Write the answer *origin* as the answer of *request*; return whether it was there.

        Two round trips.
        """
        pipeline = self._connection.client.pipeline(transaction=False)
        pipeline.pttl(self._keys.answer(origin))
        (found,), (left_ms,) = await asyncio.gather(
            self._exact.lookup_many([origin]), self._connection.run(pipeline.execute())
        )
        if found.entry is None or left_ms <= 0:
            return False
        alias = found.entry.open().as_alias(origin, None)
        blob = encode_entry(alias, request, compress=self._compress)
        await self._exact.promote(request, origin, blob, left_ms=left_ms, replaces=True)
        return True

    async def sources(self, depends_on: Sequence[str]) -> tuple[str, ...] | None:
        """Return *depends_on* with what the answers among them were made from in their turn.

        `None` where one of these answers is gone: then so is what was made from it. No round trip
        where there are no answers among them, one where there are.
        """
        digests = [digest for name in depends_on if (digest := self._keys.digest(name))]
        if not digests:
            return tuple(depends_on)
        entries = await self.entries(digests)
        if any(entry is None for entry in entries):
            return None
        inherited = [name for entry in entries if entry for name in entry.depends_on]
        return tuple(dict.fromkeys([*depends_on, *inherited]))

    async def note_unindexed(self, until_s: float, lifetime_s: float) -> None:
        """Note that until *until_s* there are answers that no index has. Seldom a round trip."""
        if until_s > self._unindexed_until_s:
            # Noted ahead, so that the next answers of this lifetime need no command.
            until_s += lifetime_s
            key = self._keys.unindexed
            pipeline = self._connection.client.pipeline(transaction=False)
            pipeline.set(key, b"1", nx=True, pxat=round(1000 * until_s))
            pipeline.pexpireat(key, round(1000 * until_s), gt=True)
            await self._connection.run(pipeline.execute())
            self._unindexed_until_s = until_s

    async def has_unindexed(self) -> bool:
        """Tell whether there may be answers whose prompts no index has. One round trip."""
        return bool(await self._connection.execute("EXISTS", self._keys.unindexed))


def _prompts(reply: Sequence[Any]) -> list[tuple[str, str]]:
    """Return digest and prompt of the rows, which follow a count. The line speaks RESP2."""
    fields = [dict(zip(row[::2], row[1::2], strict=True)) for row in reply[1:]]
    return [
        (answer_digest(row[b"__key"].decode()), row[b"prompt"].decode("utf-8", "replace"))
        for row in fields
        # One that expired meanwhile has no fields; one without a prompt matches nothing.
        if b"__key" in row and b"prompt" in row
    ]


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()
