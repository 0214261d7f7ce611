"""`compare` knows noise when it sees it."""

import copy
from typing import Any

import numpy as np
import pytest

from benchmarks.comparison import Verdict, compare, durations, told

PAIRS = 20


def rounds(seed: int, *, slower: float = 1.0, count: int = 30) -> list[float]:
    """Ratios of a call to a bare GET as they come: skewed, and alike from one to the next."""
    random = np.random.default_rng(seed)
    drift = 0.0
    made = []
    for noise, step in zip(random.normal(size=count), random.normal(size=count), strict=True):
        drift = 0.8 * drift + 0.02 * step
        made.append(2.0 * slower * float(np.exp(drift + 0.06 * noise + 0.02 * noise**2)))
    return made


def verdicts(slower: float) -> list[Verdict]:
    pairs = ((rounds(2 * i), rounds(2 * i + 1, slower=slower)) for i in range(PAIRS))
    return [durations("call", before, after, "").verdict for before, after in pairs]


def test_of_20_equal_pairs_at_least_19_are_called_equal():
    assert verdicts(slower=1.0).count(Verdict.EQUAL) >= PAIRS - 1


@pytest.mark.parametrize("slower", [1.2, 1 / 1.2])
def test_of_20_pairs_that_differ_by_20_per_cent_at_least_19_are_detected(slower):
    assert verdicts(slower).count(Verdict.CHANGED) >= PAIRS - 1


def test_what_is_too_noisy_is_neither_equal_nor_changed():
    wild = [float(np.exp(x)) for x in np.random.default_rng(1).normal(size=30)]

    assert durations("call", wild, wild[::-1], "").verdict is Verdict.NOISY


def test_a_few_rounds_tell_nothing():
    assert durations("call", [1.0] * 7, [2.0] * 7, "").verdict is Verdict.NOISY
    assert durations("call", [1.0] * 8, [2.0] * 8, "").verdict is Verdict.CHANGED


def test_no_rounds_at_all_are_no_error():
    assert durations("call", [], [], "").before is None


def report(**sections: Any) -> dict[str, Any]:
    machine = {"processor": "x", "cores": 2, "load_at_start": 0.1, "load_at_end": 0.2}
    versions = {"python": "3.11"}
    return {"seed": 0, "machine": machine, "versions": versions, "sections": sections}


def policy(hits: int, wrong: int, requests: int = 1_000) -> dict[str, Any]:
    statuses = {"exact": hits, "miss": requests - hits}
    figures = {"policy": "default", "requests": requests, "statuses": statuses, "stopped": []}
    return {**figures, "hit_rate": hits / requests, "wrong_hits": wrong}


def hit_rates(figures: dict[str, Any]) -> dict[str, Any]:
    return {"workloads": [{"name": "faq", "policies": [figures]}]}


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [c.name for c in compare(before, after) if c.verdict is Verdict.CHANGED]


def test_replays_of_one_seed_differ_only_if_the_cache_does():
    before = report(hitrate=hit_rates(policy(300, 0)))
    after = report(hitrate=hit_rates(policy(301, 0)))

    assert changed(before, before) == []
    assert changed(before, after) == ["faq, default, hit_rate"]


def test_replays_of_another_seed_have_to_differ_by_more_than_chance():
    before = report(hitrate=hit_rates(policy(300, 0)))
    after = {**report(hitrate=hit_rates(policy(310, 0))), "seed": 1}
    far = {**report(hitrate=hit_rates(policy(400, 9))), "seed": 1}

    assert changed(before, after) == []
    assert changed(before, far) == ["faq, default, hit_rate", "faq, default, wrong_hits"]


def test_memory_is_equal_within_two_per_cent():
    def weighing(weight: float) -> dict[str, Any]:
        return report(memory={"rows": [{"name": "384", "bytes_per_entry": weight}]})

    assert changed(weighing(1_000), weighing(1_019)) == []
    assert changed(weighing(1_000), weighing(1_021)) == ["memory per entry, 384"]


def test_a_part_that_only_one_report_has_is_said_to_be():
    scene = {"name": "exact hit", "blocks_s": [1.0] * 9}
    latency = {"scenes": [scene], "reference_blocks_s": [1.0] * 9}

    (only,) = compare(report(latency=latency), report())

    assert only.verdict is Verdict.ONLY_ONE


def test_reports_of_different_machines_are_told_apart_first():
    other = copy.deepcopy(report())
    other["machine"].update(processor="y", load_at_end=9.0)

    lines = list(told(report(), other))

    assert lines[0] == "! another machine: x and y"
    assert "busy" in lines[1]
    assert lines[-1] == "the two reports have no figure in common"
