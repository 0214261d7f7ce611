"""Served and traps served: what rules of acceptance do to pairs of prompts.

The first prompt of a pair is in the cache, the second is asked. Where both need the same answer a
hit is right, and else the trap has closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.correctness import peers
from benchmarks.correctness.datasets import Pair
from benchmarks.correctness.vectors import Vectors, embed
from llm_cache import LocalEmbedder
from llm_cache._core.hit_policy import Policy, ThresholdPolicy, decide
from llm_cache._core.types import Candidate
from llm_cache.calibrate import LabelledPair, calibrate
from llm_cache.errors import CalibrationRefused

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
    """Return our rules, by name."""
    threshold = LocalEmbedder.similarity_threshold
    found = {
        f"no guard, similarity from {threshold}": _from(threshold),
        f"guards, similarity from {threshold} (the default)": _by(ThresholdPolicy(threshold)),
    }
    if calibrated is not None:
        found["guards and a calibrated policy"] = _by(calibrated)
    return found


def documented_peers() -> dict[str, Serves]:
    """Return what the peers' documentation says that they accept by default, by name."""
    return {
        f"GPTCache's documented default (cosine from {GPTCACHE_SIMILARITY})": _from(
            GPTCACHE_SIMILARITY
        ),
        f"RedisVL's documented default (cosine from {REDISVL_SIMILARITY})": _from(
            REDISVL_SIMILARITY
        ),
    }


def rows(
    pairs: Sequence[Pair], name: str, calibrated: Policy | None, peers_python: Path | None
) -> list[Row]:
    """Return what the peers' rules and ours do to *pairs*.

    The peers' own packages are asked where *peers_python* has them.
    """
    cached, asked = _vectors(pairs, name)
    similarities = (cached * asked).sum(axis=1).tolist()
    compared = rules(calibrated)
    found = []
    if peers_python is None:
        compared = documented_peers() | compared
    else:
        found = [shares(p.name, p.served, pairs) for p in peers.ask(peers_python, cached, asked)]
    for rule, serves in compared.items():
        both = zip(pairs, similarities, strict=True)
        found.append(shares(rule, [serves(pair, cosine) for pair, cosine in both], pairs))
    return found


def calibrated(pairs: Sequence[Pair], name: str, *, max_wrong: float) -> Policy | None:
    """Return the policy for *pairs* at *max_wrong* wrong hits per request, `None` if refused."""
    cosines = similarity(pairs, name).tolist()
    log = [LabelledPair(p.b, p.a, p.same, s) for p, s in zip(pairs, cosines, strict=True)]
    try:
        calibration = asyncio.run(
            calibrate(log, embedder=LocalEmbedder(), max_wrong=max_wrong, basis="requests")
        )
    except CalibrationRefused:
        return None
    return calibration.policy


def similarity(pairs: Sequence[Pair], name: str) -> npt.NDArray[np.float32]:
    """Return the cosine of each pair, by `LocalEmbedder`."""
    cached, asked = _vectors(pairs, name)
    cosines: npt.NDArray[np.float32] = (cached * asked).sum(axis=1)
    return cosines


def _vectors(pairs: Sequence[Pair], name: str) -> tuple[Vectors, Vectors]:
    vectors = embed([pair.a for pair in pairs] + [pair.b for pair in pairs], name=name)
    return vectors[: len(pairs)], vectors[len(pairs) :]


def shares(rule: str, served: Sequence[bool], pairs: Sequence[Pair]) -> Row:
    """Return the row of a *rule* that has *served* these of the pairs."""
    right = [hit for hit, pair in zip(served, pairs, strict=True) if pair.same]
    traps = [hit for hit, pair in zip(served, pairs, strict=True) if not pair.same]
    return Row(rule, sum(right) / max(len(right), 1), sum(traps) / max(len(traps), 1))


def _from(threshold: float) -> Serves:
    return lambda _, cosine: cosine >= threshold


def _by(policy: Policy) -> Serves:
    def serves(pair: Pair, cosine: float) -> bool:
        candidate = Candidate(key="", digest="a", prompt=pair.a, similarity=cosine)
        return bool(decide(pair.b, [candidate], policy).served)

    return serves
