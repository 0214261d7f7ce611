"""What the commands that measure have in common: options, Ctrl-C, and writing the report."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from redis.exceptions import RedisError

from benchmarks.errors import BadInput
from benchmarks.latency.stages import MeteredLoop
from benchmarks.report.folder import write_report
from benchmarks.results import Results
from benchmarks.session import Session, redis_description, session

Measure = Callable[[Session, Results], Awaitable[None]]


def add_options(parser: argparse.ArgumentParser, *, embedder: str = "local") -> None:
    """Add the options of every command that measures."""
    parser.add_argument(
        "--redis-url", default="embedded://", help="default: a private server of its own"
    )
    parser.add_argument("--out", type=Path, help="folder of the report; default: benchmarks/out/…")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument(
        "--embedder",
        choices=("local", "instant"),
        default=embedder,
        help=f"all-MiniLM-L6-v2 on this CPU, or bags of words in 0.1 ms; default: {embedder}",
    )


def positive(text: str) -> float:
    """Return the number in an option that must be above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"a number above 0, not {text!r}")
    return number


def measured(arguments: argparse.Namespace, measure: Measure) -> int:
    """Run *measure* and write its report, also when it is stopped or fails.

    Ctrl-C finishes what is at hand and writes what there is; a second one gives up at once.
    """
    folder = arguments.out
    if folder is None:
        folder = Path(__file__).parent / "out" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    results = Results(folder, seed=arguments.seed)
    try:
        with asyncio.Runner(loop_factory=MeteredLoop) as runner:
            runner.run(_measured(arguments, measure, results))
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except RedisError as error:
        why = f"Redis stopped answering ({type(error).__name__}): what came before it is kept."
        results.note(why)
        print(why, file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        results.data["interrupted"] = True
    finally:
        results.finish()
        if results.data["sections"]:
            path = write_report(results)
            print(f"report: {path}")
    if results.data["interrupted"]:
        return 130
    failed = [check["name"] for check in results.data["checks"] if not check["ok"]]
    for name in failed:
        print(f"does not hold: {name}", file=sys.stderr)
    return 1 if failed else 0


async def _measured(arguments: argparse.Namespace, measure: Measure, results: Results) -> None:
    async with session(arguments.redis_url, seed=arguments.seed, quiet=arguments.quiet) as around:
        results.data["redis"] = {
            "url": around.described_as,
            **await redis_description(around.redis_url),
        }
        _note_busy(results)
        with _stopping(around):
            await measure(around, results)
        if around.stop.is_set():
            results.data["interrupted"] = True
            results.note("Stopped before its end: the figures are those of what was done.")


def _note_busy(results: Results) -> None:
    machine = results.data["machine"]
    load, cores = machine["load_at_start"] or 0.0, machine["cores"] or 1
    if load > cores / 2:
        results.note(
            f"The machine was busy before this began (load {load:g} on {cores} cores): durations"
            " and rates are those of a busy machine. Counts are not affected."
        )


@contextlib.contextmanager
def _stopping(around: Session) -> Iterator[None]:
    """Let the first Ctrl-C ask politely, and the second end it."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def ask() -> None:
        if around.stop.is_set() and task is not None:
            task.cancel()
        around.stop.set()
        around.progress.say("finishing what is at hand; Ctrl-C again to give up")

    handles = True
    try:
        loop.add_signal_handler(signal.SIGINT, ask)
    except NotImplementedError:  # Windows: Ctrl-C is a KeyboardInterrupt
        handles = False
    try:
        yield
    finally:
        if handles:
            loop.remove_signal_handler(signal.SIGINT)
