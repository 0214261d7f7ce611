"""How far a rate may be from the one measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
_RESAMPLES = 2_000


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate with two 95 % intervals.

    `exact_interval` is Clopper and Pearson's, which takes every event for independent.
    `clustered_interval` resamples whole cached answers, since one popular wrong entry makes many
    wrong hits; it says nothing about what was never seen, and so is [0, 0] where nothing was.
    """

    events: int
    of: int
    rate: float | None
    """`None` where there was nothing to count."""
    exact_interval: tuple[float, float] | None
    clustered_interval: tuple[float, float] | None


def clopper_pearson(events: int, of: int) -> tuple[float, float] | None:
    """Return the interval of Clopper and Pearson (1934); `None` for no trial."""
    if not of:
        return None
    interval = stats.binomtest(events, of).proportion_ci(CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)


def clustered_rate(clusters: Iterable[tuple[int, int]], *, seed: int) -> Rate:
    """Return the rate of events over trials, each cluster being (events, trials).

    The bootstrap draws as many clusters as there are, with replacement (the percentile method;
    Davison and Hinkley 1997, section 3.8).
    """
    kinds = Counter(clusters)
    pairs = np.array(list(kinds), dtype=float).reshape(-1, 2)
    counts = np.array(list(kinds.values()))
    events, of = (int(total) for total in counts @ pairs) if len(counts) else (0, 0)
    if not of:
        return Rate(0, 0, None, None, None)
    # Clusters that are alike are drawn together: a million clusters cost no more than a few.
    drawn = np.random.default_rng(seed).multinomial(
        counts.sum(), counts / counts.sum(), size=_RESAMPLES
    )
    sums = drawn @ pairs
    rates = sums[:, 0][sums[:, 1] > 0] / sums[:, 1][sums[:, 1] > 0]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(rates, [tail, 100 - tail])
    return Rate(events, of, events / of, clopper_pearson(events, of), (float(low), float(high)))
