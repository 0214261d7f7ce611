"""Calls of one process that share a task."""

import asyncio
from functools import partial

import pytest

from llm_cache._flight import SingleFlight


async def made_at(gate: asyncio.Event, **_: bool) -> str:
    await gate.wait()
    return "made"


async def test_what_its_only_taker_leaves_in_the_turn_it_ends_is_unclaimed():
    unclaimed: list[str] = []
    flight: SingleFlight[str] = SingleFlight(unclaimed.append)
    gate = asyncio.Event()
    taker = asyncio.create_task(flight.run("key", partial(made_at, gate), patience_s=None))
    await asyncio.sleep(0)
    (making,) = flight.tasks
    # Runs behind what the flight does at its end, and before the taker wakes up.
    making.add_done_callback(lambda _: taker.cancel())
    gate.set()
    await asyncio.gather(taker, return_exceptions=True)
    assert taker.cancelled()
    assert unclaimed == ["made"]


@pytest.mark.parametrize("leaving", [0, 1])
async def test_what_somebody_takes_is_not_unclaimed_when_another_leaves(leaving):
    unclaimed: list[str] = []
    flight: SingleFlight[str] = SingleFlight(unclaimed.append)
    gate = asyncio.Event()
    takers = [
        asyncio.create_task(flight.run("key", partial(made_at, gate), patience_s=None))
        for _ in range(2)
    ]
    await asyncio.sleep(0)
    gate.set()
    (making,) = flight.tasks
    making.add_done_callback(lambda _: takers[leaving].cancel())
    await asyncio.gather(*takers, return_exceptions=True)
    assert takers[1 - leaving].result() == ("made", leaving == 0)
    assert unclaimed == []
    assert not flight._taken
