"""What a decision over four candidates costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from llm_cache._core import guards
from llm_cache._core.hit_policy import Policy, decide, remembered, remembered_packed
from llm_cache._core.types import Candidate

SIMILAR = (
    "How can I change the delivery address of my order?",
    "Can I change the shipping address on an order?",
    "How do I update the delivery address for my last order?",
    "Where do I edit the delivery address of an order?",
    "How can I change my order's delivery address after paying?",
)
"""Wordings of one question: to each of them all others are candidates."""
_ROUNDS = 400


@dataclass(frozen=True, slots=True)
class Speed:
    """Medians, in µs, side by side."""

    from_prompts_us: float
    """Where all five have to be read."""
    from_known_us: float
    """Where the candidates were compared with others before."""
    from_signatures_us: float
    """Where the entries keep signatures, so that only the new prompt has to be read."""


def measure(prompts: Sequence[str], policy: Policy) -> Speed:
    """Decide on five *prompts* in turn, each beside the four others, all similar enough."""
    guards.prepare()
    kept = [_candidates(prompts, at, packed=False) for at in range(len(prompts))]
    packed = [_candidates(prompts, at, packed=True) for at in range(len(prompts))]
    times: tuple[list[float], ...] = ([], [], [])
    for number in range(_ROUNDS):
        at = number % len(prompts)
        remembered.cache_clear()
        remembered_packed.cache_clear()
        for candidates, into in zip((kept[at], kept[at], packed[at]), times, strict=True):
            started = time.perf_counter()
            decide(prompts[at], candidates, policy)
            into.append((time.perf_counter() - started) * 1e6)
    return Speed(*map(statistics.median, times))


def _candidates(prompts: Sequence[str], at: int, *, packed: bool) -> list[Candidate]:
    return [
        Candidate(
            key=str(place),
            digest=str(place),
            prompt="" if packed else prompt,
            similarity=0.95 - 0.01 * place,
            signature=guards.pack(prompt) if packed else b"",
        )
        for place, prompt in enumerate(prompts)
        if place != at
    ]
