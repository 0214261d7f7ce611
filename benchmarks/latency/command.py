"""`latency`: how long a hit takes, of each kind, where the time goes, and what an entry weighs."""

from __future__ import annotations

import argparse
from dataclasses import replace

from benchmarks.command import add_options, measured
from benchmarks.embedding import MeteredEmbedder, make_embedder
from benchmarks.latency import memory, scenes
from benchmarks.results import Results
from benchmarks.session import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_options(parser)
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument(
        "--upstream-delay-ms", type=float, default=0.0, help="how long the model thinks"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure and write the report."""

    async def measure(session: Session, results: Results) -> None:
        await latencies(arguments, session, results)

    return measured(arguments, measure)


async def latencies(arguments: argparse.Namespace, session: Session, results: Results) -> None:
    """Measure what *arguments* ask for."""
    plan = replace(
        scenes.QUICK if arguments.quick else scenes.Plan(),
        upstream_delay_ms=arguments.upstream_delay_ms,
    )
    embedder = MeteredEmbedder(await make_embedder(arguments.embedder))
    await scenes.measure(session, results, plan, embedder)
    entries = memory.ENTRIES // 2 if arguments.quick else memory.ENTRIES
    await memory.measure(session, results, entries=entries)
