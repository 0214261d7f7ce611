"""The embedding path: callers share requests to the embedder, and what is kept in Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from llm_cache._batches import Batches
from llm_cache._core.vectors import Vector, check_vectors
from llm_cache._deadline import Deadline
from llm_cache._redis.embeddings import KeptEmbeddings
from llm_cache.embedders import DEFAULT_MAX_BATCH, DEFAULT_MAX_IN_FLIGHT, Embedder, check_limit
from llm_cache.errors import (
    CacheClosed,
    EmbedderError,
    EmbedderTimeout,
    InvalidEmbedding,
    InvalidRequest,
    LLMCacheError,
    StoreError,
)
from llm_cache.events import DependencyFailed, Event, TextsEmbedded
from llm_cache.tokens import estimate_tokens

_MAX_CHARS = 100_000
"""Of one request; OpenAI takes 300,000 tokens, and some scripts need two for a character."""
_MAX_LOOKUPS = 256
"""In one `MGET`."""
_REFUSED = frozenset({400, 413, 422})


class EmbeddingQueue:
    """Embeds texts, one a caller, with few requests.

    Args:
        embedder: What makes the vectors. Its `max_batch` and `max_in_flight`, where it has them,
            bound the requests.
        timeout_s: Most seconds a caller waits, its time in the queue included.
        kept: Where vectors are looked up first and kept, if anywhere.
        tell: Hears what was embedded, and the failures of *kept*, which are never the caller's.

    Raises:
        ConfigurationError: a bound of the embedder is not a whole number above 0.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        timeout_s: float,
        kept: KeptEmbeddings | None = None,
        tell: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._embedder = embedder
        self._timeout_s = timeout_s
        self._kept = kept
        self._tell = tell
        self._dimensions = embedder.dimensions
        max_in_flight = getattr(embedder, "max_in_flight", DEFAULT_MAX_IN_FLIGHT)
        if max_in_flight is not None:
            check_limit(max_in_flight, "max_in_flight")
        self._requests: Batches[Vector] = Batches(
            self._request,
            max_keys=check_limit(getattr(embedder, "max_batch", DEFAULT_MAX_BATCH), "max_batch"),
            max_chars=_MAX_CHARS,
            max_in_flight=max_in_flight,
            is_refusal=_is_refusal,
        )
        self._lookups: Batches[Vector | None] = Batches(
            self._lookup, max_keys=_MAX_LOOKUPS, max_chars=2**63, max_in_flight=1
        )

    async def embed(self, text: str) -> Vector:
        """Return the vector of *text*, of unit length.

        At most one request to the embedder, shared with others; with kept embeddings one round
        trip to Redis before it and one after it, and no request for a text that is kept. A caller
        that is cancelled or out of time leaves the request to the others.

        Raises:
            EmbedderError: the embedder failed, or took longer than *timeout_s*.
            InvalidEmbedding: what it answered is no usable vector.
        """
        try:
            async with Deadline(self._timeout_s):
                return await self._find(text)
        except TimeoutError as error:
            raise EmbedderTimeout(
                f"embedder {self._embedder.model_id!r} took longer than"
                f" embed_timeout_s={self._timeout_s:g} s"
            ) from error

    async def aclose(self) -> None:
        """End what is under way; whoever waits for it gets `CacheClosed`."""
        closed = CacheClosed("the cache was closed")
        await self._lookups.aclose(closed)
        await self._requests.aclose(closed)

    async def _find(self, text: str) -> Vector:
        is_asked = text in self._requests
        if self._kept is not None and self._dimensions is not None and not is_asked:
            kept = await self._lookups.get(text)
            if kept is not None:
                return kept
        return await self._requests.get(text)

    async def _request(self, texts: Sequence[str]) -> list[Vector]:
        model_id = self._embedder.model_id
        started_s = time.perf_counter()
        try:
            answered: Any = await self._embedder.embed(texts)
        except LLMCacheError:
            raise
        except asyncio.CancelledError as error:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]  # in a task
                raise
            # Nobody cancelled us, so it is the embedder's own trouble, and an error like others.
            raise EmbedderError(f"embedder {model_id!r} was cancelled inside") from error
        except Exception as error:
            # An embedder is anybody's code: whatever it raises is its failure, not the caller's.
            raise EmbedderError(f"embedder {model_id!r} raised {type(error).__name__}") from error
        self._tell(self._paid(texts, answered, started_s))
        vectors = check_vectors(
            answered, count=len(texts), dimensions=self._dimensions, model_id=model_id
        )
        self._dimensions = vectors.shape[1]
        await self._keep(texts, vectors)
        return list(vectors)

    def _paid(self, texts: Sequence[str], answered: Any, started_s: float) -> TextsEmbedded:
        """Return what there is to tell of a request that was answered."""
        is_free = getattr(self._embedder, "is_free", False)
        told: Any = 0 if is_free else getattr(answered, "tokens", None)
        is_estimate = not isinstance(told, int) or told < 0
        return TextsEmbedded(
            model=self._embedder.model_id,
            texts=len(texts),
            tokens=sum(map(estimate_tokens, texts)) if is_estimate else told,
            is_estimate=is_estimate,
            duration_s=time.perf_counter() - started_s,
        )

    async def _lookup(self, texts: Sequence[str]) -> Sequence[Vector | None]:
        if self._kept is None or self._dimensions is None:
            return [None] * len(texts)
        try:
            return await self._kept.lookup(texts, self._dimensions)
        except StoreError as error:
            self._tell(DependencyFailed("redis", "lookup_embedding", error))
            return [None] * len(texts)

    async def _keep(self, texts: Sequence[str], vectors: Vector) -> None:
        if self._kept is None:
            return
        try:
            await self._kept.store(texts, vectors)
        except StoreError as error:
            self._tell(DependencyFailed("redis", "store_embedding", error))


def _is_refusal(error: Exception) -> bool:
    """Tell whether single texts may be to blame. Rate limits and outages concern them all."""
    return isinstance(error, InvalidEmbedding | InvalidRequest) or blames_text(error)


def blames_text(error: BaseException) -> bool:
    """Tell whether the embedder works, and refused what it was sent."""
    return getattr(error.__cause__, "status_code", None) in _REFUSED
