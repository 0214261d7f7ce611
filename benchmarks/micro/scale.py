"""What many entries need: a model of one server, fitted to what was measured, and of many.

One server, by its number of entries *n*: memory is *n* times the bytes of an entry; an insert
takes *a + b · log10 n*, since the graph grows in depth; a look-up takes *c + d · ef(n) · log10 n*,
where *ef* is how many candidates the search keeps in view. The four constants are least squares
over the sizes that were grown to, and a table says how far they are off at each. The ninety-ninth
percentile is the median, times what the two were apart at most sizes.

Of many servers every one is asked by every search, and holds its part of the entries. What is
assumed of them stands below with its source.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.micro.settings import Row
from llm_cache._redis.sizes import ef_runtime

_COUNTS = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What is not measured here."""

    shard_gb: float = 25.0
    """Data in one shard. Redis Cloud: "multiple shards should be used when data grows to 25 GB"
    (redis.io/docs/latest/operate/rc/databases/configuration/clustering, read November 2026)."""
    headroom: float = 1.25
    """Memory to buy for each byte of data: fragmentation, buffers, growth until the next."""
    copies: int = 2
    """Each shard and one replica."""
    usd_per_gb_month: float = 10.0
    """No quote: the middle of the 15 to 25 USD a month that a managed Redis of 2 GB costs in 2026.
    Redis Cloud quotes through its API (`dryRun`), and large contracts are cheaper."""


@dataclass(frozen=True, slots=True)
class Server:
    """One server with any number of entries."""

    bytes_per_entry: float
    insert_us: tuple[float, float]
    """What an insert takes at one entry, and what each decade adds."""
    lookup_ms: tuple[float, float]
    """What a look-up takes without its search, and for each candidate in view and decade."""
    spread: float
    """The ninety-ninth percentile, by the median."""

    @classmethod
    def fitted(cls, growth: Sequence[Row]) -> Server:
        """Return the server that is nearest to what was measured at all sizes of *growth*."""
        sizes = [row["entries"] for row in growth]
        return cls(
            bytes_per_entry=max(growth, key=lambda row: row["entries"])["bytes_per_entry"],
            insert_us=_line(math.log10, sizes, [1e6 / row["inserts_per_s"] for row in growth]),
            lookup_ms=_line(_work, sizes, [row["hit_p50_ms"] for row in growth]),
            spread=statistics.median(row["hit_p99_ms"] / row["hit_p50_ms"] for row in growth),
        )

    def inserts_per_s(self, entries: int) -> float:
        """Return how many entries a second are stored where there are so many."""
        start, slope = self.insert_us
        return 1e6 / (start + slope * math.log10(entries))

    def lookup_p50_ms(self, entries: int) -> float:
        """Return what half of the look-ups that hit take at most."""
        start, slope = self.lookup_ms
        return start + slope * _work(entries)


def checks(growth: Sequence[Row]) -> list[Row]:
    """Return what the model says of each size of *growth*, beside what was measured."""
    told = []
    for mode in dict.fromkeys(row["mode"] for row in growth):
        rows = [row for row in growth if row["mode"] == mode]
        server = Server.fitted(rows)
        told += [_check(server, row) for row in rows]
    return told


def rows(growth: Sequence[Row], assumed: Assumptions) -> list[Row]:
    """Return what each number of entries needs, by the model of the first kind of growth."""
    server = Server.fitted([row for row in growth if row["mode"] == growth[0]["mode"]])
    return [_needs(count, server, assumed) for count in _COUNTS]


def _check(server: Server, row: Row) -> Row:
    entries = row["entries"]
    lookup_ms = server.lookup_p50_ms(entries)
    return {
        "mode": row["mode"],
        "entries": entries,
        "gb": row["bytes_per_entry"] * entries / 1e9,
        "model_gb": server.bytes_per_entry * entries / 1e9,
        "inserts_per_s": row["inserts_per_s"],
        "model_inserts_per_s": round(server.inserts_per_s(entries)),
        "hit_p50_ms": row["hit_p50_ms"],
        "model_hit_p50_ms": lookup_ms,
        "hit_p99_ms": row["hit_p99_ms"],
        "model_hit_p99_ms": lookup_ms * server.spread,
    }


def _needs(count: int, server: Server, assumed: Assumptions) -> Row:
    data_gb = count * server.bytes_per_entry / 1e9
    shards = math.ceil(data_gb / assumed.shard_gb)
    each = count // shards
    inserts_per_s = shards * server.inserts_per_s(each)
    bought_gb = data_gb * assumed.headroom * assumed.copies
    return {
        "entries": count,
        "data_gb": data_gb,
        "shards": shards,
        "entries_per_shard": each,
        "bought_gb": bought_gb,
        "usd_per_month": bought_gb * assumed.usd_per_gb_month,
        "lookup_ms": server.lookup_p50_ms(each),
        "inserts_per_s": round(inserts_per_s),
        "fill_hours": count / inserts_per_s / 3600,
    }


def _work(entries: int) -> float:
    return ef_runtime(entries) * math.log10(entries)


def _line(
    of: Callable[[int], float], sizes: Sequence[int], values: Sequence[float]
) -> tuple[float, float]:
    """Return start and slope of the straight line through *values*, in terms of *of* the sizes."""
    slope, start = np.polyfit([of(size) for size in sizes], values, 1)
    return float(start), float(slope)


CHECK_COLUMNS = {
    "growth": "mode",
    "entries": "entries:,",
    "data, GB": "gb:.3f",
    "model": "model_gb:.3f",
    "inserts/s": "inserts_per_s:,",
    "model ": "model_inserts_per_s:,",
    "hit p50 ms": "hit_p50_ms:.2f",
    "model  ": "model_hit_p50_ms:.2f",
    "p99": "hit_p99_ms:.2f",
    "model   ": "model_hit_p99_ms:.2f",
}
COLUMNS = {
    "entries": "entries:,",
    "data, GB": "data_gb:,.0f",
    "shards": "shards:,",
    "entries a shard": "entries_per_shard:,",
    "memory to buy, GB": "bought_gb:,.0f",
    "USD a month": "usd_per_month:,.0f",
    "hit p50 of one shard, ms": "lookup_ms:.1f",
    "inserts/s, all shards": "inserts_per_s:,",
    "hours to fill": "fill_hours:,.1f",
}
