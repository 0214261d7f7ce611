"""Latencies in HDR histograms: a microsecond to an hour, three digits, nothing averaged away."""

from __future__ import annotations

from typing import Any, Self

from hdrh.histogram import HdrHistogram

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
_MOST_US = 3_600_000_000


class Latencies:
    """Durations, kept as counts."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, _MOST_US, 3)

    def add(self, duration_s: float) -> None:
        """Count a duration; one of no time at all counts as a microsecond."""
        self._histogram.record_value(min(_MOST_US, max(1, round(duration_s * 1e6))))

    def merge(self, other: Latencies) -> None:
        """Count all of *other*'s."""
        self._histogram.add(other._histogram)

    @property
    def count(self) -> int:
        """How many durations."""
        return int(self._histogram.get_total_count())

    def at(self, percentile: float) -> float | None:
        """Return the duration in seconds that so many per cent do not exceed."""
        if not self.count:
            return None
        return float(self._histogram.get_value_at_percentile(percentile)) / 1e6

    def encoded(self) -> str:
        """Return it as text, in HdrHistogram's own format (V2, compressed, base64)."""
        text = self._histogram.encode()
        return text.decode() if isinstance(text, bytes) else str(text)

    @classmethod
    def decoded(cls, text: str) -> Self:
        """Return what was `encoded`."""
        latencies = cls()
        latencies._histogram.decode_and_add(text)
        return latencies

    def figures(self) -> dict[str, Any]:
        """Return the percentiles in seconds, and the histogram itself."""
        return {
            "count": self.count,
            **{f"p{percentile:g}_s": self.at(percentile) for percentile in PERCENTILES},
            "max_s": float(self._histogram.get_max_value()) / 1e6 if self.count else None,
            "histogram": self.encoded(),
        }

    def curve(self, points: int = 200) -> list[tuple[float, float]]:
        """Return (seconds, share of durations up to it), for a plot."""
        if not self.count:
            return []
        # Evenly spread over the number of nines, which is where the tail is.
        shares = [1 - 10 ** (-4 * i / (points - 1)) for i in range(points)]
        return [(self.at(100 * share) or 0.0, share) for share in shares]
