"""Single-flight across processes: one answer of the model, whoever asks."""

import asyncio
import json
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llm_cache._redis.lease import LEASE_S
from llm_cache.testing import Answer

QUESTION = "What is the capital of France?"

# A worker says "ready", asks when it is told to, and prints what its callers got.
WORKER = """
import asyncio, json, sys
from openai import AsyncOpenAI
from llm_cache import CacheConfig, LLMCache
from llm_cache.testing import FakeEmbedder

async def main(redis_url, base_url, namespace, callers, lease_s):
    client = AsyncOpenAI(base_url=base_url, api_key="test", max_retries=0)
    config = CacheConfig(namespace=namespace, redis_timeout_s=20, added_latency_budget_s=20)
    async with LLMCache(redis_url, client=client, embedder=FakeEmbedder(), config=config) as cache:
        cache._engine._leases._lease_ms = round(1000 * float(lease_s))
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        calls = (cache.chat("What is the capital of France?") for _ in range(int(callers)))
        ends = await asyncio.gather(*calls, return_exceptions=True)
        print(json.dumps([
            [type(end).__name__] if isinstance(end, BaseException) else [end.text, end.status]
            for end in ends
        ]), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


class Worker:
    """A process with a cache of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, *arguments: str) -> "Worker":
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WORKER, *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout
        assert await process.stdout.readline() == b"ready\n"
        return cls(process)

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write(b"\n")

    async def ends(self) -> list[list[str]]:
        assert self.process.stdout
        line = await self.process.stdout.readline()
        await self.process.wait()
        ends: list[list[str]] = json.loads(line)
        return ends


@pytest.fixture
async def start(redis_url: str, upstream: Any, namespace: str) -> Any:
    workers: list[Worker] = []

    async def start(count: int, callers: int, *, lease_s: float = LEASE_S) -> list[Worker]:
        arguments = (redis_url, upstream.base_url, namespace, str(callers), str(lease_s))
        workers.extend(await asyncio.gather(*(Worker.start(*arguments) for _ in range(count))))
        return workers

    yield start
    for worker in workers:
        if worker.process.returncode is None:
            worker.process.kill()
            await worker.process.wait()


async def calls(redis: Any) -> Counter[str]:
    """Return how often the server has run each command."""
    stats = await redis.info("commandstats")
    return Counter(
        {name.removeprefix("cmdstat_"): int(ran["calls"]) for name, ran in stats.items()}
    )


async def until_run(redis: Any, command: str, times: int) -> None:
    """Return when the server has run *command* that many times. It tells nobody itself."""
    async with asyncio.timeout(60):
        while True:
            if (await calls(redis))[command] >= times:
                return


async def test_eight_processes_of_fifty_callers_ask_the_model_once(start, upstream, redis):
    upstream.hold()
    # No load makes a leader so late that its lease runs out, which would send the others to look.
    workers = await start(8, 50, lease_s=600)
    await redis.config_resetstat()
    for worker in workers:
        worker.go()
    # Asking how long the lease lasts is the last that a process does before it waits.
    await until_run(redis, "pttl", 7)
    await upstream.called(timeout_s=60)
    upstream.answer("Paris.")
    ends = [end for worker in workers for end in await worker.ends()]

    assert upstream.calls == 1
    assert len(ends) == 400
    assert {text for text, _ in ends} == {"Paris."}
    # The first caller of a process looks alone, the others together. A waiting process then sends
    # SET NX, SUBSCRIBE, PTTL and MGET, whatever the number of its callers. The leader too looks
    # again, to see whether it comes late, and stores.
    ran = await calls(redis)
    assert ran["mget"] == 8 * 3
    assert ran["set"] == 8 + 1
    assert ran["subscribe"] == ran["pttl"] == 7
    assert ran["FT.SEARCH"] == 1


async def test_leader_that_is_killed_is_taken_over(start, upstream):
    upstream.hold()
    leader, *_ = await start(1, 1)
    leader.go()
    await upstream.called()
    follower = (await start(1, 3))[-1]
    follower.go()
    leader.process.send_signal(signal.SIGKILL)
    await upstream.called(2, timeout_s=20)
    upstream.release()

    ends = await follower.ends()
    assert {status for _, status in ends} == {"miss"}
    assert upstream.calls == 2


async def test_error_of_the_model_reaches_every_waiter_and_is_not_kept(start, upstream):
    upstream.default = Answer(status=500)
    workers = await start(3, 5)
    for worker in workers:
        worker.go()
    ends = [end for worker in workers for end in await worker.ends()]

    assert {name for (name,) in ends} == {"InternalServerError"}
    assert upstream.calls <= 3
    upstream.default = "Paris."
    worker = (await start(1, 1))[-1]
    worker.go()
    assert await worker.ends() == [["Paris.", "miss"]]


async def test_late_leader_overwrites_no_newer_answer(make_cache, upstream, redis, namespace):
    """A leader stands still for longer than its lease; another has answered meanwhile."""
    gates = [asyncio.Event(), asyncio.Event()]
    upstream.answer(Answer(text="old", gate=gates[0]))
    upstream.answer(Answer(text="new", gate=gates[1]))
    late, quick = make_cache(), make_cache()
    late_call = asyncio.create_task(late.chat(QUESTION))
    await upstream.called()
    await redis.delete(*[key async for key in redis.scan_iter(f"{namespace}:lease:*")])
    quick_call = asyncio.create_task(quick.chat(QUESTION))
    await upstream.called(2)
    gates[1].set()
    assert (await quick_call).text == "new"
    gates[0].set()

    assert (await late_call).text == "old"
    assert (await quick.chat(QUESTION)).text == "new"
