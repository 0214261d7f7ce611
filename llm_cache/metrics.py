"""Metrics for Prometheus: `LLMCache(…, hooks=[LogHook(), PrometheusHook()])`. Extra `prometheus`.

Labels are bounded: statuses, reasons and operations are few by nature, models and tenants are told
one by one up to a limit and beyond it as `(other)`. No metric holds a prompt, an answer or a key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from llm_cache._core.counts import HITS, OTHER, bounded
from llm_cache._core.types import CacheStatus
from llm_cache.errors import MissingExtra
from llm_cache.events import (
    BreakerChanged,
    CallEnded,
    CandidateVerified,
    DecisionCompared,
    DependencyFailed,
    Event,
    StoreSkipped,
    TextsEmbedded,
)
from llm_cache.prices import Price, PriceList

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_SECONDS = (0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LONG = (10, 30, 60)
_SIMILARITIES = (0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 1.0)


class PrometheusHook:
    """An event hook that counts into Prometheus metrics named `llm_cache_…`.

    Make one for each registry and give it to all caches of the process. It works in
    `prometheus_client`'s multi-process mode.

    Args:
        registry: Default the global one of `prometheus_client`.
        max_models: So many models have a label of their own.
        max_tenants: So many tenants have one, by their plain names; by default none has.
        prices: Prices that go before the price list, for `llm_cache_price_usd`.

    Raises:
        MissingExtra: `prometheus_client` is not installed.
        ValueError: the registry has such metrics already.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        max_models: int = 50,
        max_tenants: int = 0,
        prices: Mapping[str, Price] | None = None,
    ) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise MissingExtra("prometheus_client", "prometheus") from error
        self._model, self._tenant = bounded(max_models), bounded(max_tenants)
        self._prices = PriceList(prices)
        self._prices.load()
        target = prometheus.REGISTRY if registry is None else registry
        counter = partial(prometheus.Counter, registry=target)
        histogram = partial(prometheus.Histogram, registry=target)
        self._calls = counter(
            "llm_cache_calls_total",
            "Calls by status.",
            ["status", "model", "tenant", "operation", "shared"],
        )
        self._duration = histogram(
            "llm_cache_call_duration_seconds",
            "How long calls took; of streams, until the first piece could be read.",
            ["status", "operation"],
            buckets=(*_SECONDS, *_LONG),
        )
        self._similarity = histogram(
            "llm_cache_similarity",
            "Cosine similarity of semantic hits.",
            ["model"],
            buckets=_SIMILARITIES,
        )
        self._saved = counter(
            "llm_cache_tokens_saved_total",
            "Tokens that the model was spared: of prompts, of prompts that the provider had"
            " cached itself, and of completions.",
            ["model", "kind"],
        )
        self._price = prometheus.Gauge(
            "llm_cache_price_usd",
            "USD per token of each kind; absent where nobody knows it.",
            ["model", "kind"],
            registry=target,
            multiprocess_mode="mostrecent",
        )
        self._bypasses = counter(
            "llm_cache_bypasses_total", "Calls that the cache had no part in.", ["reason"]
        )
        self._not_stored = counter(
            "llm_cache_not_stored_total", "Answers served but not stored.", ["reason", "model"]
        )
        self._failures = counter(
            "llm_cache_failures_total",
            "Failures of Redis and the embedder; the caller was served all the same.",
            ["dependency", "operation"],
        )
        self._breaker_changes = counter(
            "llm_cache_breaker_changes_total",
            "Dependencies left alone because they kept failing (open), or found again (closed).",
            ["dependency", "state"],
        )
        self._breaker_open = prometheus.Gauge(
            "llm_cache_breaker_open",
            "Processes that leave the dependency alone.",
            ["dependency"],
            registry=target,
            multiprocess_mode="livesum",
        )
        self._verified = counter(
            "llm_cache_verifications_total",
            "Candidates in the grey band that the verifier was asked about.",
            ["verdict", "model"],
        )
        self._compared = counter(
            "llm_cache_shadow_decisions_total",
            "In shadow mode: decisions by what they would have been worth.",
            ["outcome", "model"],
        )
        self._texts = counter("llm_cache_embedded_texts_total", "Texts embedded.", ["model"])
        self._paid = counter(
            "llm_cache_embedding_tokens_total", "Tokens paid for embeddings.", ["model"]
        )
        self._embedding = histogram(
            "llm_cache_embedding_duration_seconds",
            "How long requests to the embedder took.",
            ["model"],
            buckets=_SECONDS,
        )
        self._told: dict[type[Event], Callable[[Any], None]] = {
            CallEnded: self._call_ended,
            StoreSkipped: self._store_skipped,
            DependencyFailed: self._dependency_failed,
            BreakerChanged: self._breaker_changed,
            TextsEmbedded: self._texts_embedded,
            CandidateVerified: self._candidate_verified,
            DecisionCompared: self._decision_compared,
        }
        # Finding the child of a set of labels takes longer than all the rest.
        self._children: dict[tuple[Any, ...], _Call] = {}

    def __call__(self, event: Event, /) -> None:
        """Count *event*."""
        self._told[type(event)](event)

    def _call_ended(self, event: CallEnded) -> None:
        model, tenant = self._model(event.model), self._tenant(event.tenant or "")
        key = (event.status, model, tenant, event.operation, event.is_shared)
        call = self._children.get(key)
        if call is None:
            call = self._children[key] = self._call(event, model, tenant)
        call.count(event)
        if event.status == CacheStatus.BYPASS:
            self._bypasses.labels(event.reason or "").inc()

    def _call(self, event: CallEnded, model: str, tenant: str) -> _Call:
        """Return the metrics of calls like *event*."""
        status, operation, is_shared = event.status, event.operation, event.is_shared
        is_saving = status in HITS or (is_shared and status == CacheStatus.MISS)
        kinds = ("prompt", "cached_prompt", "completion")
        if is_saving:
            self._tell_price(model)
        return _Call(
            calls=self._calls.labels(status, model, tenant, operation, str(is_shared).lower()),
            duration=self._duration.labels(status, operation),
            similarity=self._similarity.labels(model) if status == CacheStatus.SEMANTIC else None,
            saved=[self._saved.labels(model, kind) for kind in kinds] if is_saving else None,
        )

    def _tell_price(self, model: str) -> None:
        price = None if model == OTHER else self._prices.price(model)
        if price is None:
            return
        for kind, usd in price.per_token().items():
            self._price.labels(model, kind).set(float(usd))

    def _store_skipped(self, event: StoreSkipped) -> None:
        self._not_stored.labels(event.reason, self._model(event.model)).inc()

    def _candidate_verified(self, event: CandidateVerified) -> None:
        self._verified.labels(event.verdict, self._model(event.model)).inc()

    def _decision_compared(self, event: DecisionCompared) -> None:
        self._compared.labels(event.outcome, self._model(event.model)).inc()

    def _dependency_failed(self, event: DependencyFailed) -> None:
        self._failures.labels(event.dependency, event.operation).inc()

    def _breaker_changed(self, event: BreakerChanged) -> None:
        self._breaker_changes.labels(event.dependency, event.state).inc()
        self._breaker_open.labels(event.dependency).set(event.state != "closed")

    def _texts_embedded(self, event: TextsEmbedded) -> None:
        model = self._model(event.model)
        self._texts.labels(model).inc(event.texts)
        self._embedding.labels(model).observe(event.duration_s)
        if event.tokens:
            self._tell_price(model)
            self._paid.labels(model).inc(event.tokens)


class _Call:
    """The metrics of calls with one set of labels."""

    __slots__ = ("_calls", "_duration", "_saved", "_similarity")

    def __init__(self, *, calls: Any, duration: Any, similarity: Any, saved: Any) -> None:
        self._calls = calls
        self._duration = duration
        self._similarity = similarity
        self._saved = saved

    def count(self, event: CallEnded) -> None:
        """Count *event*."""
        self._calls.inc()
        self._duration.observe(event.duration_s)
        if self._similarity is not None and event.similarity is not None:
            self._similarity.observe(event.similarity)
        if self._saved is None or event.prompt_tokens is None or event.completion_tokens is None:
            return
        cached = min(event.cached_prompt_tokens or 0, event.prompt_tokens)
        told = (event.prompt_tokens - cached, cached, event.completion_tokens)
        for counter, tokens in zip(self._saved, told, strict=True):
            if tokens:
                counter.inc(tokens)
