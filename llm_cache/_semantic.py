"""The semantic layer: embed a prompt, search its scope, choose, and fetch the answer."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_cache._core import keys as identity
from llm_cache._core.codec import Sealed
from llm_cache._core.encryption import Cipher
from llm_cache._core.kept import Kept
from llm_cache._core.keys import Keys
from llm_cache._core.types import Candidate
from llm_cache._core.vectors import Vector, check_vector
from llm_cache._embedding import EmbeddingQueue
from llm_cache._flight import SharedRun
from llm_cache._redis.connection import Connection
from llm_cache._redis.embeddings import KeptEmbeddings
from llm_cache._redis.exact import ExactStore
from llm_cache._redis.lease import HashWrite
from llm_cache._redis.vectors import Gone, Read, VectorStore, forget_gone
from llm_cache.config import CacheConfig, check_threshold
from llm_cache.embedders import Embedder
from llm_cache.errors import ConfigurationError, EmbedderError, LLMCacheError
from llm_cache.events import DependencyFailed, Event

if TYPE_CHECKING:
    from llm_cache._core.hit_policy import Decision
    from llm_cache._decisions import Decisions
    from llm_cache._redis.shards import ShardedVectors

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


@dataclass(frozen=True, slots=True)
class Finding:
    """What was decided on the nearest candidates, and the hit that came of it."""

    decision: Decision
    hit: SemanticHit | None


Accepts = Callable[[Sealed], bool]
"""Tells whether an answer may be served to the call that asks."""


class SemanticLayer:
    """Finds answers to prompts that mean the same."""

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        exact: ExactStore,
        embedder: Embedder,
        config: CacheConfig,
        *,
        cipher: Cipher | None = None,
        tell: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._cipher = cipher
        self._connection = connection
        self._keys = keys
        self._exact = exact
        self._embedder = embedder
        self._config = config
        self._blind_spots = getattr(embedder, "blind_spots", _sees_all)
        self._tell = tell
        self._vectors: VectorStore | ShardedVectors | None = None
        self._decisions: Decisions | None = None
        self._least_similarity = 1.0
        """What the answer of the nearest is fetched from, beside the search."""
        # A caller waits for no longer than it may; the index is there for the next one.
        self._opening = SharedRun(self._open, name="llm_cache.open.semantic", keeps_on=True)
        self._check_thresholds()
        self._embeddings = EmbeddingQueue(
            embedder,
            timeout_s=config.embed_timeout_s,
            kept=_kept(connection, keys, embedder, config, cipher),
            tell=tell,
        )

    @property
    def is_open(self) -> bool:
        """Whether `open` has done its work."""
        return self._vectors is not None

    @property
    def vectors(self) -> VectorStore | ShardedVectors:
        """The store of entries, once `open` has returned."""
        if self._vectors is None:
            raise EmbedderError("the semantic layer is not open")
        return self._vectors

    @property
    def spaces(self) -> list[str]:
        """The vector spaces that this process writes to: one, or none before `open`."""
        return [] if self._vectors is None else [self._vectors.space]

    @property
    def decisions(self) -> Decisions:
        """What decides on candidates, once `open` has returned."""
        if self._decisions is None:
            raise EmbedderError("the semantic layer is not open")
        return self._decisions

    def policy(self, tenant_id: str | None) -> str | None:
        """Return what is to be said of the policy that decides; `None` before `open`."""
        return None if self._decisions is None else self._decisions.in_force(tenant_id).description

    async def open(self) -> None:
        """Make ready the embedder and the index. Does nothing the second time.

        Where the embedder does not tell its dimensions, one word is embedded to learn them. One
        who is cancelled leaves it to those who come later.

        Raises:
            SearchModuleMissing, IndexMismatch, StoreUnavailable: from Redis.
            EmbedderError: the embedder had to be asked and failed.
        """
        if not self.is_open:
            await self._opening.join()

    async def _open(self) -> None:
        warm_up = getattr(self._embedder, "open", None)
        if inspect.iscoroutinefunction(warm_up):
            await warm_up()
        dimensions = self._embedder.dimensions
        if dimensions is None:
            dimensions = len(await self._embeddings.embed(_PROBE))
        space = identity.fingerprint(self._embedder.model_id, dimensions)
        vectors = vectors_of(
            self._connection,
            self._keys,
            space=space,
            dimensions=dimensions,
            cipher=self._cipher,
            tell=self._tell,
        )
        try:
            await vectors.ensure_index()
            decisions = await self._open_decisions(vectors.space)
        except BaseException:
            await vectors.aclose()
            raise
        decisions.start()
        self._vectors, self._decisions = vectors, decisions

    async def _open_decisions(self, space: str) -> Decisions:
        # With its word lists it is a sixth of what an import of this package costs.
        await asyncio.to_thread(_prepare_decisions)
        from llm_cache._core.hit_policy import ThresholdPolicy
        from llm_cache._decisions import Decisions
        from llm_cache._redis.policies import PolicyStore

        isolated = self._isolated_threshold
        self._least_similarity = min(self._threshold, 1.0 if isolated is None else isolated)
        decisions = Decisions(
            PolicyStore(self._connection, self._keys, space=space),
            ThresholdPolicy(
                self._threshold,
                is_guarded=self._config.guards,
                isolated_threshold=isolated,
                verify_from=self._config.verify_from,
            ),
            tell=self._tell,
        )
        await decisions.reload()
        return decisions

    @property
    def _threshold(self) -> float:
        """The least similarity of a hit: the configured one, else the embedding model's."""
        configured = self._config.similarity_threshold
        return self._embedder.similarity_threshold if configured is None else configured

    @property
    def _isolated_threshold(self) -> float | None:
        """What is enough where no other entry is near; the model's, so for its threshold alone."""
        if self._config.similarity_threshold is not None:
            return None
        isolated: float | None = getattr(self._embedder, "isolated_threshold", None)
        return isolated

    def _check_thresholds(self) -> None:
        check_threshold(self._threshold, "similarity_threshold of the embedder")
        if self._isolated_threshold is not None:
            check_threshold(self._isolated_threshold, "isolated_threshold of the embedder")
        verify_from = self._config.verify_from
        if verify_from is not None and verify_from >= self._threshold:
            raise ConfigurationError(
                f"verify_from={verify_from:g} leaves nothing to verify: what is as similar as"
                f" {self._threshold:g} is served without; choose one below"
            )

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
            unit = check_vector(vector, dimensions=dimensions, model_id="vector=")
        return Place(identity.narrow(scope, blind_spots), unit, prompt)

    async def nearest(self, place: Place, *, limit: int = _CANDIDATES) -> list[Candidate]:
        """Return the entries nearest to *place* in its scope, whatever they are worth.

        One round trip; raises as `lookup` does.
        """
        return await self.vectors.nearest(place.scope, place.vector, limit=limit)

    async def lookup(
        self,
        place: Place,
        asked: str,
        accepts: Accepts = lambda _: True,
        *,
        tenant_id: str | None = None,
    ) -> Finding:
        """Return what the policy says of the entries near *place*, and the hit that comes of it.

        That is the nearest living answer which the policy serves and *accepts* takes. *asked* is
        the digest of the request itself, *tenant_id* chooses the policy.

        One round trip; one more for a hit on a cluster, and for one that is not the nearest. Where
        entries stood in front whose answers are gone, or may not be served here, the search is
        repeated with a wider view; those whose answers are gone are deleted.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        limit = _CANDIDATES
        passed_over: set[str] = set()
        while True:
            nearest, read = await self.vectors.nearest_and_answer(
                place.scope,
                place.vector,
                limit=limit,
                asked=asked,
                least_similarity=self._least_similarity,
            )
            candidates = [near for near in nearest if near.key not in passed_over]
            decision = self.decisions.decide(place.prompt, candidates, tenant_id)
            hit, gone, passed = await self._first_living(decision.serve(), asked, accepts, read)
            if hit is not None or not (gone or passed):
                return Finding(decision, hit)
            if gone:
                await forget_gone(self._connection, self._keys, gone)
            passed_over.update(passed)
            if limit >= _MOST_CANDIDATES:
                return Finding(decision, None)
            limit *= 4

    async def fetch(
        self, candidate: Candidate, asked: str, accepts: Accepts
    ) -> SemanticHit | None:
        """Return *candidate* with its answer, if that may be served now. One round trip.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        hit, _, _ = await self._first_living([candidate], asked, accepts)
        return hit

    async def forget(self, digest: str) -> None:
        """Delete the entry that leads to the answer *digest*. One round trip."""
        vectors = self.vectors
        await vectors.line.execute("UNLINK", self._keys.entry(vectors.space, digest))

    async def _first_living(
        self,
        candidates: Iterable[Candidate],
        asked: str,
        accepts: Accepts,
        read: Read | None = None,
    ) -> tuple[SemanticHit | None, list[Gone], list[str]]:
        """Return the first that may be served, whose answer may have been *read* already.

        Before it, the entries whose answers are gone, and those whose answers may not be served.
        """
        gone: list[Gone] = []
        passed: list[str] = []
        for candidate in candidates:
            digest, prompt = candidate.digest, candidate.prompt or None
            if read is not None and read.digest == digest:
                found, left_ms = await self._exact.judged(read.values, digest, prompt)
            else:
                line = self.vectors.line
                found, left_ms = await self._exact.lookup_for(asked, digest, prompt, line)
            # An alias has no entry of its own; one that leads to it outlived its answer.
            if found.entry is not None and not found.entry.is_alias:
                if left_ms > 0 and accepts(found.entry):
                    return SemanticHit(candidate, found.entry, left_ms), gone, passed
                passed.append(candidate.key)
            elif found.is_foreign or found.corrupt is not None:
                # An answer of another version is alive to the workers that can read it; one that
                # cannot be read may have been damaged on its way here.
                passed.append(candidate.key)
            else:
                gone.append(Gone(candidate.key, digest, found.start))
        return None, gone, passed

    async def aclose(self) -> None:
        """End embeddings and searches that are under way.

        Whoever waits for an embedding gets `CacheClosed`, for a search `StoreUnavailable`.
        """
        await self._embeddings.aclose()
        await self._opening.settle(wait_s=0)
        await self.reset()

    async def reset(self) -> None:
        """Undo `open`. Whoever is waiting for an embedding gets it all the same."""
        await self._opening.drop()
        vectors, self._vectors = self._vectors, None
        decisions, self._decisions = self._decisions, None
        if decisions is not None:
            await decisions.aclose()
        if vectors is not None:
            await vectors.aclose()

    async def lead_to(self, place: Place, digest: str) -> bool:
        """Let *place* lead to the answer *digest*, which is stored; return whether it still is.

        One round trip.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        return await self.vectors.lead_to(digest, self.entry(place, digest))

    def entry(self, place: Place, digest: str) -> HashWrite:
        """Return the entry to store with the answer *digest*, so that *place* leads to it."""
        return self.vectors.entry(
            digest=digest,
            scope=place.scope,
            vector=place.vector,
            kept=self.kept(place.prompt),
        )

    def kept(self, prompt: str) -> Kept:
        """Return what is kept of *prompt*: itself, or what the guards need to know of it."""
        if self._config.store_prompts:
            return Kept(prompt)
        # Whoever has an open layer has read the word lists that come with it.
        from llm_cache._core.signature import pack

        return Kept(signature=pack(prompt))


def vectors_of(
    connection: Connection,
    keys: Keys,
    *,
    space: str,
    dimensions: int,
    cipher: Cipher | None = None,
    tell: Callable[[Event], None] = lambda _: None,
) -> VectorStore | ShardedVectors:
    """Return the store of the entries of *space*, on a cluster that of all primaries."""
    about: dict[str, Any] = {
        "space": space,
        "dimensions": dimensions,
        "cipher": cipher,
        "corrupt": lambda error: tell(DependencyFailed("redis", "lookup_semantic", error)),
    }
    if connection.is_cluster:
        from llm_cache._redis.shards import ShardedVectors

        return ShardedVectors(connection, keys, **about, tell=tell)
    return VectorStore(connection, keys, **about)


def _kept(
    connection: Connection,
    keys: Keys,
    embedder: Embedder,
    config: CacheConfig,
    cipher: Cipher | None,
) -> KeptEmbeddings | None:
    if config.keep_embeddings_s is None:
        return None
    ttl_ms = max(1, round(1000 * config.keep_embeddings_s))
    return KeptEmbeddings(
        connection, keys, model_id=embedder.model_id, ttl_ms=ttl_ms, cipher=cipher
    )


def _prepare_decisions() -> None:
    from llm_cache import _decisions

    _decisions.prepare()


def _sees_all(_text: str) -> str:
    return ""
