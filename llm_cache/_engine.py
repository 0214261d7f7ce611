"""The path of a call: exact layer, single-flight, semantic layer, the model, store.

Everything that can fail besides the model is caught here and nowhere else: the caller still gets
the model's answer, the status says what was bypassed, an event carries the exception.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from llm_cache._call import Call, Terms
from llm_cache._core.codec import Sealed, encode_entry
from llm_cache._core.encryption import Cipher
from llm_cache._core.policy import Lifetime, Refusal, is_outage, lifetime
from llm_cache._core.stream import Accumulator
from llm_cache._core.types import CacheStatus, Entry, Json
from llm_cache._ends import (
    Answered,
    Fresh,
    Streaming,
    Turn,
    as_follower,
    exact_end,
    semantic_end,
)
from llm_cache._flight import SharedStream, SingleFlight, finish, observe
from llm_cache._redis.answers import Answers
from llm_cache._redis.exact import ExactStore, Lookup
from llm_cache._redis.lease import Lease, Leases
from llm_cache._scrutiny import MOST_IN_BACKGROUND, Scrutiny
from llm_cache._semantic import Finding, Place, SemanticHit, SemanticLayer
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


class Engine:
    """Walks calls along the path. One for each cache object."""

    def __init__(
        self,
        exact: ExactStore,
        semantic: SemanticLayer,
        leases: Leases,
        answers: Answers,
        scrutiny: Scrutiny,
        *,
        config: CacheConfig,
        cipher: Cipher | None = None,
        ready: Callable[[], Awaitable[None]],
        tell: Callable[[Event], None],
        clock: Callable[[], float],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._exact = exact
        self._semantic = semantic
        self._leases = leases
        self._answers = answers
        self._scrutiny = scrutiny
        self._config = config
        self._cipher = cipher
        self._ready = ready
        self._tell = tell
        self._clock = clock
        self._chance = chance
        self._revalidating: set[str] = set()
        self._scrutinising = 0
        self._flights: SingleFlight[Answered] = SingleFlight()
        self._beginnings: SingleFlight[Answered | Streaming] = SingleFlight(_give_up_unheard)
        self._live: dict[Hashable, Streaming] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    # ------------------------------------------------------------------ plain calls

    async def answer(self, call: Call, produce: Produce) -> Answered:
        """Answer *call* from the cache, or with what *produce* makes, and remember that."""
        found = await self._look_up(call)
        if isinstance(found, Answered):
            return found
        if (stale := self._stale(call, found, self._config.stale_while_revalidate_s)) is not None:
            self._revalidate(call, produce, found)
            return stale
        if isinstance(found, str) or not call.terms.is_shared:
            return await self._fill(call, produce, found)
        # Whoever has seen a later invalidation shares nothing that was begun before it.
        flight = (*call.flight, found.epoch)
        # The leader waits for the model, which has a time-out of its own.
        patience = call.terms.wait_s if self._flights.is_running(flight) else None
        async with asyncio.timeout(patience):
            answered, is_follower = await self._flights.run(
                flight, partial(self._fill, call, produce, found)
            )
        return as_follower(answered) if is_follower else answered

    async def _look_up(self, call: Call) -> Answered | Lookup | str:
        """Return the exact hit; else what the look-up saw; else why the cache takes no part."""
        if call.terms.bypass is not None:
            return call.terms.bypass
        try:
            await self._ready()
            found = await self._exact.lookup(call.digest, call.text)
        except (StoreError, EmbedderError) as error:
            reason = self._failed("lookup_exact", error)
            self._refuse_without_model(call)
            return reason
        if found.entry is not None and self._accepts(call, found.entry):
            if self._config.shadow:
                return found
            self._prolong(call, call.digest, found.entry)
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
            try:
                fresh = await produce()
            except Exception as error:
                if (stale := await self._instead_of(error, call, found)) is None:
                    raise
                return stale
            return await self._end(call, fresh, turn, place)

    # ------------------------------------------------------------------ stale answers

    def _stale(self, call: Call, found: Lookup | str, for_s: float) -> Answered | None:
        """Return the end of *call* with what was found, if it turned stale *for_s* ago at most."""
        if isinstance(found, str) or not for_s or self._config.shadow:
            return None
        entry = found.entry
        if entry is None or not call.accepts_stale(entry, self._clock(), for_s=for_s):
            return None
        return replace(exact_end(call.digest, entry), status=CacheStatus.STALE)

    async def _instead_of(
        self, error: Exception, call: Call, found: Lookup | str
    ) -> Answered | None:
        """Return the stale answer to serve where the model failed, if there is one to serve."""
        for_s = self._config.stale_if_error_s if is_outage(error) else 0.0
        if self._stale(call, found, for_s) is None:
            return None
        try:
            # It may have been invalidated while the model was being asked.
            stale = self._stale(call, await self._exact.lookup(call.digest, call.text), for_s)
        except StoreError as failure:
            self._failed("lookup_exact", failure)
            return None
        if stale is None:
            return None
        self._tell(DependencyFailed("upstream", "ask", error))
        return replace(stale, reason="upstream")

    def _revalidate(self, call: Call, produce: Produce, found: Lookup | str) -> None:
        """Ask the model anew in the background, unless somebody does, or the caller forbids it."""
        is_due = isinstance(found, Lookup) and not call.terms.control.only_if_cached
        if is_due and call.digest not in self._revalidating:
            self._revalidating.add(call.digest)
            self._spawn(self._ask_anew(call, produce))

    async def _ask_anew(self, call: Call, produce: Produce) -> None:
        try:
            lease = await self._leases.acquire(call.digest)
            if lease is None:
                return
            async with lease:
                found = await self._exact.lookup(call.digest, call.text)
                if found.entry is not None and self._accepts(call, found.entry):
                    # Another process was faster.
                    return
                turn = Turn(found.epoch, lease)
                place = await self._place_of(call)
                await self._end(call, await produce(), turn, place)
        except StoreError as error:
            self._failed("revalidate", error)
        except Exception as error:  # noqa: BLE001 - the model's, which the caller does not wait for
            self._tell(DependencyFailed("upstream", "revalidate", error))
        finally:
            self._revalidating.discard(call.digest)

    async def _place_of(self, call: Call) -> Place | None:
        """Return where the prompt stands; `None` where the embedder fails, which is told."""
        if not call.terms.semantic or call.text is None:
            return None
        try:
            return await self._semantic.locate(call.text, call.terms.scope.name)
        except EmbedderError as error:
            self._failed("revalidate", error)
            return None

    def _prolong(self, call: Call, digest: str, entry: Sealed) -> None:
        """Lengthen the life of an answer that slides, which was hit. Costs the caller nothing."""
        if self._config.sliding_max_age_s is not None:
            self._exact.prolong(digest, entry, ttl_s=call.terms.ttl_s)

    # ------------------------------------------------------------------ turns

    async def _take_turn(self, call: Call, found: Lookup | str) -> Answered | Turn:
        """Return what another process has answered meanwhile, or the turn to make an answer."""
        if isinstance(found, str):
            return Turn(None, None, reason=found)
        turn = Turn(found.epoch, None, reason=None if found.corrupt is None else "corrupt")
        turn.may_promote = found.entry is None
        turn.replaces = found.was_taken
        if not call.terms.is_shared:
            return turn
        try:
            async with asyncio.timeout(call.terms.wait_s):
                claimed = await self._leases.claim(call.digest, partial(self._look_again, call))
        except StoreError as error:
            return replace(turn, reason=self._failed("lease", error))
        return claimed if isinstance(claimed, Answered) else replace(turn, lease=claimed)

    async def _look_again(self, call: Call) -> Answered | None:
        """Return what has been stored since this call looked, as what a follower is given."""
        entry = (await self._exact.lookup(call.digest, call.text)).entry
        if entry is None or not self._accepts(call, entry):
            return None
        status = CacheStatus.SEMANTIC if entry.is_alias else CacheStatus.MISS
        return replace(exact_end(call.digest, entry), status=status, is_shared=True)

    async def _look_around(self, call: Call, turn: Turn) -> tuple[Place | None, Answered | None]:
        """Return where the prompt stands, and the semantic hit; note in *turn* what failed."""
        if not call.terms.semantic or call.text is None or turn.epoch is None:
            return None, None
        place = None
        try:
            place = await self._semantic.locate(call.text, call.terms.scope.name)
            if place is None or call.terms.control.no_cache:
                return place, None
            hit = await self._find(call, turn, place)
        except (EmbedderError, StoreError) as error:
            if isinstance(error, InvalidEmbedding) and not self._semantic.has_worked:
                raise
            turn.reason = self._failed("lookup_semantic", error)
            return place, None
        if hit is None:
            return place, None
        if turn.may_promote:
            await self._promote(call, hit, replaces=turn.replaces)
        await turn.land()
        self._prolong(call, hit.candidate.digest, hit.entry)
        return place, semantic_end(hit)

    async def _find(self, call: Call, turn: Turn, place: Place) -> SemanticHit | None:
        """Return the semantic hit; note in *turn* what is to be looked at again."""
        accepts = partial(self._accepts, call)
        finding = await self._semantic.lookup(
            place, call.digest, accepts, tenant_id=call.terms.tenant_id
        )
        if self._config.shadow:
            # A repeat is answered by the exact layer: there is nothing to decide.
            turn.open_finding = finding if turn.may_promote else None
            return None
        hit = finding.hit
        if hit is None and self._scrutiny.may_verify(finding):
            if self._config.verify_in_background:
                turn.open_finding = finding if turn.may_promote else None
            else:
                hit = await self._scrutiny.verified(call, place, finding, accepts)
        self._scrutiny.note(call, place, finding, hit)
        return hit

    async def _end(self, call: Call, fresh: Fresh, turn: Turn, place: Place | None) -> Answered:
        """Store what the model answered, unless nothing was looked up, and return it."""
        refusal = None
        if turn.epoch is not None:
            refusal = await self._store(call, fresh.answer, turn, place)
        is_stored = turn.epoch is not None and refusal is None
        if turn.open_finding is not None and place is not None:
            self._scrutinise_later(call, place, turn.open_finding, fresh.answer)
        return Answered(
            turn.status,
            fresh,
            digest=call.digest if is_stored else None,
            reason=turn.reason or refusal,
            original=fresh.original,
        )

    # ------------------------------------------------------------------ second looks

    def _scrutinise_later(self, call: Call, place: Place, finding: Finding, fresh: Json) -> None:
        """Look at *finding* again in the background, unless that is done too often already."""
        if self._scrutinising < MOST_IN_BACKGROUND:
            self._scrutinising += 1
            self._spawn(self._scrutinise(call, place, finding, fresh))

    async def _scrutinise(self, call: Call, place: Place, finding: Finding, fresh: Json) -> None:
        """Compare the model's answer, or let the verifier say whether the cached one would do."""
        accepts = partial(self._accepts, call)
        try:
            if self._config.shadow:
                await self._scrutiny.compare(call, place, finding, fresh, accepts)
                return
            hit = await self._scrutiny.verified(call, place, finding, accepts)
            # In place of the fresh answer: one question is answered the same in all wordings.
            if hit is not None and await self._promote(call, hit, replaces=True):
                await self._semantic.forget(call.digest)
        except StoreError as error:
            self._failed("verify", error)
        finally:
            self._scrutinising -= 1

    # ------------------------------------------------------------------ streams

    async def stream(
        self,
        call: Call,
        open_stream: OpenStream,
        refresh: Produce,
        *,
        choices: int,
        wants_usage: bool,
    ) -> Answered | Streaming:
        """Answer *call* from the cache, or with the stream that *open_stream* opens.

        A stale answer is replaced by what *refresh* makes, in the background.

        Callers of one request share one stream: each hears it from its first chunk, the one with
        the usage included, which is left to the caller to leave out.
        """
        while True:
            found = await self._look_up(call)
            if isinstance(found, Answered):
                return found
            stale = self._stale(call, found, self._config.stale_while_revalidate_s)
            if stale is not None:
                self._revalidate(call, refresh, found)
                return stale
            begin = partial(self._begin, call, open_stream, found, choices, wants_usage)
            if isinstance(found, str) or not call.terms.is_shared:
                begun, is_shared = await begin(), False
                return begun if isinstance(begun, Answered) else begun.joined()
            flight = (*call.flight, found.epoch)
            live = self._live.get(flight)
            if live is not None and live.chunks.join():
                return replace(live, is_shared=True)
            patience = call.terms.wait_s if self._beginnings.is_running(flight) else None
            async with asyncio.timeout(patience):
                begun, is_shared = await self._beginnings.run(flight, begin)
            if isinstance(begun, Answered):
                return as_follower(begun) if is_shared else begun
            # Its leader may have come and gone while this follower was waking up.
            if begun.chunks.join():
                return replace(begun, is_shared=is_shared)

    async def _begin(
        self,
        call: Call,
        open_stream: OpenStream,
        found: Lookup | str,
        choices: int,
        wants_usage: bool,  # noqa: FBT001 - handed on by `partial`
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
            try:
                source = await open_stream()
            except Exception as error:
                if (stale := await self._instead_of(error, call, found)) is None:
                    raise
                return stale
            held.pop_all()  # from here on the pump holds the turn

        is_shared = call.terms.is_shared and isinstance(found, Lookup)
        flight = (*call.flight, turn.epoch) if is_shared else None

        def retire() -> None:
            # Whoever comes now must look up anew: this stream only winds up.
            if flight is not None and self._live.get(flight) is streaming:
                del self._live[flight]

        def abandon() -> None:
            retire()
            task.cancel()

        async def conclude(heard: Accumulator) -> Answered:
            answer = heard.completion(choices=choices, usage_expected=wants_usage)
            if answer is not None:
                return await self._end(call, Fresh(answer), turn, place)
            self._tell(StoreSkipped(Refusal.UNFINISHED, call.terms.model))
            return Answered(turn.status, Fresh({}), reason=turn.reason or Refusal.UNFINISHED)

        streaming = Streaming(
            chunks=SharedStream(abandon, retire),
            end=_future(),
            status=turn.status,
            reason=turn.reason,
            response=getattr(source, "response", None),
        )
        is_complete = partial(_is_complete, choices=choices, wants_usage=wants_usage)
        pump = self._pump(source, streaming, turn, conclude, is_complete)
        task = asyncio.create_task(pump, name="llm_cache.stream")
        self._tasks.add(task)
        if flight is not None:
            self._live[flight] = streaming
        task.add_done_callback(
            partial(self._stream_ended, call.terms.model, streaming, source, turn)
        )
        return streaming

    async def _pump(
        self,
        source: Any,
        streaming: Streaming,
        turn: Turn,
        conclude: Callable[[Accumulator], Awaitable[Answered]],
        is_complete: Callable[[Accumulator], bool],
    ) -> None:
        """Hand every chunk on as it arrives, and store the answer after a clean end."""
        heard = Accumulator()
        try:
            async with turn:
                try:
                    async for chunk in source:
                        streaming.chunks.say(chunk)
                        heard.add(_as_json(chunk))
                        # Chunks that arrived together would all be taken in before anybody is
                        # woken; this way the first is handed on before the second is looked at.
                        await asyncio.sleep(0)
                except asyncio.CancelledError:
                    # Many readers leave at the last word, before the end of the stream.
                    if not is_complete(heard):
                        raise
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

    def _stream_ended(
        self, model: str, streaming: Streaming, source: Any, turn: Turn, task: asyncio.Task[None]
    ) -> None:
        self._tasks.discard(task)
        observe(task)
        if task.cancelled():
            self._tell(StoreSkipped(Refusal.ABANDONED, model))
        if not streaming.end.done():
            # Cancelled before its first step, so that the pump has tidied up nothing.
            error = CacheClosed("the stream was given up")
            streaming.end.set_exception(error)
            streaming.chunks.end(error)
            self._spawn(_dispose(source, turn))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="llm_cache.dispose")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------ steps

    async def store(
        self,
        call: Call,
        answer: Json,
        *,
        epoch: str,
        place: Place | None,
        lease: Lease | None = None,
    ) -> str | None:
        """Store *answer*, whatever is there; return why it must not be stored, if so.

        Raises:
            StoreError: Redis failed.
        """
        now_s = self._clock()
        life = self._lifetime(call.terms.ttl_s, now_s)
        refusal = _refusal(call, answer)
        sources = await self._answers.sources(call.terms.depends_on)
        if sources is None:
            refusal = Refusal.SOURCE_GONE
        terms = replace(call.terms, depends_on=sources or ())
        blob = b""
        if refusal is None:
            entry = _entry(terms, answer, life, stamp=epoch, now_s=now_s)
            try:
                blob = self._encoded(entry, call)
            except OverflowError:
                refusal = Refusal.TOO_LARGE
            except (ValueError, TypeError):
                refusal = Refusal.NOT_TEXT
        if len(blob) > self._config.max_entry_bytes:
            refusal = Refusal.TOO_LARGE
        if refusal is not None:
            self._tell(StoreSkipped(refusal, call.terms.model))
            return refusal
        leading = None if place is None else self._semantic.entry(place, call.digest)
        await self._exact.epochs.remember_for(life.longest_ms)
        if leading is None or not self._config.store_prompts:
            lifetime_s = life.longest_ms / 1000
            await self._answers.note_unindexed(now_s + lifetime_s, lifetime_s)
        # Where a late leader finds a newer answer in place, that one stays: it is stored too.
        await self._leases.store(
            call.digest, blob, ttl_ms=life.kept_ms, entry=leading, lease=lease
        )
        return None

    def _lifetime(self, ttl_s: float, now_s: float) -> Lifetime:
        config = self._config
        return lifetime(
            now_s,
            ttl_s,
            stale_s=max(config.stale_while_revalidate_s, config.stale_if_error_s),
            sliding_max_age_s=config.sliding_max_age_s,
            jitter=config.ttl_jitter,
            chance=self._chance(),
        )

    async def _store(
        self, call: Call, answer: Json, turn: Turn, place: Place | None
    ) -> str | None:
        """Store *answer* if Redis allows; return why not, if not."""
        try:
            return await self.store(
                call, answer, epoch=turn.epoch or "", place=place, lease=turn.lease
            )
        except StoreError as error:
            # Giving the lease back would only wait for the same Redis again: it runs out.
            turn.lease = None
            return self._failed("store", error)

    async def aclose(self, *, wait_s: float) -> None:
        """Wait for what is under way, at most *wait_s* seconds, then cancel it."""
        under_way = [*self._flights.tasks, *self._beginnings.tasks, *self._tasks]
        try:
            await finish(under_way, wait_s=wait_s)
        finally:
            # Whoever has no patience even for that leaves nothing behind either.
            await finish([*under_way, *self._tasks], wait_s=0)
            await self._leases.aclose()

    async def _promote(self, call: Call, hit: SemanticHit, *, replaces: bool) -> bool:
        """Write a semantic hit back as an exact alias, so that its next repeat is one command."""
        if hit.left_ms <= 0:
            return False
        origin = hit.candidate.digest
        alias = hit.entry.open().as_alias(origin, hit.candidate.similarity)
        blob = self._encoded(alias, call)
        try:
            await self._exact.promote(
                call.digest,
                origin,
                blob,
                copied=hit.entry,
                left_ms=hit.left_ms,
                replaces=replaces,
            )
        except StoreError as error:
            self._failed("promote", error)
            return False
        return True

    def _encoded(self, entry: Entry, call: Call) -> bytes:
        return encode_entry(
            entry, call.digest, compress=self._config.compression, cipher=self._cipher
        )

    def _refuse_without_model(self, call: Call) -> None:
        if call.terms.control.only_if_cached:
            raise OnlyIfCachedMiss("only-if-cached: there is no stored answer to this request")

    def _failed(self, operation: str, error: Exception) -> str:
        """Tell that a dependency failed, and return the reason to give the caller."""
        dependency = "embedder" if isinstance(error, EmbedderError) else "redis"
        self._tell(DependencyFailed(dependency, operation, error))
        return dependency

    def _accepts(self, call: Call, entry: Sealed) -> bool:
        return call.accepts(entry, self._clock())


def _entry(terms: Terms, answer: Json, life: Lifetime, *, stamp: str, now_s: float) -> Entry:
    return Entry(
        answer=answer,
        created_s=now_s,
        fresh_until_s=life.fresh_until_s,
        stamp=stamp,
        model=terms.model,
        tenant=terms.tenant_id,
        shared_scope=terms.shared_scope,
        prompt_version=terms.prompt_version,
        tags=terms.tags,
        depends_on=terms.depends_on,
    )


def _refusal(call: Call, answer: Json) -> str | None:
    try:
        return call.terms.refuse(answer)
    except Exception:  # noqa: BLE001 - the rule may be the caller's code; its answer is paid for
        return Refusal.NOT_WANTED


def _as_json(chunk: Any) -> Any:
    """Return *chunk* as JSON; what the SDK could make nothing of comes through as it is."""
    dump = getattr(chunk, "model_dump", None)
    return chunk if dump is None else dump(exclude_unset=True, warnings=False)


def _is_complete(heard: Accumulator, *, choices: int, wants_usage: bool) -> bool:
    return heard.completion(choices=choices, usage_expected=wants_usage) is not None


def _give_up_unheard(begun: Answered | Streaming) -> None:
    if isinstance(begun, Streaming):
        begun.chunks.give_up_unheard()


async def _dispose(source: Any, turn: Turn) -> None:
    async with turn:
        await source.close()


def _future() -> asyncio.Future[Answered]:
    future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
    future.add_done_callback(observe)
    return future
