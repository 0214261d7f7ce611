"""Metrics for Prometheus, and the dashboard that shows them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from llm_cache import Price
from llm_cache.errors import MissingExtra, StoreUnavailable
from llm_cache.events import (
    BreakerChanged,
    CallEnded,
    CandidateVerified,
    DecisionCompared,
    DependencyFailed,
    StoreSkipped,
    TextsEmbedded,
)
from llm_cache.metrics import PrometheusHook
from tests.cache.test_verifying import Says

DASHBOARD = Path(__file__).parent.parent / "deploy" / "grafana-dashboard.json"


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def hook(registry):
    return PrometheusHook(registry, max_models=2)


def ended(status="exact", model="gpt-4o-mini", **details: Any) -> CallEnded:
    return CallEnded(status, model, details.pop("tenant", None), 0.001, **details)


def labels_of(registry: CollectorRegistry, name: str, label: str) -> set[str]:
    return {
        sample.labels[label]
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name
    }


async def test_calls_of_a_cache_are_counted(registry, hook, make_cache, embedder):
    embedder.similar("reset password", "password reset help", 0.95)
    cache = make_cache(hooks=[hook])
    for prompt in ("reset password", "reset password", "password reset help"):
        await cache.chat(prompt)
    await cache.chat("reset password", cache_control="no-store")

    shared = {"model": "gpt-4o-mini", "tenant": "", "operation": "chat", "shared": "false"}
    for status in ("exact", "semantic", "miss", "bypass"):
        assert (
            registry.get_sample_value("llm_cache_calls_total", {"status": status, **shared}) == 1
        )
    assert registry.get_sample_value("llm_cache_bypasses_total", {"reason": "no-store"}) == 1
    assert registry.get_sample_value("llm_cache_embedded_texts_total", {"model": "fake"}) == 2
    assert registry.get_sample_value("llm_cache_similarity_count", {"model": "gpt-4o-mini"}) == 1


def test_tokens_are_parted_by_their_price(registry, hook):
    hook(ended(prompt_tokens=100, cached_prompt_tokens=30, completion_tokens=7))
    hook(ended("miss", prompt_tokens=5, completion_tokens=5))
    hook(ended("miss", is_shared=True, prompt_tokens=10, completion_tokens=1))

    def saved(kind: str) -> Any:
        told = {"model": "gpt-4o-mini", "kind": kind}
        return registry.get_sample_value("llm_cache_tokens_saved_total", told)

    assert (saved("prompt"), saved("cached_prompt"), saved("completion")) == (80, 30, 8)


def test_prices_are_told_where_they_are_known(registry):
    hook = PrometheusHook(registry, prices={"ours": Price(input_usd=1, output_usd=2)})
    for model in ("gpt-4o-mini", "ours", "unknown"):
        hook(ended(model=model))

    def price(model: str, kind: str) -> Any:
        return registry.get_sample_value("llm_cache_price_usd", {"model": model, "kind": kind})

    assert price("gpt-4o-mini", "completion") == pytest.approx(0.6e-6)
    assert price("ours", "prompt") == price("ours", "cached_prompt") == pytest.approx(1e-6)
    assert price("unknown", "prompt") is None


def test_models_beyond_the_limit_share_a_label(registry, hook):
    for model in ("a", "b", "c", "d"):
        hook(ended(model=model))
    assert labels_of(registry, "llm_cache_calls_total", "model") == {"a", "b", "(other)"}


@pytest.mark.parametrize(("limit", "told"), [(0, {"", "(other)"}), (1, {"", "acme", "(other)"})])
def test_tenants_are_named_only_when_asked_for(registry, limit, told):
    hook = PrometheusHook(registry, max_tenants=limit)
    for tenant in (None, "acme", "umbrella"):
        hook(ended(tenant=tenant))
    assert labels_of(registry, "llm_cache_calls_total", "tenant") == told


def test_failures_and_refusals_are_counted(registry, hook):
    hook(DependencyFailed("redis", "store", StoreUnavailable("secret")))
    hook(StoreSkipped("length", "gpt-4o-mini"))
    hook(TextsEmbedded("small", 3, 12, is_estimate=False, duration_s=0.1))

    def value(name: str, **labels: str) -> Any:
        return registry.get_sample_value(f"llm_cache_{name}", labels)

    assert value("failures_total", dependency="redis", operation="store") == 1
    assert value("not_stored_total", reason="length", model="gpt-4o-mini") == 1
    assert value("embedding_tokens_total", model="small") == 12


def test_breakers_are_told_by_their_state(registry, hook):
    def value(name: str, **labels: str) -> Any:
        return registry.get_sample_value(f"llm_cache_breaker_{name}", labels)

    hook(BreakerChanged("redis", "open", StoreUnavailable("secret")))
    assert value("open", dependency="redis") == 1
    hook(BreakerChanged("redis", "closed"))
    assert value("open", dependency="redis") == 0
    assert value("changes_total", dependency="redis", state="open") == 1


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtra, match=r"llm-cache\[prometheus\]"):
        PrometheusHook()


def test_workers_add_up_in_multi_process_mode(tmp_path):
    worker = (
        "from llm_cache.events import CallEnded; from llm_cache.metrics import PrometheusHook\n"
        "PrometheusHook()(CallEnded('exact', 'gpt-4o', None, 0.1, prompt_tokens=1,"
        " completion_tokens=1))\n"
    )
    reader = (
        "from prometheus_client import CollectorRegistry, generate_latest\n"
        "from prometheus_client.multiprocess import MultiProcessCollector\n"
        "registry = CollectorRegistry(); MultiProcessCollector(registry)\n"
        "print(generate_latest(registry).decode())\n"
    )
    for code in (worker, worker, reader):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            cwd=DASHBOARD.parent.parent,
            capture_output=True,
            text=True,
            check=True,
        )

    assert re.search(r'llm_cache_calls_total\{.*status="exact".*\} 2\.0', ran.stdout)
    assert 'llm_cache_price_usd{kind="completion",model="gpt-4o"} 1e-05' in ran.stdout


# --- the dashboard ----------------------------------------------------------------------------


def expressions() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    variables = dashboard["templating"]["list"]
    return panels + [each["definition"] for each in variables if "definition" in each]


def labels_by_metric(registry: CollectorRegistry, hook: PrometheusHook) -> dict[str, set[str]]:
    """Return the labels that each metric really has, by telling the hook of everything."""
    for status in ("exact", "semantic", "stale", "miss", "bypass"):
        hook(ended(status, similarity=0.9, prompt_tokens=2, completion_tokens=1))
    hook(DependencyFailed("redis", "store", StoreUnavailable("")))
    hook(StoreSkipped("length", "m"))
    hook(TextsEmbedded("text-embedding-3-small", 1, 1, is_estimate=False, duration_s=0.1))
    hook(CandidateVerified("yes", "m"))
    hook(DecisionCompared("right_hit", "m"))
    labels: dict[str, set[str]] = {}
    for family in registry.collect():
        for sample in family.samples:
            labels.setdefault(sample.name, {"job"}).update(sample.labels)
    return labels


def test_the_dashboard_asks_only_for_metrics_and_labels_that_there_are(registry, hook):
    there = labels_by_metric(registry, hook)
    for expression in expressions():
        asked = re.findall(r"(llm_cache_\w+)(?:\{([^}]*)\})?", expression)
        assert asked
        for name, selectors in asked:
            assert name in there, expression
            assert set(re.findall(r"(\w+)=", selectors)) <= there[name], expression


def test_the_dashboard_groups_only_by_labels_that_there_are(registry, hook):
    there = labels_by_metric(registry, hook)
    for expression in expressions():
        known = set().union(*(there[n] for n in re.findall(r"llm_cache_\w+", expression)))
        grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
        assert {name.strip() for names in grouped for name in names.split(",")} <= known


def test_the_dashboard_shows_every_metric(registry, hook):
    shown = set(re.findall(r"llm_cache_\w+", " ".join(expressions())))
    there = {
        re.sub(r"_(created|sum|count)$", "", name) for name in labels_by_metric(registry, hook)
    }
    counters = {name for name in there if name.endswith(("_total", "_bucket", "_usd"))}
    assert shown == counters


def test_panels_of_the_dashboard_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        x, y, w, h = (panel["gridPos"][side] for side in "xywh")
        cells = {(column, row) for column in range(x, x + w) for row in range(y, y + h)}
        assert not taken & cells, panel["title"]
        assert x + w <= 24
        taken |= cells


async def test_second_looks_are_counted(registry, hook, make_cache, embedder):
    embedder.similar("reset password", "password reset help", 0.85)
    cache = make_cache(hooks=[hook], shadow=True, verifier=Says(False))
    for prompt in ("reset password", "password reset help"):
        await cache.chat(prompt)
    await cache.aclose()

    about = {"model": "gpt-4o-mini"}
    verified = registry.get_sample_value(
        "llm_cache_verifications_total", {"verdict": "no", **about}
    )
    compared = registry.get_sample_value(
        "llm_cache_shadow_decisions_total", {"outcome": "right_miss", **about}
    )
    assert (verified, compared) == (1, 1)
