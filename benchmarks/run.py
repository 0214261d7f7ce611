"""`run`: everything, and a report of it.

`--quick` takes about three minutes, and ten seconds or so for each peer that is installed; all of
it takes half an hour. `--soak` adds 20 minutes at a steady rate, and their warm-up.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from benchmarks import side_by_side
from benchmarks.command import add_options, measured, positive
from benchmarks.embedding import MeteredEmbedder, make_embedder
from benchmarks.latency import command as latency
from benchmarks.latency import self_test
from benchmarks.load import command as load
from benchmarks.load import soak_command as soak
from benchmarks.peers.environments import OURS, PEERS, UNGUARDED, Peer
from benchmarks.quality import command as hitrate
from benchmarks.quality import savings
from benchmarks.results import Results
from benchmarks.session import Session

PARTS = ("hitrate", "latency", "load", "peers", "savings", "self-test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_options(parser)
    parser.add_argument("--quick", action="store_true", help="about three minutes")
    parser.add_argument("--soak", action="store_true", help="a soak at 70 %% of the knee, too")
    parser.add_argument("--soak-minutes", type=positive, default=20.0, help="default: 20")
    parser.add_argument("--only", type=_parts, default=PARTS, help=f"some of {','.join(PARTS)}")
    parser.add_argument(
        "--peers",
        default="installed",
        type=_beside,
        help=f"none, installed, all, or some of {','.join(PEERS)}; default: installed. All and"
        " names install what is not there from PyPI, each into an environment of its own",
    )
    parser.add_argument(
        "--peer-seconds", type=positive, default=120.0, help="most that a peer may take"
    )
    hitrate.add_stream_options(parser)
    load.add_load_options(parser)
    parser.add_argument("--upstream-delay-ms", type=float, default=0.0, help="of the latencies")


def run(arguments: argparse.Namespace) -> int:
    """Measure and write the report."""

    async def measure(session: Session, results: Results) -> None:
        for part in _parts_of(arguments):
            if session.stop.is_set():
                return
            session.progress.say(f"--- {part}")
            started_s = time.monotonic()
            try:
                await _PARTS[part](arguments, session, results)
            finally:
                results.took(part, time.monotonic() - started_s)
            results.save()  # what is done is done, whatever comes

    return measured(arguments, measure)


def _parts_of(arguments: argparse.Namespace) -> list[str]:
    return [*arguments.only, *(["soak"] if arguments.soak else [])]


def _with(arguments: argparse.Namespace, **changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(arguments), **changes})


async def _load(arguments: argparse.Namespace, session: Session, results: Results) -> None:
    seconds = 2.0 if arguments.quick else arguments.seconds
    # The embedding model on this machine would take the cores that the load is to come from.
    changed = _with(
        arguments,
        seconds=seconds,
        embedder="instant",
        rates=None,
        callers=[1, 200] if arguments.quick else [1, 50, 200],
    )
    await load.loads(changed, session, results)


async def _soak(arguments: argparse.Namespace, session: Session, results: Results) -> None:
    # The knee of the load is none of this one: there, nothing expires.
    changed = _with(
        arguments,
        embedder="instant",
        ttl_s=60.0,
        rate=None,
        minutes=arguments.soak_minutes,
        warm_up_minutes=None,
    )
    await soak.soak(changed, session, results)


async def _peers(arguments: argparse.Namespace, session: Session, results: Results) -> None:
    embedder = MeteredEmbedder(await make_embedder(arguments.embedder), remembers=True)
    peers, installs = arguments.peers
    plan = replace(
        side_by_side.QUICK if arguments.quick else side_by_side.Plan(),
        seconds_each=arguments.peer_seconds,
        installs=installs,
    )
    everybody = [OURS, UNGUARDED, *peers]
    await side_by_side.measure(session, results, plan, embedder, everybody)
    if not peers:
        results.note("Nobody is beside ours: --peers none was given.")


async def _savings(arguments: argparse.Namespace, session: Session, results: Results) -> None:
    parser = argparse.ArgumentParser()
    savings.add_arguments(parser)
    defaults = parser.parse_args([])
    changed = _with(
        defaults,
        log=arguments.log,
        prompt_column=arguments.prompt_column,
        price_model=arguments.price_model,
        embedder=arguments.embedder,
        max_requests=arguments.max_requests or (500 if arguments.quick else 2_000),
    )
    if arguments.quick:
        changed = _with(changed, thresholds=[0.85, 0.95], ttls_h=[1.0, 24.0])
    await savings.savings(changed, session, results)


async def _self_test(_: argparse.Namespace, session: Session, results: Results) -> None:
    await self_test.measure(session, results)


_PARTS: dict[str, Callable[[argparse.Namespace, Session, Results], Awaitable[None]]] = {
    "hitrate": hitrate.hit_rates,
    "latency": latency.latencies,
    "load": _load,
    "peers": _peers,
    "savings": _savings,
    "self-test": _self_test,
    "soak": _soak,
}


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(","))
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}: take of {','.join(PARTS)}")
    return parts


def _beside(text: str) -> tuple[list[Peer], bool]:
    """Return who is to be beside ours, and whether they are installed where they are not."""
    if text == "none":
        return [], False
    if text in {"installed", "all"}:
        return list(PEERS.values()), text == "all"
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        known = f"none, installed, all, or some of {','.join(PEERS)}"
        raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}: take {known}")
    return [PEERS[name] for name in names], True
