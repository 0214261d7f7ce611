"""Streams of requests to replay, each with what tells whether an answer is the right one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a stream."""

    prompt: str
    answer_id: str | None = None
    """Requests of one id may share an answer; `None` where nobody knows."""
    kind: str = ""
    """What it is to the stream so far: `new`, `exact`, `surface`, `paraphrase`, `near_miss`."""
    at_s: float | None = None
    """When it came, in seconds of whatever clock the log has."""
    tenant: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """A stream of requests that can be read any number of times."""

    name: str
    asks: Callable[[], Iterator[Ask]]
    """Reads the stream from its beginning. Large logs never are in memory as a whole."""
    source: str
    """Where it comes from, with its licence or its seed."""
    count: int | None = None
    """How many requests, where that is known beforehand."""
    note: str = ""
    """What to know when reading its figures."""
    is_pairs: bool = False
    """Whether it is pairs, each by itself: the first is stored, the second is the question."""

    def take(self, limit: int | None) -> Workload:
        """Return this workload, cut after *limit* requests."""
        if limit is None or (self.count is not None and self.count <= limit):
            return self
        from dataclasses import replace
        from itertools import islice

        asks = self.asks
        return replace(self, asks=lambda: islice(asks(), limit), count=limit)


def listed(
    name: str, asks: Sequence[Ask], *, source: str, note: str = "", is_pairs: bool = False
) -> Workload:
    """Return the workload of *asks* that are in memory."""
    return Workload(name, lambda: iter(asks), source, len(asks), note, is_pairs)
