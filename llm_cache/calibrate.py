"""How alike two prompts must be, learned from labels: with evidence, or not at all.

    calibration = await calibrate(log, embedder=embedder, max_wrong=0.01)
    print(calibration.certificate)

A log is a sequence of `LoggedRequest` (prompt and the answer it needs), or of `LabelledPair` (two
prompts, and whether one answer does for both). `label_log` makes the first from prompts and the
model's own answers, with a judge.

What is shown is this: among requests like those of the log, wrong semantic hits are no more than
*max_wrong* a hit, or a request, with the given confidence. It presumes that later requests are
like those of the log; it says nothing of a cache that is still nearly empty, of another embedder
or of another language.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llm_cache._core import policy_file
from llm_cache._core.bounds import trials_needed, upper_bound
from llm_cache._core.certify import (
    FIT_SHARE,
    TOO_NOISY,
    Basis,
    Claim,
    Point,
    Split,
    SplitResult,
    certify,
)
from llm_cache._core.hit_policy import CalibratedPolicy
from llm_cache._core.keys import fingerprint
from llm_cache._core.policy_file import Certificate, StoredPolicy
from llm_cache._labels import (
    Labelled,
    LabelledPair,
    LoggedAnswer,
    LoggedRequest,
    Pairs,
    Row,
    embedded,
    in_order,
    probe_dimensions,
    read_labels,
    read_row,
)
from llm_cache.config import is_number
from llm_cache.embedders import Embedder
from llm_cache.errors import CalibrationRefused, InvalidRequest
from llm_cache.verify import Compare, Verifier, is_verified

__all__ = [
    "Calibration",
    "CalibrationRefused",
    "LabelledPair",
    "LoggedAnswer",
    "LoggedRequest",
    "calibrate",
    "label_log",
]

_BATCH: Final = 64
_SPLITS: Final[tuple[Split, ...]] = ("random", "chronological")


@dataclass(frozen=True, slots=True)
class Calibration:
    """A policy that was shown to be right often enough, and what showed it."""

    stored: StoredPolicy
    """What to save."""
    results: tuple[SplitResult, ...]
    """What the two ways to cut the labels gave; the stricter one was kept."""
    duplicates: int
    """Rows that repeat another: exact hits, which need no policy."""
    contradictions: int
    """Prompts or pairs with two different labels: every hit on them counts as wrong."""

    @property
    def policy(self) -> CalibratedPolicy:
        """The policy alone."""
        return self.stored.policy

    @property
    def certificate(self) -> Certificate:
        """What was shown, printable."""
        return self.stored.certificate

    def to_json(self) -> bytes:
        """Return the policy as versioned JSON: numbers only, no prompts."""
        return policy_file.encode(self.stored)


async def calibrate(
    log: Iterable[Row],
    *,
    embedder: Embedder,
    max_wrong: float = 0.01,
    basis: Basis = "hits",
    confidence: float = 0.95,
    vectors: npt.ArrayLike | None = None,
    seed: int = 0,
) -> Calibration:
    """Fit a policy to *log* and show that it keeps wrong hits at *max_wrong*, or refuse.

    Args:
        log: requests (prompt, answer_id[, timestamp]) or pairs (new, cached, same[, similarity]),
            as the classes of this module, as mappings with their field names, or as tuples.
        embedder: the one that the cache uses; the policy is for its vectors alone.
        max_wrong: most wrong hits per unit of *basis*. 0 means 0, which no number of labels shows.
        basis: `"hits"`, the stricter, or `"requests"`, misses included.
        confidence: how sure the statement is to be, of 1.
        vectors: of the prompts, one row each, where they are known already.
        seed: of the random cut.

    Of a longer log the latest 20,000 distinct requests are used. 10,000 requests take about half a
    minute of one core, in a thread, and 20 s of `LocalEmbedder`. No Redis is asked.

    Raises:
        CalibrationRefused: the labels do not support the claim; it says how many are missing.
        InvalidRequest: a row is not what it should be, or an argument is out of its range.
        EmbedderError: the embedder failed.
    """
    claim = _claim(max_wrong, basis, confidence)
    rows = [read_row(number, row) for number, row in enumerate(log, 1)]
    if not rows:
        raise CalibrationRefused("the log is empty", 0, _fewest(claim))
    if claim.max_wrong == 0:
        raise CalibrationRefused(
            "that no hit is ever wrong cannot be shown from examples: allow a small rate, or serve"
            " exact hits alone (semantic=False)",
            len(rows),
        )
    labelled = await read_labels(rows, embedder, vectors)
    dimensions = labelled.dimensions or embedder.dimensions or await probe_dimensions(embedder)
    results = await asyncio.to_thread(_certify_all, labelled, claim, seed)
    kept, policy, point = _stricter(results, len(labelled), claim)
    certificate = Certificate(
        claim=claim,
        labels=len(labelled),
        split=kept.split,
        tested=point.requests,
        hits=point.hits,
        wrong=point.wrong,
        bound=point.bound,
    )
    stored = StoredPolicy(
        policy=policy,
        certificate=certificate,
        space=fingerprint(embedder.model_id, dimensions),
        model_id=embedder.model_id,
        created_s=time.time(),
    )
    return Calibration(stored, results, labelled.duplicates, labelled.contradictions)


# -- what is asked for


def _claim(max_wrong: float, basis: Basis, confidence: float) -> Claim:
    if not is_number(max_wrong) or not 0 <= max_wrong < 1:
        raise InvalidRequest(f"max_wrong must be a rate from 0 to below 1; got {max_wrong!r}")
    if not is_number(confidence) or not 0.5 <= confidence < 1:
        raise InvalidRequest(f"confidence must be from 0.5 to below 1; got {confidence!r}")
    if basis not in ("hits", "requests"):
        raise InvalidRequest(f"basis must be 'hits' or 'requests'; got {basis!r}")
    return Claim(float(max_wrong), basis, float(confidence))


# -- what they show


def _certify_all(labelled: Labelled, claim: Claim, seed: int) -> tuple[SplitResult, ...]:
    pairs = isinstance(labelled, Pairs)
    return tuple(
        certify(labelled.cut(split, seed), claim, split, pairs=pairs) for split in _SPLITS
    )


def _stricter(
    results: Sequence[SplitResult], labels: int, claim: Claim
) -> tuple[SplitResult, CalibratedPolicy, Point]:
    """Return the result that serves less; both ways to cut the labels have to hold."""
    held = []
    for result in results:
        if result.policy is None or result.point is None:
            raise _refusal(result, labels, claim)
        _refuse_noise(result.point, labels, claim)
        held.append((result, result.policy, result.point))
    return min(held, key=lambda one: one[2].hit_rate)


def _refusal(result: SplitResult, labels: int, claim: Claim) -> CalibrationRefused:
    """Return why no operating point of *result* holds, and what would help."""
    fewest = _fewest(claim)
    if labels < fewest:
        return CalibrationRefused(
            f"{labels:,} labels are too few for at most {claim.max_wrong:.2%} wrong"
            f" {claim.basis} with {claim.confidence:.0%} confidence: it takes {fewest:,} even if"
            " no hit is wrong",
            labels,
            fewest - labels,
        )
    strictest = next((point for point in result.tested if point.hits), None)
    if strictest is None:
        return CalibrationRefused("nothing in these labels is similar enough to be served", labels)
    per_hit = claim.basis == "hits"
    trials = strictest.hits if per_hit else strictest.requests
    rate = strictest.wrong_per_hit if per_hit else strictest.wrong_per_request
    reason = (
        f"at its strictest, the policy was wrong in {strictest.wrong:,} of {trials:,}"
        f" {claim.basis} ({result.split} split), which does not show at most"
        f" {claim.max_wrong:.2%} with {claim.confidence:.0%} confidence"
    )
    needed = trials_needed(rate, claim.max_wrong, claim.confidence)
    if needed is None:
        return CalibrationRefused(reason, labels)
    return CalibrationRefused(reason, labels, max(1, math.ceil(labels * (needed / trials - 1))))


def _refuse_noise(point: Point, labels: int, claim: Claim) -> None:
    """Refuse where wrong hits are rare only because hits are, and no better than noise."""
    if upper_bound(point.wrong, point.hits, claim.confidence) > TOO_NOISY:
        raise CalibrationRefused(
            f"the labels are too noisy, or the prompts too alike: of {point.hits:,} hits that were"
            f" the most certain {point.wrong:,} are labelled wrong",
            labels,
        )


def _fewest(claim: Claim) -> int:
    """Return how many labels any claim of this kind takes, if not one hit is wrong."""
    needed = trials_needed(0.0, claim.max_wrong, claim.confidence)
    return 0 if needed is None else math.ceil(needed / (1 - FIT_SHARE))


# -- labels from the model's own answers


async def label_log(
    log: Iterable[LoggedAnswer | tuple[str, str]],
    judge: Verifier | Compare,
    *,
    embedder: Embedder,
    least_similarity: float = 0.6,
    most_judged: int = 2,
    timeout_s: float = 30.0,
    concurrency: int = 8,
) -> list[LoggedRequest]:
    """Return *log* with an `answer_id` for each prompt, as `calibrate` takes it.

    Each request, a miss, has a fresh answer of the model; the nearest earlier prompts have theirs.
    Where the *judge* says that the earlier answer would have done, both get the same id. Whatever
    it fails to say counts as no: a label that is missing makes the policy stricter, not looser.

    Args:
        log: prompts with the model's answers, in the order in which they came or with timestamps.
        judge: a `Verifier`, or a function of the fresh answer and the earlier one, which may be
            async; `llm_cache.verify.same_text` is one for answers that do not vary.
        embedder: the one that the cache uses.
        least_similarity: of an earlier prompt, to be judged at all.
        most_judged: earlier prompts with different answers that the judge is asked about.
        timeout_s: most seconds of one judgement.
        concurrency: most judgements at a time.

    Raises:
        InvalidRequest: a row is not a prompt and an answer.
        EmbedderError: the embedder failed.
    """
    rows = in_order([_answer_row(number, row) for number, row in enumerate(log, 1)])
    if not rows:
        return []
    units = await embedded([row.prompt for row in rows], embedder)
    jury = _Jury(judge, timeout_s, asyncio.Semaphore(concurrency))
    ids: list[int] = []
    for start in range(0, len(rows), _BATCH):
        turn = range(start, min(start + _BATCH, len(rows)))
        near = [_nearest(units, at, most_judged, least_similarity) for at in turn]
        asked = [(at, earlier) for at, found in zip(turn, near, strict=True) for earlier in found]
        said = await asyncio.gather(*[jury.agrees(rows[at], rows[e]) for at, e in asked])
        agreed = {pair for pair, agrees in zip(asked, said, strict=True) if agrees}
        for at, found in zip(turn, near, strict=True):
            same = next((earlier for earlier in found if (at, earlier) in agreed), None)
            ids.append(at if same is None else ids[same])
    return [
        LoggedRequest(row.prompt, str(answer), row.timestamp_s)
        for row, answer in zip(rows, ids, strict=True)
    ]


def _nearest(units: npt.NDArray[np.float32], at: int, most: int, least: float) -> list[int]:
    """Return the nearest of the rows before *at*."""
    near = units[:at] @ units[at]
    return [i for i in np.argsort(-near, kind="stable")[:most].tolist() if near[i] >= least]


def _answer_row(number: int, row: LoggedAnswer | tuple[str, str]) -> LoggedAnswer:
    given = LoggedAnswer(*row) if isinstance(row, tuple) else row
    texts: tuple[Any, Any] = given.prompt, given.answer
    if not all(isinstance(text, str) for text in texts) or not given.prompt:
        raise InvalidRequest(f"row {number} is not a prompt and the model's answer to it")
    return given


@dataclass(frozen=True, slots=True)
class _Jury:
    """Asks the judge, not too often at a time, and takes what fails for a no."""

    judge: Verifier | Compare
    timeout_s: float
    turns: asyncio.Semaphore

    async def agrees(self, new: LoggedAnswer, earlier: LoggedAnswer) -> bool:
        async with self.turns:
            verifier = (
                self.judge
                if isinstance(self.judge, Verifier)
                else _Comparing(self.judge, new.answer)
            )
            said = await is_verified(
                verifier, new.prompt, earlier.prompt, earlier.answer, timeout_s=self.timeout_s
            )
            return said.is_right


@dataclass(frozen=True, slots=True)
class _Comparing:
    """A verifier that has the fresh answer, and compares the earlier one with it."""

    compare: Compare
    fresh: str

    async def verify(self, new: str, cached: str, answer: str) -> bool:  # noqa: ARG002
        said = self.compare(self.fresh, answer)
        return await said if inspect.isawaitable(said) else said
