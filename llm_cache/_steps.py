"""The steps of a call: what is done before the model is asked, and after it has answered.

Everything that can fail besides the model is caught here and nowhere else: the caller still gets
the model's answer, the status says what was bypassed, an event carries the exception. With
`fail_closed` it is raised instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from llm_cache._background import Background
from llm_cache._budget import Budget, spendable_s
from llm_cache._call import Call
from llm_cache._core.codec import Sealed
from llm_cache._core.types import CacheStatus, Json
from llm_cache._deadline import now_s
from llm_cache._ends import Answered, Bypassed, Fresh, Turn, exact_end, semantic_end
from llm_cache._flight import patiently
from llm_cache._health import EMBEDDER, REDIS, SEARCH, Health
from llm_cache._placing import Placing
from llm_cache._redis.exact import ExactStore, Lookup
from llm_cache._redis.lease import Lease, Leases
from llm_cache._scrutiny import MOST_IN_BACKGROUND, Scrutiny
from llm_cache._semantic import Finding, Place, SemanticHit, SemanticLayer
from llm_cache._storing import LATE, Storing
from llm_cache.config import CacheConfig
from llm_cache.errors import (
    DependencySkipped,
    EmbedderError,
    IndexMismatch,
    LLMCacheError,
    OnlyIfCachedMiss,
    OverBudget,
    SearchModuleMissing,
    StoreError,
    StoreTimeout,
)
from llm_cache.events import DependencyFailed, Event

BREAKER = "breaker"
"""Why a call was bypassed that found a dependency left alone."""


class Steps:
    """What calls have in common, plain and streamed."""

    def __init__(
        self,
        exact: ExactStore,
        semantic: SemanticLayer,
        leases: Leases,
        *,
        storing: Storing,
        scrutiny: Scrutiny,
        health: Health,
        background: Background,
        config: CacheConfig,
        ready: Callable[[], Awaitable[None] | None],
        tell: Callable[[Event], None],
        clock: Callable[[], float],
    ) -> None:
        self._exact = exact
        self._semantic = semantic
        self._leases = leases
        self._storing = storing
        self._scrutiny = scrutiny
        self._health = health
        self._background = background
        self._config = config
        self._ready = ready
        self._tell = tell
        self._clock = clock
        self._scrutinising = 0

    # ------------------------------------------------------------------ the exact layer

    async def look_up(self, call: Call, started_s: float) -> Answered | Lookup | Bypassed:
        """Return the exact hit; else what the look-up saw, or that there was none, and why.

        *started_s* is when the call began, by `now_s`.
        """
        if call.terms.bypass is not None:
            return Bypassed(call.terms.bypass)
        redis, ticket = self._health.redis, None
        try:
            ticket = redis.admit()
            if (connected := self._ready()) is not None:
                await connected
            found = await self._exact.lookup(call.digest, call.text, since_s=started_s)
        except (StoreError, DependencySkipped) as error:
            redis.failed(ticket, error)
            return self._without_redis(call, error)
        except (LLMCacheError, asyncio.CancelledError):
            redis.left(ticket)
            raise
        except Exception as error:  # noqa: BLE001 - a damaged reply must not reach a caller
            broken = redis.broken(error)
            redis.failed(ticket, broken)
            return self._without_redis(call, broken)
        redis.worked(ticket)
        if found.entry is not None and self.accepts(call, found.entry):
            if self._config.shadow:
                return found
            self._prolong(call, call.digest, found.entry)
            return exact_end(call.digest, found.entry)
        if found.corrupt is not None:
            self.failed(REDIS, "lookup_exact", found.corrupt)
        return found

    async def look_up_queued(
        self, call: Call, found: Lookup, budget: Budget
    ) -> Answered | Lookup | Bypassed:
        """Return what `look_up` does, once an answer is stored that was on its way there."""
        try:
            await self._storing.written(call.digest, budget)
        except OverBudget:
            return found
        return await self.look_up(call, now_s())

    async def look_up_many(self, calls: Sequence[Call]) -> list[Lookup] | None:
        """Look up *calls* in the exact layer alone; `None` where Redis fails. One round trip."""
        budget = Budget(spendable_s(self._config))
        try:
            async with budget.drawn_on():
                with self._health.redis.asked(budget):
                    if (connected := self._ready()) is not None:
                        await connected
                    return await self._exact.lookup_many([call.digest for call in calls])
        except (StoreError, OverBudget, DependencySkipped) as error:
            self.failed(REDIS, "lookup_exact", error)
            return None

    def _without_redis(self, call: Call, error: LLMCacheError) -> Bypassed:
        # There is no answer in any case: that is what this caller wants to know.
        self.refuse_without_model(call)
        return Bypassed(self.failed(REDIS, "lookup_exact", error))

    def _prolong(self, call: Call, digest: str, entry: Sealed) -> None:
        """Lengthen the life of an answer that slides, which was hit. Costs the caller nothing."""
        if self._config.sliding_max_age_s is not None:
            self._exact.prolong(digest, entry, ttl_s=call.terms.ttl_s)

    # ------------------------------------------------------------------ before the model

    def turn(self, found: Lookup | Bypassed) -> Turn:
        """Return the turn of a call that the exact layer has not answered."""
        if isinstance(found, Bypassed):
            return Turn(None, self._leases, reason=found.reason, is_told=True)
        turn = Turn(found.epoch, self._leases)
        if found.corrupt is not None:
            turn.reason, turn.is_told = "corrupt", True
        # What came damaged may be whole in Redis: only the model's answer takes its place.
        turn.may_promote = found.entry is None and found.corrupt is None
        turn.replaces = found.was_taken
        return turn

    async def before_model(
        self, call: Call, turn: Turn, budget: Budget, *, may_wait: bool = True
    ) -> Answered | None:
        """Return what answers *call* without the model, if anything does.

        What fails is noted in *turn*. Takes no longer than *budget* lasts, beside the wait for
        another process's answer, which is left out unless the call *may_wait*.
        """
        if turn.epoch is None:
            return None
        hit = None
        try:
            async with budget.drawn_on():
                if may_wait and call.terms.is_shared:
                    answered = await self._claim(call, turn, budget)
                    if answered is not None:
                        return answered
                hit = await self._look_around(call, turn, budget)
        except OverBudget as error:
            is_embedding = turn.placing is not None and turn.placing.is_under_way
            self._trouble(turn, EMBEDDER if is_embedding else REDIS, "lookup", error)
        if hit is None:
            return None
        if turn.may_promote:
            await self._storing.promote(call, hit, turn, budget)
        turn.land()
        self._prolong(call, hit.candidate.digest, hit.entry)
        return semantic_end(hit)

    async def _claim(self, call: Call, turn: Turn, budget: Budget) -> Answered | None:
        """Return what another process has answered meanwhile; else take the lease, if possible."""
        try:
            claimed = await patiently(self._claimed(call, budget), call.terms.wait_s)
        except (StoreError, DependencySkipped) as error:
            turn.is_cut_off = isinstance(error, StoreTimeout)
            self._trouble(turn, REDIS, "lease", error)
            return None
        if isinstance(claimed, Lease):
            turn.lease = claimed
            return None
        return claimed

    async def _claimed(self, call: Call, budget: Budget) -> Lease | Answered | None:
        with self._health.redis.asked(budget):
            look_again = partial(self._look_again, call)
            return await self._leases.claim(call.digest, look_again, waiting=budget.waiting)

    async def _look_again(self, call: Call) -> Answered | None:
        """Return what has been stored since this call looked, as what a follower is given."""
        entry = (await self._exact.lookup(call.digest, call.text)).entry
        if entry is None or not self.accepts(call, entry):
            return None
        status = CacheStatus.SEMANTIC if entry.is_alias else CacheStatus.MISS
        return replace(exact_end(call.digest, entry), status=status, is_shared=True)

    async def _look_around(self, call: Call, turn: Turn, budget: Budget) -> SemanticHit | None:
        """Return the semantic hit; note in *turn* where the prompt stands, and what failed."""
        if call.compared is None:
            return None
        dependency = EMBEDDER
        try:
            turn.placing = self._placed(call, call.compared)
            if turn.is_cut_off:
                return None
            dependency = SEARCH
            if not self._semantic.is_open:
                with self._health.search.asked(budget):
                    await self._semantic.open()
            if call.terms.control.no_cache:
                # Where it stands is needed no sooner than the answer is stored.
                return None
            dependency = EMBEDDER
            place = await turn.placing.arrived(budget)
            if place is None:
                return None
            dependency = SEARCH
            with self._health.search.asked(budget):
                return await self._find(call, turn, place, budget)
        except (
            *(EmbedderError, StoreError, DependencySkipped),
            *(SearchModuleMissing, IndexMismatch),
        ) as error:
            self._trouble(turn, dependency, "lookup_semantic", error)
            return None

    def begin_placing(self, call: Call, turn: Turn) -> None:
        """Find out in the background where the prompt stands, if it will be wanted."""
        if call.compared is not None:
            with suppress(DependencySkipped):
                turn.placing = self._placed(call, call.compared)

    def _placed(self, call: Call, text: str) -> Placing:
        locating = self._semantic.locate(text, call.scope.name)
        return Placing(locating, self._health.embedder, self._background)

    async def _find(
        self, call: Call, turn: Turn, place: Place, budget: Budget
    ) -> SemanticHit | None:
        """Return the semantic hit; note in *turn* what is to be looked at again."""
        accepts = partial(self.accepts, call)
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
                hit = await self._scrutiny.verified(
                    call, place, finding, accepts, thinking=budget.spared
                )
        self._scrutiny.note(call, place, finding, hit)
        return hit

    def refuse_without_model(self, call: Call) -> None:
        """Raise where *call* must not go to the model.

        Raises:
            OnlyIfCachedMiss: the caller has said so.
        """
        if call.terms.control.only_if_cached:
            raise OnlyIfCachedMiss("only-if-cached: there is no stored answer to this request")

    # ------------------------------------------------------------------ after the model

    async def after_model(self, call: Call, fresh: Fresh, turn: Turn, budget: Budget) -> Answered:
        """Store what the model answered, unless nothing was looked up, and return it."""
        refusal, place = None, turn.place
        if turn.epoch is not None:
            refusal = await self._storing.keep(call, fresh.answer, turn, budget)
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

    def _scrutinise_later(self, call: Call, place: Place, finding: Finding, fresh: Json) -> None:
        """Look at *finding* again in the background, unless that is done too often already."""
        if self._scrutinising < MOST_IN_BACKGROUND:
            self._scrutinising += 1
            self._background.spawn(self._scrutinise(call, place, finding, fresh), name="verify")

    async def _scrutinise(self, call: Call, place: Place, finding: Finding, fresh: Json) -> None:
        """Compare the model's answer, or let the verifier say whether the cached one would do."""
        accepts = partial(self.accepts, call)
        try:
            if self._config.shadow:
                await self._scrutiny.compare(call, place, finding, fresh, accepts)
                return
            hit = await self._scrutiny.verified(call, place, finding, accepts)
            # In place of the fresh answer: one question is answered the same in all wordings.
            if hit is not None and not await self._storing.promoted(call, hit, replaces=True):
                await self._semantic.forget(call.digest)
        except StoreError as error:
            self._tell(DependencyFailed(REDIS, "verify", error))
        finally:
            self._scrutinising -= 1

    # ------------------------------------------------------------------ what failed

    def failed(self, dependency: str, operation: str, error: LLMCacheError) -> str:
        """Tell that *dependency* failed, and return the reason to give the caller.

        Raises:
            LLMCacheError: *error*, where failures are not to be worked around.
        """
        if self._config.fail_closed:
            raise error
        if isinstance(error, DependencySkipped):
            return BREAKER
        self._tell(DependencyFailed(dependency, operation, error))
        return LATE if isinstance(error, OverBudget) else dependency

    def _trouble(self, turn: Turn, dependency: str, operation: str, error: LLMCacheError) -> None:
        """Note in *turn* what failed. The first failure of a call is told, and is its reason."""
        if isinstance(error, EmbedderError):
            dependency = EMBEDDER
        if turn.reason is None or self._config.fail_closed:
            turn.reason = self.failed(dependency, operation, error)
        turn.is_told = True

    def accepts(self, call: Call, entry: Sealed) -> bool:
        """Tell whether *entry* may be served to *call* as fresh."""
        return call.accepts(entry, self._clock())
