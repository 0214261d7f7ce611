"""An FAQ asked once in each wording: how much of it the defaults answer, and how wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.correctness.datasets import Request
from benchmarks.correctness.vectors import Vectors
from llm_cache._core.hit_policy import Policy, decide
from llm_cache._core.types import Candidate


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of asking everything once, over some shuffles."""

    shuffles: int
    hit_rate: float
    """Semantic hits a request."""
    wrong: int
    """Wrong hits of all shuffles together."""


def ask(
    requests: Sequence[Request], vectors: Vectors, policy: Policy, *, shuffles: int = 20
) -> Asked:
    """Ask all *requests* of an empty cache, in *shuffles* orders."""
    outcomes = [_ask(requests, vectors, policy, seed) for seed in range(shuffles)]
    hits, wrong = (sum(column) for column in zip(*outcomes, strict=True))
    return Asked(shuffles, hits / (shuffles * len(requests)), wrong)


def _ask(
    requests: Sequence[Request], vectors: Vectors, policy: Policy, seed: int
) -> tuple[int, int]:
    stored: list[int] = []
    hits = wrong = 0
    for asked in np.random.default_rng(seed).permutation(len(requests)).tolist():
        near = vectors[stored] @ vectors[asked]
        nearest = [
            # As in a real cache, nobody knows which of the stored answers say the same.
            Candidate(str(place), str(place), requests[place].prompt, float(near[at]))
            for at in np.argsort(-near, kind="stable")[:4].tolist()
            for place in [stored[at]]
        ]
        served = decide(requests[asked].prompt, nearest, policy).served
        if served:
            hits += 1
            wrong += requests[int(served[0].key)].answer_id != requests[asked].answer_id
        else:
            stored.append(asked)
    return hits, wrong
