"""How long is waited, in a time of which a busy event loop costs nobody more than a little."""

import asyncio
import gc
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from llm_cache._deadline import _BEAT_S, _BEATS_ON, _MOST_S, Deadline, _Clock, now_s


class LoopOfSteps:
    """An event loop whose time is set by hand, and which calls what is due."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.due: list[tuple[float, Callable[..., Any], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now_s

    def call_at(self, when_s: float, callback: Callable[..., Any], *args: Any) -> None:
        self.due.append((when_s, callback, args))

    def stand_still(self, seconds: float) -> None:
        """Let time pass in which nothing is called."""
        self.now_s += seconds

    def go_round(self) -> None:
        """Call what is due."""
        due = [each for each in self.due if each[0] <= self.now_s]
        self.due = [each for each in self.due if each[0] > self.now_s]
        for _, callback, args in due:
            callback(*args)

    def idle(self, seconds: float) -> None:
        """Let time pass in which everything is called when it is due."""
        until_s = self.now_s + seconds
        while self.due and min(self.due)[0] <= until_s:
            self.now_s = min(self.due)[0]
            self.go_round()
        self.now_s = until_s


@pytest.fixture
def steps() -> LoopOfSteps:
    return LoopOfSteps()


@pytest.fixture
def clock(steps) -> Callable[[], float]:
    told = _Clock()
    began_s = told.now_s(steps)
    return lambda: told.now_s(steps) - began_s


def test_idle_loop_is_charged_with_all_of_its_time(steps, clock):
    steps.idle(0.5)
    assert clock() == pytest.approx(0.5)


def test_loop_that_stands_still_is_charged_with_little(steps, clock):
    steps.stand_still(5)
    assert clock() == pytest.approx(_MOST_S)
    steps.go_round()
    assert clock() == pytest.approx(_MOST_S)
    steps.idle(0.1)
    assert clock() == pytest.approx(_MOST_S + 0.1)


def test_every_round_is_charged_with_little(steps, clock):
    for _ in range(10):
        steps.stand_still(0.5)
        steps.go_round()
    assert clock() == pytest.approx(10 * _MOST_S)


def test_time_never_goes_back(steps, clock):
    seen = [clock()]
    for seconds in (0.005, 0.3, 0.001, 0.05, 0.012):
        steps.stand_still(seconds)
        seen.append(clock())
        steps.go_round()
        seen.append(clock())
    assert seen == sorted(seen)


def test_clock_that_nobody_asks_stops_and_goes_on(steps, clock):
    steps.idle(2 * _BEATS_ON * _BEAT_S)
    assert not steps.due
    seen = clock()
    assert steps.due
    steps.idle(0.2)
    assert clock() - seen == pytest.approx(0.2)


def test_clock_tells_how_late_its_loop_was(steps):
    told = _Clock()
    told.now_s(steps)
    steps.idle(0.1)
    assert told.lag_s == pytest.approx(0)
    steps.stand_still(0.5)
    steps.go_round()
    assert told.lag_s == pytest.approx(0.5, abs=_MOST_S)
    steps.idle(2 * _BEATS_ON * _BEAT_S)
    assert told.lag_s == 0


async def test_loop_is_not_kept_by_its_clock():
    def of_its_own() -> weakref.ref[asyncio.AbstractEventLoop]:
        with asyncio.Runner() as runner:
            runner.run(asyncio.to_thread(time.sleep, 0))
            runner.run(told())
            return weakref.ref(runner.get_loop())

    async def told() -> None:
        now_s()

    loop = await asyncio.to_thread(of_its_own)
    gc.collect()
    assert loop() is None


async def test_slow_rounds_do_not_end_a_block():
    async with Deadline(0.25) as deadline:
        for _ in range(6):
            time.sleep(0.06)  # noqa: ASYNC251 - the loop stands still
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    assert not deadline.is_over


async def test_reply_that_came_while_the_loop_stood_still_is_not_given_up():
    async with Deadline(0.001):
        arrived = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.002, arrived.set_result, b"reply")
        time.sleep(0.1)  # noqa: ASYNC251 - the loop stands still
        assert await arrived == b"reply"


async def test_block_that_takes_too_long_is_cancelled():
    with pytest.raises(TimeoutError):
        async with Deadline(0.05) as deadline:
            await asyncio.Event().wait()
    assert deadline.is_over


async def test_time_out_of_the_block_itself_is_another():
    with pytest.raises(TimeoutError, match="its own"):
        async with Deadline(10) as deadline:
            raise TimeoutError("its own")
    assert not deadline.is_over


async def test_time_that_is_stopped_does_not_count():
    async with Deadline(0.05) as deadline:
        left_s = deadline.left_s
        deadline.stop()
        await asyncio.sleep(0.2)
        deadline.go_on(left_s)
    assert not deadline.is_over


async def test_block_without_a_limit_takes_as_long_as_it_does():
    async with Deadline(None) as deadline:
        await asyncio.sleep(0.05)
    assert deadline.left_s == float("inf")
