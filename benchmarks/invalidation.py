"""`python -m benchmarks.invalidation`: how soon an invalidation holds, whatever its size.

Loads answers in pipelines, all with one tag, lets readers in other processes ask for them as fast
as they can, invalidates the tag, and tells for each reader how long after the return of
`invalidate()` its last hit began: 0 where none did. Then, with `--walk`, how long the walk takes
that removes what is dead, and what look-ups cost meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis import asyncio as redis_py

from llm_cache import CacheConfig, LLMCache
from llm_cache._core.codec import encode_entry
from llm_cache._core.keys import Keys
from llm_cache._core.types import Entry
from llm_cache.errors import OnlyIfCachedMiss
from llm_cache.testing import FakeEmbedder

_NAMESPACE = "bench.invalidation"
_TAG = "loaded"
_AT_ONCE = 2_000
_ASKED = 500
"""Different questions that each reader asks; the others are there to be many."""
_TTL_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run has measured."""

    asked: int
    alive_before: int
    alive_after: int
    """Answers still served after the invalidation had returned."""
    invalidate_ms: float
    late_ms: list[float]
    """For each reader, how long after the invalidation its last hit was asked for."""
    reads: int
    walk_s: float | None = None
    left_after_walk: int | None = None
    quiet_ms: float | None = None
    """Median and 99th percentile of an exact look-up while nothing else happens."""
    quiet_p99_ms: float | None = None
    walking_ms: float | None = None
    """The same while the walk is under way."""
    walking_p99_ms: float | None = None


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.invalidation", description=__doc__)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--readers", type=int, default=3, help="processes that read meanwhile")
    parser.add_argument("--walk", action="store_true", help="wait for the walk and measure it")
    parser.add_argument("--redis-url", default="embedded://")
    parser.add_argument("--read", metavar="NAMESPACE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        asyncio.run(_read(arguments.redis_url, arguments.read, arguments.entries))
        return
    figures = asyncio.run(
        measure(
            arguments.redis_url,
            entries=arguments.entries,
            readers=arguments.readers,
            walk=arguments.walk,
        )
    )
    _print(figures, arguments.entries)
    sys.exit(figures.alive_after > 0)


def _print(figures: Figures, entries: int) -> None:
    late = ", ".join(f"{ms:.1f}" for ms in figures.late_ms)
    print(f"entries     {entries:,}; asked {figures.asked}, {figures.alive_before} of them hits")
    print(f"invalidate  {figures.invalidate_ms:.2f} ms")
    print(f"readers     {figures.reads:,} reads; last hit asked for {late} ms after it returned")
    print(f"afterwards  {figures.alive_after} of {figures.asked} hits")
    if figures.walk_s is not None:
        print(
            f"walk        {figures.walk_s:.1f} s, {entries / figures.walk_s:,.0f} answers/s,"
            f" {figures.left_after_walk} left; look-ups p50 {figures.walking_ms:.2f} ms, p99"
            f" {figures.walking_p99_ms:.2f} ms meanwhile, {figures.quiet_ms:.2f} and"
            f" {figures.quiet_p99_ms:.2f} ms before"
        )


async def measure(
    redis_url: str,
    *,
    entries: int,
    readers: int,
    walk: bool = True,
    namespace: str = _NAMESPACE,
) -> Figures:
    """Return the figures of one run against the Redis at *redis_url*."""
    async with LLMCache(redis_url, embedder=FakeEmbedder(), config=_config(namespace)) as cache:
        await _load(cache, namespace, entries)
        asked = _asked(entries)
        before = await _alive(cache, asked)
        quiet = await _timed(cache, asked, stop=None)
        workers = [await _start(cache.redis_url, namespace, entries) for _ in range(readers)]
        started_s = time.perf_counter()
        await cache.invalidate(tag=_TAG)
        done_s, invalidate_ms = time.time(), 1000 * (time.perf_counter() - started_s)
        after = await _alive(cache, asked)
        told = [await _stop(worker) for worker in workers]
        walked: dict[str, Any] = (
            {} if not walk else await _walk(cache, namespace, asked, quiet, started_s)
        )
        return Figures(
            asked=len(asked),
            alive_before=before,
            alive_after=after,
            invalidate_ms=invalidate_ms,
            late_ms=[max(0.0, 1000 * (last_s - done_s)) for last_s, _ in told],
            reads=sum(reads for _, reads in told),
            **walked,
        )


def _config(namespace: str) -> CacheConfig:
    return CacheConfig(
        namespace=namespace, semantic=False, redis_timeout_s=30, added_latency_budget_s=30
    )


def _prompt(number: int) -> str:
    return f"What is known about the matter with the number {number}?"


def _asked(entries: int) -> list[str]:
    return [_prompt(number) for number in range(0, entries, max(1, entries // _ASKED))][:_ASKED]


async def _load(cache: LLMCache, namespace: str, entries: int) -> None:
    """Write as many answers, as the cache itself would, but in pipelines."""
    keys = Keys(namespace)
    call, _ = cache._plan_given(_prompt(0), {"tags": [_TAG]})
    epoch = (await cache._epochs.current(None)).epoch
    await cache._epochs.remember_for(_TTL_MS)
    message = {"role": "assistant", "content": "x" * 200}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    entry = Entry(
        answer={"object": "chat.completion", "model": call.terms.model, "choices": [choice]},
        created_s=time.time(),
        fresh_until_s=time.time() + _TTL_MS / 1000,
        stamp=epoch,
        model=call.terms.model,
        prompt_version=call.prompt_version,
        tags=(_TAG,),
    )
    client = redis_py.Redis.from_url(cache.redis_url)
    for start in range(0, entries, _AT_ONCE):
        pipeline = client.pipeline(transaction=False)
        for number in range(start, min(start + _AT_ONCE, entries)):
            digest = call.scope.digest(_prompt(number))
            pipeline.set(keys.answer(digest), encode_entry(entry, digest), px=_TTL_MS)
        await pipeline.execute()
    await client.aclose()


async def _alive(cache: LLMCache, prompts: list[str]) -> int:
    found = [await cache.lookup_exact(prompt) for prompt in prompts]
    return sum(reply is not None for reply in found)


async def _timed(
    cache: LLMCache, prompts: list[str], stop: asyncio.Task[None] | None
) -> list[float]:
    """Return what look-ups took, in ms, until *stop* is done, or 2,000 of them."""
    took_ms: list[float] = []
    while len(took_ms) < 2_000 if stop is None else not stop.done():
        started_s = time.perf_counter()
        await cache.lookup_exact(prompts[len(took_ms) % len(prompts)])
        took_ms.append(1000 * (time.perf_counter() - started_s))
        if stop is not None:
            await asyncio.sleep(0.001)
    return took_ms or [0.0]


async def _walk(
    cache: LLMCache, namespace: str, asked: list[str], quiet: list[float], started_s: float
) -> dict[str, Any]:
    walk = asyncio.create_task(cache._sweeper.settle())
    meanwhile = await _timed(cache, asked, stop=walk)
    walk_s = time.perf_counter() - started_s
    client = redis_py.Redis.from_url(cache.redis_url)
    left = [name async for name in client.scan_iter(Keys(namespace).answer_pattern, count=5_000)]
    await client.aclose()
    return {
        "walk_s": walk_s,
        "left_after_walk": len(left),
        "quiet_ms": statistics.median(quiet),
        "quiet_p99_ms": _p99(quiet),
        "walking_ms": statistics.median(meanwhile),
        "walking_p99_ms": _p99(meanwhile),
    }


def _p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]


async def _start(url: str, namespace: str, entries: int) -> asyncio.subprocess.Process:
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.invalidation", "--redis-url", url),
        *("--read", namespace, "--entries", str(entries)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    await _lines(worker).readline()
    return worker


def _lines(worker: asyncio.subprocess.Process) -> asyncio.StreamReader:
    if worker.stdout is None:
        raise RuntimeError("a reader was started without a pipe")
    return worker.stdout


async def _stop(worker: asyncio.subprocess.Process) -> tuple[float, int]:
    printed, _ = await worker.communicate(b"\n")
    told = json.loads(printed)
    return told["last_hit_s"], told["reads"]


async def _read(url: str, namespace: str, entries: int) -> None:
    """Ask until told to stop, and print when the last hit was asked for."""
    prompts = _asked(entries)
    stop = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
    last_hit_s, reads = 0.0, 0
    async with LLMCache(url, embedder=FakeEmbedder(), config=_config(namespace)) as cache:
        while not stop.done():
            asked_s = time.time()
            with suppress(OnlyIfCachedMiss):
                await cache.chat(prompts[reads % len(prompts)], cache_control="only-if-cached")
                last_hit_s = asked_s
            reads += 1
            if reads == _ASKED:
                print("ready", flush=True)
        print(json.dumps({"last_hit_s": last_hit_s, "reads": reads}), flush=True)


if __name__ == "__main__":
    main()
