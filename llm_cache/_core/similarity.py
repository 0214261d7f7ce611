"""Which of the nearest neighbours, if any, may answer. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llm_cache._core import guards
from llm_cache._core.types import Candidate

FLOAT16_TOLERANCE = 0.0003
"""How far from 1 the similarity of a vector with itself comes back from a FLOAT16 index
(measured: up to 0.0003). Thresholds above `1 - FLOAT16_TOLERANCE` mean "identical"."""


def acceptable(
    prompt: str, candidates: Iterable[Candidate], *, threshold: float, guarded: bool
) -> Iterator[Candidate]:
    """Yield the *candidates* that may answer *prompt*, in their order.

    A candidate may answer when its similarity is at least *threshold* and, if *guarded*, no
    lexical guard objects to it.
    """
    least = min(threshold, 1 - FLOAT16_TOLERANCE)
    near = [candidate for candidate in candidates if candidate.similarity >= least]
    if not guarded or not near:
        yield from near
        return
    signature = guards.analyse(prompt)
    for candidate in near:
        if guards.objection_between(signature, guards.analyse(candidate.prompt)) is None:
            yield candidate
