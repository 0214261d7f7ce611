"""Fits a policy to labels, and shows how rarely it is wrong: or that this cannot be shown. Pure.

The labels are cut in two. The first third fits the weights and fixes a list of operating points,
from the strictest to the loosest; none of it is looked at again. On the other two thirds the
points are tested in that order, each with an exact binomial bound, until one fails: the last that
held is the result. A fixed order needs no further correction for the number of points tested,
because a point is reached only if all before it held (fixed-sequence testing: Maurer, Hothorn and
Lehmacher 1995; for operating points, Angelopoulos et al. 2021, "Learn then Test").

This is done twice, with a random cut and with one in the order of time. Both must hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np

from llm_cache._core import guards
from llm_cache._core.bounds import clustered_bound, trials_needed, upper_bound
from llm_cache._core.fitting import Floats, fit_logistic
from llm_cache._core.hit_policy import (
    FEATURES,
    NEIGHBOURHOOD_FEATURES,
    CalibratedPolicy,
    features,
)
from llm_cache._core.replay import Found, Outcome, Scores, acceptance

Basis = Literal["hits", "requests"]
Split = Literal["random", "chronological"]

FIT_SHARE: Final = 1 / 3
"""Share of the labels that fits the weights."""
COVERAGES: Final = (0.01, *(round(0.03 * step, 2) for step in range(1, 32)))
"""The operating points: shares of the fitting requests that are served."""
TOO_NOISY: Final = 0.2
"""Where it is not shown that fewer hits than this are wrong, the labels say nothing."""
_ENOUGH_HITS: Final = 3
"""The first point tested has, if any has, hits enough for this many of them to be wrong."""
_PER_WEIGHT: Final = 10
"""Labels of the rarer kind that a weight takes to be fitted."""
_MILD_GUARDS: Final = ("constraint", "relation")
"""Guards whose objections may be weighed. Those of the others are vetoes whatever the labels say:
a log without traps must not teach that numbers and negations do not matter."""
_WEIGHED_GUARD: Final = 20
"""Objections of a guard that have to be seen before they are weighed and not simply obeyed."""
_NOVEL_COUNTS: Final = 5.0
"""How many times a request counts in the fit that nothing in the log can answer: they are few,
and what tells them from the others is what a cache most needs to know."""
_FEW_FEATURES: Final = ("similarity",)
_MORE_FEATURES: Final = (
    "similarity", "margin", "two_agree", "three_agree", "four_agree",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Claim:
    """What is to be shown: at most *max_wrong* wrong hits a request or a hit."""

    max_wrong: float
    basis: Basis
    confidence: float


@dataclass(frozen=True, slots=True)
class Point:
    """What an operating point gave on the requests that had no part in the fit."""

    requests: int
    hits: int
    wrong: int
    bound: float
    """The claim's upper bound on the rate of wrong hits."""
    novel: int
    """Requests that no other request shares the answer of: every hit on one is wrong."""
    novel_answered: int
    holds: bool

    @property
    def hit_rate(self) -> float:
        """Hits a request."""
        return self.hits / self.requests if self.requests else 0.0

    @property
    def wrong_per_request(self) -> float:
        """Wrong hits a request."""
        return self.wrong / self.requests if self.requests else 0.0

    @property
    def wrong_per_hit(self) -> float:
        """Wrong hits a hit; 0 without hits."""
        return self.wrong / self.hits if self.hits else 0.0


@dataclass(frozen=True, slots=True)
class SplitResult:
    """What one way to cut the labels in two gave."""

    split: Split
    policy: CalibratedPolicy | None
    """At the loosest operating point that holds; `None` where none does."""
    point: Point | None
    """What that policy gave."""
    tested: tuple[Point, ...]
    """All points up to the first that fails, the strictest first."""


class Labels(Protocol):
    """Labelled requests, cut in two."""

    def fitting(self) -> Sequence[Found]:
        """Return those to fit to, with what they find."""

    def fitting_requests(self) -> int:
        """Return how many requests there are to fit to, those that find nothing included."""

    def novel(self) -> Sequence[Found]:
        """Return those of the other part that need an answer of their own, with what they find."""

    def test(self, accepts: Callable[[Found], bool]) -> Outcome:
        """Return what the other part gets from a cache that serves what *accepts* lets pass."""


def certify(labels: Labels, claim: Claim, split: Split, *, pairs: bool = False) -> SplitResult:
    """Fit a policy to *labels* and find its loosest operating point at which *claim* holds."""
    policies = _policies(labels.fitting(), labels.fitting_requests(), pairs=pairs)
    tested: list[Point] = []
    kept: tuple[CalibratedPolicy, Point] | None = None
    for policy, point in _worth_testing(_measured(policies, labels, claim), claim):
        tested.append(point)
        if not point.holds:
            break
        kept = policy, point
    return SplitResult(
        split,
        policy=kept[0] if kept else None,
        point=kept[1] if kept else None,
        tested=tuple(tested),
    )


_Measured = tuple[CalibratedPolicy, Point]


def _measured(
    policies: Sequence[CalibratedPolicy], labels: Labels, claim: Claim
) -> Iterator[_Measured]:
    """Yield each policy with what it gives, the strictest first; each takes a replay."""
    novel = labels.novel()
    known: Scores = {}
    for policy in policies:
        outcome = labels.test(acceptance(policy, known))
        novel_answered = sum(map(acceptance(policy), novel))
        yield policy, _point(outcome, len(novel), novel_answered, claim)


def _worth_testing(measured: Iterator[_Measured], claim: Claim) -> Iterator[_Measured]:
    """Leave out the strictest points that have too few hits to show anything of hits.

    A point where one wrong hit decides would end the search before it has begun. If no point has
    more, those are tested that could hold at all. How many hits a point has is known before
    anybody looks at what of them was right.
    """
    if claim.basis == "requests":
        yield from measured
        return
    enough, least = _enough_hits(claim), trials_needed(0.0, claim.max_wrong, claim.confidence)
    few: list[_Measured] = []
    for policy, point in measured:
        if point.hits >= enough:
            yield policy, point
            yield from measured
            return
        few.append((policy, point))
    could = [one for one in few if one[1].hits >= (least or 0)]
    yield from could or few[-1:]


def _enough_hits(claim: Claim) -> int:
    """Return the hits with which the bound holds in spite of three wrong ones."""
    least = trials_needed(0.0, claim.max_wrong, claim.confidence) or 0
    while upper_bound(_ENOUGH_HITS, least, claim.confidence) > claim.max_wrong > 0:
        least += max(1, least // 50)
    return least


def _point(outcome: Outcome, novel: int, novel_answered: int, claim: Claim) -> Point:
    trials = outcome.hits if claim.basis == "hits" else outcome.requests
    sizes = outcome.wrong_by_entry.values()
    bound = clustered_bound(sizes, trials, claim.confidence)
    # Of requests that nothing stored can answer, the cache must not answer more than of all.
    # An observed share, and no bound: few logs hold enough of them for one.
    is_many = novel * claim.max_wrong >= 1
    answers_the_new = is_many and novel_answered > novel * claim.max_wrong / 2
    return Point(
        requests=outcome.requests,
        hits=outcome.hits,
        wrong=outcome.wrong,
        bound=bound,
        novel=novel,
        novel_answered=novel_answered,
        holds=bound <= claim.max_wrong and not answers_the_new,
    )


# -- the fit


def _policies(fitting: Sequence[Found], requests: int, *, pairs: bool) -> list[CalibratedPolicy]:
    """Return one policy for each of `COVERAGES`, the strictest first; they differ in one score."""
    if not fitting:
        return []
    objections = [found.words.objection for found in fitting]
    weighed = frozenset(
        reason for reason in _MILD_GUARDS if objections.count(reason) >= _WEIGHED_GUARD
    )
    rows = np.array([features(found.around, found.words) for found in fitting])
    right = np.array([found.is_right for found in fitting], np.float64)
    passes = np.array([reason is None or reason in weighed for reason in objections])
    weights = np.zeros(len(FEATURES))
    used = _used_features(right[passes], weighed, pairs=pairs)
    if not used or not passes.any():
        return []
    counts = np.array([_NOVEL_COUNTS if found.is_novel else 1.0 for found in fitting])
    intercept, weights[used] = fit_logistic(
        *_with_anchors(rows[passes][:, used], right[passes], counts[passes])
    )
    scores = np.sort(np.where(passes, rows @ weights + intercept, -np.inf))[::-1]
    policies = []
    for coverage in COVERAGES:
        at = math.ceil(coverage * requests) - 1
        if at < len(scores) and np.isfinite(scores[at]):
            policies.append(
                CalibratedPolicy(
                    intercept=intercept,
                    weights=tuple(weights.tolist()),
                    least_score=float(scores[at]),
                    weighed_guards=weighed,
                    # More likely right than wrong: worth asking a verifier.
                    verify_score=0.0 if scores[at] > 0 else None,
                )
            )
    return policies


def _with_anchors(rows: Floats, right: Floats, counts: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the labels and, where similarity is all there is to fit, what is known beforehand.

    Equal prompts have one answer, unrelated ones have not. So that more similar is never worse,
    however few the labels are, and even if all of them are right.
    """
    if rows.shape[1] > 1:
        return rows, right, counts
    ends = [0.0, 1.0]
    return (
        np.vstack([rows, np.transpose([ends])]),
        np.append(right, ends),
        np.append(counts, [1, 1]),
    )


def _used_features(right: Floats, weighed: frozenset[str], *, pairs: bool) -> list[int]:
    rarer = min(right.sum(), len(right) - right.sum())
    if rarer < 2 * _PER_WEIGHT:
        names = set(_FEW_FEATURES)
    elif rarer < 5 * _PER_WEIGHT:
        names = set(_MORE_FEATURES)
    else:
        vetoes = {f"guard:{reason}" for reason in guards.REASONS if reason not in weighed}
        names = set(FEATURES) - vetoes
    if pairs:
        names -= NEIGHBOURHOOD_FEATURES
    return [at for at, name in enumerate(FEATURES) if name in names]
