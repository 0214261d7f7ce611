"""`python -m benchmarks.moving`: how long an export and an import take, and how much memory.

Fills one private Redis with answers of 500 characters and their vectors, exports them with the
command line, imports the file into a second Redis, and compares what the two answer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_cache import CacheConfig, LLMCache
from llm_cache.testing import FakeEmbedder

_CALLERS = 64
_SAMPLE = 200
_NAMESPACE = "bench.moving"


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended."""

    took_s: float
    peak_mb: float
    """Most memory it had, in MB."""


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moving", description=__doc__)
    parser.add_argument("--entries", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--dimensions", type=int, default=384)
    arguments = parser.parse_args()
    for entries in arguments.entries:
        asyncio.run(_measure(entries, arguments.dimensions))


async def _measure(entries: int, dimensions: int) -> None:
    config = CacheConfig(namespace=_NAMESPACE)
    embedder = FakeEmbedder(dimensions=dimensions)
    with tempfile.TemporaryDirectory() as directory:
        async with (
            LLMCache("embedded://", embedder=embedder, config=config) as here,
            LLMCache("embedded://", embedder=embedder, config=config) as there,
        ):
            started_s = time.perf_counter()
            await _fill(here, entries, dimensions)
            took_s = time.perf_counter() - started_s
            print(f"fill     {entries:,} answers stored one by one: {entries / took_s:,.0f}/s")
            for name in ("plain.jsonl", "packed.jsonl.gz"):
                file = Path(directory) / name
                out = await _run("export", str(file), here.redis_url)
                size_mb = file.stat().st_size / 1e6
                print(
                    f"export   {entries:,} answers, {dimensions} dimensions, {name}:"
                    f" {out.took_s:.1f} s, {entries / out.took_s:,.0f}/s,"
                    f" {size_mb:.0f} MB, peak memory {out.peak_mb:.0f} MB"
                )
            into = await _run("import", str(file), there.redis_url)
            print(
                f"import   {entries:,} answers into an empty Redis: {into.took_s:.1f} s,"
                f" {entries / into.took_s:,.0f}/s, peak memory {into.peak_mb:.0f} MB"
            )
            again = await _run("import", str(file), there.redis_url)
            print(f"again    nothing to write: {again.took_s:.1f} s")
            await _compare(here, there, entries)


async def _fill(cache: LLMCache, entries: int, dimensions: int) -> None:
    random = np.random.default_rng(1)
    numbers = iter(range(entries))

    async def store() -> None:
        for number in numbers:
            vector = random.standard_normal(dimensions).astype(np.float32)
            await cache.store_semantic(_prompt(number), f"{number} {'x' * 500}", vector=vector)  # type: ignore[arg-type]

    await asyncio.gather(*(store() for _ in range(_CALLERS)))


def _prompt(number: int) -> str:
    return f"What is known about the matter with the number {number}?"


async def _run(command: str, file: str, url: str) -> Ran:
    return await asyncio.to_thread(_run_blocking, command, file, url)


def _run_blocking(command: str, file: str, url: str) -> Ran:
    started_s = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603 - our own command
        [
            *(sys.executable, "-m", "llm_cache.cli", command, file, "--json"),
            *("--redis-url", url, "--namespace", _NAMESPACE),
        ],
        stdout=subprocess.DEVNULL,
    )
    # The peak of this very process, which only who waits for it is told.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    if status != 0:
        sys.exit(f"{command} has failed")
    return Ran(time.perf_counter() - started_s, usage.ru_maxrss / 1e3)


async def _compare(here: LLMCache, there: LLMCache, entries: int) -> None:
    equal = 0
    numbers = np.random.default_rng(2).integers(0, entries, _SAMPLE)
    for number in map(int, numbers):
        first, second = [await cache.lookup_exact(_prompt(number)) for cache in (here, there)]
        equal += first is not None and second is not None and first.data == second.data
    counts = [(await cache.server_stats())["entries"] for cache in (here, there)]
    print(
        f"equal    {equal} of {_SAMPLE} answers; {counts[0]:,} and {counts[1]:,} semantic entries"
    )


if __name__ == "__main__":
    main()
