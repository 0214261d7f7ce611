"""Streams of the model: handed on as they arrive, shared by all who ask, stored at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from llm_cache._background import Background
from llm_cache._budget import Budget
from llm_cache._call import Call
from llm_cache._core.policy import Refusal
from llm_cache._core.stream import Accumulator
from llm_cache._ends import Answered, Bypassed, Fresh, Streaming, Turn, as_follower
from llm_cache._flight import SharedStream, SingleFlight, observe
from llm_cache._redis.exact import Lookup
from llm_cache._stale import StaleAnswers
from llm_cache._steps import Steps
from llm_cache.errors import CacheClosed
from llm_cache.events import Event, StoreSkipped

OpenStream = Callable[[], Awaitable[Any]]
"""Asks the model for a stream of the SDK's chunks."""


class Streams:
    """The streams that are under way, and how they begin and end."""

    def __init__(
        self,
        steps: Steps,
        stale: StaleAnswers,
        background: Background,
        *,
        tell: Callable[[Event], None],
    ) -> None:
        self._steps = steps
        self._stale = stale
        self._background = background
        self._tell = tell
        self._beginnings: SingleFlight[Answered | Streaming] = SingleFlight(_give_up_unheard)
        self._live: dict[Hashable, Streaming] = {}

    @property
    def beginning(self) -> list[asyncio.Task[Answered | Streaming]]:
        """What is about to begin."""
        return self._beginnings.tasks

    async def shared(
        self, call: Call, found: Lookup, begin: Callable[..., Any]
    ) -> Answered | Streaming | None:
        """Return the stream that callers of one request share, or what answers them all.

        `None` where its leader had come and gone before this follower woke up.
        """
        flight = (*call.flight, found.epoch)
        live = self._live.get(flight)
        if live is not None and live.chunks.join():
            return replace(live, is_shared=True)
        begun, is_shared = await self._beginnings.run(flight, begin, patience_s=call.terms.wait_s)
        if isinstance(begun, Answered):
            return as_follower(begun) if is_shared else begun.own()
        return replace(begun, is_shared=is_shared) if begun.chunks.join() else None

    async def begin(
        self,
        call: Call,
        open_stream: OpenStream,
        found: Lookup | Bypassed,
        budget: Budget,
        *,
        choices: int,
        wants_usage: bool,
        may_wait: bool = True,
    ) -> Answered | Streaming:
        """Return the semantic hit, or the stream that has begun."""
        with ExitStack() as held:
            turn = held.enter_context(self._steps.turn(found))
            end = await self._steps.before_model(call, turn, budget, may_wait=may_wait)
            if end is not None:
                return end
            self._steps.refuse_without_model(call)
            try:
                source = await open_stream()
            except Exception as error:
                if (stale := await self._stale.instead_of(error, call, found)) is None:
                    raise
                return stale
            held.pop_all()  # from here on the pump holds the turn

        is_shared = call.terms.is_shared and isinstance(found, Lookup)
        # One that began on its own, beside another, is not the one to join.
        flight = (*call.flight, turn.epoch) if is_shared and may_wait else None

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
                return await self._steps.after_model(call, Fresh(answer), turn, budget)
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
        task = self._background.spawn(pump, name="stream")
        if flight is not None:
            self._live[flight] = streaming
        task.add_done_callback(partial(self._ended, call.terms.model, streaming, source, turn))
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
            with turn:
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

    def _ended(
        self, model: str, streaming: Streaming, source: Any, turn: Turn, task: asyncio.Task[None]
    ) -> None:
        if task.cancelled():
            self._tell(StoreSkipped(Refusal.ABANDONED, model))
        if not streaming.end.done():
            # Cancelled before its first step, so that the pump has tidied up nothing.
            error = CacheClosed("the stream was given up")
            streaming.end.set_exception(error)
            streaming.chunks.end(error)
            with turn:
                self._background.spawn(_close(source), name="dispose")


def _as_json(chunk: Any) -> Any:
    """Return *chunk* as JSON; what the SDK could make nothing of comes through as it is."""
    dump = getattr(chunk, "model_dump", None)
    return chunk if dump is None else dump(exclude_unset=True, warnings=False)


def _is_complete(heard: Accumulator, *, choices: int, wants_usage: bool) -> bool:
    return heard.completion(choices=choices, usage_expected=wants_usage) is not None


def _give_up_unheard(begun: Answered | Streaming) -> None:
    if isinstance(begun, Streaming):
        begun.chunks.give_up_unheard()


async def _close(source: Any) -> None:
    await source.close()


def _future() -> asyncio.Future[Answered]:
    future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
    future.add_done_callback(observe)
    return future
