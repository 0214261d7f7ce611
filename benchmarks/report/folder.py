"""Writes the folder of a report."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results import Results


def write_report(results: Results) -> Path:
    """x."""
    return results.save()
