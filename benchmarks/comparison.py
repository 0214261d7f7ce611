"""`compare A B`: what changed between two reports, and whether it is more than noise.

Latencies are compared as ratios to the bare `GET` beside them, round by round, so that a slower
minute of the machine counts for neither side. The rounds are resampled in stretches, since
neighbours in time are alike, and a change is called one only if its whole interval lies beyond
5 %. Replays of one stream with one seed give the same figures, so there any difference is real.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.errors import BadInput

Json = dict[str, Any]
LEAST_EFFECT = 0.05
"""Ratios within 5 % are the same to a user, and to a machine that does other things besides."""
WANTED_PRECISION = 0.20
"""An interval wider than this on either side tells neither."""
_CONFIDENCE = 0.99
_RESAMPLES = 2_000
_LEAST_ROUNDS = 8
_MEMORY_TOLERANCE = 0.02
_KNEE_TOLERANCE = 0.25
"""A knee is found to about an eighth on either side."""


class Verdict(StrEnum):
    """What can be said of a figure."""

    EQUAL = "equal"
    CHANGED = "changed"
    NOISY = "too noisy to tell"
    ONLY_ONE = "in one report only"


@dataclass(frozen=True, slots=True)
class Change:
    """A figure in both reports."""

    name: str
    before: float | None
    after: float | None
    unit: str
    verdict: Verdict
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    """99 %, of the ratio."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("before", type=Path, nargs="?", help="a report's folder, or results.json")
    parser.add_argument("after", type=Path, nargs="?", help="another one")
    parser.add_argument(
        "--self-test",
        action="store_true",
        help="measure 20 equal pairs and 20 with 20 %% more, and tell how many are told apart",
    )


def run(arguments: argparse.Namespace) -> int:
    """Compare and print."""
    if arguments.self_test:
        from benchmarks.latency import self_test

        return self_test.run()
    if arguments.before is None or arguments.after is None:
        print("compare takes two reports: python -m benchmarks compare A B")
        return 2
    try:
        before, after = results.read(arguments.before), results.read(arguments.after)
    except BadInput as error:
        print(error)
        return 2
    for line in told(before, after):
        print(line)
    return 0


def told(before: Json, after: Json) -> Iterator[str]:
    """Yield the comparison, line by line: what changed first."""
    for difference in _other_conditions(before, after):
        yield f"! {difference}"
    changes = compare(before, after)
    if not changes:
        yield "the two reports have no figure in common"
        return
    order = list(Verdict)
    order.sort(key=lambda verdict: verdict is not Verdict.CHANGED)
    for verdict in order:
        for change in changes:
            if change.verdict is verdict:
                yield _line(change)
    count = sum(change.verdict is Verdict.CHANGED for change in changes)
    yield f"{count} of {len(changes)} figures changed beyond noise"


def compare(before: Json, after: Json) -> list[Change]:
    """Return every figure of either report, with what can be said of it."""
    return [
        *_latencies(before, after),
        *_loads(before, after),
        *_hit_rates(before, after),
        *_memory(before, after),
    ]


# --- durations --------------------------------------------------------------------------------


def ratio_of_medians(
    before: Sequence[float], after: Sequence[float], *, seed: int = 0
) -> tuple[float, tuple[float, float]] | None:
    """Return after / before, and its 99 % interval; `None` for too few rounds.

    The circular block bootstrap (Politis and Romano 1992) over stretches of about the square root
    of the number of rounds.
    """
    if min(len(before), len(after)) < _LEAST_ROUNDS:
        return None
    random = np.random.default_rng(seed)
    first, second = (_medians(np.asarray(each), random) for each in (before, after))
    tail = 50 * (1 - _CONFIDENCE)
    low, high = np.percentile(second / first, [tail, 100 - tail])
    return float(np.median(after) / np.median(before)), (float(low), float(high))


def _medians(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    count = len(values)
    length = max(1, round(count**0.5))
    starts = random.integers(count, size=(_RESAMPLES, -(-count // length)))
    rows = (starts[:, :, None] + np.arange(length)).reshape(_RESAMPLES, -1)[:, :count] % count
    medians: np.ndarray = np.median(values[rows], axis=1)
    return medians


def judge(interval: tuple[float, float]) -> Verdict:
    """Return what an interval of a ratio says."""
    low, high = interval
    if low > 1 + LEAST_EFFECT or high < 1 / (1 + LEAST_EFFECT):
        return Verdict.CHANGED
    if high > 1 + WANTED_PRECISION or low < 1 / (1 + WANTED_PRECISION):
        return Verdict.NOISY
    return Verdict.EQUAL


def durations(name: str, before: Sequence[float], after: Sequence[float], unit: str) -> Change:
    """Return the comparison of two lists of durations, or of their ratios to a reference."""
    found = ratio_of_medians(before, after)
    first, second = (float(np.median(each)) if len(each) else None for each in (before, after))
    if found is None:
        return Change(name, first, second, unit, Verdict.NOISY)
    ratio, interval = found
    return Change(name, first, second, unit, judge(interval), ratio, interval)


def _latencies(before: Json, after: Json) -> Iterator[Change]:
    first, second = (
        {scene["name"]: scene for scene in each["sections"].get("latency", {}).get("scenes", [])}
        for each in (before, after)
    )
    for name in first.keys() | second.keys():
        if name not in first or name not in second:
            yield Change(f"latency, {name}", None, None, "", Verdict.ONLY_ONE)
            continue
        a, b = (
            _beside(scenes[name]["blocks_s"], each["sections"]["latency"]["reference_blocks_s"])
            for scenes, each in ((first, before), (second, after))
        )
        yield durations(f"latency, {name}", a, b, "bare GETs")


def _beside(blocks: Sequence[float], reference: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(blocks, reference, strict=False) if b > 0]


def _loads(before: Json, after: Json) -> Iterator[Change]:
    sweeps = [each["sections"].get("load", {}).get("sweep", {}) for each in (before, after)]
    if not all(sweeps):
        return
    knees = [sweep.get("knee_per_s") or 0.0 for sweep in sweeps]
    if all(knees):
        ratio = knees[1] / knees[0]
        is_equal = 1 / (1 + _KNEE_TOLERANCE) <= ratio <= 1 + _KNEE_TOLERANCE
        verdict = Verdict.EQUAL if is_equal else Verdict.CHANGED
        yield Change("load, knee", knees[0], knees[1], "requests/s", verdict, ratio)
    # Near the knee the queue decides, which no comparison can tell from noise.
    first, second = (
        {
            round(step["offered_per_s"]): [block["p50_s"] * 1e3 for block in step["blocks"]]
            for step in sweep["steps"]
            if step["offered_per_s"] <= 0.7 * min(knees)
        }
        for sweep in sweeps
    )
    for rate in sorted(first.keys() & second.keys()):
        yield durations(f"load, p50 at {rate:,}/s", first[rate], second[rate], "ms")


# --- counts -----------------------------------------------------------------------------------


def _hit_rates(before: Json, after: Json) -> Iterator[Change]:
    first, second = _policies(before), _policies(after)
    is_same_stream = before["seed"] == after["seed"]
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            yield Change(name, None, None, "", Verdict.ONLY_ONE)
            continue
        a, b = first[name], second[name]
        for figure in ("hit_rate", "wrong_hits"):
            counts = [_count(each, figure) for each in (a, b)]
            verdict = _counted(counts[0], counts[1], is_same_stream and not _is_cut(a, b))
            yield Change(f"{name}, {figure}", a[figure], b[figure], "", verdict)


def _policies(report: Json) -> dict[str, Json]:
    return {
        f"{workload['name']}, {figures['policy']}": figures
        for workload in report["sections"].get("hitrate", {}).get("workloads", [])
        for figures in workload["policies"]
    }


def _is_cut(a: Json, b: Json) -> bool:
    return bool(a["stopped"] or b["stopped"] or a["requests"] != b["requests"])


def _count(figures: Json, figure: str) -> tuple[int, int]:
    if figure == "wrong_hits":
        return figures["wrong_hits"], figures["requests"]
    hits = sum(figures["statuses"].get(status, 0) for status in ("exact", "semantic", "stale"))
    return hits, figures["requests"]


def _counted(a: tuple[int, int], b: tuple[int, int], is_same_stream: bool) -> Verdict:  # noqa: FBT001
    if is_same_stream:
        return Verdict.EQUAL if a == b else Verdict.CHANGED
    if not a[1] or not b[1]:
        return Verdict.NOISY
    from scipy import stats

    table = [[a[0], a[1] - a[0]], [b[0], b[1] - b[0]]]
    p = float(stats.fisher_exact(table).pvalue)
    return Verdict.CHANGED if p < 1 - _CONFIDENCE else Verdict.EQUAL


def _memory(before: Json, after: Json) -> Iterator[Change]:
    first, second = (
        {
            row["name"]: row["bytes_per_entry"]
            for row in each["sections"].get("memory", {}).get("rows", [])
        }
        for each in (before, after)
    )
    for name in sorted(first.keys() & second.keys()):
        a, b = first[name], second[name]
        if not a or not b:
            continue
        is_equal = abs(b / a - 1) <= _MEMORY_TOLERANCE
        verdict = Verdict.EQUAL if is_equal else Verdict.CHANGED
        yield Change(f"memory per entry, {name}", a, b, "bytes", verdict, b / a)


# --- words ------------------------------------------------------------------------------------


def _other_conditions(before: Json, after: Json) -> Iterator[str]:
    for what, path in (
        ("machine", ("machine", "processor")),
        ("cores", ("machine", "cores")),
        ("Redis", ("redis", "version")),
        ("Python", ("versions", "python")),
    ):
        values = [each.get(path[0], {}).get(path[1]) for each in (before, after)]
        if values[0] != values[1]:
            yield f"another {what}: {values[0]} and {values[1]}"
    for which, each in (("first", before), ("second", after)):
        machine = each.get("machine", {})
        loads = [machine.get("load_at_start") or 0, machine.get("load_at_end") or 0]
        if max(loads) > 1.5 * (machine.get("cores") or 1):
            yield f"the machine was busy during the {which}: its load was {max(loads):g}"
    if before["seed"] != after["seed"]:
        yield f"another seed: {before['seed']} and {after['seed']}: the streams differ"


def _line(change: Change) -> str:
    text = f"{change.verdict:18} {change.name}"
    if change.before is not None and change.after is not None:
        text += f": {change.before:.4g} → {change.after:.4g} {change.unit}".rstrip()
    if change.ratio is not None:
        text += f" ({100 * (change.ratio - 1):+.1f} %"
        if change.interval is not None:
            low, high = (100 * (bound - 1) for bound in change.interval)
            text += f", 99 % interval {low:+.1f} to {high:+.1f} %"
        text += ")"
    return text
