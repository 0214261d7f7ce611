"""Storing answers, without making anybody wait for longer than he may."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from llm_cache._background import Background, done_within
from llm_cache._budget import Budget
from llm_cache._call import Call
from llm_cache._core.codec import encode_entry
from llm_cache._core.encryption import Cipher
from llm_cache._core.policy import Lifetime, Refusal, lifetime
from llm_cache._core.types import Entry, Json
from llm_cache._ends import Turn
from llm_cache._health import EMBEDDER, REDIS, Guard
from llm_cache._placing import Placing
from llm_cache._redis.answers import Answers
from llm_cache._redis.exact import ExactStore
from llm_cache._redis.lease import Lease, Leases
from llm_cache._semantic import Place, SemanticHit, SemanticLayer
from llm_cache.config import CacheConfig
from llm_cache.errors import DependencySkipped, EmbedderError, LLMCacheError, StoreError
from llm_cache.events import DependencyFailed, Event, StoreSkipped

LATE = "budget"
"""Why the caller does not know whether his answer is stored: he did not wait for it."""


class Storing:
    """Writes answers. Each is a task of its own, so that it ends although its caller has left."""

    def __init__(
        self,
        exact: ExactStore,
        semantic: SemanticLayer,
        leases: Leases,
        answers: Answers,
        *,
        redis: Guard,
        background: Background,
        config: CacheConfig,
        cipher: Cipher | None,
        tell: Callable[[Event], None],
        clock: Callable[[], float],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._exact = exact
        self._semantic = semantic
        self._leases = leases
        self._answers = answers
        self._redis = redis
        self._background = background
        self._config = config
        self._cipher = cipher
        self._tell = tell
        self._clock = clock
        self._chance = chance
        self._queue: dict[asyncio.Task[Any], str] = {}
        """What is written while nobody waits for it, and the digest it is written under."""
        self._queued: dict[str, asyncio.Task[Any]] = {}
        self._late = 0

    # ------------------------------------------------------------------ on the path of calls

    def is_queued(self, digest: str) -> bool:
        """Tell whether an answer of this digest is still being written."""
        return digest in self._queued

    async def written(self, digest: str, budget: Budget) -> None:
        """Wait until the queued answer of this digest is written; no longer than *budget* lasts.

        Raises:
            OverBudget: it lasted no longer.
        """
        task = self._queued.get(digest)
        if task is not None:
            async with budget.drawn_on():
                await asyncio.wait([task])

    async def keep(self, call: Call, answer: Json, turn: Turn, budget: Budget) -> str | None:
        """Store *answer*, and wait for that as long as *budget* lasts; then it goes on.

        Return why it is not stored, if so, or `LATE`. With `store_in_background` nothing is waited
        for. The turn's lease is ended in any case, and where the prompt stands is added when that
        is known.
        """
        if self._background.is_closed:
            return REDIS
        if self._config.store_in_background and self._is_full():
            return self._shed(call)
        lease, placing = turn.hand_over()
        work = self._keep(call, answer, turn, lease, placing, wait_s=budget.left_s)
        task = self._background.spawn(work, name="store")
        task.add_done_callback(partial(self._given_up, lease, placing))
        wait_s = 0.0 if self._config.store_in_background else budget.left_s
        refusal = await self._within(call, task, wait_s)
        # Who wants it so knows that nobody has waited.
        is_meant = refusal == LATE and self._config.store_in_background
        return None if is_meant else refusal

    async def promote(self, call: Call, hit: SemanticHit, turn: Turn, budget: Budget) -> None:
        """Write a semantic hit back as an exact alias; waits as long as *budget* lasts."""
        work = self.promoted(call, hit, replaces=turn.replaces)
        await self._within(call, self._background.spawn(work, name="store"), budget.left_s)

    async def promoted(self, call: Call, hit: SemanticHit, *, replaces: bool) -> str | None:
        """Write *hit* as the answer of *call*: its next repeat is one command; else say why not.

        One round trip.
        """
        if hit.left_ms <= 0:
            return Refusal.SOURCE_GONE
        origin = hit.candidate.digest
        if origin == call.digest:
            # It has been stored since this call looked, and is no copy of itself.
            return None
        try:
            alias = hit.entry.open().as_alias(origin, hit.candidate.similarity)
            blob = self._encoded(alias, call)
            with self._redis.asked():
                await self._exact.promote(
                    call.digest,
                    origin,
                    blob,
                    copied=hit.entry,
                    left_ms=hit.left_ms,
                    replaces=replaces,
                )
        except StoreError as error:
            self._tell(DependencyFailed(REDIS, "promote", error))
            return REDIS
        except DependencySkipped:
            return Refusal.BREAKER
        return None

    async def _within(
        self, call: Call, task: asyncio.Task[str | None], wait_s: float
    ) -> str | None:
        """Return what *task* does; `LATE` if it takes longer, and is queued."""
        is_done = False
        try:
            is_done = wait_s > 0 and await done_within(task, wait_s)
        finally:
            is_shed = not is_done and not self._enqueue(call, task)
        if is_shed:
            return Refusal.SHED
        if not is_done:
            return LATE
        # It was cancelled if the cache was closed meanwhile, which is nothing to its caller.
        return REDIS if task.cancelled() else task.result()

    def _enqueue(self, call: Call, task: asyncio.Task[Any]) -> bool:
        if self._is_full():
            task.cancel()
            self._shed(call)
            return False
        self._queue[task] = call.digest
        self._queued[call.digest] = task
        task.add_done_callback(self._dequeue)
        return True

    def _dequeue(self, task: asyncio.Task[Any]) -> None:
        digest = self._queue.pop(task)
        if self._queued.get(digest) is task:
            del self._queued[digest]

    def _is_full(self) -> bool:
        return len(self._queue) >= self._config.store_queue_size

    def _shed(self, call: Call) -> str:
        self._tell(StoreSkipped(Refusal.SHED, call.terms.model))
        return Refusal.SHED

    async def _keep(
        self,
        call: Call,
        answer: Json,
        turn: Turn,
        lease: Lease | None,
        placing: Placing | None,
        *,
        wait_s: float,
    ) -> str | None:
        if placing is not None:
            await placing.ended(wait_s)
        place = None if placing is None else placing.place
        epoch = turn.epoch or ""
        try:
            with self._redis.asked():
                refusal = await self.store(call, answer, epoch=epoch, place=place, lease=lease)
        except DependencySkipped:
            self._tell(StoreSkipped(Refusal.BREAKER, call.terms.model))
            refusal = Refusal.BREAKER
        except LLMCacheError as error:
            if not turn.is_told:
                self._tell(DependencyFailed(REDIS, "store", error))
            refusal = REDIS
        if lease is not None:
            if refusal in (REDIS, Refusal.BREAKER):
                # Giving it back would only wait for the same Redis again. Nor may it live for as
                # long as somebody keeps the error, whose traceback leads to it.
                lease.expire()
            else:
                self._leases.let_go(lease)
        if placing is not None:
            self._follow(call, turn, placing, is_led_to=place is not None or refusal is not None)
        return refusal

    def _follow(self, call: Call, turn: Turn, placing: Placing, *, is_led_to: bool) -> None:
        """See to a prompt that had no place yet when its answer was stored."""
        may_come = placing.is_under_way or placing.place is not None
        if placing.error is not None and not turn.is_told:
            self._tell(DependencyFailed(EMBEDDER, "embed", placing.error))
        elif not is_led_to and may_come and self._late < self._config.store_queue_size:
            self._late += 1
            self._background.spawn(self._lead_there(call, placing, turn), name="store")
        else:
            placing.cancel()

    def _given_up(
        self, lease: Lease | None, placing: Placing | None, task: asyncio.Task[Any]
    ) -> None:
        """End what a store would have ended that was cancelled, perhaps before it began."""
        if not task.cancelled():
            return
        if lease is not None:
            self._leases.let_go(lease)
        if placing is not None:
            placing.cancel()

    async def _lead_there(self, call: Call, placing: Placing, turn: Turn) -> None:
        """Let the prompt lead to its answer, now that it is known where it stands."""
        try:
            place = await placing.arrived()
            if place is not None and self._semantic.is_open:
                with self._redis.asked():
                    await self._semantic.lead_to(place, call.digest)
        except (EmbedderError, StoreError) as error:
            dependency = EMBEDDER if isinstance(error, EmbedderError) else REDIS
            if not turn.is_told:
                self._tell(DependencyFailed(dependency, "store_semantic", error))
        except DependencySkipped:
            pass
        finally:
            self._late -= 1
            placing.cancel()

    # ------------------------------------------------------------------ storing itself

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
        blob = b""
        if refusal is None:
            entry = _entry(call, answer, life, sources or (), stamp=epoch, now_s=now_s)
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
        # Without its index the layer is not open, and nothing knows where entries go.
        leads = place is not None and self._semantic.is_open
        leading = self._semantic.entry(place, call.digest) if place and leads else None
        await self._exact.epochs.remember_for(life.longest_ms)
        if leading is None or not self._config.store_prompts:
            lifetime_s = life.longest_ms / 1000
            await self._answers.note_unindexed(now_s + lifetime_s, lifetime_s)
        # Where a late leader finds a newer answer in place, that one stays: it is stored too.
        await self._leases.store(
            call.digest, blob, ttl_ms=life.kept_ms, entry=leading, lease=lease
        )
        return None

    def _encoded(self, entry: Entry, call: Call) -> bytes:
        return encode_entry(
            entry, call.digest, compress=self._config.compression, cipher=self._cipher
        )

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


def _entry(
    call: Call,
    answer: Json,
    life: Lifetime,
    sources: tuple[str, ...],
    *,
    stamp: str,
    now_s: float,
) -> Entry:
    terms = call.terms
    return Entry(
        answer=answer,
        created_s=now_s,
        fresh_until_s=life.fresh_until_s,
        stamp=stamp,
        model=terms.model,
        tenant=terms.tenant_id,
        shared_scope=terms.shared_scope,
        prompt_version=call.prompt_version,
        tags=terms.tags,
        depends_on=sources,
    )


def _refusal(call: Call, answer: Json) -> str | None:
    try:
        return call.terms.refuse(answer)
    except Exception:  # noqa: BLE001 - the rule may be the caller's code; its answer is paid for
        return Refusal.NOT_WANTED
