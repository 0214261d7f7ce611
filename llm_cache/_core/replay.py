"""Requests replayed as a stream through a simulated cache: what it would have served. Pure.

The cache begins empty. A request that no policy serves goes to the model, and its answer is
stored; one that is served adds nothing, as in the real cache. So one wrong entry may be served
many times, and a policy decides what it will later have to choose from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llm_cache._core import guards
from llm_cache._core.hit_policy import NEIGHBOURS, CalibratedPolicy, Neighbourhood, features

Vectors = npt.NDArray[np.float32]

_BLOCK = 512
_KEPT = 64
"""Nearest earlier requests kept of each; where too few of them are stored, all are searched."""


@dataclass(slots=True)
class Prompts:
    """The prompts of a log: their vectors, and what the guards read in them."""

    texts: Sequence[str]
    vectors: Vectors
    """Of unit length, one row a prompt."""
    _signatures: dict[int, guards.Signature] = field(default_factory=dict)
    _comparisons: dict[tuple[int, int], guards.Comparison] = field(default_factory=dict)

    def compare(self, new: int, cached: int) -> guards.Comparison:
        """Return what the words of two of the prompts say; worked out once."""
        found = self._comparisons.get((new, cached))
        if found is None:
            found = guards.compare(self._signature(new), self._signature(cached))
            self._comparisons[new, cached] = found
        return found

    def _signature(self, prompt: int) -> guards.Signature:
        found = self._signatures.get(prompt)
        if found is None:
            found = self._signatures[prompt] = guards.analyse(self.texts[prompt])
        return found


@dataclass(frozen=True, slots=True)
class Found:
    """A request with entries near it."""

    request: int
    """Its place in the stream."""
    entry: int
    """The place of the request that stored the nearest entry."""
    around: Neighbourhood
    words: guards.Comparison
    is_right: bool
    """Whether the nearest entry holds the answer that the request needs."""
    is_novel: bool = False
    """Whether no other request of the log needs the same answer."""


Accepts = Callable[[Found], bool]


Scores = dict[tuple[int, tuple[float, ...]], float]
"""Scores by request and the similarities of what it found."""


def acceptance(policy: CalibratedPolicy, known: Scores | None = None) -> Accepts:
    """Return what *policy* lets pass; the same as its `judge`, without what that explains.

    Policies that differ in nothing but `least_score` may share what is *known*.
    """
    weighed, least = policy.weighed_guards, policy.least_score
    scores: Scores = {} if known is None else known

    def accepts(found: Found) -> bool:
        objection = found.words.objection
        if objection is not None and objection not in weighed:
            return False
        place = found.request, found.around.similarities
        score = scores.get(place)
        if score is None:
            score = scores[place] = policy.score(features(found.around, found.words))
        return score >= least

    return accepts


@dataclass(slots=True)
class Outcome:
    """What was served of the requests that count."""

    requests: int = 0
    hits: int = 0
    wrong_by_entry: Counter[int] = field(default_factory=Counter)

    @property
    def wrong(self) -> int:
        """How many hits were wrong."""
        return self.wrong_by_entry.total()


class Stream:
    """Requests in the order in which they came."""

    def __init__(self, prompts: Prompts, answers: Sequence[str], order: Sequence[int]) -> None:
        self._prompts = prompts
        self._order = list(order)
        self._answers = [answers[row] for row in order]
        self._vectors = prompts.vectors[self._order]
        self._nearest, self._similarities = _nearest_earlier(self._vectors)
        counts = Counter(self._answers)
        self._is_novel = [counts[answer] == 1 for answer in self._answers]

    def __len__(self) -> int:
        return len(self._order)

    def found(self, *, until: int) -> list[Found]:
        """Return what each of the requests *until* there finds when all before it are stored."""
        stored = np.ones(len(self), bool)
        found = (self._find(at, stored) for at in range(until))
        return [one for one in found if one is not None]

    def novel(self, *, since: int) -> list[Found]:
        """Return what the requests *since* there that need an answer of their own find.

        All other requests of the stream are stored, the later ones too: every hit is wrong, and a
        cache that holds as much as it ever will is where there is most to be wrong with.
        """
        return [self._find_anywhere(at) for at in range(since, len(self)) if self._is_novel[at]]

    def replay(self, accepts: Accepts, *, count_from: int = 0) -> Outcome:
        """Replay the stream through an empty cache that serves what *accepts* lets pass.

        What happens to the requests before *count_from* fills the cache and is not counted.
        """
        stored = np.zeros(len(self), bool)
        outcome = Outcome()
        for at in range(len(self)):
            found = self._find(at, stored)
            is_hit = found is not None and accepts(found)
            stored[at] = not is_hit
            if at >= count_from:
                _count(outcome, found if is_hit else None)
        return outcome

    def _find_anywhere(self, at: int) -> Found:
        near = self._vectors @ self._vectors[at]
        near[at] = -np.inf
        best = np.argsort(-near, kind="stable")[: min(NEIGHBOURS, len(self) - 1)]
        return self._describe(at, best.tolist(), near[best].tolist())

    def _find(self, at: int, stored: npt.NDArray[np.bool_]) -> Found | None:
        places, similarities = self._nearest_stored(at, stored)
        return self._describe(at, places, similarities) if places else None

    def _describe(self, at: int, places: list[int], similarities: list[float]) -> Found:
        groups = [self._answers[place] for place in places]
        return Found(
            request=at,
            entry=places[0],
            around=Neighbourhood(tuple(similarities), tuple(groups)),
            words=self._prompts.compare(self._order[at], self._order[places[0]]),
            is_right=groups[0] == self._answers[at],
            is_novel=self._is_novel[at],
        )

    def _nearest_stored(
        self, at: int, stored: npt.NDArray[np.bool_]
    ) -> tuple[list[int], list[float]]:
        kept = self._nearest[at]
        chosen = np.flatnonzero(stored[kept])[:NEIGHBOURS]
        if len(chosen) == NEIGHBOURS or len(kept) == at:
            places = kept[chosen]
            return places.tolist(), self._similarities[at][chosen].tolist()
        earlier = np.flatnonzero(stored[:at])
        near = self._vectors[earlier] @ self._vectors[at]
        best = np.argsort(-near, kind="stable")[:NEIGHBOURS]
        return earlier[best].tolist(), near[best].tolist()


def _count(outcome: Outcome, hit: Found | None) -> None:
    outcome.requests += 1
    if hit is not None:
        outcome.hits += 1
        if not hit.is_right:
            outcome.wrong_by_entry[hit.entry] += 1


def _nearest_earlier(
    vectors: Vectors,
) -> tuple[list[npt.NDArray[np.int64]], list[Vectors]]:
    """Return the nearest of the earlier rows, and their similarities, for each row."""
    places: list[npt.NDArray[np.int64]] = []
    similarities: list[Vectors] = []
    for start in range(0, len(vectors), _BLOCK):
        end = min(start + _BLOCK, len(vectors))
        block = vectors[start:end] @ vectors[:end].T
        # A request finds only what came before it.
        rows = np.arange(start, end)
        block[rows[:, None] <= np.arange(end)[None, :]] = -np.inf
        best = block.argpartition(-min(_KEPT, end), axis=1)[:, -min(_KEPT, end) :]
        near = np.take_along_axis(block, best, axis=1)
        ranks = np.argsort(-near, axis=1, kind="stable")
        best = np.take_along_axis(best, ranks, axis=1)
        near = np.take_along_axis(near, ranks, axis=1)
        for row in range(end - start):
            known = min(start + row, _KEPT)
            places.append(best[row, :known].astype(np.int64))
            similarities.append(near[row, :known])
    return places, similarities
