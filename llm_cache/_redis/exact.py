"""The exact layer: an answer under the digest of its request, and its aliases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_cache._core.codec import HEADER_BYTES, Sealed, open_sealed
from llm_cache._core.encryption import Cipher
from llm_cache._core.keys import Keys, answer_digest
from llm_cache._core.policy import Purges
from llm_cache._deadline import Deadline, now_s
from llm_cache._redis.connection import Connection
from llm_cache._redis.epoch import Epochs
from llm_cache._redis.line import Line, Lines
from llm_cache._redis.reads import CoalescedReads, SplitReads
from llm_cache._redis.sliding import Sliding
from llm_cache.errors import CorruptEntry, StoreTimeout, StoreUnavailable

READ = 4
"""Values that tell whether an answer may be served to another request (`ExactStore.judged`)."""
_LEAST_S = 0.02
"""What the table of invalidations may take in any case, within what is spared of a budget."""


@dataclass(slots=True)
class Lookup:
    """What one look-up by digest found, and the epoch it saw."""

    entry: Sealed | None
    epoch: str = ""
    """An answer that is made for this look-up is stamped with it. Empty before it is judged."""
    corrupt: CorruptEntry | None = None
    """Why there is no entry although there are bytes."""
    is_foreign: bool = False
    """Whether there is an entry of another version of the format, which its workers can read."""
    was_taken: bool = False
    """Whether there was anything under the key, dead or alive."""
    start: bytes = b""
    """The first bytes of that, which tell it from anything that takes its place."""


_Unjudged = tuple[Lookup, Purges | None, bytes | None]
"""What was found, by what to judge it, if that is known, and the epoch that was read."""

# In one step: who is killed between the two would leave a list that never expires.
_REFER = """
redis.call('SADD', KEYS[1], ARGV[1])
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""


class ExactStore:
    """Answers by digest. What writes them is in `lease.py`: storing ends a lease.

    Args:
        timeout_s: Most seconds that `lookup` takes to read; default `redis_timeout_s`.
    """

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        epochs: Epochs,
        sliding: Sliding,
        *,
        cipher: Cipher | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self._connection = connection
        self._keys = keys
        self.epochs = epochs
        self._sliding = sliding
        self._cipher = cipher
        self._timeout_s = timeout_s
        self._reads = (SplitReads if connection.is_cluster else CoalescedReads)(
            connection, keys.epoch, self._read_as, timeout_s=timeout_s
        )

    @property
    def is_in_use(self) -> bool:
        """Whether anything has been looked up."""
        return self._reads.is_in_use

    async def aclose(self) -> None:
        """Tell Redis what it was not told yet, and let go of the connection for reads for good."""
        await self._sliding.aclose()
        await self.epochs.aclose()
        await self._reads.aclose()

    async def reset(self) -> None:
        """Let go of the connection; the next look-up makes a new one."""
        await self._sliding.aclose()
        await self.epochs.aclose()
        await self._reads.reset()

    async def lookup(
        self, digest: str, prompt: str | None = None, *, since_s: float | None = None
    ) -> Lookup:
        """Return the living entry of *digest*, if there is one, and the epoch.

        *prompt* is the text of the request, by which patterns reach it. One round trip, shared
        with the look-ups that wait at the same time; a second one when something was invalidated
        since the last. *since_s* is when the caller began, by `now_s`.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        found, purges, epoch = await self._reads.get(self._keys.answer(digest))
        if purges is None:
            purges = await self._purges(epoch, since_s)
        found = _judge(found, purges, digest, prompt)
        if found.corrupt is not None:
            self._reads.doubt()
        return found

    def _read_as(self, key: str, blob: bytes | None, epoch: bytes | None) -> _Unjudged:
        """Return what there is under the *key* of an answer, and what decides whether it lives."""
        found = _opened(blob, answer_digest(key), self._cipher)
        return found, self.epochs.known(epoch), epoch

    async def _purges(self, epoch: bytes | None, since_s: float | None) -> Purges:
        left_s = self._timeout_s
        if left_s is not None and since_s is not None:
            # What is missing may be this process's own doing, and Redis has just answered.
            left_s = max(left_s - (now_s() - since_s), _LEAST_S)
        try:
            async with Deadline(left_s):
                return await self.epochs.current(epoch)
        except TimeoutError as error:
            raise StoreTimeout("the table of invalidations was not read in time") from error

    async def lookup_many(self, digests: Sequence[str]) -> list[Lookup]:
        """Return what `lookup` does for each of *digests*, whatever their prompts.

        One round trip for all.
        """
        keys = [self._keys.answer(digest) for digest in digests]
        *blobs, epoch = await self._connection.read([*keys, self._keys.epoch])
        purges = await self.epochs.current(epoch)
        pairs = zip(blobs, digests, strict=True)
        opened = [(_opened(blob, digest, self._cipher), digest) for blob, digest in pairs]
        return [_judge(found, purges, digest, None) for found, digest in opened]

    async def lookup_for(
        self, asked: str, digest: str, prompt: str | None, line: Line | Lines
    ) -> tuple[Lookup, int]:
        """Return what `lookup` does, to answer the request *asked* too, and the ms it has left.

        *prompt* is the one that *digest* is the answer to. What people have rejected for the
        request is as good as gone: it has no time left. One round trip over *line*, which takes
        half the time of one of the pool's pipelines.
        """
        key = self._keys.answer(digest)
        values = await line.execute_all(
            ("GET", key),
            ("GET", self._keys.epoch),
            ("PTTL", key),
            ("ZSCORE", self._keys.rejected, pair(asked, digest)),
        )
        return await self.judged(values, digest, prompt)

    async def judged(
        self, values: Sequence[Any], digest: str, prompt: str | None
    ) -> tuple[Lookup, int]:
        """Return what `lookup_for` does, of the *values* that it reads.

        No round trip, one when something was invalidated.

        Raises:
            StoreUnavailable: they are something else.
        """
        blob, epoch, left_ms, rejected = values
        are_texts = all(isinstance(value, bytes | None) for value in (blob, epoch))
        if not are_texts or type(left_ms) is not int:
            raise StoreUnavailable("the look-up of an answer was answered with something else")
        purges = await self.epochs.current(epoch)
        found = _judge(_opened(blob, digest, self._cipher), purges, digest, prompt)
        return found, left_ms if rejected is None else 0

    async def promote(
        self,
        alias: str,
        origin: str,
        blob: bytes,
        *,
        copied: Sealed,
        left_ms: int,
        replaces: bool,
    ) -> None:
        """Write *blob*, a copy of the answer *origin*, as the answer of *alias*, until it expires.

        *copied* is that answer as it was read. What is stored under *alias* by then stays, unless
        this *replaces* something dead.

        One round trip, two on a cluster, one more where the origin went away meanwhile.
        """
        key, source = self._keys.answer(alias), self._keys.answer(origin)
        write = ("SET", key, blob, "PX", left_ms, *(() if replaces else ("NX",)))
        (is_written,), (_, present) = await self._connection.execute_then(
            [write],
            [
                ("EVAL", _REFER, 1, self._keys.refs(origin), key, left_ms),
                ("GETRANGE", source, 0, len(copied.header) - 1),
            ],
        )
        if is_written and present != copied.header:
            # It was removed before its list of references named this alias, so whoever removed it
            # could not see the alias. Removed later, the list did name it.
            await self._connection.execute("UNLINK", key)

    def prolong(self, digest: str, entry: Sealed, *, ttl_s: float) -> None:
        """Let the answer live *ttl_s* from now on, but not beyond its end. Told to Redis later.

        Of an alias it is the origin that lives on: an alias never outlives what it is a copy of.
        """
        origin = entry.about.origin if entry.is_alias else None
        self._sliding.prolong(origin or digest, entry.fresh_until_s, ttl_s=ttl_s)


def _opened(blob: bytes | None, digest: str, cipher: Cipher | None) -> Lookup:
    """Return what is in *blob*, dead or alive: it is yet to be judged."""
    if blob is None:
        return Lookup(None)
    entry = corrupt = None
    try:
        entry = open_sealed(blob, digest, cipher)
    except CorruptEntry as error:
        corrupt = error
    return Lookup(
        entry,
        corrupt=corrupt,
        is_foreign=entry is None and corrupt is None,
        was_taken=True,
        start=blob[:HEADER_BYTES],
    )


def _judge(found: Lookup, purges: Purges, digest: str, prompt: str | None) -> Lookup:
    """Set the epoch of *found*, take out an entry that may not be served any more, and return it.

    *prompt* is what patterns are compared with.
    """
    found.epoch, entry = purges.epoch, found.entry
    try:
        if entry is not None and not purges.allow(entry, digest, prompt):
            found.entry = None
    except CorruptEntry as error:
        found.entry, found.corrupt = None, error
    return found


def pair(asked: str, digest: str) -> str:
    """Return what names a request together with an answer that was served to it."""
    return f"{asked}:{digest}"
