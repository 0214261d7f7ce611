"""Synthetic labels whose truth is known: how often a certified bound turns out to be broken.

A valid procedure at 95 % confidence breaks its bound on at most 5 % of the logs. Logs on which it
refuses break nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.correctness.workers import Each
from llm_cache._core import guards
from llm_cache._core.hit_policy import CalibratedPolicy, Neighbourhood, features
from llm_cache._core.replay import Prompts, Stream, acceptance
from llm_cache.calibrate import LabelledPair, LoggedRequest, calibrate
from llm_cache.errors import CalibrationRefused

Basis = Literal["hits", "requests"]
Floats = npt.NDArray[np.float64]

MAX_WRONG = 0.05
CONFIDENCE = 0.95
_FRESH = 3_000
_LETTERS = "bcdfghjklmnpqrstvwxz"


@dataclass(frozen=True, slots=True)
class KnownTruth:
    """What came of many logs of one kind."""

    kind: str
    basis: str
    logs: int
    certified: int
    broken: int
    """Logs whose policy is wrong more often, in truth, than was certified."""
    hit_rate: float
    """Mean over the certified ones."""

    @property
    def allowed(self) -> int:
        """Broken logs that chance allows a procedure that is just valid, in 99 runs of 100."""
        mean = (1 - CONFIDENCE) * self.logs
        return math.floor(mean + 2.33 * math.sqrt(mean * CONFIDENCE))

    @property
    def holds(self) -> bool:
        """Whether the bound was broken no more often than it may be."""
        return self.broken <= self.allowed


def pairs(
    logs: int, *, basis: Basis, seed: int = 0, rows: int = 800, each: Each = map
) -> KnownTruth:
    """Return how often the bound breaks on *logs* of pairs with known chances of being right."""
    one = partial(_one_of_pairs, rows=rows, basis=basis)
    return _summary("pairs", basis, logs, each(one, _seeds(seed, logs)))


def streams(
    logs: int, *, basis: Basis, seed: int = 0, rows: int = 500, each: Each = map
) -> KnownTruth:
    """Return how often the bound breaks on *logs* of requests with vectors around known topics."""
    one = partial(_one_stream, rows=rows, basis=basis)
    return _summary("streams", basis, logs, each(one, _seeds(seed, logs)))


def _seeds(seed: int, logs: int) -> list[tuple[int, int]]:
    return [(seed, number) for number in range(logs)]


def _summary(
    kind: str, basis: str, logs: int, results: Iterable[tuple[float, float] | None]
) -> KnownTruth:
    certified = [result for result in results if result is not None]
    return KnownTruth(
        kind=kind,
        basis=basis,
        logs=logs,
        certified=len(certified),
        broken=sum(wrong > MAX_WRONG for wrong, _ in certified),
        hit_rate=sum(hit_rate for _, hit_rate in certified) / max(len(certified), 1),
    )


def _policy(log: Any, basis: Basis, vectors: Any = None) -> CalibratedPolicy | None:
    try:
        calibration = asyncio.run(
            calibrate(
                log,
                embedder=_Space(),
                max_wrong=MAX_WRONG,
                basis=basis,
                confidence=CONFIDENCE,
                vectors=vectors,
            )
        )
    except CalibrationRefused:
        return None
    return calibration.policy


class _Space:
    """Names the vector space; every vector and similarity is given."""

    model_id = "synthetic"
    dimensions = 16
    similarity_threshold = 0.9

    async def embed(self, texts: Any) -> Any:
        raise NotImplementedError


# -- pairs: the chance that a pair is the same rises with its similarity


def _one_of_pairs(seed: tuple[int, int], rows: int, basis: Basis) -> tuple[float, float] | None:
    random = np.random.default_rng(seed)
    steepness, middle = random.uniform(8, 60), random.uniform(0.55, 0.95)
    noise = random.choice([0.0, 0.005, 0.02])

    def draw(count: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
        similarity = random.beta(6, 2, count)
        chance = 1 / (1 + np.exp(-steepness * (similarity - middle)))
        return similarity, random.random(count) < chance * (1 - noise)

    similarity, same = draw(rows)
    log = [
        LabelledPair(f"tell {_word(2 * at)}", f"tell {_word(2 * at + 1)}", bool(is_same), float(s))
        for at, (s, is_same) in enumerate(zip(similarity, same, strict=True))
    ]
    policy = _policy(log, basis)
    if policy is None:
        return None
    words = guards.compare(guards.analyse(log[0].new), guards.analyse(log[0].cached))
    similarity, same = draw(100_000)
    objected = words.objection is not None and words.objection not in policy.weighed_guards
    hits = np.zeros(len(similarity), bool) if objected else _served(policy, words, similarity)
    wrong = float((hits & ~same).sum())
    total = hits.sum() if basis == "hits" else len(hits)
    return wrong / max(float(total), 1.0), float(hits.mean())


def _served(
    policy: CalibratedPolicy, words: guards.Comparison, similarity: Floats
) -> npt.NDArray[np.bool_]:
    # Of a pair only the similarity varies; the score is a parabola in it.
    grid = np.linspace(0, 1, 2_001)
    scores = [policy.score(features(Neighbourhood((s,), ("",)), words)) for s in grid.tolist()]
    served: npt.NDArray[np.bool_] = np.interp(similarity, grid, scores) >= policy.least_score
    return served


def _word(number: int) -> str:
    """Return a word of its own for each *number*, which looks like nothing in any list."""
    letters = []
    while True:
        number, rest = divmod(number, len(_LETTERS))
        letters.append(_LETTERS[rest])
        if not number:
            return "zq" + "".join(letters) + "xo"


# -- streams: topics on a sphere, some popular and some asked about once


def _one_stream(seed: tuple[int, int], rows: int, basis: Basis) -> tuple[float, float] | None:
    random = np.random.default_rng(seed)
    topics = random.normal(size=(int(random.integers(15, 60)), _Space.dimensions))
    # Some topics are close together: what is wrong is wrong again and again.
    for at in range(0, len(topics) - 1, 3):
        topics[at + 1] = topics[at] + random.uniform(0.3, 0.9) * topics[at + 1]
    popularity = 1 / np.arange(1, len(topics) + 1) ** random.uniform(0, 1.2)
    spread, novel = random.uniform(0.1, 0.5), random.uniform(0, 0.2)

    def draw(count: int) -> tuple[Floats, list[str]]:
        chosen = random.choice(len(topics), count, p=popularity / popularity.sum())
        vectors = topics[chosen] + spread * random.normal(size=(count, _Space.dimensions))
        answers = [str(topic) for topic in chosen]
        for at in np.flatnonzero(random.random(count) < novel).tolist():
            vectors[at] = random.normal(size=_Space.dimensions)
            answers[at] = f"novel {random.integers(2**62)}"
        return vectors, answers

    vectors, answers = draw(rows)
    log = [LoggedRequest(f"tell {_word(at)}", answer) for at, answer in enumerate(answers)]
    policy = _policy(log, basis, vectors)
    if policy is None:
        return None
    later, later_answers = draw(_FRESH)
    both = np.concatenate([vectors, later])
    units = (both / np.linalg.norm(both, axis=1, keepdims=True)).astype(np.float32)
    texts = [f"tell {_word(at)}" for at in range(len(both))]
    stream = Stream(Prompts(texts, units), [*answers, *later_answers], range(len(both)))
    outcome = stream.replay(acceptance(policy), count_from=rows)
    total = outcome.hits if basis == "hits" else outcome.requests
    return outcome.wrong / max(total, 1), outcome.hits / outcome.requests
