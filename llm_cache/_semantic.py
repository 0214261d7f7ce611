"""The semantic layer: embed a prompt, search its scope, choose, and fetch the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_cache._core import keys as identity
from llm_cache._core import similarity
from llm_cache._core.codec import Sealed
from llm_cache._core.keys import Keys
from llm_cache._core.types import Candidate
from llm_cache._core.vectors import Vector, check_vectors
from llm_cache._embedding import EmbeddingQueue
from llm_cache._redis.connection import Connection
from llm_cache._redis.embeddings import KeptEmbeddings
from llm_cache._redis.exact import ExactStore
from llm_cache._redis.lease import HashWrite
from llm_cache._redis.vectors import VectorStore
from llm_cache.config import CacheConfig
from llm_cache.embedders import Embedder
from llm_cache.errors import EmbedderError, LLMCacheError
from llm_cache.events import Event

_CANDIDATES = 4
_MOST_CANDIDATES = 256
_PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a prompt stands: its direction, and the scope it is compared within."""

    scope: str
    vector: Vector
    prompt: str


@dataclass(frozen=True, slots=True)
class SemanticHit:
    """A candidate that may answer, with its answer."""

    candidate: Candidate
    entry: Sealed
    left_ms: int
    """Milliseconds until the answer expires."""


class SemanticLayer:
    """Finds answers to prompts that mean the same.

    An embedder whose very first vectors are unusable is a mistake in the set-up, and every call
    says so. One that has worked and then fails is trouble, which the cache works around.
    """

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        exact: ExactStore,
        embedder: Embedder,
        config: CacheConfig,
        *,
        tell: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._exact = exact
        self._embedder = embedder
        self._config = config
        self._blind_spots = getattr(embedder, "blind_spots", _sees_all)
        self._vectors: VectorStore | None = None
        self._embeddings = EmbeddingQueue(
            embedder,
            timeout_s=config.embed_timeout_s,
            kept=_kept(connection, keys, embedder, config),
            tell=tell,
        )

    @property
    def has_worked(self) -> bool:
        """Whether the embedder has ever answered usable vectors."""
        return self._embeddings.has_worked

    @property
    def vectors(self) -> VectorStore:
        """The store of entries, once `open` has returned."""
        if self._vectors is None:
            raise EmbedderError("the semantic layer is not open")
        return self._vectors

    @property
    def spaces(self) -> list[str]:
        """The vector spaces that this process writes to: one, or none before `open`."""
        return [] if self._vectors is None else [self._vectors.space]

    @property
    def threshold(self) -> float:
        """The least similarity of a hit: the configured one, else the embedding model's."""
        configured = self._config.similarity_threshold
        return self._embedder.similarity_threshold if configured is None else configured

    @property
    def is_guarded(self) -> bool:
        """Whether the lexical guards may veto."""
        return self._config.guards

    async def open(self) -> None:
        """Make sure of the index.

        Where the embedder does not tell its dimensions, one word is embedded to learn them.

        Raises:
            SearchModuleMissing, IndexMismatch, StoreUnavailable: from Redis.
            EmbedderError: the embedder had to be asked and failed.
        """
        dimensions = self._embedder.dimensions
        if dimensions is None:
            dimensions = len(await self._embeddings.embed(_PROBE))
        vectors = VectorStore(
            self._connection,
            self._keys,
            space=identity.fingerprint(self._embedder.model_id, dimensions),
            dimensions=dimensions,
        )
        try:
            await vectors.ensure_index()
            if self.is_guarded:
                # The word lists take 20 ms or more to read; the first hit shall not wait for them.
                await asyncio.to_thread(_prepare_guards)
        except BaseException:
            await vectors.aclose()
            raise
        self._vectors = vectors

    async def locate(
        self, prompt: str, scope: str, *, vector: Sequence[float] | None = None
    ) -> Place | None:
        """Return where *prompt* stands in *scope*, or `None` where the model cannot tell.

        One embedding, none when the *vector* is given. A round trip to Redis before it and one
        after it where embeddings are kept, else none.

        Raises:
            EmbedderError: the embedder failed or took longer than `embed_timeout_s`.
            InvalidEmbedding: what it answered is no usable vector.
        """
        try:
            blind_spots = self._blind_spots(prompt)
        except LLMCacheError:
            raise
        except Exception as exc:
            # An embedder is anybody's code: whatever it raises is its failure, not the caller's.
            raise EmbedderError(
                f"embedder {self._embedder.model_id!r} raised {type(exc).__name__} in blind_spots"
            ) from exc
        if blind_spots is None:
            return None
        if vector is None:
            unit = await self._embeddings.embed(prompt)
        else:
            dimensions = self.vectors.dimensions
            (unit,) = check_vectors([vector], count=1, dimensions=dimensions, model_id="vector=")
        return Place(identity.narrow(scope, blind_spots), unit, prompt)

    async def nearest(self, place: Place, *, limit: int = _CANDIDATES) -> list[Candidate]:
        """Return the entries nearest to *place* in its scope, whatever they are worth.

        One round trip; raises as `lookup` does.
        """
        return await self.vectors.nearest(place.scope, place.vector, limit=limit)

    async def lookup(
        self, place: Place, asked: str, accepts: Callable[[Sealed], bool] = lambda _: True
    ) -> SemanticHit | None:
        """Return the nearest living answer that may be served at *place* and that *accepts* takes.

        *asked* is the digest of the request itself.

        Two round trips for a hit, one for a miss. Where entries stood in front whose answers are
        gone, or may not be served here, the search is repeated with a wider view; those whose
        answers are gone are deleted.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        limit = _CANDIDATES
        passed_over: set[str] = set()
        while True:
            nearest = await self.nearest(place, limit=limit)
            candidates = [near for near in nearest if near.key not in passed_over]
            gone: list[str] = []
            before = len(passed_over)
            for candidate in similarity.acceptable(
                place.prompt,
                candidates,
                threshold=self.threshold,
                guarded=self._config.guards,
            ):
                found, left_ms = await self._exact.lookup_for(
                    asked, candidate.digest, candidate.prompt or None, self.vectors.line
                )
                # An alias has no entry of its own; one that leads to it outlived its answer.
                if found.entry is not None and not found.entry.is_alias:
                    if left_ms > 0 and accepts(found.entry):
                        return SemanticHit(candidate, found.entry, left_ms)
                    passed_over.add(candidate.key)
                elif found.is_foreign:
                    # An answer of another version is alive to the workers that can read it.
                    passed_over.add(candidate.key)
                else:
                    gone.append(candidate.key)
            if gone:
                await self.vectors.forget(gone)
            elif len(passed_over) == before:
                return None
            if limit >= _MOST_CANDIDATES:
                return None
            limit *= 4

    async def aclose(self) -> None:
        """End embeddings and searches that are under way.

        Whoever waits for an embedding gets `CacheClosed`, for a search `StoreUnavailable`.
        """
        await self._embeddings.aclose()
        if self._vectors is not None:
            await self._vectors.aclose()

    def entry(self, place: Place, digest: str) -> HashWrite:
        """Return the entry to store with the answer *digest*, so that *place* leads to it."""
        return self.vectors.entry(
            digest=digest,
            scope=place.scope,
            vector=place.vector,
            prompt=place.prompt if self._config.store_prompts else "",
        )


def _kept(
    connection: Connection, keys: Keys, embedder: Embedder, config: CacheConfig
) -> KeptEmbeddings | None:
    if config.keep_embeddings_s is None:
        return None
    ttl_ms = max(1, round(1000 * config.keep_embeddings_s))
    return KeptEmbeddings(connection, keys, model_id=embedder.model_id, ttl_ms=ttl_ms)


def _prepare_guards() -> None:
    from llm_cache._core import guards

    guards.prepare()


def _sees_all(_text: str) -> str:
    return ""
