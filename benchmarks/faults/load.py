"""Callers whose every answer is checked, at a rate that leaves the processor time to spare.

200 callers ask, wait for the answer, think, and ask again. Callers that did not think would keep
the event loop busy all the time, and what they waited for would be each other: the time that the
cache adds could not be told from the time that this process lacks.

Prompts differ in a number, a town and a thing, so that to a vector they are nearly the same: an
answer given to the wrong one is likely, if it is possible at all, and it is found out, because the
upstream's answer is a function of the whole conversation.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.histograms import Latencies
from benchmarks.load.drive import watch_lag
from llm_cache import LLMCache
from llm_cache.testing import expected_answer

MODEL = "gpt-4o-mini"
SYSTEM = "You answer customers of a parcel service."
HANG_S = 30.0
"""A call that takes longer has failed."""
_TOWNS = ("Berlin", "Lisbon", "Oslo", "Porto", "Ghent", "Turin", "Malmo", "Graz", "Cork", "Riga")
_THINGS = ("parcel", "letter", "crate", "pallet", "envelope", "suitcase", "bicycle", "carpet")
_OPENINGS = ("please", "now", "quickly", "again", "politely", "then", "briefly", "here", "today")
_TWINS_EVERY_S = 0.4


@dataclass(slots=True)
class Asked:
    """One call, as the caller saw it. Seconds by `time.perf_counter`."""

    kind: str
    """`known`, `rephrased`, `new` or `twin` (which others ask at the same time)."""
    start_s: float
    called_s: float | None = None
    """When its request went out to the model, if it did."""
    answered_s: float | None = None
    """When the head of the model's answer arrived."""
    end_s: float = 0.0
    status: str = ""
    reason: str | None = None
    is_shared: bool = False
    error: str | None = None
    is_wrong: bool = False
    seen: str | None = None
    """What was wrong about the answer."""

    @property
    def added_before_s(self) -> float | None:
        """What the cache added before the model was called; `None` where it was not."""
        return None if self.called_s is None else self.called_s - self.start_s

    @property
    def is_hit(self) -> bool:
        """Whether the cache answered."""
        return self.status in {"exact", "semantic", "stale"}


@dataclass(frozen=True, slots=True)
class Question:
    """Something to be asked, in one of its wordings."""

    kind: str
    prompt: str
    wordings: list[str]
    """All that it was ever asked in, which any of the others may be answered from."""

    def accepts(self, text: str) -> bool:
        """Tell whether *text* is what the model says to this question in some wording."""
        return text == right_answer(self.prompt) or text in map(right_answer, self.wordings)


_current: ContextVar[Asked | None] = ContextVar("asked", default=None)
"""The call under way. The tasks that a call starts inherit it, and so do the hooks below."""


def client(base_url: str) -> Any:
    """Return an SDK client that notes when requests go out and answers come; close it."""
    import openai

    async def goes_out(_request: Any) -> None:
        asked = _current.get()
        if asked is not None and asked.called_s is None:
            asked.called_s = time.perf_counter()

    async def comes_back(_response: Any) -> None:
        asked = _current.get()
        if asked is not None:
            asked.answered_s = time.perf_counter()

    http = openai.DefaultAsyncHttpxClient(
        trust_env=False,
        verify=False,
        event_hooks={"request": [goes_out], "response": [comes_back]},
    )
    return openai.AsyncOpenAI(base_url=base_url, api_key="test", max_retries=0, http_client=http)


class Prompts:
    """Prompts, each with the answers that are right for it."""

    def __init__(self, *, known: int, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - workloads, not secrets
        self._number = 100_000
        self.known = [replace(self.new(), kind="known") for _ in range(known)]
        self._began_s = time.perf_counter()

    def new(self) -> Question:
        """Return a question that nobody has asked before."""
        self._number += 1
        thing, town = self._random.choice(_THINGS), self._random.choice(_TOWNS)
        return _question("new", f"tell me where {thing} {self._number} is on its way to {town}")

    def rephrased(self, question: Question) -> Question:
        """Return *question* in words that are hardly ever the same twice."""
        openings = " ".join(self._random.sample(_OPENINGS, 2))
        prompt = f"{openings} {question.wordings[0]}"
        question.wordings.append(prompt)
        return Question("rephrased", prompt, question.wordings)

    def draw(self) -> Question:
        """Return what is asked next."""
        share = self._random.random()
        if share < 0.55:
            return self._random.choice(self.known)
        if share < 0.65:
            return self.rephrased(self._random.choice(self.known))
        if share < 0.75:
            # Whoever draws a twin within the same moment asks the same.
            moment = int((time.perf_counter() - self._began_s) / _TWINS_EVERY_S)
            return _question(
                "twin", f"tell me where caravan {900_000 + moment} is on its way to Vienna"
            )
        return self.new()

    def streams(self) -> bool:
        """Tell whether the next call is to be a stream."""
        return self._random.random() < 0.1

    def thinks_s(self, mean_s: float) -> float:
        """Return how long a caller thinks."""
        return self._random.uniform(0.0, 2 * mean_s)


def _question(kind: str, prompt: str) -> Question:
    return Question(kind, prompt, [prompt])


def right_answer(prompt: str) -> str:
    """Return what the upstream says to *prompt*."""
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
    return expected_answer({"model": MODEL, "messages": turns})


async def ask(cache: LLMCache, question: Question, *, stream: bool = False) -> Asked:
    """Make one call, check its answer, and return how it went; never raises."""
    asked = Asked(question.kind, time.perf_counter())
    _current.set(asked)
    try:
        async with asyncio.timeout(HANG_S):
            text = await _text(cache, question.prompt, asked, stream=stream)
        if not question.accepts(text):
            asked.is_wrong = True
            asked.seen = f"{question.kind}, {asked.status}: {question.prompt!r} got {text!r}"
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller has no answer
        cause = "" if error.__cause__ is None else f" from {type(error.__cause__).__name__}"
        asked.error = f"{type(error).__name__}{cause}: {error}"[:200]
    asked.end_s = time.perf_counter()
    return asked


async def _text(cache: LLMCache, prompt: str, asked: Asked, *, stream: bool) -> str:
    if stream:
        pieces = await cache.chat(prompt, model=MODEL, system=SYSTEM, stream=True)
        text = "".join([piece async for piece in pieces])
        info = pieces.info
    else:
        info = await cache.chat(prompt, model=MODEL, system=SYSTEM)
        text = info.text
    asked.status, asked.reason, asked.is_shared = info.status, info.reason, info.shared
    return text


@dataclass
class Load:
    """Callers over some caches, until `stop`.

    Args:
        caches: Asked in turn; a twin of a call on one may be under way on another.
        prompts: What is asked.
        callers: How many.
        think_s: Mean seconds between an answer and the next question of a caller.
    """

    caches: Sequence[LLMCache]
    prompts: Prompts
    callers: int
    think_s: float
    calls: list[Asked] = field(default_factory=list)
    lag: dict[str, Latencies] = field(default_factory=dict)
    """By how much the event loop was late, by phase."""
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Let them ask."""
        self._tasks = [asyncio.create_task(self._caller(i)) for i in range(self.callers)]

    def phase(self, name: str) -> None:
        """Note the lag of the loop under *name* from now on."""
        if self._watch is not None:
            self._watch.cancel()
        self._watch = asyncio.create_task(watch_lag(self.lag.setdefault(name, Latencies())))

    async def stop(self) -> None:
        """Let everybody finish the call that is under way, and ask no more."""
        if self._watch is not None:
            self._watch.cancel()
        for task in self._tasks:
            task.cancel()  # those who think; whoever asks is shielded
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _caller(self, number: int) -> None:
        cache = self.caches[number % len(self.caches)]
        while True:
            await asyncio.sleep(self.prompts.thinks_s(self.think_s))
            question, stream = self.prompts.draw(), self.prompts.streams()
            call = asyncio.create_task(ask(cache, question, stream=stream))
            try:
                await asyncio.shield(call)
            finally:
                self.calls.append(await call)


def statuses(calls: Sequence[Asked]) -> Counter[str]:
    """Return how calls ended; a bypass with its reason."""
    return Counter(
        f"{call.status}:{call.reason}" if call.status == "bypass" else call.status
        for call in calls
        if call.error is None
    )


def percentile_ms(values_s: Sequence[float], percent: float) -> float | None:
    """Return the value in ms that *percent* of *values_s* do not exceed; `None` without any."""
    if not values_s:
        return None
    ordered = sorted(values_s)
    return 1000 * ordered[min(len(ordered) - 1, int(percent / 100 * len(ordered)))]
