"""Which of the nearest neighbours may answer: policies, and the decision they make. Pure.

A `ThresholdPolicy` is a rule of thumb: nothing is promised of it. A `CalibratedPolicy` was fitted
to labelled requests and carries the statement that was shown of it.

Both look at the neighbourhood and not only at the nearest neighbour: one that stands alone is a
safer hit than one that has a rival, a candidate with another answer, close by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache, partial
from operator import mul
from typing import Final, NamedTuple, Protocol

from llm_cache._core import guards
from llm_cache._core.types import Candidate

NEIGHBOURS: Final = 4
"""How many candidates a decision looks at."""

FLOAT16_TOLERANCE: Final = 0.0003
"""How far from 1 the similarity of a vector with itself comes back from a FLOAT16 index
(measured: up to 0.0003). Thresholds above `1 - FLOAT16_TOLERANCE` mean "identical"."""

NEAR: Final = 0.1
"""A candidate that fell short by no more than this is a near miss."""

ISOLATED_MARGIN: Final = 0.2
"""How far behind the next neighbour must be for a candidate to count as standing alone."""


class Verdict(StrEnum):
    """What is to be done with a candidate."""

    SERVE = "serve"
    VERIFY = "verify"
    """In the grey band: only a verifier may let it pass."""
    REFUSE = "refuse"


class Judged(NamedTuple):
    """A candidate, and what a policy says of it."""

    candidate: Candidate
    verdict: Verdict
    reason: str
    """Why it is not served, as `similarity below 0.85` or `guard: numbers`; else empty."""
    confidence: float | None = None
    """Estimated probability that its answer is right; `None` where the policy has none."""
    shortfall: float | None = None
    """How far it is below what would have been enough, whatever its words; in similarity, or in
    confidence where the policy has that. 0 where it was enough, `None` where nobody knows."""

    @property
    def is_served(self) -> bool:
        """Whether it may be served."""
        return self.verdict is Verdict.SERVE

    @property
    def is_near_miss(self) -> bool:
        """Whether it was refused, and not by far."""
        is_near = self.shortfall is not None and self.shortfall <= NEAR
        return is_near and not self.is_served


class Decision:
    """What a policy says of the nearest candidates, in their order.

    Args:
        judging: Yields it, worked out as it is asked for.
        is_certified: Whether something was shown of the policy, rather than assumed.
    """

    __slots__ = ("_judged", "_judging", "is_certified")

    def __init__(self, judging: Iterator[Judged], *, is_certified: bool) -> None:
        self._judging = judging
        self._judged: list[Judged] = []
        self.is_certified = is_certified

    def __iter__(self) -> Iterator[Judged]:
        """Yield what it says of each; of those behind the last that is asked for, nothing."""
        at = 0
        while True:
            if at == len(self._judged):
                said = next(self._judging, None)
                if said is None:
                    return
                self._judged.append(said)
            yield self._judged[at]
            at += 1

    @property
    def judged(self) -> tuple[Judged, ...]:
        """What it says of all of them."""
        return tuple(self)

    @property
    def served(self) -> tuple[Candidate, ...]:
        """The candidates that may be served, the best first."""
        return tuple(self.serve())

    def serve(self) -> Iterator[Candidate]:
        """Yield the candidates that may be served, the best first.

        What stands behind the one that is taken is never judged, unless somebody asks for that:
        to read its words is most of what a decision costs.
        """
        for judged in self:
            if judged.is_served:
                yield judged.candidate

    @property
    def first_served(self) -> Candidate | None:
        """The best of them; what is behind it need not be judged for this."""
        return next(self.serve(), None)

    @property
    def to_verify(self) -> Candidate | None:
        """The nearest candidate that may be served if a verifier agrees, when none may without."""
        if self.first_served is not None:
            return None
        grey = (judged.candidate for judged in self if judged.verdict is Verdict.VERIFY)
        return next(grey, None)


class Neighbourhood(NamedTuple):
    """The similarities and answers of the nearest candidates, nearest first."""

    similarities: tuple[float, ...]
    groups: tuple[str, ...]
    """What each one's answer says: equal for candidates with the same answer."""

    @property
    def margin(self) -> float:
        """How far the nearest rival, of another answer, is behind the nearest candidate.

        The least that it can be where no rival is in sight: any other entry is no nearer than the
        last candidate.
        """
        for similarity, group in zip(self.similarities, self.groups, strict=True):
            if group != self.groups[0]:
                return self.similarities[0] - similarity
        last = self.similarities[-1] if len(self.similarities) >= NEIGHBOURS else 0.0
        return self.similarities[0] - last

    @property
    def stands_alone(self) -> bool:
        """Whether there are other entries, all of them far behind the nearest candidate."""
        known = len(self.similarities) >= NEIGHBOURS
        return known and self.margin >= ISOLATED_MARGIN


class Judgement(NamedTuple):
    """What a policy says of one candidate."""

    verdict: Verdict
    reason: str = ""
    confidence: float | None = None
    shortfall: float | None = None


_SERVED: Final = Judgement(Verdict.SERVE)

Words = Callable[[], guards.Comparison]
"""Says what the words of the two prompts say; worked out when first asked for."""


class Policy(Protocol):
    """Says what is to be done with a candidate."""

    @property
    def is_certified(self) -> bool:
        """Whether something was shown of it, rather than assumed."""

    def judge(
        self, similarity: float, rank: int, around: Neighbourhood, words: Words
    ) -> Judgement:
        """Judge the candidate at *rank*, 0 for the nearest."""


def decide(prompt: str, candidates: Sequence[Candidate], policy: Policy) -> Decision:
    """Return what *policy* says of *candidates* for *prompt*. Never raises.

    No I/O. Each is judged when it is asked for: about 25 µs for a one-line question, most of it
    reading its words.
    """
    judging = _judge_each(prompt, candidates, policy)
    return Decision(judging, is_certified=policy.is_certified)


def _judge_each(prompt: str, candidates: Sequence[Candidate], policy: Policy) -> Iterator[Judged]:
    """Yield what *policy* says of each candidate, nearest first, worked out as it is asked for.

    Never raises: whatever fails is refused.
    """
    nearest = candidates[:NEIGHBOURS]
    around = Neighbourhood(
        tuple([candidate.similarity for candidate in nearest]),
        tuple([candidate.group or candidate.digest for candidate in nearest]),
    )
    reading = _Reading(prompt)
    for rank, candidate in enumerate(candidates):
        try:
            words = partial(reading.beside, candidate)
            said = policy.judge(candidate.similarity, rank, around, words)
        except Exception as error:  # noqa: BLE001 - a guard that fails has let nothing pass
            said = Judgement(Verdict.REFUSE, f"guard failed: {type(error).__name__}")
        yield Judged(candidate, *said)


class _Reading:
    """Compares one prompt with candidates, and is read once for all of them."""

    __slots__ = ("_prompt", "_signature")

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._signature: guards.Signature | None = None

    def beside(self, candidate: Candidate) -> guards.Comparison:
        if self._signature is None:
            self._signature = guards.analyse(self._prompt)
        return guards.compare(self._signature, _stored(candidate))


_REMEMBERED: Final = 1_024
_REMEMBERED_CHARS: Final = 300
# Of the prompts that were looked at last, in 2 to 5 MB each: the neighbours of a new one are
# mostly those that others were compared with before.
remembered = lru_cache(maxsize=_REMEMBERED)(guards.analyse)
remembered_packed = lru_cache(maxsize=_REMEMBERED)(guards.unpack)


def _stored(candidate: Candidate) -> guards.Signature:
    signature, prompt = candidate.signature, candidate.prompt
    if signature:
        return remembered_packed(signature)
    if prompt == "":
        raise ValueError("the prompt is not kept, so there are no words to compare")
    return (remembered if len(prompt) <= _REMEMBERED_CHARS else guards.analyse)(prompt)


# -- without labels


@dataclass(frozen=True, slots=True)
class ThresholdPolicy:
    """Serves what is similar enough and no guard objects to. Uncertified: a rule of thumb."""

    similarity_threshold: float
    is_guarded: bool = True
    isolated_threshold: float | None = None
    """Enough for a nearest candidate that stands alone; `None` where none is."""
    verify_from: float | None = None
    """Where the grey band begins that ends at the threshold; `None` for no band."""

    @property
    def is_certified(self) -> bool:
        """False."""
        return False

    def judge(
        self, similarity: float, rank: int, around: Neighbourhood, words: Words
    ) -> Judgement:
        """Judge a candidate on its similarity, then on its words."""
        enough = self._enough(rank, around)
        band = enough if self.verify_from is None else min(enough, self.verify_from)
        if not _is_enough(similarity, band):
            return _below(enough, similarity)
        if self.is_guarded:
            said = words()
            if said.objection is not None:
                return _vetoed(said.objection, enough - similarity)
            if not said.is_listed:
                enough = stricter(self.similarity_threshold)
        if _is_enough(similarity, enough):
            return _SERVED
        if self.verify_from is not None and _is_enough(similarity, self.verify_from):
            return _below(enough, similarity)._replace(verdict=Verdict.VERIFY)
        return _below(enough, similarity, "for a language without word lists")

    def _enough(self, rank: int, around: Neighbourhood) -> float:
        if rank or self.isolated_threshold is None or not around.stands_alone:
            return self.similarity_threshold
        return min(self.similarity_threshold, self.isolated_threshold)


def stricter(threshold: float) -> float:
    """Return the threshold for prompts that the guards have no word lists for: half as far off."""
    return (1 + threshold) / 2


def _is_enough(similarity: float, threshold: float) -> bool:
    return similarity >= threshold or similarity >= 1 - FLOAT16_TOLERANCE


def _below(threshold: float, similarity: float, why: str = "") -> Judgement:
    reason = _says_below(threshold, why)
    return Judgement(Verdict.REFUSE, reason, shortfall=threshold - similarity)


@lru_cache(maxsize=64)
def _says_below(threshold: float, why: str) -> str:
    # Nearly all candidates are refused, and nearly all for the same reason.
    return f"similarity below {threshold:g} {why}".rstrip()


def _vetoed(objection: str, shortfall: float, confidence: float | None = None) -> Judgement:
    shortfall = max(0.0, shortfall)
    return Judgement(Verdict.REFUSE, f"guard: {objection}", confidence, shortfall)


# -- fitted to labels

_RULED_BY_WORDS: Final = tuple(f"guard:{reason}" for reason in guards.REASONS)
FEATURES: Final = (
    "similarity",
    "similarity_squared",
    "margin",
    "margin_squared",
    "similarity_margin",
    "second_similarity",
    "third_similarity",
    "fourth_similarity",
    "agreeing_similarity",
    "two_agree",
    "three_agree",
    "four_agree",
    "no_rival",
    "unmatched_new",
    "unmatched_cached",
    "length_ratio",
    *_RULED_BY_WORDS,
)
"""What a calibrated policy weighs, in the order of `features`."""
NEIGHBOURHOOD_FEATURES: Final = frozenset(FEATURES[2:13])
"""Those that labelled pairs cannot show."""


def features(around: Neighbourhood, words: guards.Comparison) -> list[float]:
    """Return the values of `FEATURES` for the nearest candidate."""
    margin, count = around.margin, len(around.groups)
    padded = (*around.similarities, 0.0, 0.0, 0.0)
    similarity = padded[0]
    own = around.groups[0]
    agreeing = [s for s, group in zip(padded, around.groups, strict=False) if group == own]
    agreement = len(agreeing)
    values = [
        similarity,
        similarity * similarity,
        margin,
        margin * margin,
        similarity * margin,
        padded[1],
        padded[2],
        padded[3],
        math.fsum(agreeing),
        float(agreement == 2),
        float(agreement == 3),
        float(agreement >= 4),
        float(agreement == count),
        math.log1p(words.unmatched_new),
        math.log1p(words.unmatched_cached),
        words.length_ratio,
    ]
    values.extend([float(reason == words.objection) for reason in guards.REASONS])
    return values


@dataclass(frozen=True, slots=True)
class CalibratedPolicy:
    """Serves the nearest candidate when its answer is likely enough to be right.

    The likelihood is logistic: 1 / (1 + exp(-score)), where the score is the intercept and the
    weighted sum of `FEATURES`.
    """

    intercept: float
    weights: tuple[float, ...]
    """One for each of `FEATURES`."""
    least_score: float
    """Served from here on."""
    weighed_guards: frozenset[str] = frozenset()
    """Guards whose objections are weighed; those of all others are vetoes."""
    verify_score: float | None = None
    """Where the grey band begins that ends at `least_score`; `None` for no band."""
    verify_from: float | None = None
    """A similarity from which on a candidate is in the band too, whatever its score. Of the
    worker and not of the labels, so it is not kept with the policy."""

    @property
    def is_certified(self) -> bool:
        """True."""
        return True

    def judge(
        self,
        similarity: float,
        rank: int,
        around: Neighbourhood,
        words: Words,
    ) -> Judgement:
        """Judge the candidate at *rank*; only the nearest may be served."""
        if rank:
            return Judgement(Verdict.REFUSE, "not the nearest")
        said = words()
        score = self.score(features(around, said))
        confidence, least = _logistic(score), _logistic(self.least_score)
        shortfall = least - confidence
        if said.objection is not None and said.objection not in self.weighed_guards:
            return _vetoed(said.objection, shortfall, confidence)
        if score >= self.least_score:
            return Judgement(Verdict.SERVE, confidence=confidence)
        reason = f"confidence {confidence:.3f} below {least:.3f}"
        is_grey = (self.verify_score is not None and score >= self.verify_score) or (
            self.verify_from is not None and similarity >= self.verify_from
        )
        verdict = Verdict.VERIFY if is_grey else Verdict.REFUSE
        return Judgement(verdict, reason, confidence, shortfall)

    def score(self, values: Sequence[float]) -> float:
        """Return the log-odds that the answer is right, given the values of `FEATURES`."""
        return self.intercept + math.fsum(map(mul, self.weights, values))


def _logistic(score: float) -> float:
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, score))))
