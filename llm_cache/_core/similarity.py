"""Which of the nearest neighbours, if any, may answer. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llm_cache._core.types import Candidate

FLOAT16_TOLERANCE = 0.0003
"""How far from 1 the similarity of a vector with itself comes back from a FLOAT16 index
(measured: up to 0.0003). Thresholds above `1 - FLOAT16_TOLERANCE` mean "identical"."""


def acceptable(
    prompt: str, candidates: Iterable[Candidate], *, threshold: float, guarded: bool
) -> Iterator[Candidate]:
    """Yield the *candidates* that may answer *prompt*, in their order.

    A candidate may answer when its similarity is at least *threshold* and, if *guarded*, no
    lexical guard objects to it or fails.
    """
    # Imported where they are used: with their lexicon they are a sixth of what an import costs.
    from llm_cache._core import guards

    signature: guards.Signature | None = None
    for candidate in candidates:
        if candidate.similarity < _least(threshold):
            continue
        if guarded:
            try:
                signature = signature or guards.analyse(prompt)
                veto = guards.objection_between(signature, guards.analyse(candidate.prompt))
            except Exception:  # noqa: BLE001, S112 - a guard that fails has let nothing pass
                continue
            if veto is not None:
                continue
        yield candidate


def objection(prompt: str, candidate: Candidate, *, threshold: float, guarded: bool) -> str | None:
    """Return why *candidate* may not answer *prompt*, or `None` where it may."""
    from llm_cache._core import guards

    if candidate.similarity < _least(threshold):
        return f"similarity below {threshold:g}"
    try:
        guard = guards.objection(prompt, candidate.prompt) if guarded else None
    except Exception as error:  # noqa: BLE001 - as in `acceptable`; here it is told
        return f"guard failed: {type(error).__name__}"
    return None if guard is None else f"guard: {guard}"


def _least(threshold: float) -> float:
    return min(threshold, 1 - FLOAT16_TOLERANCE)
