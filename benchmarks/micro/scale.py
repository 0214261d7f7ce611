"""What many entries need: a model with two measured figures and four assumptions.

Measured: the bytes of an entry at the largest number that was grown to, and the inserts a second
there. Assumed: how much of a shard's memory is filled, how large a shard gets, how many copies are
kept, and what a gigabyte costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.micro.settings import Row

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


def rows(growth: list[Row], assumed: Assumptions) -> list[Row]:
    """Return what each number of entries needs, from the largest row of *growth*."""
    measured = max(growth, key=lambda row: row["entries"])
    return [_needs(count, measured, assumed) for count in _COUNTS]


def _needs(count: int, measured: Row, assumed: Assumptions) -> Row:
    data_gb = count * measured["bytes_per_entry"] / 1e9
    shards = math.ceil(data_gb / assumed.shard_gb)
    bought_gb = data_gb * assumed.headroom * assumed.copies
    return {
        "entries": count,
        "data_gb": data_gb,
        "shards": shards,
        "entries_per_shard": count // shards,
        "bought_gb": bought_gb,
        "usd_per_month": bought_gb * assumed.usd_per_gb_month,
        "inserts_per_s": shards * measured["inserts_per_s"],
        "fill_hours": count / (shards * measured["inserts_per_s"]) / 3600,
    }


COLUMNS = {
    "entries": "entries:,",
    "data, GB": "data_gb:,.0f",
    "shards": "shards:,",
    "entries a shard": "entries_per_shard:,",
    "memory to buy, GB": "bought_gb:,.0f",
    "USD a month": "usd_per_month:,.0f",
    "inserts/s, all shards": "inserts_per_s:,",
    "hours to fill": "fill_hours:,.1f",
}
