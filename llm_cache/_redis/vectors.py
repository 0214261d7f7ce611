"""The semantic layer: one HNSW index for each vector space, searched within one scope.

The index is created with this statement (`<…>` are placeholders)::

    FT.CREATE <ns>:idx:<space> ON HASH PREFIX 1 <ns>:s:<space>:
        NOOFFSETS NOHL NOFIELDS NOFREQS STOPWORDS 0
        SCHEMA scope TAG CASESENSITIVE
               vector VECTOR HNSW 10 TYPE FLOAT16 DIM <dims> DISTANCE_METRIC COSINE
                                     M 16 EF_CONSTRUCTION 200

Two plans search it. A small scope is read exactly, every entry of it scored, which is both fast
and without loss. A large one is searched through the graph; scopes are kept apart there by the
signs that turn their vectors (`_core/vectors.py`), and every row is compared on its scope before
anything else. How wide the search of a graph has to be grows with the graph (`ef_runtime`). Which
plan a scope takes is asked from Redis at a bounded price (counting stops at the limit), and nobody
waits for it but the first search of a scope: later the question travels along with a search. A
scope that has grown meanwhile costs that search some time and nothing else.

Searches go over one connection of their own, several of them on their way at once. A look-up makes
its search from a script, which reads what the nearest entry leads to, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from llm_cache._core.codec import HEADER_BYTES
from llm_cache._core.encryption import Cipher
from llm_cache._core.kept import Kept, open_kept
from llm_cache._core.keys import Keys
from llm_cache._core.types import Candidate
from llm_cache._core.vectors import Vector, salted_blob
from llm_cache._flight import SharedRun
from llm_cache._redis.connection import Command, Connection, Lane
from llm_cache._redis.exact import READ
from llm_cache._redis.lease import HashWrite, Script
from llm_cache._redis.line import Line
from llm_cache._redis.replies import mapping, text
from llm_cache._redis.sizes import Sizes, entries_of
from llm_cache.errors import (
    ConfigurationError,
    CorruptEntry,
    IndexMismatch,
    SearchModuleMissing,
    StoreUnavailable,
)

_EXACT = "@scope:{{{scope}}}=>[KNN {limit} @vector $v HYBRID_POLICY ADHOC_BF AS distance]"
_GRAPH = "*=>[KNN {limit} @vector $v EF_RUNTIME {ef} AS distance]"
_RETURNED = ("scope", "distance", "prompt")
_MAX_DIMENSIONS = 32_768
_MOST_SIMILAR = 1.01
"""What a similarity may come back as: more than 1, by rounding."""
_BY_SIMILARITY = attrgetter("similarity")
# RediSearch 2 has one wording for searches and one for `FT.INFO`; 8.10 has the third for both.
_LOST = ("no such index", "unknown index name", "index not found")


# What is nearest is what is served, nearly always: its answer comes with the search, and need not
# be asked for. `ARGV` are the request, what the names of answers begin with, the greatest
# distance, the scope, and the search.
_SEARCH = Script("""
local found = redis.call('FT.SEARCH', unpack(ARGV, 5))
local name, row = found[2], {}
for i = 1, #(found[3] or {}), 2 do row[found[3][i]] = found[3][i + 1] end
local distance, digest = tonumber(row.distance), string.match(name or '', '{([^{}]+)}[^{}]*$')
if row.scope ~= ARGV[4] or not distance or distance > tonumber(ARGV[3]) or not digest then
  return {found}
end
local key = ARGV[2] .. digest .. '}'
return {
  found,
  digest,
  redis.call('GET', key),
  redis.call('GET', KEYS[1]),
  redis.call('PTTL', key),
  redis.call('ZSCORE', KEYS[2], ARGV[1] .. ':' .. digest)
}
""")
# An answer that is gone is led to by nothing; one that took its place is to the same request.
_LEAD = Script("""
local ttl = redis.call('PTTL', KEYS[1])
if ttl <= 0 then return 0 end
redis.call('HSET', KEYS[2], unpack(ARGV))
redis.call('PEXPIRE', KEYS[2], ttl)
return 1
""")


# Where another answer was stored meanwhile, its store has written the entry that leads to it.
_FORGET = Script("""
if redis.call('GETRANGE', KEYS[1], 0, ARGV[2]) ~= ARGV[1] then return 0 end
return redis.call('UNLINK', KEYS[2])
""")


class Gone(NamedTuple):
    """A semantic entry whose answer is gone, or dead."""

    entry_key: str
    digest: str
    """Of the answer."""
    start: bytes
    """The first bytes of what is dead; empty where there was nothing."""


class Read(NamedTuple):
    """What was read beside a search."""

    digest: str
    """Of the answer."""
    values: Sequence[Any]
    """What `ExactStore.judged` takes."""


class VectorStore:
    """The semantic entries of one vector space in one namespace."""

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        *,
        space: str,
        dimensions: int,
        cipher: Cipher | None = None,
        corrupt: Callable[[CorruptEntry], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        lane: Lane | None = None,
        tag: str = "",
    ) -> None:
        if not 0 < dimensions <= _MAX_DIMENSIONS:
            raise ConfigurationError(
                f"an embedder must have 1 to {_MAX_DIMENSIONS} dimensions; got {dimensions}"
            )
        self._connection = connection
        self._keys = keys
        self._cipher = cipher
        # Of a cluster, one primary (`shards.py`).
        self._tag = tag
        # Of many searches that find it gone, one makes it anew. Of many processes, too: to all
        # others Redis says that it is there.
        self._healing = SharedRun(self._create_index, name="llm_cache.index", keeps_on=True)
        self._corrupt = corrupt
        self.space = space
        """Its fingerprint."""
        self.dimensions = dimensions
        """Length of every vector."""
        self._sizes = Sizes(clock)
        # On a cluster the epoch has a server of its own. A search that is spread over several
        # servers cannot be made from a script.
        self._may_read_along = not connection.is_cluster
        self._keys_beside = (keys.epoch, keys.rejected)
        self._answer_prefix = keys.answer_prefix
        self.line = Line(connection, lane)
        """Carries the searches; what they lead to may be fetched over it. Replies are RESP2."""

    @property
    def index(self) -> str:
        """Name of the index."""
        return self._keys.index(self.space, self._tag)

    async def ensure_index(self) -> None:
        """Create the index unless it is there. Two round trips.

        Raises:
            SearchModuleMissing: this Redis has no RediSearch.
            IndexMismatch: an index of this name has other settings. It is left as it is.
        """
        names = await self._index_names()
        if self.index not in names:
            await self._create_index()
        await self._check_index()

    async def nearest(self, scope: str, vector: Vector, *, limit: int) -> list[Candidate]:
        """Return at most *limit* entries of *scope*, nearest first.

        One round trip; one more for the first search of a scope. An index that was lost is made
        anew, and has no entries yet.
        """
        search = await self._search(scope, vector, limit)
        reply = await self._count(self._sizes.due(scope), *search)
        if reply is not None and self._tag:
            reply = await self._filled(reply)
        return [] if reply is None else self._candidates(reply, scope)[:limit]

    async def nearest_and_answer(
        self, scope: str, vector: Vector, *, limit: int, asked: str, least_similarity: float
    ) -> tuple[list[Candidate], Read | None]:
        """Return what `nearest` does, and what `ExactStore.lookup_for` reads of the first.

        That is left out where the first is less similar than *least_similarity*, and where Redis
        does not search from a script. Costs what `nearest` does.
        """
        if not self._may_read_along:
            return await self.nearest(scope, vector, limit=limit), None
        _, *search = await self._search(scope, vector, limit)
        about = (asked, self._answer_prefix, 1 - least_similarity, scope)
        ask = partial(self._count, self._sizes.due(scope))
        try:
            reply = await _SEARCH.run(ask, self._keys_beside, (*about, *search))
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, ResponseError):
                raise
            found = await self.nearest(scope, vector, limit=limit)
            # It is the script that this Redis refuses.
            self._may_read_along = False
            return found, None
        if reply is None:
            return [], None
        if not isinstance(reply, list) or len(reply) not in (1, 2 + READ):
            raise StoreUnavailable("a search was answered with something else")
        found = self._candidates(reply[0], scope)[:limit]
        return found, None if len(reply) == 1 else Read(text(reply[1]), reply[2:])

    async def _search(self, scope: str, vector: Vector, limit: int) -> Command:
        """Return the search for what is near, by the plan of the scope."""
        unknown = self._sizes.unknown(scope)
        if unknown:
            await self._count(unknown)
        query = _EXACT if self._sizes.is_small(scope) else _GRAPH
        return (
            *("FT.SEARCH", self.index),
            query.format(scope=scope, limit=limit, ef=max(self._sizes.ef_runtime, limit)),
            *("PARAMS", 2, "v", salted_blob(vector, scope)),
            *self._returning(),
            *("SORTBY", "distance", "LIMIT", 0, limit, "DIALECT", 2),
        )

    def _returning(self) -> Command:
        # On a node of a cluster a search finds no fields: the server looks for every hash in the
        # slot of the name of the index.
        names = ("distance",) if self._tag else _RETURNED
        return ("RETURN", len(names), *names)

    async def _filled(self, reply: Sequence[Any]) -> list[Any]:
        """Return the *reply* of a cluster's node with the fields of its rows. One round trip."""
        names = [name for name in _RETURNED if name != "distance"]
        keys = reply[1::2]
        rows = [("HMGET", key, *names) for key in keys]
        values = await self.line.execute_all(*rows) if rows else []
        filled: list[Any] = [reply[0]]
        for key, fields, found in zip(keys, reply[2::2], values, strict=True):
            given = [(n.encode(), v) for n, v in zip(names, found, strict=True) if v is not None]
            filled += [key, [*(fields or ()), *(part for pair in given for part in pair)]]
        return filled

    async def aclose(self) -> None:
        """Let go of the connection for searches."""
        await self._healing.settle(wait_s=0)
        await self.line.aclose()

    def entry(self, *, digest: str, scope: str, vector: Vector, kept: Kept) -> HashWrite:
        """Return key and fields of the semantic entry that leads to the answer *digest*."""
        fields: list[str | bytes] = ["vector", salted_blob(vector, scope), "scope", scope]
        if text := kept.field(self._cipher, self.space, scope, digest):
            fields += ["prompt", text]
        return self._keys.entry(self.space, digest), fields

    async def lead_to(self, digest: str, entry: HashWrite) -> bool:
        """Write *entry*, which leads to the answer *digest*, until that expires.

        One round trip. Return whether there was such an answer; without it nothing is written.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        key, fields = entry
        is_there = await _LEAD.run(
            self._connection.execute, [self._keys.answer(digest), key], fields
        )
        return bool(is_there)

    async def count(self) -> int:
        """Return the number of entries in the index. One round trip."""
        answers = await self._ask(("FT.INFO", self.index))
        return 0 if answers is None else entries_of(answers[0])

    def _candidates(self, reply: Any, scope: str) -> list[Candidate]:
        """Return the rows of *scope* in *reply*, nearest first.

        Raises:
            StoreUnavailable: it is no reply to a search.
        """
        tag = scope.encode()
        try:
            # A count, and then the name and the fields of each row.
            found = [
                # A row without fields is an entry that expired between the search and the reply;
                # a row of another scope is what the graph finds where the scope has fewer entries
                # than asked for.
                self._candidate(name, row, scope)
                for name, fields in zip(reply[1::2], reply[2::2], strict=True)
                if fields and (row := mapping(fields)).get(b"scope") == tag and b"distance" in row
            ]
        except (TypeError, ValueError, AttributeError, LookupError, OverflowError) as error:
            raise StoreUnavailable("a search was answered with something else") from error
        candidates = [candidate for candidate in found if candidate is not None]
        # The server sorted them, as far as it merged them itself.
        candidates.sort(key=_BY_SIMILARITY, reverse=True)
        return candidates

    def _candidate(self, name: Any, row: Mapping[Any, Any], scope: str) -> Candidate | None:
        key, similarity = name.decode(), 1 - float(row[b"distance"])
        digest = self._keys.entry_digest(self.space, key)
        # Of vectors that are rounded. The comparison is false for NaN, too.
        if digest is None or not abs(similarity) <= _MOST_SIMILAR:
            return None
        try:
            kept = open_kept(row.get(b"prompt", b""), self._cipher, self.space, scope, digest)
        except CorruptEntry as error:
            self._corrupt(error)
            return None
        if kept is None:
            return None
        return Candidate(key, digest, kept.prompt, similarity, signature=kept.signature)

    async def _count(self, questions: Sequence[str | None], *search: Any) -> Any | None:
        """Learn what *questions* ask; return the answer of a *search* beside it."""
        commands = [search] if search else []
        commands += [self._sizes.command(question, self.index) for question in questions]
        answers = await self._ask(*commands)
        if answers is None:
            return None
        replies = answers[len(answers) - len(questions) :]
        for question, reply in zip(questions, replies, strict=True):
            self._sizes.learn(question, reply)
        return answers[0] if search else None

    async def _ask(self, *commands: Command) -> list[Any] | None:
        """Return the answers of the index; `None` where it was lost and is empty again.

        `FLUSHALL` takes the index along, and so does a restart without persistence.
        """
        try:
            return await self.line.execute_all(*commands)
        except StoreUnavailable as error:
            if not any(words in str(error).lower() for words in _LOST):
                raise
        # Not `ensure_index`: an index that cannot be used is a mistake in the set-up when the
        # cache is opened, but must not fail a call later on.
        await self._healing.join()
        return None

    async def _index_names(self) -> set[str]:
        try:
            names = await self.line.execute("FT._LIST")
        except StoreUnavailable as error:
            if "unknown command" not in str(error).lower():
                raise
            raise SearchModuleMissing(
                "this Redis has no search module, which the semantic layer needs: use Redis Stack"
                " or Redis 8 (`docker compose up -d redis`), or set semantic=False to keep the"
                " exact layer alone"
            ) from error
        return {text(name) for name in names}

    async def _create_index(self) -> None:
        try:
            await self.line.execute(
                *("FT.CREATE", self.index, "ON", "HASH"),
                *("PREFIX", 1, self._keys.entry_prefix(self.space)),
                *("NOOFFSETS", "NOHL", "NOFIELDS", "NOFREQS", "STOPWORDS", 0),
                *("SCHEMA", "scope", "TAG", "CASESENSITIVE"),
                *("vector", "VECTOR", "HNSW", 10, "TYPE", "FLOAT16", "DIM", self.dimensions),
                *("DISTANCE_METRIC", "COSINE", "M", 16),
                *("EF_CONSTRUCTION", 200),
            )
        except StoreUnavailable as error:
            # Another worker was faster; `_check_index` looks at what it made.
            if "already exists" not in str(error).lower():
                raise

    async def _check_index(self) -> None:
        info = mapping(await self.line.execute("FT.INFO", self.index))
        fields = [mapping(field) for field in info[b"attributes"]]
        vector = next((field for field in fields if field.get(b"attribute") == b"vector"), {})
        found = {
            name: text(vector.get(name.encode(), "nothing")).upper()
            for name in ("algorithm", "data_type", "dim", "distance_metric")
        }
        prefixes = mapping(info[b"index_definition"]).get(b"prefixes", [])
        found["prefix"] = ", ".join(text(prefix) for prefix in prefixes)
        wanted = {
            "algorithm": "HNSW",
            "data_type": "FLOAT16",
            "dim": str(self.dimensions),
            "distance_metric": "COSINE",
            "prefix": self._keys.entry_prefix(self.space),
        }
        wrong = [
            f"{name} {found[name]} instead of {wanted[name]}"
            for name in wanted
            if found[name] != wanted[name]
        ]
        if wrong:
            raise IndexMismatch(
                f"the index {self.index} was made with other settings ({'; '.join(wrong)}). It is"
                " left as it is: choose another namespace, or drop it yourself with"
                f" `FT.DROPINDEX {self.index}`"
            )


async def forget_gone(connection: Connection, keys: Keys, entries: Iterable[Gone]) -> None:
    """Delete semantic *entries*, but those whose answers have been replaced. One round trip.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    last = str(HEADER_BYTES - 1)
    await _FORGET.run_each(
        connection,
        [((keys.answer(gone.digest), gone.entry_key), (gone.start, last)) for gone in entries],
    )
