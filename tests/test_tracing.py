"""Spans and metrics for OpenTelemetry, by the GenAI semantic conventions."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes import error_attributes

from llm_cache.errors import MissingExtra, StoreUnavailable
from llm_cache.events import BreakerChanged, CallEnded, DependencyFailed, TextsEmbedded
from llm_cache.tracing import OpenTelemetryHook


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracers(exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture
def reader():
    return InMemoryMetricReader()


@pytest.fixture
def make_hook(tracers, reader):
    meters = MeterProvider([reader], shutdown_on_exit=False)

    def make(**options: Any) -> OpenTelemetryHook:
        return OpenTelemetryHook(tracer_provider=tracers, meter_provider=meters, **options)

    return make


def ended(status="exact", **details: Any) -> CallEnded:
    tokens = {"prompt_tokens": 10, "completion_tokens": 3, "cached_prompt_tokens": 4}
    return CallEnded(status, details.pop("model", "gpt-4o"), "acme", 0.25, **{**tokens, **details})


def attributes(exporter: InMemorySpanExporter) -> dict[str, Any]:
    return dict(exporter.get_finished_spans()[-1].attributes or {})


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    assert data is not None
    metrics = data.resource_metrics[0].scope_metrics[0].metrics
    return {metric.name: list(metric.data.data_points) for metric in metrics}


async def test_spans_of_a_cache_are_below_that_of_their_caller(
    exporter, tracers, make_hook, make_cache
):
    cache = make_cache(hooks=[make_hook()])
    with tracers.get_tracer("test").start_as_current_span("request"):
        await cache.chat("question")
        await cache.chat("question")

    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans.keys() == {"request", "chat gpt-4o-mini", "embeddings fake"}
    parent = spans["request"].context
    assert parent is not None
    for name in ("chat gpt-4o-mini", "embeddings fake"):
        assert spans[name].parent is not None
        assert spans[name].parent.span_id == parent.span_id
    statuses = [
        span.attributes["llm_cache.status"]
        for span in exporter.get_finished_spans()
        if span.name.startswith("chat") and span.attributes
    ]
    assert statuses == ["miss", "exact"]


def test_a_span_has_the_times_of_its_call(exporter, make_hook):
    make_hook()(ended())
    (span,) = exporter.get_finished_spans()
    assert span.end_time - span.start_time == 250_000_000


def test_a_hit_tells_what_it_saved_and_no_usage(exporter, make_hook):
    make_hook(reports_usage=True)(ended("semantic", similarity=0.9))
    assert attributes(exporter) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "llm_cache.status": "semantic",
        "llm_cache.shared": False,
        "llm_cache.operation": "chat",
        "llm_cache.similarity": 0.9,
        "llm_cache.saved.input_tokens": 10,
        "llm_cache.saved.output_tokens": 3,
    }


def test_a_miss_tells_its_usage_only_when_asked_to(exporter, make_hook):
    make_hook()(ended("miss"))
    assert not [name for name in attributes(exporter) if "usage" in name or "saved" in name]
    make_hook(reports_usage=True)(ended("miss"))
    assert attributes(exporter)["gen_ai.usage.input_tokens"] == 10
    assert attributes(exporter)["gen_ai.usage.output_tokens"] == 3
    assert attributes(exporter)["gen_ai.usage.cache_read.input_tokens"] == 4


def test_a_bypass_tells_its_reason_and_nobody_the_tenant(exporter, make_hook):
    make_hook()(ended("bypass", reason="redis"))
    assert attributes(exporter)["llm_cache.reason"] == "redis"
    assert "acme" not in attributes(exporter).values()


def test_a_failure_is_an_event_of_the_callers_span(exporter, tracers, make_hook, reader):
    with tracers.get_tracer("test").start_as_current_span("request"):
        make_hook()(DependencyFailed("redis", "store", StoreUnavailable("secret")))
    (event,) = exporter.get_finished_spans()[-1].events
    assert event.name == "llm_cache.failure"
    assert dict(event.attributes or {}) == {
        "llm_cache.dependency": "redis",
        "llm_cache.operation": "store",
        "error.type": "StoreUnavailable",
    }
    assert points(reader)["llm_cache.failures"][0].value == 1


def test_metrics_count_calls_tokens_and_seconds(make_hook, reader):
    hook = make_hook(embedding_provider="cohere")
    hook(ended())
    hook(ended("miss", is_shared=True))
    hook(TextsEmbedded("embed-v4.0", 2, 9, is_estimate=False, duration_s=0.1))

    told = points(reader)
    assert [point.value for point in told["llm_cache.calls"]] == [1, 1]
    assert sorted(point.value for point in told["llm_cache.tokens.saved"]) == [6, 20]
    assert sum(point.count for point in told["gen_ai.client.operation.duration"]) == 3
    (usage,) = told["gen_ai.client.token.usage"]
    assert usage.sum == 9
    assert usage.attributes["gen_ai.provider.name"] == "cohere"


def test_models_beyond_the_limit_share_an_attribute(make_hook, reader):
    hook = make_hook(max_models=2)
    for model in "abcd":
        hook(ended(model=model))
    models = {
        point.attributes["gen_ai.request.model"] for point in points(reader)["llm_cache.calls"]
    }
    assert models == {"a", "b", "(other)"}


def test_names_are_those_of_the_conventions(exporter, make_hook, reader):
    hook = make_hook(reports_usage=True)
    hook(ended("miss"))
    hook(ended())
    hook(TextsEmbedded("m", 1, 9, is_estimate=False, duration_s=0.1))
    hook(DependencyFailed("redis", "store", StoreUnavailable("")))
    hook(BreakerChanged("redis", "open", StoreUnavailable("")))

    spans = exporter.get_finished_spans()
    used = {name for span in spans for name in span.attributes or {}}
    told = points(reader)
    used |= {name for series in told.values() for point in series for name in point.attributes}
    assert theirs(used) <= names(gen_ai_attributes) | names(error_attributes)
    assert theirs(told) <= names(gen_ai_metrics)
    assert [point.value for point in told["llm_cache.breaker.changes"]] == [1]


def names(module: ModuleType) -> set[str]:
    return {value for value in vars(module).values() if isinstance(value, str)}


def theirs(used: Iterable[str]) -> set[str]:
    return {name for name in used if not name.startswith("llm_cache.")}


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingExtra, match=r"llm-cache\[otel\]"):
        OpenTelemetryHook()
