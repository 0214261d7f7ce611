"""`hitrate`: how many calls hit and how many hits are wrong.

On the shipped sets, on public ones, and on your own log.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks.command import add_options, measured
from benchmarks.embedding import MeteredEmbedder, make_embedder
from benchmarks.quality import probes
from benchmarks.quality.hitrate import QUICK, HitRates, Plan, Stream, own_streams
from benchmarks.results import Results
from benchmarks.session import Session
from benchmarks.workloads import datasets, logs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_options(parser)
    add_stream_options(parser)
    parser.add_argument("--quick", action="store_true", help="less of everything")


def add_stream_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is replayed."""
    parser.add_argument("--data", type=Path, help="folder of public data sets")
    parser.add_argument("--log", type=Path, help="your own log, JSONL or CSV with a column prompt")
    parser.add_argument("--prompt-column", default="prompt", help="what the log calls the prompt")
    parser.add_argument("--max-requests", type=int, help="most requests of each stream")
    parser.add_argument(
        "--price-model", default="gpt-4o-mini", help="whose prices the savings are told in"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure and write the report."""

    async def measure(session: Session, results: Results) -> None:
        await hit_rates(arguments, session, results)

    return measured(arguments, measure)


async def hit_rates(arguments: argparse.Namespace, session: Session, results: Results) -> None:
    """Replay what *arguments* ask for."""
    plan = replace(
        QUICK if arguments.quick else Plan(),
        max_requests=arguments.max_requests,
        price_model=arguments.price_model,
    )
    streams = chosen_streams(arguments, plan, results)
    embedder = MeteredEmbedder(await make_embedder(arguments.embedder), remembers=True)
    probes.report(results, await probes.probe(session))
    await HitRates(session, embedder, results, plan).measure(streams)
    check(results)


def chosen_streams(arguments: argparse.Namespace, plan: Plan, results: Results) -> list[Stream]:
    """Return the user's log where there is one, else the shipped sets and those of a folder.

    Raises:
        BadInput: the log or the folder cannot be used.
    """
    if arguments.log is not None:

        def told(reading: logs.Reading) -> None:
            for note in reading.notes():
                results.note(f"{arguments.log.name}: {note}")

        log = logs.load(arguments.log, prompt_column=arguments.prompt_column, on_read=told)
        return [Stream([log])]
    streams = own_streams(plan, arguments.seed)
    if arguments.data is not None:
        found, missing = datasets.load(
            arguments.data, seed=arguments.seed, limit=plan.max_requests
        )
        for line in missing:
            results.note(line)
        streams += [Stream([workload]) for workload in found]
    return streams


def check(results: Results) -> None:
    """Put what must hold on the shipped sets into *results*, where they were replayed."""
    section = results.section("hitrate")
    for workload in section.get("workloads", []):
        for figures in workload["policies"]:
            name = f"{workload['name']}, {figures['policy']}"
            if figures["errors"]:
                results.check(
                    f"{name}: no call fails",
                    ok=False,
                    expected="0",
                    measured=", ".join(figures["errors"]),
                )
        default = next((f for f in workload["policies"] if f["policy"] == "default"), None)
        if workload["name"] == "faq" and default is not None and "MiniLM" in section["embedder"]:
            rate = default["semantic_hit_rate"] or 0.0
            results.check(
                "FAQ, every wording once: semantic hit rate at least 0.25",
                ok=rate >= 0.25,
                expected="≥ 0.25",
                measured=f"{rate:.3f}",
            )
            results.check(
                "FAQ, every wording once: no wrong hit",
                ok=default["wrong_hits"] == 0,
                expected="0",
                measured=f"{default['wrong_hits']} of {default['requests']:,}",
            )
