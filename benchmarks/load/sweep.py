"""Looks for the knee: the highest rate at which the system still keeps up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Measure = Callable[[float], Awaitable[Json | None]]
"""Measures a rate; `None` where it was stopped."""

KEEPS_UP = 0.97
"""Least share of the offered rate that must be achieved."""
_GROWTH = 1.6
_NARROWINGS = 2
_LOWEST = 1.0


@dataclass(frozen=True, slots=True)
class Limit:
    """What a rate must hold to count as reached."""

    p99_s: float

    def is_met(self, figures: Json) -> bool:
        """Tell whether the step kept up: rate achieved, p99 within the limit, no error."""
        return self.why_not(figures) is None

    def why_not(self, figures: Json) -> str | None:
        """Return what did not hold, or `None`."""
        offered = figures["offered_per_s"]
        p99_s = figures["latency"]["p99_s"]
        if figures["redis_lost_at_s"] is not None:
            return f"Redis stopped answering after {figures['redis_lost_at_s']:.0f} s"
        if figures["errors"]:
            return f"errors: {', '.join(figures['errors'])}"
        if p99_s is None:
            return "no request was answered"
        # The drawn number of arrivals differs from the rate; what arrived is what can be achieved.
        due = min(offered, figures["offered"] / figures["seconds"])
        if figures["achieved_per_s"] < KEEPS_UP * due:
            return f"{figures['achieved_per_s']:,.0f}/s achieved"
        if p99_s > self.p99_s:
            return f"p99 {p99_s * 1000:,.0f} ms"
        return None


async def find_knee(
    measure: Measure, limit: Limit, *, start_per_s: float, most_steps: int = 14
) -> Json:
    """Raise the rate until it is too much, then narrow the knee down.

    A first rate that is too much already is lowered until one is met.

    Returns the steps in the order of their rates, the knee (`None` where no rate was met), and
    why the rate above it is too much.
    """
    steps: list[Json] = []
    met: float | None = None
    failed: float | None = None
    why: str | None = None
    rate = start_per_s
    narrowed = 0
    while len(steps) < most_steps:
        figures = await measure(rate)
        if figures is None:
            break
        steps.append(figures)
        reason = limit.why_not(figures)
        if reason is None:
            met = rate if met is None else max(met, rate)
        else:
            failed, why = rate, reason
        if figures["redis_lost_at_s"] is not None or (failed is not None and failed <= _LOWEST):
            break
        if failed is None:
            rate *= _GROWTH
        elif met is None:
            rate = max(_LOWEST, failed / 2)
        else:
            narrowed += 1
            if narrowed > _NARROWINGS:
                break
            rate = (met * failed) ** 0.5
    steps.sort(key=lambda step: float(step["offered_per_s"]))
    return {
        "steps": steps,
        "knee_per_s": met,
        "too_much_per_s": failed,
        "why": why,
        "p99_limit_s": limit.p99_s,
    }
