"""Served and traps served: what rules of acceptance do to pairs of prompts.

The first prompt of a pair is in the cache, the second is asked. Where both need the same answer a
hit is right, and else the trap has closed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.correctness.datasets import Pair
from benchmarks.correctness.vectors import embed
from llm_cache import LocalEmbedder
from llm_cache._core.hit_policy import Policy, ThresholdPolicy, decide
from llm_cache._core.types import Candidate

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

GPTCACHE_SIMILARITY = 0.6
"""What GPTCache's default accepts. `SearchDistanceEvaluation(max_distance=4.0)` scores unit
vectors 4 - d², with d² their squared Euclidean distance; `Config(similarity_threshold=0.8)` takes
scores from 0.8 x 4 on: d² up to 0.8, which is a cosine from 0.6 on."""
REDISVL_SIMILARITY = 0.9
"""What RedisVL's default accepts: `SemanticCache(distance_threshold=0.1)`, a cosine distance."""

Serves = Callable[[Pair, float], bool]


@dataclass(frozen=True, slots=True)
class Row:
    """What one rule does."""

    rule: str
    served: float
    """Share of the pairs with one answer that are served."""
    traps_served: float
    """Share of the other pairs that are served."""


def rules(calibrated: Policy | None) -> dict[str, Serves]:
    """Return the rules to compare, by name."""
    threshold = LocalEmbedder.similarity_threshold
    found = {
        f"GPTCache's default (cosine from {GPTCACHE_SIMILARITY})": _from(GPTCACHE_SIMILARITY),
        f"RedisVL's default (cosine from {REDISVL_SIMILARITY})": _from(REDISVL_SIMILARITY),
        f"no guard, similarity from {threshold}": _from(threshold),
        f"guards, similarity from {threshold} (the default)": _by(ThresholdPolicy(threshold)),
    }
    if calibrated is not None:
        found["guards and a calibrated policy"] = _by(calibrated)
    return found


def rows(pairs: Sequence[Pair], name: str, compared: dict[str, Serves]) -> list[Row]:
    """Return what each of the *compared* rules does to *pairs*."""
    similarities = similarity(pairs, name).tolist()
    return [_row(rule, serves, pairs, similarities) for rule, serves in compared.items()]


def similarity(pairs: Sequence[Pair], name: str) -> npt.NDArray[np.float32]:
    """Return the cosine of each pair, by `LocalEmbedder`."""
    vectors = embed([pair.a for pair in pairs] + [pair.b for pair in pairs], name=name)
    cosines: npt.NDArray[np.float32] = (vectors[: len(pairs)] * vectors[len(pairs) :]).sum(axis=1)
    return cosines


def _row(rule: str, serves: Serves, pairs: Sequence[Pair], similarities: Sequence[float]) -> Row:
    served = {True: [0, 0], False: [0, 0]}
    for pair, cosine in zip(pairs, similarities, strict=True):
        served[pair.same][0] += serves(pair, cosine)
        served[pair.same][1] += 1
    return Row(rule, *(hits / max(of, 1) for hits, of in (served[True], served[False])))


def _from(threshold: float) -> Serves:
    return lambda _, cosine: cosine >= threshold


def _by(policy: Policy) -> Serves:
    def serves(pair: Pair, cosine: float) -> bool:
        candidate = Candidate(key="", digest="a", prompt=pair.a, similarity=cosine)
        return bool(decide(pair.b, [candidate], policy).served)

    return serves
