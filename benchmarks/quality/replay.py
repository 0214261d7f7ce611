"""Replays a stream, one request after another, from an empty cache, and counts how it is answered.

The model is a scripted one whose answer says which question it answers, for which tenant. So every
hit tells by itself whether it is right: nothing about the cache is believed.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.embedding import MeteredEmbedder
from benchmarks.session import Advance, Session, forget, used_memory_bytes
from benchmarks.workloads import Ask, Workload
from llm_cache import CacheConfig, LLMCache
from llm_cache.events import DependencyFailed, Event
from llm_cache.testing import Answer, ScriptedUpstream

MakeCache = Callable[..., LLMCache]
HITS = ("exact", "semantic", "stale")
ANSWER_TOKENS = 300
"""Length of an answer whose request does not say: what is saved depends on it."""
_LOST_AFTER = 5
"""Bypasses in a row after which Redis is taken for gone."""
_BUCKETS = 200
_TRUTH_LIMIT = 20_000
_FLOAT16_TOLERANCE = 0.001


@dataclass(frozen=True, slots=True)
class Policy:
    """Settings whose figures are wanted."""

    name: str
    similarity_threshold: float | None = None
    """`None` for the embedding model's."""
    guards: bool = True
    semantic: bool = True
    ttl_s: float | None = None
    """Age at which an answer is no longer taken, by the clock of the log; `None` for none."""


@dataclass(slots=True)
class Tally:
    """What a replay counts."""

    requests: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    labelled: int = 0
    """Requests that say which answer is theirs."""
    could_hit: int = 0
    """Labelled requests whose answer had been given before."""
    wrong: Counter[str] = field(default_factory=Counter)
    """Hits with the answer to another question, by status."""
    right: Counter[str] = field(default_factory=Counter)
    foreign: int = 0
    """Hits with an answer that was made for another tenant."""
    unknown: int = 0
    """Hits with an answer that no model ever gave."""
    answers: dict[int, list[int]] = field(default_factory=dict)
    """Of each answer that was served again: how often, and how often wrongly."""
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    """Failures of Redis or the embedder that the cache worked around, by operation."""
    timeline: list[list[int]] = field(default_factory=list)
    """Requests, exact, semantic and wrong hits of one stretch after another."""
    bucket_size: int = 1
    recall_sought: int = 0
    recall_found: int = 0
    stopped: str | None = None
    """Why it ended before the end of the stream."""

    def add(self, ask: Ask, status: str, served: _Served | None, *, could_hit: bool) -> None:
        """Count one answered request; *served* is what it got if it was a hit."""
        self.requests += 1
        self.statuses[status] += 1
        is_wrong = False
        if ask.answer_id is not None:
            self.labelled += 1
            self.could_hit += could_hit
        if served is not None:
            is_wrong = self._judge(ask, status, served)
        if ask.kind:
            kind = self.kinds.setdefault(ask.kind, Counter())
            kind[status] += 1
            kind["wrong"] += is_wrong
        self._add_to_timeline(status, is_wrong)

    def _judge(self, ask: Ask, status: str, served: _Served) -> bool:
        self.unknown += served.call is None
        self.foreign += served.call is not None and served.tenant != ask.tenant
        is_wrong = served.tenant != ask.tenant or served.call is None
        if ask.answer_id is not None:
            is_wrong = is_wrong or served.answer_id != ask.answer_id
        if ask.answer_id is not None or is_wrong:
            (self.wrong if is_wrong else self.right)[status] += 1
        counts = self.answers.setdefault(-1 if served.call is None else served.call, [0, 0])
        counts[0] += 1
        counts[1] += is_wrong
        return is_wrong

    def _add_to_timeline(self, status: str, is_wrong: bool) -> None:  # noqa: FBT001
        if (self.requests - 1) % self.bucket_size == 0:
            if len(self.timeline) == _BUCKETS:  # a stream of any length fits
                self.bucket_size *= 2
                pairs = zip(self.timeline[::2], self.timeline[1::2], strict=True)
                self.timeline = [[a + b for a, b in zip(*pair, strict=True)] for pair in pairs]
            self.timeline.append([0, 0, 0, 0])
        bucket = self.timeline[-1]
        bucket[0] += 1
        bucket[1] += status in ("exact", "stale")
        bucket[2] += status == "semantic"
        bucket[3] += is_wrong


@dataclass(frozen=True, slots=True)
class _Served:
    """What an answer says of itself."""

    call: int | None
    """The call of the model that made it; `None` if it is none of the model's."""
    answer_id: str | None = None
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a replay."""

    tally: Tally
    model_calls: int
    embedder_calls: int
    embedded_texts: int
    tokens_saved: tuple[int, int]
    """Of prompts and of answers, as the cache counts them."""
    entries: int | None
    memory_bytes: int | None
    """By which the use of Redis grew."""


class Replayer:
    """Replays any number of streams through one embedder and one model.

    Args:
        session: Around it.
        embedder: Remembers vectors, so that the same stream is embedded once.
        make_cache: What is being measured: `LLMCache`, or one that is broken on purpose.
    """

    def __init__(
        self, session: Session, embedder: MeteredEmbedder, *, make_cache: MakeCache = LLMCache
    ) -> None:
        self.session = session
        self.embedder = embedder
        self.make_cache = make_cache
        self._runs = 0

    async def run(
        self,
        workload: Workload,
        policy: Policy,
        *,
        advance: Advance = lambda _=1: None,
        measure_memory: bool = False,
    ) -> Outcome:
        """Replay *workload* under *policy*.

        A Redis that goes away, or Ctrl-C, ends it early: `tally.stopped` says so, and what was
        counted stands.
        """
        self._runs += 1
        namespace = self.session.namespace(f"replay{self._runs}")
        await forget(self.session.redis_url, namespace)
        async with ScriptedUpstream(record=False) as upstream:
            run = _Run(self, policy, workload, upstream, namespace)
            try:
                return await run.walk(advance, measure_memory=measure_memory)
            finally:
                await _forget_if_there(self.session.redis_url, namespace)


class _Run:
    """One replay under way."""

    def __init__(
        self,
        replayer: Replayer,
        policy: Policy,
        workload: Workload,
        upstream: ScriptedUpstream,
        namespace: str,
    ) -> None:
        self._session = replayer.session
        self._url = replayer.session.redis_url
        self._embedder = replayer.embedder
        self._policy = policy
        self._workload = workload
        self._upstream = upstream
        self._tally = Tally()
        self._now_s = 1_750_000_000.0
        self._asking = Ask("")
        self._seen: set[tuple[str | None, str]] = set()
        self._truth = _SearchTruth(self._embedder, policy)
        self._bypassed = 0
        upstream.default = self._answer
        config = CacheConfig(
            namespace=namespace,
            similarity_threshold=policy.similarity_threshold,
            guards=policy.guards,
            semantic=policy.semantic,
            # What is counted here is no latency, and a busy machine shall not change it.
            redis_timeout_s=10.0,
            added_latency_budget_s=10.0,
            embed_timeout_s=30.0,
        )
        self._cache = replayer.make_cache(
            self._url,
            client=upstream.client(),
            embedder=self._embedder,
            config=config,
            hooks=[self._hear],
            clock=lambda: self._now_s,
        )

    async def walk(self, advance: Advance, *, measure_memory: bool) -> Outcome:
        """Ask everything."""
        calls, texts = self._embedder.calls, self._embedder.texts
        saved, entries, memory = (0, 0), None, None
        async with self._cache as cache:
            before = await used_memory_bytes(self._url) if measure_memory else 0
            for ask in self._workload.asks():
                await self._ask(ask)
                advance()
                if self._bypassed >= _LOST_AFTER:
                    self._tally.stopped = (
                        f"Redis stopped answering after {self._tally.requests - _LOST_AFTER:,}"
                        " requests; the figures are those of what came before"
                    )
                    break
                if self._session.stop.is_set():
                    self._tally.stopped = f"stopped after {self._tally.requests:,} requests"
                    break
            if self._bypassed < _LOST_AFTER:
                stats = await cache.server_stats()
                saved = stats["prompt_tokens_saved"], stats["completion_tokens_saved"]
                entries = stats["entries"]
                if measure_memory:
                    memory = await used_memory_bytes(self._url) - before
        return Outcome(
            self._tally,
            self._upstream.calls,
            self._embedder.calls - calls,
            self._embedder.texts - texts,
            saved,
            entries,
            memory,
        )

    async def _ask(self, ask: Ask) -> None:
        self._asking = ask
        if ask.at_s is not None:
            self._now_s = max(self._now_s, ask.at_s) if self._tally.requests else ask.at_s
        options: dict[str, Any] = {}
        if self._policy.ttl_s is not None:
            # By the clock of the log, which Redis does not know: for a stream, an age limit and
            # a TTL answer the same.
            options["cache_control"] = f"max-age={max(1, round(self._policy.ttl_s))}"
        try:
            reply = await self._cache.chat(ask.prompt, tenant=ask.tenant, **options)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a figure
            self._tally.errors[type(error).__name__] += 1
            return
        status = str(reply.status)
        self._bypassed = self._bypassed + 1 if status == "bypass" else 0
        known = ask.answer_id is not None and (ask.tenant, ask.answer_id) in self._seen
        if ask.answer_id is not None:
            self._seen.add((ask.tenant, ask.answer_id))
        served = _read(reply.text) if status in HITS else None
        self._tally.add(ask, status, served, could_hit=known)
        expected = await self._truth.expected(ask, status)
        if expected is not None:
            self._tally.recall_sought += expected
            self._tally.recall_found += expected and status == "semantic"

    def _answer(self, body: dict[str, Any]) -> Answer:
        """Answer as the model: say for whom this is."""
        ask = self._asking
        text = json.dumps([self._upstream.calls, ask.answer_id, ask.tenant])
        prompt = (
            len(str(body["messages"])) // 4 if ask.prompt_tokens is None else ask.prompt_tokens
        )
        spoken = ANSWER_TOKENS if ask.completion_tokens is None else ask.completion_tokens
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": spoken,
            "total_tokens": prompt + spoken,
        }
        return Answer(text=text, usage=usage)

    def _hear(self, event: Event) -> None:
        if isinstance(event, DependencyFailed):
            self._tally.failures[f"{event.dependency}: {event.operation}"] += 1


def _read(text: str) -> _Served:
    try:
        call, answer_id, tenant = json.loads(text)
    except (ValueError, TypeError):
        return _Served(None)
    return _Served(call, answer_id, tenant)


async def _forget_if_there(url: str, namespace: str) -> None:
    from redis.exceptions import RedisError

    with contextlib.suppress(RedisError, OSError):
        await forget(url, namespace)


class _SearchTruth:
    """Knows by brute force whether there is a neighbour above the threshold.

    Only without guards: from outside one cannot tell what a guard would have said.
    """

    def __init__(self, embedder: MeteredEmbedder, policy: Policy) -> None:
        self._embedder = embedder
        self._is_on = policy.semantic and not policy.guards and policy.ttl_s is None
        threshold = policy.similarity_threshold
        self._threshold = embedder.similarity_threshold if threshold is None else threshold
        self._stored: dict[str | None, _Rows] = {}
        self._count = 0

    async def expected(self, ask: Ask, status: str) -> bool | None:
        """Tell whether a semantic hit was due; `None` where that is not known, or is too close."""
        if not self._is_on or status not in ("semantic", "miss"):
            return None
        blind_spots = getattr(self._embedder, "blind_spots", None)
        if blind_spots is not None and blind_spots(ask.prompt) != "":
            return None
        (vector,) = await self._embedder.vectors([ask.prompt])
        rows = self._stored.setdefault(ask.tenant, _Rows(len(vector)))
        best = float((rows.used @ vector).max(initial=-1.0))
        if status == "miss":
            rows.append(vector)
            self._count += 1
            self._is_on = self._count < _TRUTH_LIMIT
        return None if abs(best - self._threshold) < _FLOAT16_TOLERANCE else best > self._threshold


class _Rows:
    """Vectors one below the other, with room to grow."""

    def __init__(self, dimensions: int) -> None:
        self._rows = np.empty((4, dimensions), np.float32)
        self._count = 0

    @property
    def used(self) -> np.ndarray:
        """The vectors so far."""
        return self._rows[: self._count]

    def append(self, vector: np.ndarray) -> None:
        """Add one."""
        if self._count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[self._count] = vector
        self._count += 1
