"""Open loop and closed loop: sends requests and measures them.

In an open loop requests arrive when they arrive. One that finds the system stalled waits, and its
latency counts from the moment it was meant to start; so a stall of 200 ms shows in every request
that fell into it, as it would to users. A closed loop of N callers asks again when it has its
answer: it shows throughput, but while the system stalls nobody asks, and latencies look better
than they are.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.histograms import Latencies

Ask = Callable[[], Awaitable[str]]
"""Makes the next request and returns how it ended."""
_LAUNCHED_AT_A_TIME = 64
_TICK_S = 0.01


@dataclass(slots=True)
class Meter:
    """What one worker counts."""

    block_s: float
    """Length of the stretches whose medians are kept, to tell noise from change."""
    offered: int = 0
    """Requests that were due."""
    finished: int = 0
    in_time: int = 0
    """Those finished before the load ended."""
    unfinished: int = 0
    """Requests that had no answer, or were not even sent, when waiting for them ended. They are
    in the latencies, with the time they had waited by then."""
    statuses: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    latencies: dict[str, Latencies] = field(default_factory=dict)
    """From the intended start, by status."""
    service: Latencies = field(default_factory=Latencies)
    """From the moment a request was really begun."""
    late: Latencies = field(default_factory=Latencies)
    """By how much requests were begun after their time."""
    lag: Latencies = field(default_factory=Latencies)
    """By how much the event loop was late for a timer."""
    blocks: list[dict[str, Any]] = field(default_factory=list)
    _block: list[float] = field(default_factory=list)
    _block_ends_s: float = 0.0
    _start_s: float = 0.0

    def begin(self, start_s: float) -> None:
        """Note when the load starts."""
        self._start_s = start_s
        self._block_ends_s = start_s + self.block_s

    def end_of(self, status: str, *, intended_s: float, sent_s: float, now_s: float) -> None:
        """Count a request that has its answer."""
        self.finished += 1
        self.statuses[status] += 1
        self._add(status, now_s - intended_s, now_s)
        self.service.add(now_s - sent_s)

    def failed(self, error: BaseException, *, intended_s: float, now_s: float) -> None:
        """Count a request that raised."""
        self.errors[type(error).__name__] += 1
        self._add("error", now_s - intended_s, now_s)

    def gave_up(self, *, intended_s: float, now_s: float) -> None:
        """Count a request that nobody waited for any longer."""
        self.unfinished += 1
        self._add("unfinished", max(0.0, now_s - intended_s), now_s)

    def _add(self, status: str, duration_s: float, now_s: float) -> None:
        kept = self.latencies.get(status)
        if kept is None:
            kept = self.latencies[status] = Latencies()
        kept.add(duration_s)
        while now_s > self._block_ends_s:
            self._end_block()
        self._block.append(duration_s)

    def _end_block(self) -> None:
        if self._block:
            p50, p99 = np.percentile(self._block, [50, 99])
            self.blocks.append(
                {
                    "at_s": round(self._block_ends_s - self._start_s, 3),
                    "finished": len(self._block),
                    "p50_s": float(p50),
                    "p99_s": float(p99),
                }
            )
        self._block = []
        self._block_ends_s += self.block_s

    def figures(self) -> dict[str, Any]:
        """Return everything as JSON; histograms encoded, to be merged with other workers'."""
        self._end_block()
        return {
            "offered": self.offered,
            "finished": self.finished,
            "in_time": self.in_time,
            "unfinished": self.unfinished,
            "statuses": dict(self.statuses),
            "errors": dict(self.errors),
            "latencies": {name: each.encoded() for name, each in self.latencies.items()},
            "service": self.service.encoded(),
            "late": self.late.encoded(),
            "lag": self.lag.encoded(),
            "blocks": self.blocks,
        }


async def open_loop(
    ask: Ask,
    arrivals: Iterator[float],
    meter: Meter,
    *,
    seconds: float,
    start_s: float | None = None,
    max_in_flight: int = 5_000,
    drain_s: float = 10.0,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Send requests when they are due, whatever became of those before.

    Args:
        ask: Makes a request.
        arrivals: Seconds from the start at which requests are due.
        meter: Counts.
        seconds: For how long requests arrive.
        start_s: When to begin, by the loop's clock; now by default.
        max_in_flight: Beyond it requests wait here, which counts like any waiting.
        drain_s: How long to wait for answers afterwards.
        stopped: Whether to end early.
    """
    clock = asyncio.get_running_loop().time
    start_s = clock() if start_s is None else start_s
    give_up_s = start_s + seconds + drain_s
    meter.begin(start_s)
    slots = asyncio.Semaphore(max_in_flight)
    running: dict[asyncio.Task[None], float] = {}

    async def one(intended_s: float) -> None:
        sent_s = clock()
        meter.late.add(sent_s - intended_s)
        try:
            status = await ask()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a figure
            meter.failed(error, intended_s=intended_s, now_s=clock())
        else:
            now_s = clock()
            meter.in_time += now_s <= start_s + seconds
            meter.end_of(status, intended_s=intended_s, sent_s=sent_s, now_s=now_s)
        finally:
            slots.release()

    watching = asyncio.create_task(watch_lag(meter.lag))
    try:
        launched = 0
        for offset_s in arrivals:
            if offset_s >= seconds or stopped():
                break
            meter.offered += 1
            intended_s = start_s + offset_s
            if intended_s > clock():
                await asyncio.sleep(intended_s - clock())
            elif launched % _LAUNCHED_AT_A_TIME == 0:
                await asyncio.sleep(0)  # behind schedule: those under way must get on, too
            if clock() > give_up_s or not await _slot(slots, give_up_s - clock()):
                meter.gave_up(intended_s=intended_s, now_s=clock())
                continue
            launched += 1
            task = asyncio.create_task(one(intended_s))
            running[task] = intended_s
            task.add_done_callback(lambda done: running.pop(done, None))
        if running and not stopped():
            await asyncio.wait(list(running), timeout=max(0.0, give_up_s - clock()))
        await _give_up(running, meter, clock())
    finally:
        watching.cancel()


async def closed_loop(
    ask: Ask,
    meter: Meter,
    *,
    callers: int,
    seconds: float,
    start_s: float | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Let *callers* ask, each as soon as it has the answer before."""
    clock = asyncio.get_running_loop().time
    start_s = clock() if start_s is None else start_s
    meter.begin(start_s)
    await asyncio.sleep(max(0.0, start_s - clock()))

    async def caller() -> None:
        while (sent_s := clock()) < start_s + seconds and not stopped():
            meter.offered += 1
            try:
                status = await ask()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a figure
                meter.failed(error, intended_s=sent_s, now_s=clock())
                await asyncio.sleep(0)
            else:
                now_s = clock()
                meter.in_time += now_s <= start_s + seconds
                meter.end_of(status, intended_s=sent_s, sent_s=sent_s, now_s=now_s)

    watching = asyncio.create_task(watch_lag(meter.lag))
    try:
        await asyncio.gather(*(caller() for _ in range(callers)))
    finally:
        watching.cancel()


async def watch_lag(lag: Latencies) -> None:
    """Note by how much a timer of 10 ms comes late, until cancelled."""
    while True:
        started_s = time.perf_counter()
        await asyncio.sleep(_TICK_S)
        lag.add(time.perf_counter() - started_s - _TICK_S)


async def _slot(slots: asyncio.Semaphore, patience_s: float) -> bool:
    if not slots.locked():
        await slots.acquire()
        return True
    try:
        async with asyncio.timeout(patience_s):
            await slots.acquire()
    except TimeoutError:
        return False
    return True


async def _give_up(running: dict[asyncio.Task[None], float], meter: Meter, now_s: float) -> None:
    left = dict(running)
    for task, intended_s in left.items():
        task.cancel()
        meter.gave_up(intended_s=intended_s, now_s=now_s)
    await asyncio.gather(*left, return_exceptions=True)
