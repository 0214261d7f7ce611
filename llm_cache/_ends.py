"""How calls end, and what is passed on while they are under way."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass, replace
from typing import Any, Self

from llm_cache._core.codec import Sealed
from llm_cache._core.counts import Tokens, tokens_of
from llm_cache._core.types import CacheStatus, Json
from llm_cache._flight import SharedStream
from llm_cache._placing import Placing
from llm_cache._redis.lease import Landing, Lease, Leases
from llm_cache._semantic import Finding, Place, SemanticHit


@dataclass(frozen=True, slots=True)
class Fresh:
    """What the model has just answered."""

    answer: Json
    original: Any = None
    """The SDK's own object, for the caller who asked for it."""

    def own(self) -> Fresh:
        """Return a copy whose answer may be changed without changing that of this one."""
        return replace(self, answer=copy.deepcopy(self.answer))


@dataclass(slots=True)
class Answered:
    """The end of a call."""

    status: CacheStatus
    source: Fresh | Sealed
    """What has the answer; one from Redis is read when somebody asks for it."""
    digest: str | None = None
    """Under which the answer is stored, if it is. For an alias, its origin's."""
    created_s: float | None = None
    similarity: float | None = None
    is_alias: bool = False
    is_shared: bool = False
    reason: str | None = None
    """Why the call was bypassed, or why its answer is not stored."""
    original: Any = None

    def own(self) -> Answered:
        """Return this end as one caller is given it, who may change his answer."""
        return replace(self, source=self.source.own())

    def tokens(self) -> Tokens:
        """Return the tokens that the model took for this answer."""
        source = self.source
        return source.tokens() if isinstance(source, Sealed) else tokens_of(source.answer)


@dataclass(frozen=True, slots=True)
class Bypassed:
    """That the exact layer was not asked, or did not answer: the model is asked without it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Streaming:
    """A stream that is under way."""

    chunks: SharedStream[Any]
    end: asyncio.Future[Answered]
    """Comes when the stream has ended and its answer is stored, or not."""
    status: CacheStatus
    reason: str | None
    response: Any
    """The SDK's HTTP response."""
    is_shared: bool = False

    def joined(self) -> Streaming:
        """Return this stream, which its only listener has joined."""
        self.chunks.join()
        return self


@dataclass(slots=True)
class Turn:
    """The right to make an answer. Left without an answer, it tells those who wait for one.

    Leaving it waits for nothing, so that whoever is cancelled leaves nothing behind.
    """

    epoch: str | None
    """What the answer is stamped with; `None` where it is not to be stored."""
    leases: Leases
    lease: Lease | None = None
    """`None` where nobody waits: single-flight is off, or Redis fails."""
    reason: str | None = None
    """Why the cache takes no full part."""
    is_told: bool = False
    """Whether an event has told of what failed: one is enough for a call."""
    is_cut_off: bool = False
    """Whether Redis gave no answer at all, so that there is no use in asking more of it."""
    placing: Placing | None = None
    """Finds out where the prompt stands."""
    may_promote: bool = False
    """Whether a semantic hit may become the answer of this request: it has none of its own."""
    replaces: bool = False
    """Whether there is something dead in its place."""
    open_finding: Finding | None = None
    """What is looked at once more when the model has answered."""

    @property
    def status(self) -> CacheStatus:
        """What the call ends with if the model is asked."""
        return CacheStatus.MISS if self.reason is None else CacheStatus.BYPASS

    @property
    def place(self) -> Place | None:
        """Where the prompt stands, if that is known by now."""
        return None if self.placing is None else self.placing.place

    def land(self, outcome: Landing = Landing.LANDED) -> None:
        """Tell those who wait how it ended."""
        lease, self.lease = self.lease, None
        if lease is not None:
            self.leases.let_go(lease, outcome)

    def hand_over(self) -> tuple[Lease | None, Placing | None]:
        """Return what whoever stores the answer ends from now on."""
        handed = self.lease, self.placing
        self.lease = self.placing = None
        return handed

    def __enter__(self) -> Self:
        """Return the turn itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Tell those who wait that there is no answer, unless there is one."""
        if self.placing is not None:
            self.placing.cancel()
        self.land(Landing.FAILED)


def as_follower(answered: Answered) -> Answered:
    """Return *answered* as one who waited for it is told."""
    # The SDK's object stays with the caller who asked the model.
    return replace(answered.own(), is_shared=True, original=None)


def exact_end(digest: str, entry: Sealed) -> Answered:
    """Return the end of a call that *entry*, stored under *digest*, answers."""
    if not entry.is_alias:
        return Answered(CacheStatus.EXACT, entry, digest, entry.created_s)
    alias = entry.about
    return Answered(
        CacheStatus.EXACT,
        entry,
        alias.origin,
        entry.created_s,
        similarity=alias.similarity,
        is_alias=True,
    )


def semantic_end(hit: SemanticHit) -> Answered:
    """Return the end of a call that *hit* answers."""
    return Answered(
        CacheStatus.SEMANTIC,
        hit.entry,
        digest=hit.candidate.digest,
        created_s=hit.entry.created_s,
        similarity=hit.candidate.similarity,
    )
