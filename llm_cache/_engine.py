"""The path of a call: exact layer, single-flight, semantic layer, the model, store.

Everything that can fail besides the model is caught here and nowhere else: the caller still gets
the model's answer, the status says what was bypassed, an event carries the exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, overload

from llm_cache._call import Call
from llm_cache._core.codec import encode_entry
from llm_cache._core.policy import Refusal
from llm_cache._core.stream import Accumulator
from llm_cache._core.types import CacheStatus, Entry, Json
from llm_cache._flight import SharedStream, SingleFlight, finish, observe
from llm_cache._redis.exact import ExactStore, Lookup
from llm_cache._redis.lease import Landing, Lease, Leases
from llm_cache._semantic import Place, SemanticHit, SemanticLayer
from llm_cache.config import CacheConfig
from llm_cache.errors import (
    CacheClosed,
    EmbedderError,
    InvalidEmbedding,
    OnlyIfCachedMiss,
    StoreError,
)
from llm_cache.events import DependencyFailed, Event, StoreSkipped

Produce = Callable[[], Awaitable["Fresh"]]
"""Asks the model."""
OpenStream = Callable[[], Awaitable[Any]]
"""Asks the model for a stream of the SDK's chunks."""


@dataclass(frozen=True, slots=True)
class Fresh:
    """What the model has just answered."""

    answer: Json
    original: Any = None
    """The SDK's own object, for the caller who asked for it."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The end of a call."""

    status: CacheStatus
    answer: Json
    digest: str | None = None
    """Under which the answer is stored, if it is. For an alias, its origin's."""
    created_s: float | None = None
    similarity: float | None = None
    is_alias: bool = False
    is_shared: bool = False
    reason: str | None = None
    """Why the call was bypassed, or why its answer is not stored."""
    original: Any = None


@dataclass(frozen=True, slots=True)
class Streaming:
    """A stream that is under way."""

    chunks: SharedStream[Any]
    end: asyncio.Future[Answered]
    """Comes when the stream has ended and its answer is stored, or not."""
    status: CacheStatus
    response: Any
    """The SDK's HTTP response."""
    is_shared: bool = False


@dataclass(slots=True)
class Turn:
    """The right to make an answer. Left without an answer, it tells those who wait for one."""

    epoch: str | None
    """What the answer is stamped with; `None` where it is not to be stored."""
    lease: Lease | None
    """`None` where nobody waits: single-flight is off, or Redis fails."""
    reason: str | None = None
    """Why the cache takes no full part."""

    @property
    def status(self) -> CacheStatus:
        """What the call ends with if the model is asked."""
        return CacheStatus.MISS if self.reason is None else CacheStatus.BYPASS

    async def land(self) -> None:
        """Tell those who wait that there is an answer."""
        if self.lease is not None:
            await self.lease.abandon(Landing.LANDED)

    async def __aenter__(self) -> Self:
        """Return the turn itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Tell those who wait that there is no answer, unless there is one."""
        if self.lease is not None:
            await self.lease.abandon()


class Engine:
    """Walks calls along the path. One for each cache object."""

    def __init__(
        self,
        exact: ExactStore,
        semantic: SemanticLayer,
        leases: Leases,
        config: CacheConfig,
        *,
        ready: Callable[[], Awaitable[None]],
        tell: Callable[[Event], None],
        clock: Callable[[], float],
    ) -> None:
        self._exact = exact
        self._semantic = semantic
        self._leases = leases
        self._config = config
        self._ready = ready
        self._tell = tell
        self._clock = clock
        self._flights: SingleFlight[Answered] = SingleFlight()
        self._beginnings: SingleFlight[Answered | Streaming] = SingleFlight()
        self._live: dict[str, Streaming] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    # ------------------------------------------------------------------ plain calls

    async def answer(self, call: Call, produce: Produce) -> Answered:
        """Answer *call* from the cache, or with what *produce* makes, and remember that."""
        if not self._is_shared(call):
            alone = await self._look_up(call)
            return alone if isinstance(alone, Answered) else await self._fill(call, produce, alone)
        while True:
            # Whoever comes while the answer is being made needs no look-up of his own.
            if self._flights.is_running(call.digest):
                return as_follower(await self._flights.join(call.digest))
            found = await self._look_up(call, skip=lambda: self._flights.is_running(call.digest))
            if isinstance(found, Answered):
                return found
            if found is not None:
                break
        if isinstance(found, str):
            return await self._fill(call, produce, found)
        answered, is_follower = await self._flights.run(
            call.digest, partial(self._fill, call, produce, found)
        )
        return as_follower(answered) if is_follower else answered

    def _is_shared(self, call: Call) -> bool:
        """Tell whether *call* may be answered by what another one makes."""
        control = call.control
        is_free = call.bypass is None and not control.no_cache and not control.only_if_cached
        return is_free and self._config.single_flight

    @overload
    async def _look_up(self, call: Call) -> Answered | Lookup | str: ...

    @overload
    async def _look_up(
        self, call: Call, skip: Callable[[], bool]
    ) -> Answered | Lookup | str | None: ...

    async def _look_up(
        self, call: Call, skip: Callable[[], bool] = lambda: False
    ) -> Answered | Lookup | str | None:
        """Return the exact hit; else what the look-up saw; else why the cache takes no part.

        `None` where *skip* said to do without.
        """
        if call.bypass is not None:
            return call.bypass
        try:
            await self._ready()
            found = await self._exact.lookup_unless(call.digest, skip)
        except (StoreError, EmbedderError) as error:
            self._refuse_without_model(call)
            return self._failed("lookup_exact", error)
        if found is None:
            return None
        if found.entry is not None and call.control.accepts(self._age_s(found.entry)):
            return exact_end(call.digest, found.entry)
        if found.corrupt is not None:
            self._failed("lookup_exact", found.corrupt)
        return found

    async def _fill(self, call: Call, produce: Produce, found: Lookup | str) -> Answered:
        """Answer what the exact layer could not: from the semantic layer, or from the model."""
        turn = await self._take_turn(call, found)
        if isinstance(turn, Answered):
            return turn
        async with turn:
            place, hit = await self._look_around(call, turn)
            if hit is not None:
                return hit
            self._refuse_without_model(call)
            fresh = await produce()
            return await self._end(call, fresh, turn, place)

    async def _take_turn(self, call: Call, found: Lookup | str) -> Answered | Turn:
        """Return what another process has answered meanwhile, or the turn to make an answer."""
        if isinstance(found, str):
            return Turn(None, None, reason=found)
        turn = Turn(found.epoch, None, reason=None if found.corrupt is None else "corrupt")
        if not self._is_shared(call):
            return turn
        try:
            claimed = await self._leases.claim(call.digest, partial(self._look_again, call))
        except StoreError as error:
            return replace(turn, reason=self._failed("lease", error))
        return claimed if isinstance(claimed, Answered) else replace(turn, lease=claimed)

    async def _look_again(self, call: Call) -> Answered | None:
        """Return what has been stored since this call looked, as what a follower is given."""
        entry = (await self._exact.lookup(call.digest)).entry
        if entry is None or not call.control.accepts(self._age_s(entry)):
            return None
        status = CacheStatus.MISS if entry.origin is None else CacheStatus.SEMANTIC
        return replace(exact_end(call.digest, entry), status=status, is_shared=True)

    async def _look_around(self, call: Call, turn: Turn) -> tuple[Place | None, Answered | None]:
        """Return where the prompt stands, and the semantic hit; note in *turn* what failed."""
        if not call.semantic or call.text is None or turn.epoch is None:
            return None, None
        place = None
        try:
            place = await self._semantic.locate(call.text, call.scope)
            if place is None or call.control.no_cache:
                return place, None
            hit = await self._semantic.lookup(place)
        except (EmbedderError, StoreError) as error:
            if isinstance(error, InvalidEmbedding) and not self._semantic.has_worked:
                raise
            turn.reason = self._failed("lookup_semantic", error)
            return place, None
        if hit is None or not call.control.accepts(self._age_s(hit.entry)):
            return place, None
        await self._promote(call, hit)
        await turn.land()
        return place, semantic_end(hit)

    async def _end(self, call: Call, fresh: Fresh, turn: Turn, place: Place | None) -> Answered:
        """Store what the model answered, unless nothing was looked up, and return it."""
        refusal = None
        if turn.epoch is not None:
            refusal = await self._store(
                call, fresh.answer, epoch=turn.epoch, place=place, lease=turn.lease
            )
        is_stored = turn.epoch is not None and refusal is None
        return Answered(
            turn.status,
            fresh.answer,
            digest=call.digest if is_stored else None,
            reason=turn.reason or refusal,
            original=fresh.original,
        )

    # ------------------------------------------------------------------ streams

    async def stream(
        self, call: Call, open_stream: OpenStream, *, choices: int, wants_usage: bool
    ) -> Answered | Streaming:
        """Answer *call* from the cache, or with the stream that *open_stream* opens.

        Callers of one request share one stream: each hears it from its first chunk. Those who
        want the usage chunk and those who do not have streams of their own, since only the model
        can add it.
        """
        found = await self._look_up(call)
        if isinstance(found, Answered):
            return found
        key = f"{call.digest}{'+usage' if wants_usage else ''}"
        begin = partial(
            self._begin, call, open_stream, found, key, choices=choices, wants_usage=wants_usage
        )
        if isinstance(found, str) or not self._is_shared(call):
            return await begin()
        live = self._live.get(key)
        if live is not None:
            return replace(live, is_shared=True)
        begun, is_shared = await self._beginnings.run(key, begin)
        return replace(begun, is_shared=True) if is_shared else begun

    async def _begin(
        self,
        call: Call,
        open_stream: OpenStream,
        found: Lookup | str,
        key: str,
        *,
        choices: int,
        wants_usage: bool,
    ) -> Answered | Streaming:
        """Return the semantic hit, or the stream that has begun."""
        turn = await self._take_turn(call, found)
        if isinstance(turn, Answered):
            return turn
        async with AsyncExitStack() as held:
            await held.enter_async_context(turn)
            place, hit = await self._look_around(call, turn)
            if hit is not None:
                return hit
            self._refuse_without_model(call)
            source = await open_stream()
            held.pop_all()  # from here on the pump holds the turn
        chunks: SharedStream[Any] = SharedStream(lambda: task.cancel())  # noqa: PLW0108
        streaming = Streaming(chunks, _future(), turn.status, getattr(source, "response", None))

        async def conclude(heard: Accumulator) -> Answered:
            answer = heard.completion(choices=choices, usage_expected=wants_usage)
            if answer is not None:
                return await self._end(call, Fresh(answer), turn, place)
            self._tell(StoreSkipped(Refusal.UNFINISHED, call.model))
            return Answered(turn.status, {}, reason=turn.reason or Refusal.UNFINISHED)

        pump = self._pump(source, streaming, turn, conclude)
        task = asyncio.create_task(pump, name="llm_cache.stream")
        self._tasks.add(task)
        self._live[key] = streaming
        task.add_done_callback(lambda done: self._stream_ended(key, streaming, done))
        return streaming

    async def _pump(
        self,
        source: Any,
        streaming: Streaming,
        turn: Turn,
        conclude: Callable[[Accumulator], Awaitable[Answered]],
    ) -> None:
        """Hand every chunk on as it arrives, and store the answer after a clean end."""
        heard = Accumulator()
        try:
            async with turn:
                async for chunk in source:
                    streaming.chunks.say(chunk)
                    heard.add(chunk.model_dump(exclude_unset=True, warnings=False))
                streaming.end.set_result(await conclude(heard))
        except BaseException as error:
            is_cancelled = isinstance(error, asyncio.CancelledError)
            told = CacheClosed("the stream was given up") if is_cancelled else error
            streaming.end.set_exception(told)
            streaming.chunks.end(told)
            raise
        finally:
            streaming.chunks.end()
            await source.close()

    def _stream_ended(self, key: str, streaming: Streaming, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        observe(task)
        if self._live.get(key) is streaming:
            del self._live[key]

    # ------------------------------------------------------------------ steps

    async def store(
        self, call: Call, answer: Json, *, epoch: str, place: Place | None
    ) -> str | None:
        """Store *answer*, whatever is there; return why not, if not."""
        return await self._store(call, answer, epoch=epoch, place=place, lease=None)

    async def _store(
        self, call: Call, answer: Json, *, epoch: str, place: Place | None, lease: Lease | None
    ) -> str | None:
        refusal = call.refuse(answer)
        if refusal is None:
            entry = Entry(
                answer=answer,
                created_s=self._clock(),
                stamp=epoch,
                model=call.model,
                tenant=call.tenant,
                tags=call.tags,
            )
            blob = encode_entry(entry, call.digest)
            refusal = Refusal.TOO_LARGE if len(blob) > self._config.max_entry_bytes else None
        if refusal is not None:
            self._tell(StoreSkipped(refusal, call.model))
            return refusal
        leading = None if place is None else self._semantic.entry(place, call.digest)
        try:
            # Where a late leader finds a newer answer in place, that one stays: it is stored too.
            await self._leases.store(
                call.digest, blob, ttl_ms=call.ttl_ms, entry=leading, lease=lease
            )
        except StoreError as error:
            return self._failed("store", error)
        return None

    async def aclose(self, *, wait_s: float) -> None:
        """Wait for what is under way, at most *wait_s* seconds, then cancel it."""
        await self._flights.aclose(wait_s=wait_s)
        await self._beginnings.aclose(wait_s=wait_s)
        await finish(list(self._tasks), wait_s=wait_s)
        await self._leases.aclose()

    async def _promote(self, call: Call, hit: SemanticHit) -> None:
        """Write a semantic hit back as an exact alias, so that its next repeat is one command."""
        if hit.left_ms <= 0:
            return
        origin = hit.candidate.digest
        alias = hit.entry.as_alias(origin, hit.candidate.similarity)
        blob = encode_entry(alias, call.digest)
        try:
            await self._exact.promote(call.digest, origin, blob, left_ms=hit.left_ms)
        except StoreError as error:
            self._failed("promote", error)

    def _refuse_without_model(self, call: Call) -> None:
        if call.control.only_if_cached:
            raise OnlyIfCachedMiss("only-if-cached: there is no stored answer to this request")

    def _failed(self, operation: str, error: Exception) -> str:
        """Tell that a dependency failed, and return the reason to give the caller."""
        dependency = "embedder" if isinstance(error, EmbedderError) else "redis"
        self._tell(DependencyFailed(dependency, operation, error))
        return dependency

    def _age_s(self, entry: Entry) -> float:
        return max(0.0, self._clock() - entry.created_s)


def as_follower(answered: Answered) -> Answered:
    """Return *answered* as one who waited for it is told."""
    # The SDK's own object stays with the caller who asked the model: it can be changed.
    return replace(answered, is_shared=True, original=None)


def exact_end(digest: str, entry: Entry) -> Answered:
    """Return the end of a call that *entry*, stored under *digest*, answers."""
    return Answered(
        CacheStatus.EXACT,
        entry.answer,
        digest=entry.origin or digest,
        created_s=entry.created_s,
        similarity=entry.similarity,
        is_alias=entry.origin is not None,
    )


def semantic_end(hit: SemanticHit) -> Answered:
    """Return the end of a call that *hit* answers."""
    return Answered(
        CacheStatus.SEMANTIC,
        hit.entry.answer,
        digest=hit.candidate.digest,
        created_s=hit.entry.created_s,
        similarity=hit.candidate.similarity,
    )


def _future() -> asyncio.Future[Answered]:
    future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
    future.add_done_callback(observe)
    return future
