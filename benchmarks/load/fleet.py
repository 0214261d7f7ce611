"""The worker processes of a load test, and what they measured together."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from benchmarks.errors import BadInput
from benchmarks.histograms import Latencies
from benchmarks.load.population import Mix, crossings
from benchmarks.load.watch import Watch, watching
from benchmarks.load.worker import Setup
from benchmarks.session import Session

Json = dict[str, Any]
MOST_WORKERS = 8
_LINE_BYTES = 64 * 1024 * 1024
_LEAD_S = 0.3
"""From the command to the common start."""
_GRACE_S = 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch of load."""

    seconds: float
    rate_per_s: float | None = None
    """Arrivals of all workers together, in an open loop; `None` for a closed one."""
    callers: int | None = None
    """Of a closed loop."""
    arrivals: str = "poisson"
    seed: int = 0


class Fleet:
    """Worker processes that put load on one cache, each with a client of its own.

    Args:
        session: Around it.
        workers: How many processes, 1 to 8.
        base_url: Of the model.
        mix: What is asked.
        embedder: `local` or `instant`.
        model: Name of the model.
        echoes: Whether the model echoes the question, so that answers can be judged.
        ttl_s: Of the answers; the cache's default where it is `None`.
        trace: Path of recorded arrivals.
        upstream_pid: Of the model's process, to be left out of the clients' memory.
    """

    def __init__(
        self,
        session: Session,
        *,
        workers: int,
        base_url: str,
        mix: Mix,
        embedder: str,
        model: str,
        echoes: bool = True,
        ttl_s: float | None = None,
        trace: str | None = None,
    ) -> None:
        if not 1 <= workers <= MOST_WORKERS:
            raise BadInput(f"--workers: from 1 to {MOST_WORKERS}")
        self._session = session
        self._setups = [
            Setup(
                session.redis_url,
                base_url,
                worker,
                workers,
                session.seed,
                embedder,
                asdict(mix),
                model,
                echoes,
                ttl_s,
                trace,
            )
            for worker in range(workers)
        ]
        self._processes: list[asyncio.subprocess.Process] = []
        self._stopping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            for setup in self._setups:
                self._processes.append(await _spawn(setup))
        except BaseException:
            await self.__aexit__()
            raise
        self._stopping = asyncio.create_task(self._stop_when_asked())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._stopping is not None:
            self._stopping.cancel()
        await asyncio.gather(*(_end(process) for process in self._processes))

    async def open(self, namespace: str) -> None:
        """Let every worker open a cache over *namespace*."""
        # One after another: the first makes the index, and the log-in storm is no figure here.
        for process in self._processes:
            await self._tell(process, {"do": "open", "namespace": namespace})

    async def warm(self) -> None:
        """Ask everything popular once."""
        await self._tell_all({"do": "warm"}, patience_s=3_600)

    async def run(self, step: Step) -> Json:
        """Put the load of *step* on the cache, and return its figures.

        A Ctrl-C meanwhile ends it early, with the figures so far.
        """
        command = {
            "do": "load",
            **asdict(step),
            "block_s": max(0.5, step.seconds / 20),
            # One clock for all processes of the machine.
            "start_s": time.monotonic() + _LEAD_S,
        }
        pids = [process.pid for process in self._processes]
        with self._session.progress.bar(_describe(step), step.seconds) as advance:
            ticking = asyncio.create_task(_tick(advance, step.seconds))
            try:
                async with watching(self._session.redis_url, pids) as watch:
                    answers = await self._tell_all(command, patience_s=step.seconds + _GRACE_S)
            finally:
                ticking.cancel()
                await asyncio.gather(ticking, return_exceptions=True)
        return merged(step, answers, watch)

    async def _stop_when_asked(self) -> None:
        await self._session.stop.wait()
        for process in self._processes:
            _write(process, {"do": "stop"})

    async def _tell_all(self, command: Json, *, patience_s: float) -> list[Json]:
        tellings = (self._tell(each, command, patience_s) for each in self._processes)
        return list(await asyncio.gather(*tellings))

    async def _tell(
        self, process: asyncio.subprocess.Process, command: Json, patience_s: float = _GRACE_S
    ) -> Json:
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        _write(process, command)
        try:
            async with asyncio.timeout(patience_s):
                line = await process.stdout.readline()
        except TimeoutError as error:
            raise BadInput(
                f"a worker did not answer within {patience_s:.0f} s: the machine is far too slow"
                " for this load; take a lower rate or fewer callers"
            ) from error
        if not line:
            raise BadInput("a worker process died; what it said is above")
        answer: Json = json.loads(line)
        if "failed" in answer:
            raise BadInput(f"a worker could not {command['do']}: {answer['failed']}")
        return answer


def merged(step: Step, answers: Sequence[Json], watch: Watch) -> Json:
    """Return the figures of a step from what its workers measured."""
    latencies: dict[str, Latencies] = {}
    for answer in answers:
        for name, text in answer["latencies"].items():
            latencies.setdefault(name, Latencies()).merge(Latencies.decoded(text))
    total = Latencies()
    for each in latencies.values():
        total.merge(each)
    statuses = _sum(answer["statuses"] for answer in answers)
    finished = sum(answer["finished"] for answer in answers)
    looked_further = finished - statuses["exact"]
    texts = sum(answer["embedded_texts"] for answer in answers)
    tables = [answer["tenants_of_ids"] for answer in answers if answer["tenants_of_ids"]]
    offered = sum(answer["offered"] for answer in answers)
    # Less than was asked for after a Ctrl-C.
    lasted_s = max(answer["lasted_s"] for answer in answers)
    in_time = sum(answer["in_time"] for answer in answers)
    return {
        **{name: value for name, value in asdict(step).items() if name != "seed"},
        "seconds": lasted_s,
        "offered_per_s": step.rate_per_s,
        "offered": offered,
        "finished": finished,
        "achieved_per_s": in_time / lasted_s,
        "unfinished": sum(answer["unfinished"] for answer in answers),
        "errors": dict(_sum(answer["errors"] for answer in answers)),
        "failures": dict(_sum(answer["failures"] for answer in answers)),
        "statuses": dict(statuses),
        "wrong": sum(answer["wrong"] for answer in answers),
        "foreign": sum(answer["foreign"] for answer in answers) + crossings(tables),
        "embeddings_per_lookup": texts / looked_further if looked_further else None,
        "latency": total.figures(),
        "latency_by_status": {name: each.figures() for name, each in sorted(latencies.items())},
        "service": _merge(answers, "service").figures(),
        "late": _merge(answers, "late").figures(),
        "lag": _merge(answers, "lag").figures(),
        "blocks": _blocks(answers),
        "client_cpu_share": sum(answer["cpu_share"] for answer in answers),
        **watch.figures(finished),
        "seconds_seen": watch.points,
    }


def _merge(answers: Sequence[Json], name: str) -> Latencies:
    merged = Latencies()
    for answer in answers:
        merged.merge(Latencies.decoded(answer[name]))
    return merged


def _blocks(answers: Sequence[Json]) -> list[Json]:
    """Return the blocks of all workers; those of one time one after another."""
    every = [block for answer in answers for block in answer["blocks"]]
    return sorted(every, key=lambda block: block["at_s"])


def _sum(counts: Any) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total


def _describe(step: Step) -> str:
    if step.callers is not None:
        return f"{step.callers} callers"
    return f"{step.rate_per_s:,.0f} requests/s, {step.arrivals}"


async def _tick(advance: Any, seconds: float) -> None:
    await asyncio.sleep(_LEAD_S)
    for _ in range(int(seconds * 4)):
        await asyncio.sleep(0.25)
        advance(0.25)


async def _spawn(setup: Setup) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.load.worker",
        json.dumps(asdict(setup)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Ctrl-C is for the parent, which asks the workers for what they have.
        start_new_session=True,
    )


def _write(process: asyncio.subprocess.Process, command: Json) -> None:
    if process.stdin is not None and process.returncode is None:
        process.stdin.write(f"{json.dumps(command)}\n".encode())


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(15):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
