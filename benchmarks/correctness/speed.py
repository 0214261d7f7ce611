"""What a decision over four candidates costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from llm_cache._core import guards
from llm_cache._core.hit_policy import Decision, Policy, decide, remembered, remembered_packed
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
    to_first_us: float
    """The same up to the first that may be served, where a hit ends."""
    from_known_us: float
    """Where the candidates were compared with others before."""
    from_signatures_us: float
    """Where the entries keep signatures, so that only the new prompt has to be read."""


def measure(prompts: Sequence[str], policy: Policy) -> Speed:
    """Decide on five *prompts* in turn, each beside the four others, all similar enough."""
    guards.prepare()
    kept = [_candidates(prompts, at, packed=False) for at in range(len(prompts))]
    packed = [_candidates(prompts, at, packed=True) for at in range(len(prompts))]
    ways: dict[str, tuple[Sequence[Sequence[Candidate]], Callable[[Decision], object]]] = {
        "from_prompts_us": (kept, tuple),
        "to_first_us": (kept, attrgetter("first_served")),
        "from_known_us": (kept, tuple),
        "from_signatures_us": (packed, tuple),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(_ROUNDS):
        at = number % len(prompts)
        for name, (candidates, look_at) in ways.items():
            remembered.cache_clear()
            remembered_packed.cache_clear()
            if name == "from_known_us":
                tuple(decide(prompts[at], candidates[at], policy))
            started = time.perf_counter()
            look_at(decide(prompts[at], candidates[at], policy))
            times[name].append((time.perf_counter() - started) * 1e6)
    return Speed(**{name: statistics.median(values) for name, values in times.items()})


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
