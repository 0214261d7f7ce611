"""What the cache has done: counted here at every call, told to Redis now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from llm_cache._core.counts import (
    EMBEDDED,
    EMBEDDED_FREE,
    EMBEDDED_ROUGHLY,
    FAILED,
    NOBODY,
    NOT_STORED,
    SAVING,
    SHADOW,
    SHARED,
    VERIFIED,
    Counts,
    Row,
    Table,
    Tokens,
    by_reason,
    by_status,
)
from llm_cache._core.keys import tenant_id, tenant_row
from llm_cache._core.types import CacheStatus
from llm_cache._redis.counters import MAX_MODELS, Counters
from llm_cache._report import report
from llm_cache.errors import StoreError
from llm_cache.events import (
    BreakerChanged,
    CandidateVerified,
    DecisionCompared,
    DependencyFailed,
    Event,
    StoreSkipped,
    TextsEmbedded,
)
from llm_cache.prices import PriceList

_MAX_CELLS = 10_000
"""Then they are put away at once: so many names are not a handful that recurs."""


class Statistics:
    """Counts of this process, and of all together.

    Args:
        counters: Adds them up in Redis.
        prices: What tokens cost.
        max_tenants: Tenants that this process counts one by one.
        tenant_secret: Without it nobody can tell which tenant a row is of; `None` for no secret.
        tell: Hears of failures.
    """

    def __init__(
        self,
        counters: Counters,
        prices: PriceList,
        *,
        max_tenants: int,
        tenant_secret: str | None,
        tell: Callable[[Event], None],
    ) -> None:
        self._tenant_secret = tenant_secret
        self._counters = counters
        self._prices = prices
        self._tell = tell
        self._cells: dict[tuple[str | None, str, str], Counts] = {}
        self._events = Table()
        self._totals = Table(max_tenants=max_tenants, max_models=MAX_MODELS)
        self._flusher: asyncio.Task[None] | None = None
        self._also: Callable[[], Awaitable[None]] = _nothing

    # ------------------------------------------------------------------ counting

    def call_ended(
        self,
        status: CacheStatus,
        model: str,
        tenant: str | None,
        tokens: Tokens,
        *,
        reason: str | None,
        is_shared: bool,
    ) -> None:
        """Count a call. A microsecond at most: names are looked at when the counts are read."""
        if is_shared and status is CacheStatus.MISS:
            label = SHARED
        elif reason is not None and status is CacheStatus.BYPASS:
            label = f"{status}:{reason}"
        else:
            label = status
        key = (tenant, label, model)
        cell = self._cells.get(key)
        if cell is None:
            cell = self._new_cell(key)
        cell.calls += 1
        if label in SAVING:
            prompt, cached, completion = tokens
            if prompt is None or completion is None:
                cell.unknown += 1
            else:
                cell.prompt += prompt
                cell.completion += completion
                if cached:
                    cell.cached += min(cached, prompt)

    def hear(self, event: Event) -> None:
        """Count what *event* tells, if it is not the end of a call."""
        if isinstance(event, StoreSkipped):
            row = Row(NOBODY, f"{NOT_STORED}:{event.reason}", event.model)
            self._events.add(row, Counts(calls=1))
        elif isinstance(event, DependencyFailed):
            row = Row(NOBODY, f"{FAILED}:{event.dependency}.{event.operation}", "")
            self._events.add(row, Counts(calls=1))
        elif isinstance(event, BreakerChanged):
            row = Row(NOBODY, f"{FAILED}:{event.dependency}.breaker_{event.state}", "")
            self._events.add(row, Counts(calls=1))
        elif isinstance(event, CandidateVerified):
            row = Row(NOBODY, f"{VERIFIED}:{event.verdict}", event.model)
            self._events.add(row, Counts(calls=1))
        elif isinstance(event, DecisionCompared):
            row = Row(NOBODY, f"{SHADOW}:{event.outcome}", event.model)
            self._events.add(row, Counts(calls=1))
        elif isinstance(event, TextsEmbedded):
            label = EMBEDDED if event.tokens else EMBEDDED_FREE
            label = EMBEDDED_ROUGHLY if event.is_estimate else label
            counts = Counts(calls=event.texts, prompt=event.tokens)
            self._events.add(Row(NOBODY, label, event.model), counts)

    def row_of(self, tenant: str | None) -> str:
        """Return what stands for *tenant* in a row."""
        identity = tenant_id(tenant, self._tenant_secret)
        return NOBODY if identity is None else tenant_row(identity)

    # ------------------------------------------------------------------ reading

    def local(self, tenant: str | None = None) -> dict[str, Any]:
        """Return this process's calls by status, the hit rate, and what second looks came to.

        *tenant* is a row's name; second looks are not counted by tenant.
        """
        self._collect()
        told: dict[str, Any] = dict(by_status(self._totals.of(tenant)))
        if tenant is None:
            told |= {name: by_reason(self._totals, name) for name in (VERIFIED, SHADOW)}
        return told

    def not_stored(self) -> dict[str, int]:
        """Return how many answers this process served but did not store, by reason."""
        self._collect()
        return by_reason(self._totals, NOT_STORED)

    async def shared(
        self, *, window: str | None = None, tenant: str | None = None
    ) -> dict[str, Any]:
        """Return the report over all processes. Two round trips.

        Raises:
            ConfigurationError: there is no such window.
            StoreError: Redis failed.
        """
        await self.flush()
        counted = await self._counters.shared(window)
        # A look into the price list takes a while, the first one reads it from disk.
        return await asyncio.to_thread(report, counted, self._prices, tenant=tenant)

    # ------------------------------------------------------------------ telling Redis

    async def flush(self) -> None:
        """Tell Redis what it does not know yet. One round trip, none without news.

        Raises:
            StoreError: it did not take it; nothing is lost, nor counted twice.
        """
        self._collect()
        await self._counters.flush()

    def start(self, *, every_s: float, also: Callable[[], Awaitable[None]]) -> None:
        """Flush from now on in the background, and do *also*; failures are told as events."""
        self._also = also
        self._flusher = asyncio.create_task(self._flush_forever(every_s), name="llm_cache.stats")

    async def stop(self) -> bool:
        """Flush no more in the background; return whether it was done so far."""
        flusher, self._flusher = self._flusher, None
        if flusher is None:
            return False
        flusher.cancel()
        await asyncio.gather(flusher, return_exceptions=True)
        return True

    async def aclose(self) -> None:
        """Flush for the last time, if this was ever started."""
        if await self.stop():
            await self._try_to_flush()

    async def _flush_forever(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await self._try_to_flush()

    async def _try_to_flush(self) -> None:
        for operation, flush in (("stats", self.flush), ("review", self._also)):
            try:
                await flush()
            except StoreError as error:
                self._tell(DependencyFailed("redis", operation, error))

    def _new_cell(self, key: tuple[str | None, str, str]) -> Counts:
        if len(self._cells) >= _MAX_CELLS:
            self._collect()
        cell = self._cells[key] = Counts()
        return cell

    def _collect(self) -> None:
        """Put what was counted where it can be read, and where it waits to be told to Redis."""
        cells, self._cells = self._cells, {}
        rows, self._events = self._events, Table()
        for (tenant, label, model), counts in cells.items():
            rows.add(Row(self.row_of(tenant), label, model), counts)
        self._totals.update(rows)
        self._counters.add(rows)


async def _nothing() -> None:
    pass
