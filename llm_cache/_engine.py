"""The path of a call: exact layer, single-flight, semantic layer, the model, store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from llm_cache._background import Background
from llm_cache._budget import Budget, spendable_s
from llm_cache._call import Call
from llm_cache._core.encryption import Cipher
from llm_cache._core.types import Json
from llm_cache._deadline import now_s
from llm_cache._ends import Answered, Bypassed, Streaming, Turn, as_follower
from llm_cache._flight import UNDER_WAY, SingleFlight, finish
from llm_cache._health import Health
from llm_cache._redis.answers import Answers
from llm_cache._redis.exact import ExactStore, Lookup
from llm_cache._redis.lease import Leases
from llm_cache._scrutiny import Scrutiny
from llm_cache._semantic import Place, SemanticLayer
from llm_cache._stale import Produce, StaleAnswers
from llm_cache._steps import Steps
from llm_cache._storing import Storing
from llm_cache._streams import OpenStream, Streams
from llm_cache.config import CacheConfig
from llm_cache.errors import CacheClosed, OverBudget
from llm_cache.events import Event


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
        ready: Callable[[], Awaitable[None] | None],
        tell: Callable[[Event], None],
        clock: Callable[[], float],
    ) -> None:
        self._budget_s = spendable_s(config)
        self._patience_s = 2 * config.redis_timeout_s
        self._leases = leases
        self._background = background = Background()
        self._health = health = Health(budget_s=self._budget_s, tell=tell)
        self._storing = Storing(
            exact,
            semantic,
            leases,
            answers,
            redis=health.redis,
            background=background,
            config=config,
            cipher=cipher,
            tell=tell,
            clock=clock,
        )
        self._steps = Steps(
            exact,
            semantic,
            leases,
            storing=self._storing,
            scrutiny=scrutiny,
            health=health,
            background=background,
            config=config,
            ready=ready,
            tell=tell,
            clock=clock,
        )
        self._stale = StaleAnswers(
            exact, leases, self._steps, background, config=config, tell=tell, clock=clock
        )
        self._streams = Streams(self._steps, self._stale, background, tell=tell)
        self._flights: SingleFlight[Answered] = SingleFlight()
        self._calls: set[asyncio.Future[None]] = set()
        """Those that the exact layer has not answered; each is done when its call is."""

    async def answer(self, call: Call, produce: Produce) -> Answered:
        """Answer *call* from the cache, or with what *produce* makes, and remember that."""
        started_s = now_s()
        found = await self._steps.look_up(call, started_s)
        if isinstance(found, Answered):
            return found
        budget = self._left(started_s)
        with self._noted():
            found = await self._look_on(call, found, produce, budget)
            if isinstance(found, Answered):
                return found
            if isinstance(found, Bypassed) or not call.terms.is_shared:
                # What is stored may still be to be written down: the caller's is another.
                return (await self._fill(call, produce, found, budget)).own()
            return await self._shared(call, produce, found, budget)

    async def _look_on(
        self, call: Call, found: Lookup | Bypassed, produce: Produce, budget: Budget
    ) -> Answered | Lookup | Bypassed:
        """Return the answer that is on its way to Redis, or a stale one; else what was found."""
        self._refuse_closed()
        if isinstance(found, Lookup) and self._storing.is_queued(call.digest):
            queued = await self._steps.look_up_queued(call, found, budget)
            if isinstance(queued, Answered):
                return queued
            found = queued
        return self._stale.while_revalidating(call, found, produce) or found

    async def _shared(
        self, call: Call, produce: Produce, found: Lookup, budget: Budget
    ) -> Answered:
        """Answer *call* together with the others that ask for the same."""
        fill = partial(self._fill, call, produce, found, budget)
        # Whoever has seen a later invalidation shares nothing that was begun before it.
        flight = (*call.flight, found.epoch)
        answered, is_follower = await self._flights.run(flight, fill, patience_s=call.terms.wait_s)
        # The others may not have looked at it yet.
        return as_follower(answered) if is_follower else answered.own()

    async def _fill(
        self,
        call: Call,
        produce: Produce,
        found: Lookup | Bypassed,
        budget: Budget,
        *,
        may_wait: bool = True,
    ) -> Answered:
        """Answer what the exact layer could not: from the semantic layer, or from the model."""
        with self._steps.turn(found) as turn:
            end = await self._steps.before_model(call, turn, budget, may_wait=may_wait)
            if end is not None:
                return end
            self._steps.refuse_without_model(call)
            try:
                fresh = await produce()
            except Exception as error:
                if (stale := await self._stale.instead_of(error, call, found)) is None:
                    raise
                return stale
            return await self._steps.after_model(call, fresh, turn, budget)

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
            started_s = now_s()
            found = await self._steps.look_up(call, started_s)
            if isinstance(found, Answered):
                return found
            budget = self._left(started_s)
            with self._noted():
                found = await self._look_on(call, found, refresh, budget)
                if isinstance(found, Answered):
                    return found
                begin = partial(
                    self._streams.begin,
                    *(call, open_stream, found, budget),
                    choices=choices,
                    wants_usage=wants_usage,
                )
                if isinstance(found, Bypassed) or not call.terms.is_shared:
                    begun = await begin()
                    return begun if isinstance(begun, Answered) else begun.joined()
                shared = await self._streams.shared(call, found, begin)
                if shared is not None:
                    return shared

    async def look_up_many(self, calls: Sequence[Call]) -> list[Lookup] | None:
        """Look up *calls* in the exact layer alone; `None` where Redis fails. One round trip."""
        return await self._steps.look_up_many(calls)

    async def store(
        self, call: Call, answer: Json, *, epoch: str, place: Place | None
    ) -> str | None:
        """Store *answer*, whatever is there; return why it must not be stored, if so.

        Raises:
            StoreError: Redis failed.
        """
        return await self._storing.store(call, answer, epoch=epoch, place=place)

    async def keep(self, call: Call, answer: Json, *, epoch: str) -> str | None:
        """Store *answer* in the exact layer, if Redis allows; return why not, if not."""
        turn = Turn(epoch, self._leases)
        return await self._storing.keep(call, answer, turn, Budget(self._budget_s))

    async def settle(self, digest: str) -> None:
        """Wait until the answer is stored that is on its way to *digest*, if there is one."""
        with suppress(OverBudget):
            await self._storing.written(digest, Budget(self._patience_s))

    def breakers(self) -> dict[str, str]:
        """Return what state the guard of each dependency is in."""
        return self._health.states()

    async def aclose(self, *, wait_s: float) -> None:
        """Wait for what is under way, at most *wait_s* seconds, then cancel it."""
        until_s = asyncio.get_running_loop().time() + wait_s
        try:
            # What ends begins other things: a call, to store its answer.
            while (waited_for := [*self._under_way(), *self._calls]) and wait_s > 0:
                await asyncio.wait(waited_for, timeout=wait_s)
                wait_s = until_s - asyncio.get_running_loop().time()
        finally:
            # Whoever has no patience even for that leaves nothing behind either.
            self._background.close()
            while under_way := self._under_way():
                await finish(under_way, wait_s=0)
            await self._leases.aclose()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Have whoever closes the cache wait for the call in here, whose task is its caller's."""
        ended = asyncio.get_running_loop().create_future()
        self._calls.add(ended)
        try:
            yield
        finally:
            self._calls.discard(ended)
            ended.set_result(None)

    def _refuse_closed(self) -> None:
        if self._background.is_closed:
            raise CacheClosed(UNDER_WAY)

    def _under_way(self) -> list[asyncio.Task[Any]]:
        return [*self._flights.tasks, *self._streams.beginning, *self._background.tasks]

    def _left(self, started_s: float) -> Budget:
        return Budget(self._budget_s - (now_s() - started_s))
