"""Stores and invalidations of several processes, in any order; and processes that are killed."""

import asyncio
import json
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.topologies.shapes import Shape

# A document has a version, which grows. Who changes one invalidates what was made from it, and
# says when that is done. Whoever begins to read after that must see no older version.
WORKER = """
import asyncio, json, random, sys, time
from llm_cache import CacheConfig, LLMCache
from llm_cache.testing import FakeEmbedder
from tests.topologies.shapes import client_of

DOCUMENTS = ("alpha", "beta", "gamma", "delta")
FORMS = ("What does {} say", "Tell me what {} says")

async def main(redis_url, truth_url, namespace, duration_s, seed):
    chance = random.Random(int(seed))
    embedder = FakeEmbedder(similarity_threshold=0.9)
    for name in DOCUMENTS:
        embedder.similar(FORMS[0].format(name), FORMS[1].format(name), 0.97)
    truth, one_at_a_time = client_of(truth_url), asyncio.Lock()
    versions, done = namespace + ".versions", namespace + ".done"
    config = CacheConfig(namespace=namespace, redis_timeout_s=20, added_latency_budget_s=20)
    counts = {"reads": 0, "changes": 0, "too_old": 0}

    async def ask(*command):
        # redis-py's client of a cluster closes all connections when one fails, those in use too.
        async with one_at_a_time:
            return await truth.execute_command(*command)

    async with LLMCache(redis_url, embedder=embedder, config=config, hooks=[]) as cache:
        cache._sweeper._rest_s = 0.05
        keys = {}

        async def read():
            name, form = chance.choice(DOCUMENTS), chance.choice(FORMS)
            least = int(await ask("ZSCORE", done, name) or 0)

            async def produce():
                version = int(await ask("ZSCORE", versions, name) or 0)
                await asyncio.sleep(chance.random() * 0.02)
                return version

            reply = await cache.get_or_create(
                {"prompt": form.format(name), "name": name, "model": name},
                produce, tags=[name], depends_on=[name + "@any"], tenant=name,
                cache_control=chance.choice([None, None, None, "no-cache"]),
            )
            if reply.key is not None:
                keys[name] = reply.key
            counts["reads"] += 1
            counts[reply.status] = counts.get(reply.status, 0) + 1
            if reply.value < least:
                counts["too_old"] += 1
                print("too old:", name, reply.value, least, reply.status, reply.shared,
                      file=sys.stderr)

        async def change():
            name = chance.choice(DOCUMENTS)
            version = int(await ask("ZINCRBY", versions, 1, name))
            match chance.randrange(7):
                case 0: await cache.invalidate(tag=name)
                case 1: await cache.invalidate(dependency=name)
                case 2: await cache.invalidate(model=name)
                case 3: await cache.invalidate(tenant=name)
                case 4: await cache.invalidate(tag=name, tenant=name)
                case 5: await cache.invalidate(pattern=f"*{name}*")
                case 6: await cache.clear()
            # The greatest that is done: two changes may end in the other order.
            await ask("ZADD", done, "GT", version, name)
            counts["changes"] += 1

        async def work():
            while time.monotonic() < ends_s:
                await (change() if chance.random() < 0.05 else read())

        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        ends_s = time.monotonic() + float(duration_s)
        await asyncio.gather(*(work() for _ in range(8)))
    await truth.aclose()
    print(json.dumps(counts), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""

# Stores, promotes, rejects and invalidates until it is killed.
STORER = """
import asyncio, itertools, sys
from llm_cache import CacheConfig, LLMCache
from llm_cache.testing import FakeEmbedder

async def main(redis_url, namespace, seed):
    config = CacheConfig(
        namespace=namespace, redis_timeout_s=20, added_latency_budget_s=20,
        sliding_max_age_s=90_000, stats_flush_s=0.01,
        review_sample_rate=1.0, keep_embeddings_s=100, guards=False,
    )
    embedder = FakeEmbedder(similarity_threshold=0.5)
    async with LLMCache(redis_url, embedder=embedder, config=config, hooks=[]) as cache:
        cache._sweeper._rest_s = 0
        print("ready", flush=True)
        for i in itertools.count():
            async def produce():
                return "x" * 40_000
            async def call(j):
                words = f"prompt number{i} of worker{seed}"
                first = await cache.get_or_create(
                    {"prompt": words, "part": j}, produce, tags=[f"t{j}"]
                )
                await cache.get_or_create({"prompt": words + " please", "part": j}, produce)
                if j == 3 and first.key:
                    await cache.reject(first.key)
            await asyncio.gather(*(call(j) for j in range(8)))
            await cache.invalidate(tag=f"t{i % 8}")

asyncio.run(main(*sys.argv[1:]))
"""
# What is no answer, and leads to none (docs/data-model.md).
LASTING = ("epoch", "purges", "rejected", "stats:")


async def start(script: str, *arguments: str) -> asyncio.subprocess.Process:
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert worker.stdout
    assert await worker.stdout.readline() == b"ready\n"
    return worker


async def race(shape: Shape, namespace: str, *, duration_s: float) -> dict[str, int]:
    """Return what four processes have counted together."""
    workers = await asyncio.gather(
        *(
            start(
                *(WORKER, shape.url, shape.admin_url or shape.url),
                *(namespace, str(duration_s), str(seed)),
            )
            for seed in range(4)
        )
    )
    printed = await asyncio.gather(*(worker.communicate(b"\n") for worker in workers))
    assert [worker.returncode for worker in workers] == [0] * 4
    total: dict[str, int] = {}
    for lines, _ in printed:
        for name, count in json.loads(lines).items():
            total[name] = total.get(name, 0) + count
    return total


def check(total: dict[str, int], *, least: int) -> None:
    assert total["too_old"] == 0, total
    # And not because nothing was ever found.
    assert total["changes"] > least
    assert total["exact"] > least
    assert total["semantic"] > 0


async def test_nobody_reads_what_was_invalidated_before_he_began(redis_shape, namespace):
    check(await race(redis_shape, namespace, duration_s=4), least=20)


@pytest.mark.heavy
@pytest.mark.timeout(180)
async def test_nobody_reads_what_was_invalidated_before_he_began_for_a_minute(
    redis_shape, namespace
):
    check(await race(redis_shape, namespace, duration_s=60), least=300)


async def killed_at_any_moment(
    redis_url: str, namespace: str, redis: Any, *, rounds: int
) -> list[bytes]:
    """Return the names of keys without an expiry that killed processes have left."""
    chance = random.Random(rounds)
    workers = [await start(STORER, redis_url, namespace, str(n)) for n in range(2)]
    for number in range(rounds):
        mark = (await redis.info("stats"))["total_commands_processed"] + chance.randrange(5_000)
        async with asyncio.timeout(60):
            while (await redis.info("stats"))["total_commands_processed"] < mark:
                pass
        victim = workers[number % 2]
        victim.send_signal(signal.SIGKILL)
        await victim.wait()
        if number < rounds - 2:
            workers[number % 2] = await start(STORER, redis_url, namespace, f"{number}.")
    return [
        name
        async for name in redis.scan_iter(f"{namespace}:*", count=1_000)
        if await redis.pttl(name) == -1 and not _may_last(name, namespace)
    ]


def _may_last(name: bytes, namespace: str) -> bool:
    return name.decode().removeprefix(f"{namespace}:").startswith(LASTING)


async def test_killed_process_leaves_nothing_without_an_expiry(redis_url, namespace, redis):
    assert await killed_at_any_moment(redis_url, namespace, redis, rounds=5) == []
    left = [name async for name in redis.scan_iter(f"{namespace}:x:*")]
    assert left


@pytest.mark.heavy
@pytest.mark.timeout(300)
async def test_many_killed_processes_leave_nothing_without_an_expiry(redis_url, namespace, redis):
    assert await killed_at_any_moment(redis_url, namespace, redis, rounds=40) == []
