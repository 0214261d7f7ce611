"""The model of what many entries need."""

import math

import pytest

from benchmarks.micro import scale
from benchmarks.micro.settings import Row
from llm_cache._redis.sizes import ef_runtime

SIZES = (10_000, 100_000, 1_000_000)


def grown(entries: int, *, mode: str = "constant", lookup_ms: float | None = None) -> Row:
    decades = math.log10(entries)
    p50_ms = 0.2 + 0.001 * ef_runtime(entries) * decades if lookup_ms is None else lookup_ms
    return {
        "mode": mode,
        "entries": entries,
        "bytes_per_entry": 4_000,
        "inserts_per_s": 1e6 / (100 + 50 * decades),
        "hit_p50_ms": p50_ms,
        "hit_p99_ms": 3 * p50_ms,
    }


def test_what_follows_the_model_is_told_as_it_was_measured():
    for told in scale.checks([grown(entries) for entries in SIZES]):
        assert told["model_hit_p50_ms"] == pytest.approx(told["hit_p50_ms"])
        assert told["model_hit_p99_ms"] == pytest.approx(told["hit_p99_ms"])
        assert told["model_inserts_per_s"] == pytest.approx(told["inserts_per_s"], abs=1)
        assert told["model_gb"] == pytest.approx(told["gb"])


def test_what_does_not_follow_it_shows():
    rows = [grown(10_000), grown(100_000, lookup_ms=3.0), grown(1_000_000)]
    told = scale.checks(rows)[1]
    assert told["model_hit_p50_ms"] < 0.9 * told["hit_p50_ms"]


def test_each_way_to_grow_has_constants_of_its_own():
    slow = [grown(entries, mode="density", lookup_ms=9.0) for entries in SIZES]
    told = scale.checks([*(grown(entries) for entries in SIZES), *slow])
    assert [row["mode"] for row in told] == ["constant"] * 3 + ["density"] * 3
    assert told[0]["model_hit_p50_ms"] == pytest.approx(told[0]["hit_p50_ms"])
    assert told[-1]["model_hit_p50_ms"] == pytest.approx(9.0)


def test_more_than_a_shard_holds_is_spread_over_several():
    rows = scale.rows([grown(entries) for entries in SIZES], scale.Assumptions(shard_gb=5))
    million, ten, *_ = rows
    assert (million["shards"], ten["shards"]) == (1, 8)
    assert ten["entries_per_shard"] == 1_250_000
    assert ten["usd_per_month"] == pytest.approx(40 * 1.25 * 2 * 10)
    # Of shards that are as large, each takes as many.
    assert ten["inserts_per_s"] == pytest.approx(
        8 * 1e6 / (100 + 50 * math.log10(1_250_000)), 0.01
    )
