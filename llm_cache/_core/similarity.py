"""Which of the nearest neighbours, if any, may answer, for one similarity threshold. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llm_cache._core.types import Candidate


def acceptable(
    prompt: str, candidates: Iterable[Candidate], *, threshold: float, guarded: bool
) -> Iterator[Candidate]:
    """Yield the *candidates* that may answer *prompt*, in their order.

    A candidate may answer when its similarity is at least *threshold* and, if *guarded*, no
    lexical guard objects to it or fails.
    """
    # Imported where it is used: with the guards' lexicon it is a sixth of what an import costs.
    from llm_cache._core.hit_policy import ThresholdPolicy, Verdict, judge_each

    policy = ThresholdPolicy(threshold, is_guarded=guarded)
    for judged in judge_each(prompt, list(candidates), policy):
        if judged.verdict is Verdict.SERVE:
            yield judged.candidate


def objection(prompt: str, candidate: Candidate, *, threshold: float, guarded: bool) -> str | None:
    """Return why *candidate* may not answer *prompt*, or `None` where it may."""
    from llm_cache._core.hit_policy import ThresholdPolicy, judge_each

    policy = ThresholdPolicy(threshold, is_guarded=guarded)
    (judged,) = judge_each(prompt, [candidate], policy)
    return judged.reason or None
