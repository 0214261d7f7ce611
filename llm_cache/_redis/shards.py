"""The semantic layer on a cluster: each primary indexes its own keys, and all of them are asked.

A search module without a coordinator, as in Redis Stack 7, knows one server. So every primary has
an index of its own for a vector space. Its name has a slot like that of a key, and a server takes
commands on names alone whose slots it serves: hence a hash tag at the end, the smallest number
that leads to this primary. An answer and its semantic entry share a slot, and stay together.

Redis 8 has a coordinator, which does all this inside: one index, asked wherever its name leads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from redis.exceptions import MovedError

from llm_cache._core.encryption import Cipher
from llm_cache._core.keys import Keys
from llm_cache._core.types import Candidate
from llm_cache._core.vectors import Vector
from llm_cache._redis.connection import Connection, Lane
from llm_cache._redis.lease import HashWrite
from llm_cache._redis.line import Lines
from llm_cache._redis.replies import text
from llm_cache._redis.vectors import Read, VectorStore
from llm_cache.errors import CorruptEntry, StoreError, StoreTimeout, StoreUnavailable
from llm_cache.events import DependencyFailed, Event

_GRACE_S = 0.1
"""How much later than the first a primary may answer and still be waited for."""
_REST_S = 1.0
"""For how long one that failed is not asked."""
_COORDINATOR = "SEARCH.CLUSTERINFO"
"""A command that coordinators have."""


class ShardedVectors:
    """The semantic entries of one vector space in one namespace of a cluster.

    Does what `VectorStore` does. A primary that fails is left out: its candidates are missing
    until it is back, and that is told once.

    Args:
        tell: Hears of a primary that begins to fail.
        clock: Tells seconds.
    """

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        *,
        space: str,
        dimensions: int,
        cipher: Cipher | None = None,
        corrupt: Callable[[CorruptEntry], None] = lambda _: None,
        tell: Callable[[Event], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._tell = tell
        self._clock = clock
        self._settings: dict[str, Any] = {
            "space": space,
            "dimensions": dimensions,
            "cipher": cipher,
            "corrupt": corrupt,
        }
        # As if there were one server, which with a coordinator there is.
        self._whole = VectorStore(connection, keys, **self._settings)
        self._is_coordinated = False
        self._parts: dict[Lane, VectorStore] = {}
        self._failing: dict[Lane, float] = {}
        """Since when, by the clock; each was told of once."""
        self.space = space
        """Its fingerprint."""
        self.dimensions = dimensions
        """Length of every vector."""
        self.line = Lines(connection)
        """Carries what searches lead to. Replies are RESP2."""

    @property
    def index(self) -> str:
        """Name of the index; without a coordinator, what the names of the indexes begin with."""
        return self._whole.index

    async def ensure_index(self) -> None:
        """Create the index on every primary that has none. Four round trips.

        Raises as `VectorStore.ensure_index`, where a primary cannot have it, or none answers.
        """
        (about,) = await self.line.execute("COMMAND", "INFO", _COORDINATOR)
        self._is_coordinated = about is not None
        lanes = self._lanes()
        ends = await asyncio.gather(*map(self._ensure, lanes), return_exceptions=True)
        for lane, end in zip(lanes, ends, strict=True):
            if isinstance(end, StoreUnavailable):
                self._note(lane, end)
            elif end is not None:
                raise end
        if all(ends):
            raise StoreUnavailable("no primary of the cluster has made the index")

    async def _ensure(self, lane: Lane) -> None:
        await (await self._part(lane)).ensure_index()

    async def nearest(self, scope: str, vector: Vector, *, limit: int) -> list[Candidate]:
        """Return at most *limit* entries of *scope*, nearest first, of all primaries that answer.

        Two round trips to each, one where nothing is near, at the same time; one more for the
        first search of a scope.

        Raises:
            StoreUnavailable: none of them answered.
        """
        lanes = [lane for lane in self._lanes() if not self._rests(lane)]
        # If all of them rest there is nothing to lose.
        lanes = lanes or self._lanes()
        searches = {
            asyncio.create_task(self._search(lane, scope, vector, limit)): lane for lane in lanes
        }
        found = await self._answers(searches)
        if not found:
            raise StoreUnavailable("no primary of the cluster has answered the search")
        candidates = [candidate for part in found for candidate in part]
        candidates.sort(key=lambda candidate: -candidate.similarity)
        return candidates[:limit]

    async def nearest_and_answer(
        self, scope: str, vector: Vector, *, limit: int, **_: Any
    ) -> tuple[list[Candidate], Read | None]:
        """Return what `nearest` does; answers have to be asked for."""
        return await self.nearest(scope, vector, limit=limit), None

    async def aclose(self) -> None:
        """Let go of the connections."""
        parts = [self._whole, *self._parts.values()]
        await asyncio.gather(self.line.aclose(), *(part.aclose() for part in parts))

    def entry(self, **fields: Any) -> HashWrite:
        """Return key and fields of a semantic entry, as `VectorStore.entry` does."""
        return self._whole.entry(**fields)

    async def lead_to(self, digest: str, entry: HashWrite) -> bool:
        """Let an answer that is there be found, as `VectorStore.lead_to` does."""
        return await self._whole.lead_to(digest, entry)

    async def count(self) -> int:
        """Return the number of entries in all indexes. One round trip."""
        parts = [await self._part(lane) for lane in self._lanes()]
        return sum(await asyncio.gather(*(part.count() for part in parts)))

    def _lanes(self) -> list[Lane]:
        if self._is_coordinated:
            return [self._connection.lane(self._whole.index)]
        return list(self._connection.lanes)

    async def _search(self, lane: Lane, scope: str, vector: Vector, limit: int) -> list[Candidate]:
        try:
            return await (await self._part(lane)).nearest(scope, vector, limit=limit)
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, MovedError):
                raise
            # The slot of the name, not what is in the index: that has another name from now on.
            self._connection.learn(error.__cause__)
        return await (await self._part(lane)).nearest(scope, vector, limit=limit)

    async def _answers(
        self, searches: dict[asyncio.Task[list[Candidate]], Lane]
    ) -> list[list[Candidate]]:
        """Return what was found by those that answer in time; note the others."""
        late = set(searches)
        found: list[list[Candidate]] = []
        try:
            # Every answer is worth waiting for until there is one that could be used.
            while late and not found:
                done, late = await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
                found += self._taken(searches, done)
            done, late = await asyncio.wait(late, timeout=_GRACE_S) if late else (set(), late)
            found += self._taken(searches, done)
        finally:
            for search in late:
                search.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for search in late:
            self._note(searches[search], StoreTimeout("much later than the other primaries"))
        return found

    def _taken(
        self,
        searches: dict[asyncio.Task[list[Candidate]], Lane],
        done: set[asyncio.Task[list[Candidate]]],
    ) -> list[list[Candidate]]:
        found = []
        for search in done:
            error = search.exception()
            if error is None:
                self._failing.pop(searches[search], None)
                found.append(search.result())
            elif isinstance(error, StoreError):
                self._note(searches[search], error)
            else:
                raise error
        return found

    def _note(self, lane: Lane, error: StoreError) -> None:
        if lane not in self._failing:
            self._tell(DependencyFailed("redis", "lookup_semantic", error))
        self._failing[lane] = self._clock()

    def _rests(self, lane: Lane) -> bool:
        failed_s = self._failing.get(lane)
        return failed_s is not None and self._clock() - failed_s < _REST_S

    async def _part(self, lane: Lane) -> VectorStore:
        """Return the entries of one primary, under a name that it serves."""
        if self._is_coordinated:
            return self._whole
        part = self._parts.get(lane)
        if part is not None and self._serves(lane, part.index):
            return part
        # It is new here, or the slot of the name has moved. What is there already is used, whoever
        # made it and whatever the slots were then.
        (names,) = await self._connection.run(lane.send([("FT._LIST",)]))
        made = self._parts.get(lane)
        if made is not None and made is not part:
            # Another search has asked meanwhile, too: one connection for all of them.
            return made
        tags = [
            name.rpartition(":")[2].strip("{}")
            # An error, of a server without a search module, is told when the index is made.
            for name in sorted(map(text, names if isinstance(names, list) else ()))
            if self._keys.space(name) == self.space and self._serves(lane, name)
        ]
        tag = tags[0] if tags else self._tag(lane)
        new = VectorStore(self._connection, self._keys, **self._settings, lane=lane, tag=tag)
        self._parts[lane] = new
        if part is not None:
            await part.aclose()
        return new

    def _serves(self, lane: Lane, name: str) -> bool:
        try:
            return self._connection.lane(name) is lane
        except StoreUnavailable:
            # Nobody has that slot just now.
            return False

    def _tag(self, lane: Lane) -> str:
        """Return the smallest number whose slot is served by *lane*.

        Raises:
            StoreUnavailable: it serves none.
        """
        if lane not in self._connection.lanes:
            # Its replica may have taken over since it was looked up. No number would ever do.
            raise StoreUnavailable(f"{lane.name} has no slots any more")
        return next(str(n) for n in count() if self._serves(lane, str(n)))
