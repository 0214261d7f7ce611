"""`LLMCache`: walks a call from the exact layer over the semantic one to the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from llm_cache._call import OPTIONS, UNSET, Call, Unset, as_completion, plan
from llm_cache._core import policy
from llm_cache._core.codec import encode_entry
from llm_cache._core.keys import Keys
from llm_cache._core.normalize import Prompt
from llm_cache._core.types import CacheStatus, Completion, Entry
from llm_cache._flight import SingleFlight
from llm_cache._http.upstream import Upstream
from llm_cache._redis.connection import Connection
from llm_cache._redis.counters import Counters
from llm_cache._redis.epoch import Epochs
from llm_cache._redis.exact import ExactStore, Lookup
from llm_cache._semantic import Place, SemanticHit, SemanticLayer
from llm_cache.config import CacheConfig, redis_url_from_env
from llm_cache.embedders import Embedder, EmbedFunction, OpenAIEmbedder, as_embedder
from llm_cache.errors import (
    CacheClosed,
    ConfigurationError,
    EmbedderError,
    InvalidEmbedding,
    InvalidRequest,
    NotStorable,
    StoreError,
)
from llm_cache.events import (
    CallEnded,
    DependencyFailed,
    EventHook,
    LogHook,
    StoreSkipped,
    emit,
)
from llm_cache.reply import ChatReply

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

_HITS = (CacheStatus.EXACT, CacheStatus.SEMANTIC, CacheStatus.STALE)
_DRAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class _Filled:
    """The end of a call that the exact layer could not answer."""

    status: CacheStatus
    digest: str | None
    """Under which the answer is stored, if it is."""
    completion: Completion
    created_s: float | None = None
    similarity: float | None = None
    reason: str | None = None


class LLMCache:
    """A cache of LLM answers in Redis: exact, then semantic, then the model.

    Use it as `async with LLMCache(…) as cache`, or call `open()` and `aclose()`. Without either,
    the first call opens it. One object serves any number of concurrent calls of one event loop.

    Args:
        url: `redis://`, `rediss://`, `unix://` or `embedded://`; default `REDIS_URL`, else
            `redis://localhost:6379`.
        client: The SDK's client for the model; default `AsyncOpenAI()`, made when first needed.
            A client that is given is not closed.
        embedder: What makes vectors; default `OpenAIEmbedder(client)`. Not closed either.
        config: All settings.
        hooks: Called with every event; the default logs failures.
        clock: Tells the Unix time in seconds.

    Raises:
        ConfigurationError: the URL or a collaborator cannot work. Nothing is contacted here.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        client: AsyncOpenAI | None = None,
        embedder: Embedder | EmbedFunction | None = None,
        config: CacheConfig | None = None,
        hooks: Iterable[EventHook] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = CacheConfig() if config is None else config
        self._clock = clock
        self._hooks = (LogHook(),) if hooks is None else tuple(hooks)
        self._keys = Keys(self.config.namespace)
        self._connection = Connection(
            redis_url_from_env() if url is None else url,
            max_connections=self.config.max_connections,
            timeout_s=self.config.redis_timeout_s,
        )
        self._epochs = Epochs(self._connection, self._keys)
        self._exact = ExactStore(self._connection, self._keys, self._epochs)
        self._counters = Counters(self._connection, self._keys)
        self._upstream = Upstream(client)
        self._owned_embedder = OpenAIEmbedder(client) if embedder is None else None
        self._semantic = SemanticLayer(
            self._connection,
            self._keys,
            self._exact,
            self._owned_embedder or as_embedder(embedder),  # type: ignore[arg-type]
            self.config,
        )
        self._flights: SingleFlight[_Filled] = SingleFlight()
        self._opening = asyncio.Lock()
        self._is_open = False
        self._is_closed = False
        self._flusher: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ life

    async def open(self) -> Self:
        """Connect, and make sure that the index is there. Does nothing the second time.

        Raises:
            StoreUnavailable: no Redis answers at the URL.
            ConfigurationError: Redis or the embedder cannot work as configured.
            EmbedderError: the embedder had to be asked for its dimensions and failed.
            CacheClosed: the cache was closed.
        """
        async with self._opening:
            if self._is_closed:
                raise CacheClosed("this cache was closed; make a new one")
            if not self._is_open:
                await self._connection.open()
                try:
                    await self._epochs.current(None)
                    if self.config.semantic:
                        await self._semantic.open()
                except BaseException:
                    await self._connection.aclose()
                    raise
                self._flusher = asyncio.create_task(self._flush_forever(), name="llm_cache.stats")
                self._is_open = True
        return self

    async def aclose(self) -> None:
        """Finish what is in flight (at most 5 s), flush the counters, and close everything.

        The client and the embedder that were given stay open.
        """
        async with self._opening:
            if self._is_closed:
                return
            self._is_closed = True
            await self._flights.aclose(wait_s=_DRAIN_S)
            try:
                if self._is_open:
                    await self._stop_flusher()
            finally:
                self._is_open = False
                await self._connection.aclose()
                await self._upstream.aclose()
                if self._owned_embedder is not None:
                    await self._owned_embedder.aclose()

    async def __aenter__(self) -> Self:
        """Open the cache."""
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.aclose()

    @property
    def redis_url(self) -> str:
        """What a Redis client of your own connects to, to look at the cache from outside.

        With `embedded://`, the socket of the server, once the cache is open. A password in the
        URL is in it.
        """
        return self._connection.url

    # ------------------------------------------------------------------ the straight path

    async def chat(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        system: str | Unset | None = UNSET,
        ttl_s: float | None = None,
        tags: Iterable[str] = (),
        tenant: str | None = None,
        semantic: bool | None = None,
        **params: Any,
    ) -> ChatReply:
        """Answer *prompt* from the cache, or from the model, and remember the answer.

        An exact hit costs one Redis command; a semantic hit an embedding and three round trips
        more (search, answer, and writing the answer back as an exact alias); a miss an embedding,
        a search, the model, and one round trip to store.

        Args:
            prompt: The user's turn, or a list of messages as the chat API takes them.
            model: Default `config.model`.
            system: System message before a plain prompt; default `config.system`, `None` for
                none. With a list of messages it is an error: put it into the list.
            ttl_s: Seconds this answer may live; default `config.ttl_s`.
            tags: Names under which the answer can be invalidated.
            tenant: Whose call this is. Tenants never share answers; `None` is a tenant of its own.
            semantic: Whether the semantic layer takes part; default `config.semantic`.
            **params: Everything else goes to the model and into the key, known or not.

        Raises:
            InvalidRequest: the request can never work. Nothing was read, sent or written.
            ConfigurationError: the set-up cannot work.
            CacheClosed: the cache was closed.
            openai.OpenAIError: whatever the SDK raises when the model is asked.
        """
        started_s = time.perf_counter()
        options = {
            "model": model,
            "system": system,
            "ttl_s": ttl_s,
            "tags": tags,
            "tenant": tenant,
            "semantic": semantic,
        }
        call = self._plan(prompt, {**params, **options})
        reply = await self._answer(call)
        self._note(call, reply, time.perf_counter() - started_s)
        return reply

    async def _answer(self, call: Call) -> ChatReply:
        try:
            await self._ensure_open()
            found = await self._exact.lookup(call.digest)
        except (StoreError, EmbedderError) as error:
            reason = self._failed("lookup_exact", error)
            return self._reply(await self._ask(call, epoch=None, place=None, reason=reason))
        if found.entry is not None:
            return self._exact_reply(call.digest, found.entry)
        if found.corrupt is not None:
            reason = self._failed("lookup_exact", found.corrupt)
            return self._reply(await self._ask(call, epoch=found.epoch, place=None, reason=reason))
        filled, is_shared = await self._flights.run(
            call.digest, lambda: self._fill(call, found.epoch)
        )
        return self._reply(filled, is_shared=is_shared)

    async def _fill(self, call: Call, epoch: str) -> _Filled:
        """Answer what the exact layer could not: from the semantic layer, or from the model."""
        place, reason = None, None
        try:
            place = await self._locate(call)
            hit = None if place is None else await self._semantic.lookup(place)
        except (EmbedderError, StoreError) as error:
            if isinstance(error, InvalidEmbedding) and not self._semantic.has_worked:
                raise
            hit, reason = None, self._failed("lookup_semantic", error)
        if hit is not None:
            await self._promote(call, hit)
            return _semantic_end(hit)
        return await self._ask(call, epoch=epoch, place=place, reason=reason)

    async def _ask(
        self, call: Call, *, epoch: str | None, place: Place | None, reason: str | None
    ) -> _Filled:
        """Ask the model and store its answer, unless Redis has just failed (no *epoch*)."""
        completion = await self._upstream.complete(call.request)
        status = CacheStatus.MISS if reason is None else CacheStatus.BYPASS
        if epoch is None:
            return _Filled(status, None, completion, reason=reason)
        refusal = await self._store(call, completion, epoch=epoch, place=place)
        digest = call.digest if refusal is None else None
        return _Filled(status, digest, completion, reason=reason or refusal)

    async def _locate(self, call: Call) -> Place | None:
        if not call.semantic or call.request.text is None:
            return None
        return await self._semantic.locate(call.request.text, call.scope)

    async def _store(
        self, call: Call, completion: Completion, *, epoch: str, place: Place | None
    ) -> str | None:
        """Store *completion*; return why not, if not."""
        refusal: str | None = policy.refusal(completion)
        entry = Entry(
            completion=completion,
            created_s=self._clock(),
            stamp=epoch,
            model=call.request.model,
            tenant=call.tenant,
            tags=call.tags,
        )
        blob = encode_entry(entry, call.digest) if refusal is None else b""
        if len(blob) > self.config.max_entry_bytes:
            refusal = policy.Refusal.TOO_LARGE
        if refusal is not None:
            emit(self._hooks, StoreSkipped(refusal, call.request.model))
            return refusal
        also = (
            None
            if place is None
            else (self._semantic.write(place, call.digest, ttl_ms=call.ttl_ms))
        )
        try:
            await self._exact.store(call.digest, blob, ttl_ms=call.ttl_ms, also=also)
        except StoreError as error:
            return self._failed("store", error)
        return None

    async def _promote(self, call: Call, hit: SemanticHit) -> None:
        """Write a semantic hit back as an exact alias, so that its next repeat is one command."""
        if hit.left_ms <= 0:
            return
        alias = hit.entry.as_alias(hit.candidate.digest, hit.candidate.similarity)
        try:
            await self._exact.promote(
                call.digest,
                hit.candidate.digest,
                encode_entry(alias, call.digest),
                left_ms=hit.left_ms,
            )
        except StoreError as error:
            self._failed("promote", error)

    # ------------------------------------------------------------------ the layers on their own

    async def lookup_exact(self, prompt: Prompt, **options: Any) -> ChatReply | None:
        """Return the stored answer to this very request, or `None`. One round trip.

        Takes the arguments of `chat`.

        Raises:
            InvalidRequest: the request can never work.
            StoreError: Redis failed, or the stored bytes are not an entry.
        """
        call = self._plan(prompt, options)
        await self.open()
        found = await self._exact.lookup(call.digest)
        if found.corrupt is not None:
            raise found.corrupt
        return None if found.entry is None else self._exact_reply(call.digest, found.entry)

    async def store_exact(
        self, prompt: Prompt, answer: str | ChatCompletion | Mapping[str, Any], **options: Any
    ) -> str:
        """Store *answer* for this very request and return its key. Two round trips.

        Takes the arguments of `chat`; *answer* is a text or a whole chat completion.

        Raises:
            InvalidRequest: the request can never work.
            NotStorable: the answer is not complete, or too large.
            StoreError: Redis failed.
        """
        call = self._plan(prompt, options)
        await self.open()
        return await self._store_given(call, answer, place=None)

    async def lookup_semantic(
        self, prompt: Prompt, *, vector: Sequence[float] | None = None, **options: Any
    ) -> ChatReply | None:
        """Return the stored answer to a prompt that means the same, or `None`.

        Takes the arguments of `chat`, and optionally the prompt's *vector*. One embedding unless
        it is given; two round trips for a hit, one for a miss. Nothing is promoted.

        Raises:
            InvalidRequest: the request can never work.
            EmbedderError: the embedder failed.
            StoreError: Redis failed.
        """
        place, _ = await self._place(prompt, vector, options)
        hit = None if place is None else await self._semantic.lookup(place)
        return None if hit is None else self._reply(_semantic_end(hit))

    async def store_semantic(
        self,
        prompt: Prompt,
        answer: str | ChatCompletion | Mapping[str, Any],
        *,
        vector: Sequence[float] | None = None,
        **options: Any,
    ) -> str:
        """Store *answer* in both layers and return its key.

        One embedding unless the *vector* is given; two round trips.

        Raises:
            InvalidRequest: the request can never work, or its last message is not a user's.
            NotStorable: the answer is not complete, or too large.
            EmbedderError: the embedder failed.
            StoreError: Redis failed.
        """
        place, call = await self._place(prompt, vector, options)
        return await self._store_given(call, answer, place=place)

    # ------------------------------------------------------------------ numbers

    def stats(self) -> dict[str, Any]:
        """Return this process's calls by status, and the hit rate. No round trip.

        `hit_rate` is (exact + semantic + stale) / (those + miss), rounded to three places, 0.0
        before the first call.
        """
        return _statistics(self._counters.local)

    async def server_stats(self) -> dict[str, Any]:
        """Return what `stats` does for all workers together, and what Redis holds.

        Besides: `entries` (semantic entries in the index, `None` without the semantic layer),
        `redis_memory_bytes`, and `prompt_tokens_saved` and `completion_tokens_saved`. Other
        workers' last seconds (`config.stats_flush_s`) are not in it yet. Four round trips.

        Raises:
            StoreError: Redis failed.
        """
        await self.open()
        await self._counters.flush()
        counts = await self._counters.shared()
        memory = await self._connection.run(self._connection.client.info("memory"))
        return {
            **_statistics(counts),
            "entries": await self._semantic.vectors.count() if self.config.semantic else None,
            "redis_memory_bytes": memory["used_memory"],
            "prompt_tokens_saved": counts.get("prompt_tokens_saved", 0),
            "completion_tokens_saved": counts.get("completion_tokens_saved", 0),
        }

    # ------------------------------------------------------------------ steps

    def _plan(self, prompt: Prompt, params: dict[str, Any]) -> Call:
        """Return the call; *params* holds the options of `chat` too."""
        if self._is_closed:
            raise CacheClosed("this cache was closed; make a new one")
        if params.get("stream"):
            raise InvalidRequest("stream=True is not supported here")
        options: Any = {name: params.pop(name) for name in OPTIONS & params.keys()}
        return plan(
            prompt,
            config=self.config,
            base_url=self._upstream.base_url,
            params=params,
            **options,
        )

    async def _place(
        self, prompt: Prompt, vector: Sequence[float] | None, options: dict[str, Any]
    ) -> tuple[Place | None, Call]:
        call = self._plan(prompt, options)
        if call.request.text is None:
            raise InvalidRequest("the semantic layer compares the last message, a user's turn")
        if not call.semantic:
            raise ConfigurationError("the semantic layer is switched off (semantic=False)")
        await self.open()
        return await self._semantic.locate(call.request.text, call.scope, vector=vector), call

    async def _store_given(
        self,
        call: Call,
        answer: str | ChatCompletion | Mapping[str, Any],
        *,
        place: Place | None,
    ) -> str:
        completion = as_completion(answer, call.request.model)
        found: Lookup = await self._exact.lookup(call.digest)
        refusal = await self._store(call, completion, epoch=found.epoch, place=place)
        if refusal is not None:
            raise NotStorable(f"this answer is not stored: {refusal}")
        return self._keys.answer(call.digest)

    async def _ensure_open(self) -> None:
        if not self._is_open:
            await self.open()

    def _exact_reply(self, digest: str, entry: Entry) -> ChatReply:
        origin = None if entry.origin is None else self._keys.answer(entry.origin)
        return ChatReply(
            status=CacheStatus.EXACT,
            key=origin or self._keys.answer(digest),
            data=entry.completion,
            similarity=entry.similarity,
            age_s=max(0.0, self._clock() - entry.created_s),
            origin=origin,
        )

    def _reply(self, filled: _Filled, *, is_shared: bool = False) -> ChatReply:
        age_s = 0.0 if filled.created_s is None else max(0.0, self._clock() - filled.created_s)
        return ChatReply(
            status=filled.status,
            key=None if filled.digest is None else self._keys.answer(filled.digest),
            data=filled.completion,
            similarity=filled.similarity,
            age_s=age_s,
            shared=is_shared,
            reason=filled.reason,
        )

    def _failed(self, operation: str, error: Exception) -> str:
        """Tell the hooks that a dependency failed, and return the reason to give the caller."""
        dependency = "embedder" if isinstance(error, EmbedderError) else "redis"
        emit(self._hooks, DependencyFailed(dependency, operation, error))
        return dependency

    def _note(self, call: Call, reply: ChatReply, duration_s: float) -> None:
        self._counters.add(reply.status)
        if reply.status in _HITS and reply.usage is not None:
            for kind in ("prompt_tokens", "completion_tokens"):
                self._counters.add(f"{kind}_saved", int(reply.usage.get(kind) or 0))
        emit(
            self._hooks,
            CallEnded(
                status=reply.status,
                model=call.request.model,
                tenant=call.tenant,
                duration_s=duration_s,
                similarity=reply.similarity,
                reason=reply.reason,
            ),
        )

    async def _flush_forever(self) -> None:
        while True:
            await asyncio.sleep(self.config.stats_flush_s)
            await self._flush()

    async def _flush(self) -> None:
        try:
            await self._counters.flush()
        except StoreError as error:
            self._failed("stats", error)

    async def _stop_flusher(self) -> None:
        if self._flusher is not None:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)
        await self._flush()


def _semantic_end(hit: SemanticHit) -> _Filled:
    return _Filled(
        CacheStatus.SEMANTIC,
        hit.candidate.digest,
        hit.entry.completion,
        created_s=hit.entry.created_s,
        similarity=hit.candidate.similarity,
    )


def _statistics(counts: Mapping[str, int]) -> dict[str, Any]:
    by_status = {str(status): counts.get(status, 0) for status in CacheStatus}
    hits = sum(by_status[status] for status in _HITS)
    looked = hits + by_status[CacheStatus.MISS]
    return {**by_status, "hit_rate": round(hits / looked, 3) if looked else 0.0}
