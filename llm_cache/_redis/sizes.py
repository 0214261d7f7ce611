"""How large an index is, and which of its scopes are small: what the plan of a search goes by."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from llm_cache._redis.connection import Command
from llm_cache._redis.replies import mapping
from llm_cache.errors import StoreUnavailable

_LEAST_SMALL = 500
_ASSUMED = 100_000
"""Entries of an index whose size is being asked at the same time as that of a scope."""
_LEAST_EF, _MOST_EF = 20, 400
_AGE_S = 60.0
_SCOPES_KEPT = 50_000


class Sizes:
    """What is known of the sizes of an index and of its scopes. Bounded.

    What has to be asked is the name of a scope, or `None` for the index. In a small index every
    scope is small.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: int | None = None
        self._is_all_small = False
        self.ef_runtime = _MOST_EF
        """How many candidates a search of the graph keeps in view."""
        self._asked_s = 0.0
        self._scopes: OrderedDict[str, tuple[bool, float]] = OrderedDict()

    def is_small(self, scope: str) -> bool:
        """Tell whether *scope* had few entries; one that is not known has none yet."""
        return self._is_all_small or self._scopes.get(scope, (True, 0.0))[0]

    def unknown(self, scope: str) -> Sequence[str | None]:
        """Return what has to be asked before *scope* is searched."""
        if self._entries is None:
            return (None, scope)
        return () if self._is_all_small or scope in self._scopes else (scope,)

    def due(self, scope: str) -> Sequence[str | None]:
        """Return what was asked long ago. Whoever is told is the one to ask it again."""
        now_s = self._clock()
        questions: list[str | None] = []
        if now_s - self._asked_s > _AGE_S:
            self._asked_s = now_s
            questions.append(None)
        is_small, asked_s = self._scopes.get(scope, (False, now_s))
        if now_s - asked_s > _AGE_S:
            self._scopes[scope] = (is_small, now_s)
            questions.append(scope)
        return questions

    def command(self, question: str | None, index: str) -> Command:
        """Return what answers *question*; its price is bounded."""
        if question is None:
            return ("FT.INFO", index)
        # Rows are counted lazily: the server stops when it has skipped this many.
        entries = _ASSUMED if self._entries is None else self._entries
        limit, query = small_scope(entries), f"@scope:{{{question}}}"
        return ("FT.AGGREGATE", index, query, "LIMIT", limit, 1, "DIALECT", 2)

    def learn(self, question: str | None, reply: Any) -> None:
        """Remember what Redis has replied to *question*.

        Raises:
            StoreUnavailable: it is no reply to that.
        """
        now_s = self._clock()
        if question is None:
            entries = entries_of(reply)
            self._is_all_small = entries <= small_scope(entries)
            self.ef_runtime = ef_runtime(entries)
            self._entries, self._asked_s = entries, now_s
            return
        # Of many entries, one comes after those that are skipped.
        self._scopes[question] = (isinstance(reply, list) and len(reply) == 1, now_s)
        self._scopes.move_to_end(question)
        if len(self._scopes) > _SCOPES_KEPT:
            self._scopes.popitem(last=False)


def small_scope(entries: int) -> int:
    """Return up to how many entries a scope is searched exactly in an index of so many *entries*.

    That is where the two plans cross (`python -m benchmarks micro plans`): an exact search costs
    in proportion to the scope, one through the graph the more the larger the index is.
    """
    return max(8 * math.isqrt(entries), _LEAST_SMALL)


def ef_runtime(entries: int) -> int:
    """Return how many candidates a search keeps in view in a graph of so many *entries*.

    Fewer are faster and miss more of what is near. With a hundred times the entries six times the
    candidates keep the very nearest in 99 of 100 searches, which `python -m benchmarks micro
    growth` has found for 10,000 to a million: 20 to 126 candidates.
    """
    return min(max(round(math.pow(entries, 0.4) / 2), _LEAST_EF), _MOST_EF)


def entries_of(info: Any) -> int:
    """Return how many entries the index has that the reply to `FT.INFO` describes.

    Raises:
        StoreUnavailable: it is no such reply.
    """
    try:
        entries = int(mapping(info)[b"num_docs"])
    except (TypeError, ValueError, LookupError) as error:
        raise _no_info() from error
    if entries < 0:
        raise _no_info()
    return entries


def _no_info() -> StoreUnavailable:
    return StoreUnavailable("FT.INFO was answered with something else")
