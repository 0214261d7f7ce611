"""Single answers from outside the path of calls: what is known of them, removing and rejecting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace

from llm_cache._core.codec import encode_entry
from llm_cache._core.encryption import Cipher
from llm_cache._core.kept import read_kept
from llm_cache._core.keys import Keys, answer_digest
from llm_cache._core.types import Entry
from llm_cache._redis.connection import Connection
from llm_cache._redis.exact import ExactStore, pair
from llm_cache._redis.lease import Script
from llm_cache._redis.line import Line
from llm_cache._redis.replies import text
from llm_cache.errors import StoreUnavailable

# In one step, so that an alias is either in the list that comes back, or finds its origin gone.
_REMOVE = Script("""
local aliases = redis.call('SMEMBERS', KEYS[2])
redis.call('UNLINK', unpack(KEYS))
return aliases
""")
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
        cipher: Cipher | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._compress = compress
        self._cipher = cipher
        self._connection = connection
        self._keys = keys
        self._exact = exact
        self._clock = clock

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
        return [alias for name in names if (alias := self._keys.digest(text(name)))]

    async def spaces(self) -> list[str]:
        """Return the vector spaces in which this namespace has entries. One round trip.

        None where Redis has no search module: then there are no entries.
        """
        try:
            lists = await self._connection.each("FT._LIST")
        except StoreUnavailable as error:
            if "unknown command" not in str(error).lower():
                raise
            return []
        spaces = [self._keys.space(text(name)) for names in lists for name in names]
        return sorted(set(filter(None, spaces)))

    async def prompts(self) -> AsyncGenerator[list[tuple[str, str]], None]:
        """Yield the digest of the answer and the prompt of every semantic entry, in batches.

        One round trip for a thousand entries, and one for the list of indexes; on a cluster two
        for about a thousand keys, of whatever kind.
        """
        if self._connection.is_cluster:
            async with aclosing(self._walked_prompts()) as batches:
                async for batch in batches:
                    yield batch
            return
        spaces = await self.spaces()
        line = Line(self._connection)
        try:
            for space in spaces:
                async with aclosing(_rows(line, self._keys.index(space))) as batches:
                    async for rows in batches:
                        yield self._prompts(space, rows)
        finally:
            await line.aclose()

    def _prompts(self, space: str, rows: Iterable[dict[bytes, bytes]]) -> list[tuple[str, str]]:
        """Return digest and prompt of those *rows* that have a prompt."""
        found = []
        for row in rows:
            # One that expired meanwhile has no fields; one without a prompt matches nothing.
            if b"__key" in row and b"prompt" in row:
                digest = answer_digest(row[b"__key"].decode())
                scope = row.get(b"scope", b"").decode("utf-8", "replace")
                kept = read_kept(row[b"prompt"], self._cipher, space, scope, digest)
                if kept is not None and kept.prompt:
                    found.append((digest, kept.prompt))
        return found

    async def _walked_prompts(self) -> AsyncGenerator[list[tuple[str, str]], None]:
        """Yield what `prompts` does, without the index, which finds no fields on a cluster."""
        options = ("MATCH", self._keys.entry_pattern, "COUNT", _PROMPTS_AT_ONCE, "TYPE", "hash")
        position = 0
        while True:
            position, keys = await self._connection.scan(position, *options)
            found = await self._connection.execute_all(
                [("HMGET", key, "prompt", "scope") for key in keys]
            )
            batch = []
            for key, (prompt, scope) in zip(keys, found, strict=True):
                space = self._keys.entry_space(text(key))
                row = {b"__key": key, b"prompt": prompt, b"scope": scope}
                kept = {name: value for name, value in row.items() if value is not None}
                batch += self._prompts(space, [kept])
            yield batch
            if not position:
                return

    async def remove(self, digests: Iterable[str]) -> None:
        """Remove answers with their aliases and what leads to them. Three round trips."""
        spaces = await self.spaces()
        references = await _REMOVE.run_each(
            self._connection, ((self._keys.belongings(digest, spaces), ()) for digest in digests)
        )
        aliases = [alias for names in references for alias in names]
        if aliases:
            # The keys of one answer share a slot; each alias has its own.
            await self._connection.execute_all([("UNLINK", alias) for alias in aliases])

    async def reject(self, origin: str, requests: Sequence[str]) -> None:
        """Remember that the answer *origin* is wrong for *requests*. One round trip, or none."""
        if not requests:
            return
        now_s = self._clock()
        pairs = [part for request in requests for part in (now_s, pair(request, origin))]
        await self._connection.execute_all(
            [
                ("ZADD", self._keys.rejected, *pairs),
                ("ZREMRANGEBYRANK", self._keys.rejected, 0, -_MOST_REJECTED - 1),
            ]
        )

    async def pardon(self, origin: str, request: str) -> None:
        """Forget that the answer *origin* was wrong for *request*. One round trip."""
        await self._connection.execute("ZREM", self._keys.rejected, pair(request, origin))

    async def copy(self, origin: str, request: str) -> bool:
        """Write the answer *origin* as the answer of *request*; return whether it was there.

        Two round trips.
        """
        (found,), left_ms = await asyncio.gather(
            self._exact.lookup_many([origin]),
            self._connection.execute("PTTL", self._keys.answer(origin)),
        )
        if found.entry is None or left_ms <= 0:
            return False
        # Of the epoch that has just been seen, under which the origin lives: what of this request
        # itself was invalidated before was another answer.
        alias = replace(found.entry.open().as_alias(origin, None), stamp=found.epoch)
        blob = encode_entry(alias, request, compress=self._compress, cipher=self._cipher)
        await self._exact.promote(
            request, origin, blob, copied=found.entry, left_ms=left_ms, replaces=True
        )
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
        closed = list(depends_on)
        for entry in filter(None, entries):
            if entry.origin is not None:
                closed.append(self._keys.answer(entry.origin))
            closed.extend(entry.depends_on)
        return tuple(dict.fromkeys(closed))

    async def note_unindexed(self, until_s: float, lifetime_s: float) -> None:
        """Note that until *until_s* there are answers that no index has. Seldom a round trip."""
        await self._exact.epochs.note_unindexed(
            round(1000 * until_s), lifetime_ms=round(1000 * lifetime_s)
        )

    async def has_unindexed(self) -> bool:
        """Tell whether there may be answers whose prompts no index has. One round trip."""
        return await self._exact.epochs.unindexed_until_ms() > 1000 * self._clock()


async def _rows(line: Line, index: str) -> AsyncGenerator[list[dict[bytes, bytes]], None]:
    """Yield key, scope and prompt of the entries of one index. The line speaks RESP2."""
    rows, cursor = await line.execute(
        *("FT.AGGREGATE", index, "*", "LOAD", 3, "@__key", "scope", "prompt"),
        *("WITHCURSOR", "COUNT", _PROMPTS_AT_ONCE, "DIALECT", 2),
    )
    try:
        while True:
            # The first is a count.
            yield [dict(zip(row[::2], row[1::2], strict=True)) for row in rows[1:]]
            if not cursor:
                return
            rows, cursor = await line.execute("FT.CURSOR", "READ", index, cursor)
    finally:
        if cursor:
            # Left before the end: an index has a limited number of cursors.
            await line.execute("FT.CURSOR", "DEL", index, cursor)
