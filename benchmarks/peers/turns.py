"""Ours and a peer on the same calls, a block each in turn.

So whatever else the machine does hits both; what a peer is compared with is what ours took beside
it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.environments import Batch, RunningPeer


@dataclass(frozen=True, slots=True)
class Turns:
    """The same items, again and again, by both."""

    ours: Sequence[Batch]
    theirs: Sequence[Batch]

    @property
    def times_ours(self) -> float | None:
        """How many times as long as ours a call of theirs took, by medians."""
        ours_us, theirs_us = median_us(self.ours), median_us(self.theirs)
        return theirs_us / ours_us if ours_us and theirs_us else None


async def in_turns(
    ours: RunningPeer,
    theirs: RunningPeer,
    operation: str,
    items: Sequence[Sequence[Any]],
    *,
    callers: int = 1,
    blocks: int = 5,
) -> Turns:
    """Let both work through *items* so many times, so many callers at once.

    Raises:
        PeerUnavailable: one of them is gone.
    """
    mine, others = [], []
    for _ in range(blocks):
        mine.append(await ours.call(operation, items, callers=callers))
        others.append(await theirs.call(operation, items, callers=callers))
    return Turns(mine, others)


def median_us(batches: Sequence[Batch]) -> float | None:
    """Return the median of the calls that did not fail; `None` where all did."""
    times = [
        took_us
        for batch in batches
        for took_us, error in zip(batch.times_us, batch.errors, strict=True)
        if error is None
    ]
    return statistics.median(times) if times else None


def per_s(batches: Sequence[Batch]) -> float:
    """Return how many calls a second were answered, the median of the blocks."""
    return statistics.median(
        sum(error is None for error in batch.errors) / batch.total_s for batch in batches
    )
