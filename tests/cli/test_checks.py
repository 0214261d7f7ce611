"""What `doctor` thinks of servers that are not at hand."""

from __future__ import annotations

from typing import Any

import pytest

from llm_cache.cli.checks import State, judge_extras, judge_server
from llm_cache.cli.server import Server


def judged(name: str, *, semantic: bool = True, **facts: Any):
    """Return the finding of this name about a server that is fine but for *facts*."""
    info = {
        "redis_version": "8.2.1",
        "aof_enabled": 1,
        "maxmemory": 10**9,
        "maxmemory_policy": "volatile-lru",
        **facts.pop("info", {}),
    }
    fine: dict[str, Any] = {
        "modules": {"search": 80205},
        "indexes": (),
        "snapshots": "",
        "compact_bytes": 64,
        "round_trip_s": 0.001,
        "clock_ahead_s": 0.0,
    }
    findings = judge_server(Server(info=info, **{**fine, **facts}), semantic=semantic)
    return next(finding for finding in findings if finding.name == name)


@pytest.mark.parametrize(
    ("version", "state"),
    [("6.2.14", "problem"), ("7.0.0", "ok"), ("7.4.0", "ok"), ("10.0.0", "ok")],
)
def test_redis_is_new_enough_from_7_0_on(version, state):
    assert judged("server", info={"redis_version": version}).state == state


def test_what_is_not_redis_is_a_warning():
    finding = judged("server", info={"server_name": "valkey"})

    assert finding.state is State.WARNING
    assert finding.detail.startswith("valkey 8.2.1")


@pytest.mark.parametrize(
    ("number", "version", "state"),
    [
        (20899, "2.8.99", "problem"),
        (21000, "2.10.0", "ok"),
        (21005, "2.10.5", "ok"),
        (80205, "8.2.5", "ok"),
    ],
)
def test_search_is_new_enough_from_2_10_on(number, version, state):
    finding = judged("search", modules={"search": number})

    assert finding.state == state
    assert f"RediSearch {version}" in finding.detail


@pytest.mark.parametrize(("semantic", "state"), [(True, "problem"), (False, "ok")])
def test_missing_search_matters_to_the_semantic_layer_only(semantic, state):
    assert judged("search", indexes=None, semantic=semantic).state == state


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({"info": {"aof_enabled": 1}}, "ok"),
        ({"info": {"aof_enabled": 0}, "snapshots": "3600 1"}, "ok"),
        ({"info": {"aof_enabled": 0}, "snapshots": ""}, "warning"),
        ({"info": {"aof_enabled": 0}, "snapshots": None}, "ok"),
    ],
    ids=["append-only file", "snapshots", "neither", "unknown"],
)
def test_persistence(facts, state):
    assert judged("persistence", **facts).state == state


@pytest.mark.parametrize(
    ("ahead_s", "state"), [(2.0, "ok"), (-2.0, "ok"), (2.1, "warning"), (-2.1, "warning")]
)
def test_clocks_may_differ_by_two_seconds(ahead_s, state):
    assert judged("clock", clock_ahead_s=ahead_s).state == state


def test_an_extra_is_installed_when_all_of_it_is():
    finding = judge_extras({"onnxruntime", "tokenizers", "genai_prices"})

    assert finding.detail == (
        "prices installed; not installed: pip install 'llm-cache[embedded,local,demo]'"
    )


def test_no_extra_at_all_is_no_problem():
    assert judge_extras(()).state is State.OK


@pytest.mark.parametrize(
    ("compact_bytes", "hint"), [(64, True), (8_191, True), (8_192, False), (None, False)]
)
def test_hashes_that_vectors_keep_from_being_compact_get_a_hint(compact_bytes, hint):
    finding = judged("hashes", compact_bytes=compact_bytes)

    assert finding.state is State.OK
    assert ("CONFIG SET hash-max-listpack-value 8192" in finding.detail) is hint


def test_without_vectors_nothing_is_said_of_hashes():
    with pytest.raises(StopIteration):
        judged("hashes", semantic=False)
