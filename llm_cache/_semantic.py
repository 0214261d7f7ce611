"""The semantic layer: embed a prompt, search its scope, choose, and fetch the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_cache._core import guards, similarity
from llm_cache._core import keys as identity
from llm_cache._core.keys import Keys
from llm_cache._core.types import Candidate, Entry
from llm_cache._core.vectors import Vector, check_vectors
from llm_cache._redis.connection import Connection
from llm_cache._redis.exact import AddWrite, ExactStore
from llm_cache._redis.vectors import VectorStore
from llm_cache.config import CacheConfig
from llm_cache.embedders import Embedder
from llm_cache.errors import EmbedderError, LLMCacheError

if TYPE_CHECKING:
    from redis.asyncio.client import Pipeline

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
    entry: Entry
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
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._exact = exact
        self._embedder = embedder
        self._config = config
        self._blind_spots = getattr(embedder, "blind_spots", _sees_all)
        self._vectors: VectorStore | None = None
        self.has_worked = False
        """Whether the embedder has ever answered usable vectors."""

    @property
    def vectors(self) -> VectorStore:
        """The store of entries, once `open` has returned."""
        if self._vectors is None:
            raise EmbedderError("the semantic layer is not open")
        return self._vectors

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
            dimensions = (await self._embed([_PROBE], None)).shape[1]
        vectors = VectorStore(
            self._connection,
            self._keys,
            space=identity.fingerprint(self._embedder.model_id, dimensions),
            dimensions=dimensions,
        )
        await vectors.ensure_index()
        if self.is_guarded:
            # The word lists take 20 ms or more to read; the first hit shall not wait for them.
            await asyncio.to_thread(guards.prepare)
        self._vectors = vectors

    async def locate(
        self, prompt: str, scope: str, *, vector: Sequence[float] | None = None
    ) -> Place | None:
        """Return where *prompt* stands in *scope*, or `None` where the model cannot tell.

        One embedding, none when the *vector* is given. No round trip to Redis.

        Raises:
            EmbedderError: the embedder failed or took longer than `embed_timeout_s`.
            InvalidEmbedding: what it answered is no usable vector.
        """
        blind_spots = self._blind_spots(prompt)
        if blind_spots is None:
            return None
        dimensions = self.vectors.dimensions
        if vector is None:
            rows = await self._embed([prompt], dimensions)
        else:
            rows = check_vectors([vector], count=1, dimensions=dimensions, model_id="vector=")
        return Place(identity.narrow(scope, blind_spots), rows[0], prompt)

    async def nearest(self, place: Place, *, limit: int = _CANDIDATES) -> list[Candidate]:
        """Return the entries nearest to *place* in its scope, whatever they are worth.

        One round trip; raises as `lookup` does.
        """
        return await self.vectors.nearest(place.scope, place.vector, limit=limit)

    async def lookup(self, place: Place) -> SemanticHit | None:
        """Return the nearest living answer that may be served at *place*.

        Two round trips for a hit, one for a miss. Entries whose answers are gone are deleted, and
        as they may have stood before living ones, the search is then repeated with a wider view.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        limit = _CANDIDATES
        while True:
            candidates = await self.nearest(place, limit=limit)
            gone: list[str] = []
            for candidate in similarity.acceptable(
                place.prompt,
                candidates,
                threshold=self.threshold,
                guarded=self._config.guards,
            ):
                found, left_ms = await self._exact.lookup_with_ttl(candidate.digest)
                # An alias has no entry of its own; one that leads to it outlived its answer.
                if found.entry is not None and found.entry.origin is None:
                    return SemanticHit(candidate, found.entry, left_ms)
                gone.append(candidate.key)
            if not gone:
                return None
            await self.vectors.forget(gone)
            if limit >= _MOST_CANDIDATES:
                return None
            limit *= 4

    async def aclose(self) -> None:
        """Let go of what embedding holds."""

    def write(self, place: Place, digest: str, *, ttl_ms: int) -> AddWrite:
        """Return what adds the entry of *place* to the transaction that stores its answer."""

        def add(pipeline: Pipeline) -> str:
            return self.vectors.write(
                pipeline,
                digest=digest,
                scope=place.scope,
                vector=place.vector,
                prompt=place.prompt if self._config.store_prompts else "",
                ttl_ms=ttl_ms,
            )

        return add

    async def _embed(self, texts: Sequence[str], dimensions: int | None) -> Vector:
        model_id = self._embedder.model_id
        try:
            async with asyncio.timeout(self._config.embed_timeout_s):
                answered: Any = await self._embedder.embed(texts)
        except LLMCacheError:
            raise
        except TimeoutError as error:
            raise EmbedderError(
                f"embedder {model_id!r} took longer than"
                f" embed_timeout_s={self._config.embed_timeout_s:g} s"
            ) from error
        except Exception as error:
            # An embedder is anybody's code: whatever it raises is its failure, not the caller's.
            raise EmbedderError(f"embedder {model_id!r} raised {type(error).__name__}") from error
        vectors = check_vectors(
            answered, count=len(texts), dimensions=dimensions, model_id=model_id
        )
        self.has_worked = True
        return vectors


def _sees_all(_text: str) -> str:
    return ""
