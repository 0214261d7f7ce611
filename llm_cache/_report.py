"""From counts to what `server_stats` tells. Pure, but for the price list."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from llm_cache._core.counts import (
    EMBEDDED,
    EMBEDDED_FREE,
    EMBEDDED_ROUGHLY,
    FAILED,
    NOBODY,
    NOT_STORED,
    OTHER,
    SAVING,
    SHADOW,
    SHARED,
    VERIFIED,
    Counts,
    Row,
    Table,
    by_reason,
    by_status,
    status_of,
)
from llm_cache._core.types import CacheStatus
from llm_cache._redis.counters import Shared
from llm_cache.prices import PriceList


def report(counted: Shared, prices: PriceList, *, tenant: str | None = None) -> dict[str, Any]:
    """Return what was *counted*, of one tenant or of all, as JSON.

    What nobody can price is `None` and named among `unpriced_models`; what embedding cost is told
    of all tenants together only, since one request to the embedder serves several.
    """
    rows = counted.rows.of(tenant)
    told = {
        **_figures(rows, prices),
        "from_s": counted.from_s,
        "bypass_reasons": by_reason(rows, CacheStatus.BYPASS),
        "models": {
            model: _figures(some, prices) for model, some in rows.by(_model_of_call).items()
        },
    }
    if tenant is not None:
        # Beyond so many tenants they are counted together, and this one may be among them.
        return {**told, "is_complete": len(rows) > 0 or len(counted.rows.of(OTHER)) == 0}
    embedding = _embedding(rows, prices)
    is_known = told["usd_saved"] is not None and not embedding["unpriced_models"]
    net = told["usd_saved"] - embedding["usd"] if is_known else None
    return {
        **told,
        "tenants": {
            name: _figures(some, prices) for name, some in rows.by(_tenant_of_call).items()
        },
        "not_stored": by_reason(rows, NOT_STORED),
        "failures": by_reason(rows, FAILED),
        "verified": by_reason(rows, VERIFIED),
        "shadow": by_reason(rows, SHADOW),
        "embedding": embedding,
        "usd_saved_net": net,
    }


def _figures(rows: Table, prices: PriceList) -> dict[str, Any]:
    """Return calls by status, and what was saved."""
    saving = rows.where(*SAVING)
    saved = saving.total()
    costs = {
        model: _cost_usd(model, some.total(), prices)
        for model, some in saving.by(lambda row: row.model).items()
    }
    return {
        **by_status(rows),
        "shared": rows.where(SHARED).total().calls,
        "prompt_tokens_saved": saved.prompt,
        "cached_prompt_tokens_saved": saved.cached,
        "completion_tokens_saved": saved.completion,
        "calls_without_usage": saved.unknown,
        **_in_usd("usd_saved", costs),
    }


def _embedding(rows: Table, prices: PriceList) -> dict[str, Any]:
    exact, rough = rows.where(EMBEDDED), rows.where(EMBEDDED_ROUGHLY)
    paid = rows.where(EMBEDDED, EMBEDDED_ROUGHLY)
    costs = {
        model: _cost_usd(model, some.total(), prices)
        for model, some in paid.by(lambda row: row.model).items()
    }
    return {
        "texts": rows.where(EMBEDDED, EMBEDDED_FREE, EMBEDDED_ROUGHLY).total().calls,
        "tokens": exact.total().prompt,
        "estimated_tokens": rough.total().prompt,
        **_in_usd("usd", costs),
    }


def _in_usd(name: str, costs: dict[str, Decimal | None]) -> dict[str, Any]:
    """Return the sum of what has a price, and what has none; `None` where nothing has one."""
    priced = [cost for cost in costs.values() if cost is not None]
    unpriced = sorted(model for model, cost in costs.items() if cost is None)
    is_known = bool(priced) or not unpriced
    return {name: float(sum(priced)) if is_known else None, "unpriced_models": unpriced}


def _cost_usd(model: str, counts: Counts, prices: PriceList) -> Decimal | None:
    """Return the cost; 0 without tokens, whatever the model, and `None` without a price."""
    if not counts.prompt and not counts.completion:
        return Decimal(0)
    told = counts.calls - counts.unknown
    price = prices.price(model, prompt_tokens=counts.prompt / max(1, told))
    if price is None:
        return None
    return price.cost_usd(counts.prompt, counts.completion, cached_prompt_tokens=counts.cached)


def _model_of_call(row: Row) -> str | None:
    return None if status_of(row) is None else row.model


def _tenant_of_call(row: Row) -> str | None:
    return None if status_of(row) is None or row.tenant == NOBODY else row.tenant
