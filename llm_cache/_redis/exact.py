"""The exact layer: an answer under the digest of its request, and its aliases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_cache._core.codec import Sealed, open_sealed
from llm_cache._core.keys import Keys
from llm_cache._core.policy import Purges
from llm_cache._redis.connection import Connection
from llm_cache._redis.epoch import Epochs
from llm_cache._redis.line import Line
from llm_cache._redis.reads import CoalescedReads
from llm_cache._redis.sliding import Sliding
from llm_cache.errors import CorruptEntry


@dataclass(slots=True)
class Lookup:
    """What one look-up by digest found, and the epoch it saw."""

    entry: Sealed | None
    epoch: str
    """An answer that is made for this look-up is stamped with it."""
    corrupt: CorruptEntry | None = None
    """Why there is no entry although there are bytes."""
    is_foreign: bool = False
    """Whether there is an entry of another version of the format, which its workers can read."""
    was_taken: bool = False
    """Whether there was anything under the key, dead or alive."""


class ExactStore:
    """Answers by digest. What writes them is in `lease.py`: storing ends a lease."""

    def __init__(
        self, connection: Connection, keys: Keys, epochs: Epochs, sliding: Sliding
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._epochs = epochs
        self._sliding = sliding
        self._reads = CoalescedReads(connection, keys.epoch)

    async def aclose(self) -> None:
        """Tell Redis what it was not told yet, and let go of the connection for reads."""
        await self._sliding.aclose()
        await self._reads.aclose()

    async def lookup(self, digest: str) -> Lookup:
        """Return the living entry of *digest*, if there is one, and the epoch.

        One round trip, shared with the look-ups that wait at the same time; a second one when
        something was invalidated since the last.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        blob, epoch = await self._reads.get(self._keys.answer(digest))
        purges = self._epochs.known(epoch) or await self._epochs.current(epoch)
        return _judge(blob, purges, digest)

    async def lookup_many(self, digests: Sequence[str]) -> list[Lookup]:
        """Return what `lookup` does for each of *digests*; one round trip for all."""
        keys = [self._keys.answer(digest) for digest in digests]
        *blobs, epoch = await self._connection.execute("MGET", *keys, self._keys.epoch)
        purges = await self._epochs.current(epoch)
        pairs = zip(blobs, digests, strict=True)
        return [_judge(blob, purges, digest) for blob, digest in pairs]

    async def lookup_for(self, asked: str, digest: str, line: Line) -> tuple[Lookup, int]:
        """Return what `lookup` does, to answer the request *asked* too, and the ms it has left.

        What people have rejected for that request is as good as gone: it has no time left. One
        round trip over *line*, which takes half the time of one of the pool's pipelines.
        """
        keys = (self._keys.answer(digest), self._keys.epoch)
        (blob, epoch), left_ms, rejected = await line.execute_all(
            ("MGET", *keys),
            ("PTTL", keys[0]),
            ("ZSCORE", self._keys.rejected, pair(asked, digest)),
        )
        found = _judge(blob, await self._epochs.current(epoch), digest)
        return found, left_ms if rejected is None else 0

    async def promote(
        self, alias: str, origin: str, blob: bytes, *, left_ms: int, replaces: bool
    ) -> None:
        """Write *blob*, a copy of the answer *origin*, as the answer of *alias*, until it expires.

        What is stored under *alias* by then stays, unless this *replaces* something dead.

        One round trip, two where the origin went away meanwhile.
        """
        key = self._keys.answer(alias)
        pipeline = self._connection.client.pipeline(transaction=False)
        pipeline.set(key, blob, px=left_ms, nx=not replaces)
        refs = self._keys.refs(origin)
        pipeline.sadd(refs, key)
        pipeline.pexpire(refs, left_ms)
        pipeline.exists(self._keys.answer(origin))
        is_written, *_, origin_lives = await self._connection.run(pipeline.execute())
        if is_written and not origin_lives:
            # It was removed before its list of references named this alias, so whoever removed it
            # could not see the alias. Removed later, the list did name it.
            await self._connection.execute("UNLINK", key)

    async def remember_for(self, lifetime_ms: int) -> None:
        """See to it that invalidations are known for as long as answers of this lifetime live."""
        await self._epochs.remember_for(lifetime_ms)

    def prolong(self, digest: str, entry: Sealed, *, ttl_s: float) -> None:
        """Let the answer live *ttl_s* from now on, but not beyond its end. Told to Redis later."""
        self._sliding.prolong(digest, entry.fresh_until_s, ttl_s=ttl_s)


def _judge(blob: bytes | None, purges: Purges, digest: str) -> Lookup:
    if blob is None:
        return Lookup(None, purges.epoch)
    try:
        entry = open_sealed(blob, digest)
        is_alive = entry is not None and purges.allow(entry, digest)
    except CorruptEntry as error:
        return Lookup(None, purges.epoch, error, was_taken=True)
    return Lookup(
        entry if is_alive else None, purges.epoch, is_foreign=entry is None, was_taken=True
    )


def pair(asked: str, digest: str) -> str:
    """Return what names a request together with an answer that was served to it."""
    return f"{asked}:{digest}"
