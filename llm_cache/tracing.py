"""Spans and metrics for OpenTelemetry: `LLMCache(…, hooks=[LogHook(), OpenTelemetryHook()])`.

Names follow the GenAI semantic conventions; what is the cache's own begins with `llm_cache.`. The
extra is `otel`; without an SDK that is set up, OpenTelemetry drops what it is told.

A span is made when its call has ended, with the times it had, below the span that the caller is
in. It holds no prompt, no answer and no key.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from llm_cache._core.counts import HITS, bounded
from llm_cache._core.types import CacheStatus
from llm_cache.errors import MissingExtra
from llm_cache.events import BreakerChanged, CallEnded, DependencyFailed, Event, TextsEmbedded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

_NAME = "llm_cache"
_SECONDS = [0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]
_TOKENS = [4**power for power in range(14)]
_CHAT, _EMBEDDINGS = "chat", "embeddings"

Attributes = dict[str, Any]


class OpenTelemetryHook:
    """An event hook that makes spans and metrics of calls and embeddings.

    Args:
        provider: `gen_ai.provider.name` of the chat model: `openai`, `anthropic`, …
        embedding_provider: The same of the embedding model; default *provider*.
        tracer_provider: Default the global one.
        meter_provider: Default the global one.
        reports_usage: Tell of a call that asked the model what it took, as
            `gen_ai.usage.input_tokens` and so on. Leave it `False` where the model's client is
            traced too: its span, below ours, tells the same, and it would count twice.
        max_models: So many models are told apart in metrics; further ones are `(other)`.

    Raises:
        MissingExtra: `opentelemetry-api` is not installed.
    """

    hears = (CallEnded, TextsEmbedded, DependencyFailed, BreakerChanged)

    def __init__(
        self,
        *,
        provider: str = "openai",
        embedding_provider: str | None = None,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        reports_usage: bool = False,
        max_models: int = 50,
    ) -> None:
        try:
            from opentelemetry import metrics, trace
        except ImportError as error:
            raise MissingExtra("opentelemetry-api", "otel") from error
        self._providers = {
            _CHAT: provider,
            _EMBEDDINGS: provider if embedding_provider is None else embedding_provider,
        }
        self._reports_usage = reports_usage
        self._model = bounded(max_models)
        self._trace = trace
        self._tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
        meter = metrics.get_meter(_NAME, meter_provider=meter_provider)
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="GenAI operation duration.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._usage = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self._calls = meter.create_counter(
            "llm_cache.calls", unit="{call}", description="Calls by status."
        )
        self._saved = meter.create_counter(
            "llm_cache.tokens.saved",
            unit="{token}",
            description="Tokens that the model was spared.",
        )
        self._failures = meter.create_counter(
            "llm_cache.failures",
            unit="{failure}",
            description="Failures of Redis and the embedder; the caller was served all the same.",
        )
        self._breakers = meter.create_counter(
            "llm_cache.breaker.changes",
            unit="{change}",
            description="Dependencies left alone because they kept failing, or found again.",
        )

    def __call__(self, event: Event, /) -> None:
        """Make spans and metrics of *event*."""
        if isinstance(event, CallEnded):
            self._call_ended(event)
        elif isinstance(event, TextsEmbedded):
            self._texts_embedded(event)
        elif isinstance(event, DependencyFailed):
            self._dependency_failed(event)
        elif isinstance(event, BreakerChanged):
            self._breaker_changed(event)

    def _call_ended(self, event: CallEnded) -> None:
        cached: Attributes = {
            "llm_cache.status": event.status,
            "llm_cache.shared": event.is_shared,
            "llm_cache.operation": event.operation,
        }
        self._span(_CHAT, event.model, event.duration_s, {**cached, **self._details(event)})
        labels = self._labels(_CHAT, event.model)
        told = {**labels, "llm_cache.status": event.status}
        self._duration.record(event.duration_s, told)
        self._calls.add(1, {**told, "llm_cache.shared": event.is_shared})
        for kind, tokens in _tokens(event):
            if _is_saving(event):
                self._saved.add(tokens, {**labels, "gen_ai.token.type": kind})
            elif self._reports_usage:
                self._usage.record(tokens, {**labels, "gen_ai.token.type": kind})

    def _details(self, event: CallEnded) -> Attributes:
        """Return attributes that only some calls have."""
        details: Attributes = {
            "llm_cache.similarity": event.similarity,
            "llm_cache.reason": event.reason,
        }
        for kind, tokens in _tokens(event):
            # Whoever adds up usage must not find what nobody has paid for this time.
            if _is_saving(event):
                details[f"llm_cache.saved.{kind}_tokens"] = tokens
            elif self._reports_usage:
                details[f"gen_ai.usage.{kind}_tokens"] = tokens
        if self._reports_usage and not _is_saving(event):
            details["gen_ai.usage.cache_read.input_tokens"] = event.cached_prompt_tokens
        return {name: value for name, value in details.items() if value is not None}

    def _texts_embedded(self, event: TextsEmbedded) -> None:
        details: Attributes = {"llm_cache.texts": event.texts}
        if not event.is_estimate:
            details["gen_ai.usage.input_tokens"] = event.tokens
        self._span(_EMBEDDINGS, event.model, event.duration_s, details)
        labels = self._labels(_EMBEDDINGS, event.model)
        self._duration.record(event.duration_s, labels)
        if not event.is_estimate:
            self._usage.record(event.tokens, {**labels, "gen_ai.token.type": "input"})

    def _dependency_failed(self, event: DependencyFailed) -> None:
        told: Attributes = {
            "llm_cache.dependency": event.dependency,
            "llm_cache.operation": event.operation,
            "error.type": type(event.error).__name__,
        }
        self._failures.add(1, told)
        self._trace.get_current_span().add_event("llm_cache.failure", told)

    def _breaker_changed(self, event: BreakerChanged) -> None:
        told = {"llm_cache.dependency": event.dependency, "llm_cache.state": event.state}
        self._breakers.add(1, told)
        self._trace.get_current_span().add_event("llm_cache.breaker", told)

    def _span(self, operation: str, model: str, duration_s: float, details: Attributes) -> None:
        ended_ns = time.time_ns()
        attributes = {**self._attributes(operation, model), **details}
        span = self._tracer.start_span(
            f"{operation} {model}".strip(),
            kind=self._trace.SpanKind.INTERNAL,
            start_time=ended_ns - round(duration_s * 1e9),
            attributes=attributes,
        )
        span.end(ended_ns)

    def _labels(self, operation: str, model: str) -> Attributes:
        return self._attributes(operation, self._model(model))

    def _attributes(self, operation: str, model: str) -> Attributes:
        return {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": self._providers[operation],
            "gen_ai.request.model": model,
        }


def _is_saving(event: CallEnded) -> bool:
    return event.status in HITS or (event.is_shared and event.status == CacheStatus.MISS)


def _tokens(event: CallEnded) -> Iterator[tuple[str, int]]:
    for kind, tokens in (("input", event.prompt_tokens), ("output", event.completion_tokens)):
        if tokens is not None:
            yield kind, tokens
