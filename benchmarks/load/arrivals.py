"""When requests arrive. Every worker draws its own share, so that nothing grows with the length.

All are endless iterators of seconds from the start, for a mean of `rate_per_s`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np

BURST_EVERY_S = 5.0
BURST_LENGTH_S = 0.5
BURST_FACTOR = 5.0
"""In a burst, so many times as many arrive as between bursts."""
KINDS = ("poisson", "constant", "burst", "trace")
_DRAWN_AT_A_TIME = 1_024


def arrivals(
    kind: str,
    rate_per_s: float,
    *,
    worker: int = 0,
    workers: int = 1,
    seed: int = 0,
    trace_s: np.ndarray | None = None,
) -> Iterator[float]:
    """Return when the requests of *worker* arrive.

    Args:
        kind: `constant`, evenly spaced; `poisson`, as of many people who know nothing of each
            other; `burst`, Poisson with ten times a minute half a second of five times as many;
            `trace`, recorded arrivals, stretched to the rate.
        rate_per_s: Of all workers together.
        worker: Which one, from 0.
        workers: How many there are.
        seed: Of what is drawn.
        trace_s: The recorded arrivals.
    """
    if kind == "constant":
        return ((worker + i * workers) / rate_per_s for i in count())
    if kind == "trace":
        if trace_s is None:
            raise ValueError("arrivals of a trace need the trace")
        return _stretched(trace_s, rate_per_s, worker, workers)
    steps = _unit_poisson(np.random.default_rng([seed, worker]))
    rate = rate_per_s / workers
    if kind == "poisson":
        return (step / rate for step in steps)
    if kind == "burst":
        return (_in_bursts(step, rate) for step in steps)
    raise ValueError(f"no such arrivals: {kind}")


def _unit_poisson(random: np.random.Generator) -> Iterator[float]:
    """Yield the arrivals of a Poisson process of rate 1."""
    reached = 0.0
    while True:
        for gap in random.exponential(size=_DRAWN_AT_A_TIME).tolist():
            reached += gap
            yield reached


def _in_bursts(arrived: float, rate: float) -> float:
    """Return when the *arrived*-th arrives: the cumulated rate, turned round."""
    share = BURST_LENGTH_S / BURST_EVERY_S
    calm = rate / (1 + (BURST_FACTOR - 1) * share)
    in_burst = BURST_FACTOR * calm * BURST_LENGTH_S
    period, rest = divmod(arrived, rate * BURST_EVERY_S)
    if rest <= in_burst:
        return period * BURST_EVERY_S + rest / (BURST_FACTOR * calm)
    return period * BURST_EVERY_S + BURST_LENGTH_S + (rest - in_burst) / calm


def _stretched(trace_s: np.ndarray, rate: float, worker: int, workers: int) -> Iterator[float]:
    length_s = max(float(trace_s[-1]), 1e-9) * (len(trace_s) + 1) / len(trace_s)
    scale = len(trace_s) / rate / length_s
    for lap in count():
        # Counted through all laps, so that workers share a trace of any length evenly.
        first = (worker - lap * len(trace_s)) % workers
        for at_s in trace_s[first::workers].tolist():
            yield (lap * length_s + at_s) * scale
