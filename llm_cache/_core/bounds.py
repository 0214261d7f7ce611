"""Exact upper bounds on a rate, from counts. Pure; no statistics package needed."""

from __future__ import annotations

import math
from collections.abc import Iterable

_STEPS = 60
"""Halvings of [0, 1]: the bound is exact to the last bits of a float."""


def upper_bound(wrong: float, trials: float, confidence: float) -> float:
    """Return the rate that is exceeded with a probability of at most ``1 - confidence``.

    The one-sided interval of Clopper and Pearson (1934): the rate at which so few *wrong* of
    *trials* would have had a chance of just ``1 - confidence``. Valid for any number of trials;
    1.0 for none. Both counts may be fractions, as effective sample sizes are.
    """
    if trials <= 0 or wrong >= trials:
        return 1.0
    low, high = wrong / trials, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _at_most(wrong, trials, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def lower_bound(wrong: float, trials: float, confidence: float) -> float:
    """Return the rate that is undercut with a probability of at most ``1 - confidence``."""
    return 1 - upper_bound(trials - wrong, trials, confidence) if trials > 0 else 0.0


def clustered_bound(clusters: Iterable[int], trials: int, confidence: float) -> float:
    """`upper_bound` where wrong events come in *clusters* of these sizes.

    One wrong entry that is served ten times is one mistake and not ten independent ones. The
    counts are divided by the design effect, as Korn and Graubard (1998) do for surveys: by the
    mean size of the cluster in which a wrong event finds itself.
    """
    sizes = [size for size in clusters if size > 0]
    wrong = sum(sizes)
    effect = sum(size * size for size in sizes) / wrong if wrong else 1.0
    return upper_bound(wrong / effect, trials / effect, confidence)


def trials_needed(rate: float, limit: float, confidence: float) -> int | None:
    """Return how many trials with wrong events at *rate* show that the rate is below *limit*.

    `None` when no number does, because *rate* is not below *limit*.
    """
    if rate >= limit:
        return None
    low, high = 0, 64
    while not _shows(rate, high, limit, confidence):
        low, high = high, high * 2
        if high > 10**9:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if _shows(rate, middle, limit, confidence):
            high = middle
        else:
            low = middle
    return high


def _shows(rate: float, trials: int, limit: float, confidence: float) -> bool:
    return upper_bound(math.ceil(rate * trials), trials, confidence) <= limit


def _at_most(wrong: float, trials: float, rate: float) -> float:
    """Return the chance of at most *wrong* events: 1 - I(rate; wrong + 1, trials - wrong)."""
    return 1 - _incomplete_beta(rate, wrong + 1, trials - wrong)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function, by DLMF 8.17.22."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    return front / a / _fraction(x, a, b)


def _fraction(x: float, a: float, b: float) -> float:
    """Return 1 + d1/(1 + d2/(1 + …)), evaluated from the front (Lentz's method)."""
    tiny, value, c, d = 1e-300, 1.0, 1.0, 0.0
    for i in range(1, 2_000):
        m = i // 2
        if i % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / _away_from_zero(1 + term * d, tiny)
        c = _away_from_zero(1 + term / c, tiny)
        value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return value


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
