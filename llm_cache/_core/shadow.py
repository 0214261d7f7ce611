"""What a decision would have been worth, told by the model's own answer. Pure.

A miss, and every call in shadow mode, has a fresh answer. Compared with the one that the nearest
candidate leads to, it says for free whether that candidate would have been right.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from llm_cache._core.hit_policy import Decision
from llm_cache._core.types import Candidate


class Shadow(StrEnum):
    """How a decision compares with what the model answered; also the names of counters."""

    RIGHT_HIT = "right_hit"
    WRONG_HIT = "wrong_hit"
    MISSED_HIT = "missed_hit"
    """Refused, although the nearest candidate's answer says the same."""
    RIGHT_MISS = "right_miss"


def compared(decision: Decision) -> Candidate | None:
    """Return the candidate whose answer is to be compared with the fresh one.

    The one that would be served, else the nearest; `None` where there is nothing to compare.
    """
    return decision.first_served or next((judged.candidate for judged in decision), None)


def outcome(decision: Decision, *, agrees: bool) -> Shadow:
    """Return what *decision* was worth, given whether the answers of `compared` agree."""
    if decision.first_served is not None:
        return Shadow.RIGHT_HIT if agrees else Shadow.WRONG_HIT
    return Shadow.MISSED_HIT if agrees else Shadow.RIGHT_MISS


def label(prompt: str, candidate: Candidate, *, agrees: bool) -> dict[str, Any]:
    """Return the comparison as a row that `calibrate` takes. It holds prompts."""
    return {
        "new": prompt,
        "cached": candidate.prompt,
        "same": agrees,
        "similarity": max(-1.0, min(1.0, candidate.similarity)),
    }
