"""`calibrate` on the first half of a stream, and the second half served by what it returned."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.correctness import datasets
from benchmarks.correctness.datasets import Request
from benchmarks.correctness.vectors import Vectors, embed
from llm_cache import LocalEmbedder
from llm_cache._core.bounds import lower_bound
from llm_cache._core.hit_policy import CalibratedPolicy, ThresholdPolicy, Verdict
from llm_cache._core.replay import Accepts, Found, Prompts, Stream, acceptance
from llm_cache.calibrate import LoggedRequest, calibrate
from llm_cache.errors import CalibrationRefused

MAX_WRONG = 0.01
CONFIDENCE = 0.95
_THRESHOLDS = tuple(round(0.80 + 0.005 * step, 3) for step in range(40))


@dataclass(frozen=True, slots=True)
class Half:
    """What the second half of one stream got."""

    requests: int
    hits: int
    wrong: int
    novel: int
    """Out-of-scope requests."""
    novel_answered: int

    @property
    def hit_rate(self) -> float:
        """Hits a request."""
        return self.hits / self.requests

    @property
    def wrong_rate(self) -> float:
        """Wrong hits a request."""
        return self.wrong / self.requests

    @property
    def novel_rate(self) -> float:
        """Share of the out-of-scope requests that were answered from the cache."""
        return self.novel_answered / max(self.novel, 1)

    @property
    def breaks_the_bound(self) -> bool:
        """Whether it was wrong more often than certified, beyond what chance does to a half."""
        return lower_bound(self.wrong, self.requests, CONFIDENCE) > MAX_WRONG


@dataclass(slots=True)
class Workload:
    """A data set with its vectors, in any order."""

    name: str
    requests: Sequence[Request]
    vectors: Vectors

    _prompts: Prompts = field(init=False)
    _answers: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self._prompts = Prompts([request.prompt for request in self.requests], self.vectors)
        self._answers = [request.answer_id for request in self.requests]

    def stream(self, seed: int) -> tuple[list[int], Stream]:
        """Return the order of permutation *seed*, and the stream."""
        order = np.random.default_rng(seed).permutation(len(self.requests)).tolist()
        return order, Stream(self._prompts, self._answers, order)

    def calibrated(self, order: Sequence[int]) -> CalibratedPolicy | None:
        """Return the policy for the first half of *order*, or `None` if it was refused."""
        first = list(order[: len(order) // 2])
        log = [LoggedRequest(self.requests[i].prompt, self.requests[i].answer_id) for i in first]
        try:
            calibration = asyncio.run(
                calibrate(
                    log,
                    embedder=LocalEmbedder(),
                    vectors=self.vectors[first],
                    max_wrong=MAX_WRONG,
                    basis="requests",
                    confidence=CONFIDENCE,
                )
            )
        except CalibrationRefused:
            return None
        return calibration.policy

    def second_half(self, order: Sequence[int], stream: Stream, accepts: Accepts) -> Half:
        """Replay the whole stream from an empty cache, and count its second half."""
        half = len(order) // 2
        novel = {at for at in range(half, len(order)) if self.requests[order[at]].is_novel}
        answered: set[int] = set()

        def noted(found: Found) -> bool:
            accepted = accepts(found)
            if accepted:
                answered.add(found.request)
            return accepted

        outcome = stream.replay(noted, count_from=half)
        return Half(
            outcome.requests, outcome.hits, outcome.wrong, len(novel), len(novel & answered)
        )


@cache
def load(name: str, data: Path) -> Workload:
    """Return the data set *name* of the folder *data* as a workload."""
    requests: list[Request] = getattr(datasets, name)(data)
    vectors = embed([request.prompt for request in requests], name=name)
    return Workload(name, requests, vectors)


def calibrated_half(seed: int, *, name: str, data: Path) -> Half | None:
    """Return the second half of a permutation, as the policy of its first half serves it.

    `None` where `calibrate` refuses the first half.
    """
    workload = load(name, data)
    order, stream = workload.stream(seed)
    policy = workload.calibrated(order)
    return None if policy is None else workload.second_half(order, stream, acceptance(policy))


def best_fixed_threshold(workload: Workload, seed: int) -> tuple[float, Half]:
    """Return the lowest threshold that keeps the bound in the second half, known afterwards."""
    order, stream = workload.stream(seed)
    for threshold in _THRESHOLDS:
        half = workload.second_half(
            order, stream, rule(ThresholdPolicy(threshold, is_guarded=False))
        )
        if half.wrong_rate <= MAX_WRONG:
            return threshold, half
    raise RuntimeError("no threshold keeps the bound")


def rule(policy: ThresholdPolicy) -> Accepts:
    """Return what *policy* lets pass of the nearest candidates."""

    def accepts(found: Found) -> bool:
        said = policy.judge(found.around.similarities[0], 0, found.around, lambda: found.words)
        return said.verdict is Verdict.SERVE

    return accepts
