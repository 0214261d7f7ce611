"""`LLMCache`: the public face of the cache. The path of a call is in `_engine.py`."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import time

# Among those that asyncio exports for all its name; where no loop runs, as in a child that was
# forked, it returns `None`.
from asyncio import _get_running_loop as _loop_here
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar, Unpack, overload

from llm_cache._budget import spendable_s
from llm_cache._call import (
    CHAT_OPTIONS,
    UNSET,
    Call,
    CallOptions,
    RequestOf,
    Unset,
    as_completion,
    check_options,
    lasting_options,
)
from llm_cache._core import keys as identity
from llm_cache._core.canonical import as_data
from llm_cache._core.control import CacheControl
from llm_cache._core.counts import NO_TOKENS
from llm_cache._core.encryption import Cipher
from llm_cache._core.keys import Keys
from llm_cache._core.normalize import Prompt
from llm_cache._core.policy import StoreIf
from llm_cache._core.stream import replay
from llm_cache._core.targets import ANYONE, Kind
from llm_cache._core.types import ChatRequest, Json
from llm_cache._deadline import Deadline
from llm_cache._ends import Answered, Fresh, exact_end, semantic_end
from llm_cache._engine import Engine
from llm_cache._flight import SharedRun
from llm_cache._http.upstream import Upstream
from llm_cache._invalidate import (
    Invalidation,
    Invalidator,
    Selection,
    check_limit,
    check_name,
    select,
    tenant_of,
)
from llm_cache._plan import Planner
from llm_cache._redis.answers import Answers
from llm_cache._redis.connection import Connection
from llm_cache._redis.counters import Counters
from llm_cache._redis.epoch import Epochs
from llm_cache._redis.exact import ExactStore
from llm_cache._redis.lease import Leases
from llm_cache._redis.review import Review
from llm_cache._redis.sliding import Sliding
from llm_cache._redis.sweep import Sweeper
from llm_cache._scrutiny import Scrutiny
from llm_cache._semantic import Place, SemanticLayer
from llm_cache._statistics import Statistics
from llm_cache.config import CacheConfig, check_keys, redis_url_from_env
from llm_cache.embedders import Embedder, EmbedFunction, OpenAIEmbedder, as_embedder
from llm_cache.errors import (
    CacheClosed,
    ConfigurationError,
    InvalidRequest,
    NotStorable,
    StoreTimeout,
    UsedElsewhere,
)
from llm_cache.events import (
    CallEnded,
    DependencyFailed,
    Event,
    EventHook,
    LogHook,
    emit,
    listeners,
)
from llm_cache.prices import PriceList
from llm_cache.reply import CachedValue, CacheInfo, ChatReply, ChatStream

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    from llm_cache._core.policy_file import StoredPolicy
    from llm_cache._decisions import Decisions
    from llm_cache._explain import Explanation
    from llm_cache.verify import Verifier

_DRAIN_S = 5.0
_P = ParamSpec("_P")
_T = TypeVar("_T")
_Info = TypeVar("_Info", bound=CacheInfo)


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
        verifier: Asked about candidates that are nearly similar enough (`config.verify_from`), and
            about all that is compared in shadow mode. See `llm_cache.verify`. Not closed either.
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
        verifier: Verifier | None = None,
        config: CacheConfig | None = None,
        hooks: Iterable[EventHook] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = CacheConfig() if config is None else config
        self._clock = clock
        self._hooks = (LogHook(),) if hooks is None else tuple(hooks)
        self._keys = Keys(self.config.namespace)
        self._cipher = _cipher(self.config)
        self._connection = Connection(
            redis_url_from_env() if url is None else url,
            max_connections=self.config.max_connections,
            timeout_s=self.config.redis_timeout_s,
        )
        self._epochs = Epochs(self._connection, self._keys)
        sliding = Sliding(
            self._connection,
            self._keys,
            spaces=lambda: self._semantic.spaces,
            failed=lambda error: self._tell(DependencyFailed("redis", "prolong", error)),
            clock=clock,
        )
        self._exact = ExactStore(
            self._connection,
            self._keys,
            self._epochs,
            sliding,
            cipher=self._cipher,
            timeout_s=min(self.config.redis_timeout_s, spendable_s(self.config)),
        )
        self._answers = Answers(
            self._connection,
            self._keys,
            self._exact,
            compress=self.config.compression,
            cipher=self._cipher,
            clock=clock,
        )
        self._statistics = Statistics(
            Counters(
                self._connection, self._keys, max_tenants=self.config.stats_tenants, clock=clock
            ),
            PriceList(self.config.prices),
            max_tenants=self.config.stats_tenants,
            tenant_secret=self.config.tenant_secret,
            tell=self._tell,
        )
        self._call_hooks = listeners(self._hooks, CallEnded)
        self._upstream = Upstream(client)
        self._planner = Planner(self.config)
        self._owned_embedder = OpenAIEmbedder(client) if embedder is None else None
        self._semantic = SemanticLayer(
            self._connection,
            self._keys,
            self._exact,
            self._owned_embedder or as_embedder(embedder),  # type: ignore[arg-type]
            self.config,
            cipher=self._cipher,
            tell=self._tell,
        )
        self._review = Review(
            self._connection,
            self._keys,
            cipher=self._cipher,
            sample_rate=self.config.review_sample_rate,
            max_items=self.config.review_max_items,
            ttl_s=self.config.review_ttl_s,
        )
        self._engine = Engine(
            self._exact,
            self._semantic,
            Leases(self._connection, self._keys),
            self._answers,
            Scrutiny(self._semantic, verifier, self._review, self.config, tell=self._tell),
            config=self.config,
            cipher=self._cipher,
            ready=self._connected,
            tell=self._tell,
            clock=clock,
        )
        self._sweeper = Sweeper(
            self._connection,
            self._keys,
            self._epochs,
            spaces=self._answers.spaces,
            failed=lambda error: self._tell(DependencyFailed("redis", "sweep", error)),
        )
        self._invalidator = Invalidator(
            self._keys,
            self.config,
            epochs=self._epochs,
            answers=self._answers,
            sweeper=self._sweeper,
        )
        self._opening = SharedRun(self._open, name="llm_cache.open")
        # A call waits for it no longer than it may; it is there for the next one.
        self._connecting = SharedRun(self._connect, name="llm_cache.connect", keeps_on=True)
        self._closing = asyncio.Lock()
        self._is_connected = False
        self._is_open = False
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()

    # ------------------------------------------------------------------ life

    async def open(self) -> Self:
        """Connect, and make sure that the index is there. Does nothing the second time.

        Whoever comes while it is being opened shares that attempt and its end.

        Raises:
            StoreUnavailable: no Redis answers at the URL.
            ConfigurationError: Redis or the embedder cannot work as configured.
            EmbedderError: the embedder had to be asked for its dimensions and failed.
            CacheClosed: the cache was closed.
            UsedElsewhere: it was opened in another event loop, or another process.
        """
        self._check_use()
        if not self._is_open:
            await self._opening.join()
        return self

    async def _open(self) -> None:
        was_connected = self._is_connected
        try:
            if not was_connected:
                await self._connecting.join()
            if self.config.semantic:
                await self._semantic.open()
            await self._upstream.prepare()
            # `aclose` may have been called meanwhile; it waits for this to end.
            self._refuse_closed()
        except BaseException:
            if not was_connected:
                await self._disconnect()
            raise
        self._is_open = True

    async def _connect(self) -> None:
        """Make ready all that exact answers need."""
        self._loop = asyncio.get_running_loop()
        await self._connection.open()
        try:
            await self._epochs.current(None)
            self._refuse_closed()
        except BaseException:
            await self._connection.aclose()
            raise
        self._statistics.start(every_s=self.config.stats_flush_s, also=self._review.flush)
        self._is_connected = True

    async def _disconnect(self) -> None:
        """Undo what an opening has done that failed."""
        await self._connecting.drop()
        if self._connecting.is_running or self._exact.is_in_use:
            # Calls have opened the cache on their own behalf, and go on with it.
            return
        self._is_connected = False
        await self._statistics.stop()
        await self._semantic.reset()
        await self._exact.reset()
        await self._connection.aclose()
        self._loop = None

    def _connected(self) -> Awaitable[None] | None:
        """Return what a call has to wait for before it asks Redis; `None` for nothing."""
        return None if self._is_connected else self._connected_in_time()

    async def _connected_in_time(self) -> None:
        # A server of our own takes its time to start, and is nothing that may be down.
        is_ours = self._connection.url.startswith("embedded:")
        try:
            async with Deadline(None if is_ours else spendable_s(self.config)):
                await self._connecting.join()
        except TimeoutError as error:
            raise StoreTimeout("Redis was not reached within added_latency_budget_s") from error

    async def aclose(self) -> None:
        """Finish what is in flight (at most 5 s), flush the counters, and close everything.

        The client and the embedder that were given stay open.

        Raises:
            UsedElsewhere: it was opened in another event loop, or another process.
        """
        self._check_place()
        async with self._closing, AsyncExitStack() as rest:
            if self._is_closed:
                return
            self._is_closed = True
            # Last in, first out; and each of them even if the one before fails or is cancelled.
            if self._owned_embedder is not None:
                rest.push_async_callback(self._owned_embedder.aclose)
            rest.push_async_callback(self._upstream.aclose)
            rest.push_async_callback(self._connection.aclose)
            rest.push_async_callback(self._exact.aclose)
            rest.push_async_callback(self._semantic.aclose)
            rest.push_async_callback(self._sweeper.aclose)
            rest.push_async_callback(self._statistics.aclose)
            await self._opening.settle(wait_s=_DRAIN_S)
            await self._connecting.settle(wait_s=_DRAIN_S)
            await self._engine.aclose(wait_s=_DRAIN_S)

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

    # ------------------------------------------------------------------ chat

    @overload
    async def chat(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        system: str | Unset | None = UNSET,
        stream: Literal[False] = False,
        ttl_s: float | None = None,
        tags: Iterable[str] = (),
        depends_on: Iterable[str] = (),
        tenant: str | None = None,
        shared_scope: str | None = None,
        semantic: bool | None = None,
        cache_control: str | CacheControl | None = None,
        **params: Any,
    ) -> ChatReply: ...

    @overload
    async def chat(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        system: str | Unset | None = UNSET,
        stream: Literal[True],
        ttl_s: float | None = None,
        tags: Iterable[str] = (),
        depends_on: Iterable[str] = (),
        tenant: str | None = None,
        shared_scope: str | None = None,
        semantic: bool | None = None,
        cache_control: str | CacheControl | None = None,
        **params: Any,
    ) -> ChatStream[str]: ...

    async def chat(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        system: str | Unset | None = UNSET,
        stream: bool = False,
        ttl_s: float | None = None,
        tags: Iterable[str] = (),
        depends_on: Iterable[str] = (),
        tenant: str | None = None,
        shared_scope: str | None = None,
        semantic: bool | None = None,
        cache_control: str | CacheControl | None = None,
        **params: Any,
    ) -> ChatReply | ChatStream[str]:
        """Answer *prompt* from the cache, or from the model, and remember the answer.

        An exact hit costs one Redis command. A semantic hit costs an embedding and four round
        trips more: the lease, by which one caller of many goes on, and a second look at what
        others have stored meanwhile; the search, which brings the answer; and writing the answer
        back as an exact alias. A miss costs the same, the model, and a store in the alias's place.
        On a cluster a semantic hit takes one more.

        Args:
            prompt: The user's turn, or a list of messages as the chat API takes them.
            model: Default `config.model`.
            system: System message before a plain prompt; default `config.system`, `None` for
                none. With a list of messages it is an error: put it into the list.
            stream: Return at once, with the text to iterate in pieces as they arrive.
            ttl_s: Seconds this answer may live; default `config.ttl_s`.
            tags: Names under which the answer can be invalidated.
            depends_on: What the answer is made from: names as `doc:42@v3`, and keys of other
                answers. Invalidating one of them, with its version or without, reaches it.
            tenant: Whose call this is. Tenants never share answers; `None` is a tenant of its own.
            shared_scope: A name under which tenants do share: the answer then belongs to all who
                give the same one.
            semantic: Whether the semantic layer takes part; default `config.semantic`.
            cache_control: `no-cache`, `no-store`, `only-if-cached`, `max-age=N`; default what
                `extra_headers` says.
            **params: Everything else goes to the model and into the key, known or not.

        Raises:
            InvalidRequest: the request can never work. Nothing was read, sent or written.
            ConfigurationError: the set-up cannot work.
            OnlyIfCachedMiss: `only-if-cached`, and there is no entry.
            CacheClosed: the cache was closed.
            UsedElsewhere: it was opened in another event loop, or another process.
            openai.OpenAIError: whatever the SDK raises when the model is asked.
            StoreError, EmbedderError, OverBudget, DependencySkipped: with `fail_closed` alone.
        """
        options = {
            "model": model,
            "system": system,
            "ttl_s": ttl_s,
            "tags": tags,
            "depends_on": depends_on,
            "tenant": tenant,
            "shared_scope": shared_scope,
            "semantic": semantic,
            "cache_control": cache_control,
        }
        call, request = self._plan(prompt, options, params, self._upstream)
        if stream:
            chunks = await self._chunks(call, request, self._upstream)
            return chunks.map(_text_of)
        started_s = time.perf_counter()
        answered = await self._answer(call, request, self._upstream)
        return self._replied(call, answered, started_s)

    def _answer(
        self, call: Call, request: RequestOf, upstream: Upstream
    ) -> Coroutine[Any, Any, Answered]:
        """Return what answers *call*, when it is awaited, from the cache or *upstream*."""
        return self._engine.answer(call, lambda: _fresh(upstream, request()))

    def _replied(self, call: Call, answered: Answered, started_s: float) -> ChatReply:
        """Return what the caller is given, and count the call."""
        reply = self._reply(answered)
        self._note(call, reply, answered, started_s)
        return reply

    async def _chunks(
        self, call: Call, request_of: RequestOf, upstream: Upstream
    ) -> ChatStream[ChatCompletionChunk]:
        """Return the stream of the SDK's chunks, from the cache or from the model."""
        request = request_of()
        options = request.params.get("stream_options") or {}
        if not isinstance(options, Mapping):
            raise InvalidRequest("stream_options must be a mapping")
        wants_usage = bool(options.get("include_usage"))
        started_s = time.perf_counter()
        begun = await self._engine.stream(
            call,
            lambda: upstream.stream(request),
            lambda: _fresh(upstream, request.unstreamed()),
            choices=int(request.params.get("n") or 1),
            wants_usage=wants_usage,
        )
        if isinstance(begun, Answered):
            info = self._told(CacheInfo(status=begun.status), begun)
            self._note(call, info, begun, started_s, operation="stream")
            return ChatStream(info, self._replay(begun.source.answer, include_usage=wants_usage))
        info = CacheInfo(status=begun.status, shared=begun.is_shared, reason=begun.reason)
        self._note(call, info, None, started_s, operation="stream")

        def final() -> CacheInfo:
            if not begun.end.done() or begun.end.exception() is not None:
                return info
            answered = begun.end.result()
            return self._told(CacheInfo(status=answered.status), answered)

        return ChatStream(
            info,
            _without_usage(begun.chunks.listen(), unless=wants_usage),
            leave=begun.chunks.leave,
            final=final,
            response=begun.response,
        )

    async def _replay(
        self, completion: Json, *, include_usage: bool
    ) -> AsyncIterator[ChatCompletionChunk]:
        from openai.types.chat import ChatCompletionChunk

        pace = self.config.replay_chunks_per_s
        for chunk in replay(completion, include_usage=include_usage):
            yield ChatCompletionChunk.construct(**chunk)
            if pace is not None:
                await asyncio.sleep(1 / pace)

    # ------------------------------------------------------------------ other ways in

    def wrap(self, client: AsyncOpenAI, **options: Unpack[CallOptions]) -> AsyncOpenAI:
        """Return a client that behaves as *client* does, with chat completions cached.

        `chat.completions.create`, plain and streamed, and `.parse` go through the cache, and
        `embeddings.create` takes from it what it has; everything else is the client's own.
        `cache_info(answer)` tells how an answer was come by. *options* hold for all calls of the
        client that is returned; it shares the connections, so make one for each tenant. A
        `Cache-Control` among a call's `extra_headers` is obeyed.

        Callers who share a stream are given the same chunk objects, which none of them may change;
        all other answers are their caller's own.

        The client has its own place in every key, wherever `LLMCache(client=…)` points to.
        """
        from llm_cache._wrap import wrap

        return wrap(self, client, options)

    async def get_or_create(
        self,
        request: Mapping[str, Any],
        produce: Callable[[], Awaitable[Any]],
        *,
        producer: str = "",
        store_if: StoreIf | None = None,
        **options: Unpack[CallOptions],
    ) -> CachedValue:
        """Answer *request* from the cache, or with what *produce* returns, and remember that.

        For any provider, in its own shape: the whole of *request* is the key. The last user turn
        of its `messages`, or else its `prompt`, is what the semantic layer compares.

        Args:
            request: All that decides the answer; JSON.
            produce: Asks the provider. Returns JSON (no bytes, no objects).
            producer: Names who answers, where equal requests to different ones differ.
            store_if: Tells of a fresh value whether it may be stored: that it is complete, say.
            **options: `ttl_s`, `tags`, `tenant`, `semantic`, `cache_control`, as for `chat`.

        Raises:
            InvalidRequest: the request, or what *produce* returned, is not JSON.
            ConfigurationError: there is no such option.
            OnlyIfCachedMiss: `only-if-cached`, and there is no entry.
            Exception: whatever *produce* raises.
        """
        self._check_use()
        check_options(options)
        call = self._planner.value(request, producer=producer, store_if=store_if, **options)

        async def checked() -> Fresh:
            return Fresh(as_data(await produce(), "what produce returned"))

        started_s = time.perf_counter()
        answered = await self._engine.answer(call, checked)
        value = self._told(
            CachedValue(status=answered.status, value=answered.source.answer), answered
        )
        self._note(call, value, answered, started_s, operation="value")
        return value

    def cached(
        self,
        *,
        prompt: str | None = None,
        store_if: StoreIf | None = None,
        **options: Unpack[CallOptions],
    ) -> Callable[[Callable[_P, Awaitable[_T]]], Callable[_P, Awaitable[_T]]]:
        """Return a decorator that caches an async function by its arguments.

        The function's module and name and all its arguments, defaults included, are the key; the
        arguments and the value must be JSON.

        Args:
            prompt: The argument that the semantic layer compares; the others must be equal.
            store_if: Tells of a fresh value whether it may be stored.
            **options: As for `get_or_create`.

        Raises:
            ConfigurationError: the function is not async, or has no argument *prompt*, or there is
                no such option.
        """
        kept = lasting_options(options)

        def decorate(function: Callable[_P, Awaitable[_T]]) -> Callable[_P, Awaitable[_T]]:
            signature = inspect.signature(function)
            name = f"{function.__module__}.{function.__qualname__}"
            if not inspect.iscoroutinefunction(function):
                raise ConfigurationError(f"{name} must be an async function")
            if prompt is not None and prompt not in signature.parameters:
                raise ConfigurationError(f"prompt={prompt!r}: {name} has no such argument")

            @functools.wraps(function)
            async def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
                bound = signature.bind(*args, **kwargs)
                bound.apply_defaults()
                arguments = dict(bound.arguments)
                request: dict[str, Any] = {"arguments": arguments}
                if prompt is not None:
                    request["prompt"] = arguments.pop(prompt)
                found = await self.get_or_create(
                    request,
                    lambda: function(*args, **kwargs),
                    producer=name,
                    store_if=store_if,
                    **kept,
                )
                value: _T = found.value
                return value

            return call

        return decorate

    async def explain(self, prompt: Prompt, **options: Any) -> Explanation:
        """Return how *prompt* would be answered now, and why. No model is asked, nothing stored.

        Takes the arguments of `chat`. An embedding, which counts among what embeddings cost, and
        up to seven round trips. What it returns holds prompts.

        Raises:
            InvalidRequest: the request can never work.
            EmbedderError: the embedder failed.
            StoreError: Redis failed.
        """
        from llm_cache._explain import explain

        call, request = self._plan_given(prompt, options)
        await self.open()
        return await explain(
            call,
            request(),
            config=self.config,
            keys=self._keys,
            exact=self._exact,
            semantic=self._semantic,
            now_s=self._clock(),
        )

    # ------------------------------------------------------------------ the layers on their own

    async def lookup_exact(self, prompt: Prompt, **options: Any) -> ChatReply | None:
        """Return the stored answer to this very request, or `None`. One round trip.

        Takes the arguments of `chat`.

        Raises:
            InvalidRequest: the request can never work.
            StoreError: Redis failed, or the stored bytes are not an entry.
        """
        call, _ = self._plan_given(prompt, options)
        await self.open()
        found = await self._exact.lookup(call.digest, call.text)
        if found.corrupt is not None:
            raise found.corrupt
        if found.entry is None or not call.accepts(found.entry, self._clock()):
            return None
        return self._reply(exact_end(call.digest, found.entry))

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
        call, _ = self._plan_given(prompt, options)
        await self.open()
        return await self._store_given(call, answer, place=None)

    async def lookup_semantic(
        self, prompt: Prompt, *, vector: Sequence[float] | None = None, **options: Any
    ) -> ChatReply | None:
        """Return the stored answer to a prompt that means the same, or `None`.

        Takes the arguments of `chat`, and optionally the prompt's *vector*. One embedding unless
        it is given; one round trip, two for a hit on a cluster. Nothing is promoted.

        Raises:
            InvalidRequest: the request can never work.
            EmbedderError: the embedder failed.
            StoreError: Redis failed.
        """
        place, call = await self._place(prompt, vector, options)
        if place is None:
            return None
        found = await self._semantic.lookup(
            place,
            call.digest,
            lambda entry: call.accepts(entry, self._clock()),
            tenant_id=call.terms.tenant_id,
        )
        return None if found.hit is None else self._reply(semantic_end(found.hit))

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

    # ------------------------------------------------------------------ invalidation

    async def invalidate(
        self,
        *,
        key: str | None = None,
        tag: str | None = None,
        dependency: str | None = None,
        model: str | None = None,
        system: str | None = None,
        shared_scope: str | None = None,
        older_than_s: float | None = None,
        pattern: str | None = None,
        tenant: str | Unset | None = UNSET,
        dry_run: bool = False,
        limit: int | None = None,
        allow_partial: bool = False,
    ) -> Invalidation:
        """Invalidate answers: at once, for all workers, and for stores that are under way.

        One argument says which; *tenant* narrows it down to one tenant's (`None` is the shared
        one), and alone means all of a tenant's. Two round trips whatever the number of answers,
        except where said otherwise. What is dead is removed in the background.

        Args:
            key: One answer, as `reply.key` has it, and what was made from it. Five to seven
                round trips.
            tag: Those with this tag.
            dependency: Those made from it, of whatever version unless one is named, and those
                made from these in their turn.
            model: Those of this model.
            system: Those made under this system prompt.
            shared_scope: Those that tenants share under this name.
            older_than_s: Those stored longer ago than this many seconds.
            pattern: Those to prompts like this: `*` stands for any text, `?` for any sign; case
                and the kind and number of blanks make no difference. Takes effect at once, then
                reads all prompts in the index, a thousand in three round trips, to remove what
                it has reached.
            tenant: Whose; not given, everybody's. What is shared (`shared_scope`) is nobody's.
            dry_run: Only count. Reads all answers, unless they are meant by key or pattern.
            limit: Most answers that a pattern may reach: those that the index finds first.
            allow_partial: Let a pattern pass over answers that are not in the index.

        Raises:
            InvalidRequest: an argument cannot work. Nothing was invalidated.
            PartialInvalidation: the index cannot see everything that is meant.
            StoreError: Redis failed.
        """
        self._refuse_closed()
        check_limit(limit, pattern)
        whose = tenant_of(tenant, self.config, is_shared=shared_scope is not None)
        selection = select(
            {
                "key": key,
                "tag": tag,
                "dependency": dependency,
                "model": model,
                "system": system,
                "shared_scope": shared_scope,
                "pattern": pattern,
            },
            older_than_s=older_than_s,
            tenant_id=whose,
            now_s=self._clock(),
        )
        if selection is None:
            raise InvalidRequest(
                "say what to invalidate: key=, tag=, dependency=, model=, system=, shared_scope=,"
                " older_than_s=, pattern= or tenant=; everything in the namespace is clear()"
            )
        await self.open()
        if key is not None:
            return await self._invalidator.by_key(key, tenant_id=whose, dry_run=dry_run)
        if pattern is not None:
            return await self._invalidator.by_pattern(
                pattern,
                tenant_id=whose,
                dry_run=dry_run,
                limit=limit,
                allow_partial=allow_partial,
            )
        return await self._invalidator.by_target(selection, dry_run=dry_run)

    async def invalidate_request(self, prompt: Prompt, **options: Any) -> Invalidation:
        """Invalidate the answer to this very request. Takes the arguments of `chat`.

        Where that was promoted from another request's answer, it is that answer. Costs and raises
        as `invalidate` by key.
        """
        call, _ = self._plan_given(prompt, options)
        await self.open()
        key = self._keys.answer(call.digest)
        return await self._invalidator.by_key(key, tenant_id=ANYONE, dry_run=False)

    async def clear(self, *, dry_run: bool = False) -> Invalidation:
        """Invalidate everything in this namespace, and nothing else. Two round trips.

        With *dry_run* it is only counted, which reads it all.
        """
        self._refuse_closed()
        await self.open()
        return await self._invalidator.by_target(Selection(Kind.ALL), dry_run=dry_run)

    async def reject(self, key: str, prompt: Prompt | None = None, **options: Any) -> Invalidation:
        """Remove a wrong answer with all that led to it, and never serve it to those again.

        *key* is `reply.key`, or the key of a request that the answer was served to. The requests
        it was served to are remembered, so that a new answer to the original one is not served to
        them; with *prompt* and the arguments of `chat`, that one too. Up to eleven round trips.

        Raises:
            InvalidRequest: *key* is not the key of an answer in this namespace.
            StoreError: Redis failed.
        """
        requests = [] if prompt is None else [self._plan_given(prompt, options)[0].digest]
        self._refuse_closed()
        await self.open()
        return await self._invalidator.reject(key, requests)

    async def approve(self, key: str, prompt: Prompt, **options: Any) -> bool:
        """Serve the answer under *key* to this request from now on, whatever was said before.

        Takes the arguments of `chat`. Return whether the answer is there; another tenant's is
        not. Up to six round trips.

        Raises:
            InvalidRequest: *key* is not the key of an answer in this namespace.
            StoreError: Redis failed.
        """
        call, _ = self._plan_given(prompt, options)
        await self.open()
        return await self._invalidator.approve(key, call)

    # ------------------------------------------------------------------ policies

    async def set_policy(
        self, policy: StoredPolicy | bytes, *, tenants: Iterable[str] = ()
    ) -> None:
        """Let a calibrated *policy* decide on semantic hits, of these *tenants* or of all.

        Kept in Redis; this process follows it at once, others within a minute. It takes the place
        of the one before, and of `similarity_threshold`. Two round trips.

        Args:
            policy: `calibration.stored`, or the bytes of `calibration.to_json()`.
            tenants: Those it is for; none for all that have no policy of their own.

        Raises:
            UnusablePolicy: it is of another embedder or of a newer release. Nothing was changed.
            ConfigurationError: it is no policy, or the semantic layer is switched off.
            InvalidRequest: *tenants* are no names.
            StoreError: Redis failed.
        """
        decisions = await self._open_decisions()
        await decisions.save(policy, self._tenant_ids(tenants))

    async def remove_policy(self, *, tenants: Iterable[str] = ()) -> int:
        """Remove the policy of these *tenants*, or the one of all; return how many there were.

        Costs and raises as `set_policy`.
        """
        decisions = await self._open_decisions()
        return await decisions.remove(self._tenant_ids(tenants))

    async def _open_decisions(self) -> Decisions:
        if not self.config.semantic:
            raise ConfigurationError("the semantic layer is switched off (semantic=False)")
        await self.open()
        return self._semantic.decisions

    def _tenant_ids(self, tenants: Iterable[str]) -> list[str]:
        if isinstance(tenants, str):
            raise InvalidRequest("tenants must be a list of names; got one text")
        names = [check_name(tenant, "tenant") for tenant in tenants]
        return [str(tenant_of(name, self.config)) for name in names]

    # ------------------------------------------------------------------ numbers

    def stats(self, *, tenant: str | Unset | None = UNSET) -> dict[str, Any]:
        """Return this process's calls by status, the hit rate, and how it does. No round trip.

        `hit_rate` is (exact + semantic + stale) / (those + miss), rounded to three places, 0.0
        before the first call. *tenant* chooses the calls of one, `None` those that named none.
        The first `config.stats_tenants` tenants are counted one by one. `policy` says what decides
        on semantic hits; `verified` and `shadow`, of all tenants, what verifiers said and what
        decisions would have been worth; `breakers`, which of `redis`, `search` and `embedder` are
        asked (`closed`), left alone because they keep failing (`open`) or tried (`half_open`).
        """
        return {
            **self._statistics.local(self._row_of(tenant)),
            "policy": self._policy_of(tenant),
            "breakers": self._engine.breakers(),
        }

    def not_stored(self) -> dict[str, int]:
        """Return how many answers this process served but did not store, by reason."""
        return self._statistics.not_stored()

    async def server_stats(
        self, *, window: str | None = None, tenant: str | Unset | None = UNSET
    ) -> dict[str, Any]:
        """Return the calls of all workers by status, what they saved, and what Redis holds.

        Other workers' last seconds (`config.stats_flush_s`) are not in it yet. Six round trips.
        The policies of each vector space take one more. `docs/observability.md` tells of every
        number. Those in USD are `None` where nobody knows
        a price, which is never taken for 0.

        Args:
            window: `24h`, `7d` and so on, up to 72 hours in whole hours and up to 400 days in
                whole days; `None` for all time.
            tenant: Counts of one tenant, `None` for calls that named none; default of all.

        Raises:
            ConfigurationError: there is no such *window*.
            StoreError: Redis failed.
        """
        await self.open()
        counted = await self._statistics.shared(
            window=window,
            tenant=self._row_of(tenant),
        )
        memory = await self._connection.each("INFO", "memory")
        return {
            **counted,
            "policy": self._policy_of(tenant),
            "policies": await self._stored_policies(),
            "entries": await self._semantic.vectors.count() if self.config.semantic else None,
            "redis_memory_bytes": sum(server["used_memory"] for server in memory),
        }

    # ------------------------------------------------------------------ steps

    def _plan(
        self, prompt: Prompt, options: dict[str, Any], params: dict[str, Any], upstream: Upstream
    ) -> tuple[Call, RequestOf]:
        """Return the call; *options* are those of `chat`, *params* the model's parameters."""
        self._check_use()
        return self._planner.chat(prompt, upstream, options, params)

    def _plan_given(self, prompt: Prompt, arguments: dict[str, Any]) -> tuple[Call, RequestOf]:
        """Return the call of whoever takes the arguments of `chat`, all in one."""
        given = CHAT_OPTIONS & arguments.keys() if arguments else ()
        options = {name: arguments.pop(name) for name in given}
        return self._plan(prompt, options, arguments, self._upstream)

    async def _place(
        self, prompt: Prompt, vector: Sequence[float] | None, options: dict[str, Any]
    ) -> tuple[Place | None, Call]:
        call, _ = self._plan_given(prompt, options)
        if call.text is None:
            raise InvalidRequest("the semantic layer compares the last message, a user's turn")
        if not call.terms.semantic:
            raise ConfigurationError("the semantic layer is switched off (semantic=False)")
        await self.open()
        return await self._semantic.locate(call.text, call.scope.name, vector=vector), call

    async def _store_given(
        self,
        call: Call,
        answer: str | ChatCompletion | Mapping[str, Any],
        *,
        place: Place | None,
    ) -> str:
        completion = as_completion(answer, call.terms.model)
        found = await self._exact.lookup(call.digest)
        refusal = await self._engine.store(call, completion, epoch=found.epoch, place=place)
        if refusal is not None:
            raise NotStorable(f"this answer is not stored: {refusal}")
        return self._keys.answer(call.digest)

    def _row_of(self, tenant: str | Unset | None) -> str | None:
        return None if isinstance(tenant, Unset) else self._statistics.row_of(tenant)

    async def _stored_policies(self) -> dict[str, dict[str, str]]:
        from llm_cache._redis.policies import PolicyStore

        stores = {
            space: PolicyStore(self._connection, self._keys, space=space)
            for space in await self._answers.spaces()
        }
        described = {space: (await store.load()).described() for space, store in stores.items()}
        return {space: policies for space, policies in described.items() if policies}

    def _policy_of(self, tenant: str | Unset | None) -> str | None:
        named = None if isinstance(tenant, Unset) else tenant
        return self._semantic.policy(identity.tenant_id(named, self.config.tenant_secret))

    def _check_use(self) -> None:
        """Refuse to be used where it cannot work.

        Raises:
            CacheClosed, UsedElsewhere: as they say.
        """
        # Every call passes here, and each look at the loop or the process counts.
        if self._is_closed or self._loop is not _loop_here():
            self._refuse_closed()
            self._check_place()

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise CacheClosed("this cache was closed; make a new one")

    def _check_place(self) -> None:
        if self._loop is None or self._loop is _loop_here():
            return
        forked = os.getpid() != self._pid
        where = "another process (a fork)" if forked else "another event loop"
        raise UsedElsewhere(
            f"this cache is used in {where} than it was opened in: connections cannot be shared,"
            " make an LLMCache for each process and each event loop, and close it there"
        )

    def _reply(self, answered: Answered) -> ChatReply:
        return self._told(ChatReply(status=answered.status, source=answered.source), answered)

    def _told(self, info: _Info, answered: Answered) -> _Info:
        """Return *info* with how the answer was come by."""
        if answered.digest is not None:
            info.key = self._keys.answer(answered.digest)
            info.origin = info.key if answered.is_alias else None
        if answered.created_s is not None:
            info.age_s = max(0.0, self._clock() - answered.created_s)
        info.similarity = answered.similarity
        info.shared = answered.is_shared
        info.reason = answered.reason
        return info

    def _note(
        self,
        call: Call,
        info: CacheInfo,
        answered: Answered | None,
        started_s: float,
        *,
        operation: str = "chat",
    ) -> None:
        """Count a call that has ended as *info* says, *answered* where it has its answer."""
        tokens = NO_TOKENS if answered is None else answered.tokens()
        terms = call.terms
        self._statistics.call_ended(
            info.status,
            terms.model,
            terms.tenant,
            tokens,
            reason=info.reason,
            is_shared=info.shared,
        )
        if not self._call_hooks:
            return
        prompt, cached, completion = tokens
        event = CallEnded(
            status=info.status,
            model=terms.model,
            tenant=terms.tenant,
            duration_s=time.perf_counter() - started_s,
            similarity=info.similarity,
            reason=info.reason,
            operation=operation,
            is_shared=info.shared,
            prompt_tokens=prompt,
            cached_prompt_tokens=cached,
            completion_tokens=completion,
        )
        emit(self._call_hooks, event)

    def _tell(self, event: Event) -> None:
        self._statistics.hear(event)
        emit(self._hooks, event)


def _cipher(config: CacheConfig) -> Cipher | None:
    if config.encryption_keys is None:
        return None
    return Cipher(check_keys(config.encryption_keys), namespace=config.namespace)


async def _fresh(upstream: Upstream, request: ChatRequest) -> Fresh:
    """Ask the model."""
    completion: Any = await upstream.complete(request)
    # The SDK hands on what is no JSON at all as text.
    dump = getattr(completion, "model_dump", None)
    return Fresh({} if dump is None else dump(mode="json", exclude_unset=True), completion)


async def _without_usage(
    chunks: AsyncIterator[ChatCompletionChunk], *, unless: bool
) -> AsyncIterator[ChatCompletionChunk]:
    """Yield *chunks* without the one that only carries the usage, *unless* it was asked for."""
    async for chunk in chunks:
        if unless or getattr(chunk, "choices", None) or not getattr(chunk, "usage", None):
            yield chunk


def _text_of(chunk: ChatCompletionChunk) -> str:
    """Return the text that *chunk* adds to the first choice."""
    for choice in chunk.choices or ():
        if choice.index == 0 and choice.delta is not None:
            return choice.delta.content or ""
    return ""
