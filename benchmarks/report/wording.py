"""A figure as people read it; a dash where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NONE = "–"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table, with an empty line around it; none without rows."""
    lines = [f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows]
    if not lines:
        return []
    return ["", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *lines, ""]


def number(value: Any) -> str:
    """Return a count."""
    return NONE if value is None else f"{value:,.0f}"


def decimal(value: Any) -> str:
    """Return a number with two digits after the point."""
    return NONE if value is None else f"{value:.2f}"


def percent(value: Any) -> str:
    """Return a share."""
    if value is None:
        return NONE
    digits = 1 if abs(value) >= 0.01 or not value else 2
    return f"{100 * value:.{digits}f} %"


def change(value: Any) -> str:
    """Return a share by which something changed."""
    return NONE if value is None else f"{100 * value:+.1f} %"


def duration(value: Any) -> str:
    """Return a duration in seconds."""
    if value is None:
        return NONE
    if value < 0.00095:
        return f"{1e6 * value:.0f} µs"
    if value < 0.0995:
        return f"{1e3 * value:.2f} ms" if value < 0.00995 else f"{1e3 * value:.1f} ms"
    return f"{1e3 * value:,.0f} ms" if value < 9.95 else f"{value:,.1f} s"


def seconds(value: Any) -> str:
    """Return a length of time."""
    if value is None:
        return NONE
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.1f} minutes"


def hours(value: Any) -> str:
    """Return a TTL in hours."""
    if value is None:
        return "none"
    return f"{value:g} h" if value < 48 else f"{value / 24:g} days"


def size(value: Any) -> str:
    """Return a number of bytes."""
    if value is None:
        return NONE
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:.0f} bytes"


def usd(value: Any) -> str:
    """Return an amount of money."""
    if value is None:
        return NONE
    return f"{value:,.2f} USD" if value >= 0.1 or not value else f"{value:.4f} USD"


def rate(value: Any) -> str:
    """Return a rate with both intervals."""
    if value is None or value["rate"] is None:
        return NONE
    spans = []
    for name in ("clustered_interval", "exact_interval"):
        low, high = value[name]
        spans.append(f"{100 * low:.2g}–{100 * high:.2g} %")
    return f"{percent(value['rate'])} ({spans[0]}; {spans[1]})"


def recall(value: Any) -> str:
    """Return what a search found of what it should have."""
    if value is None:
        return NONE
    return f"{value['recall']:.4f} ({value['found']:,} of {value['sought']:,})"


def served(counts: Mapping[str, int]) -> str:
    """Return how many requests of a kind were hits."""
    total = sum(count for status, count in counts.items() if status != "wrong")
    hits = sum(counts.get(status, 0) for status in ("exact", "semantic", "stale"))
    return f"{hits:,} of {total:,} ({100 * hits / total:.0f} %)" if total else NONE
