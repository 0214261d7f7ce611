"""The counts of several processes are what really happened, to the token and to the cent."""

import asyncio
import json
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from genai_prices import Usage, calc_price

from llm_cache import Price
from llm_cache.testing import Answer

MODELS = ("gpt-4o-mini", "claude-sonnet-4-5", "in-house")
TENANTS = (None, "acme", "umbrella")

# Replays its part of a trace, twenty calls at a time, and prints what each call came to.
WORKER = """
import asyncio, json, random, sys
from openai import AsyncOpenAI
from llm_cache import CacheConfig, LLMCache, OpenAIEmbedder

async def main(redis_url, base_url, namespace, seed):
    chance = random.Random(int(seed))
    client = AsyncOpenAI(base_url=base_url, api_key="test", max_retries=0)
    config = CacheConfig(
        namespace=namespace, redis_timeout_s=20, added_latency_budget_s=20, stats_flush_s=0.05,
        similarity_threshold=0.9, guards=False,
    )
    async with LLMCache(
        redis_url, client=client, embedder=OpenAIEmbedder(client), config=config, hooks=[]
    ) as cache:
        async def call():
            topic = min(int(chance.paretovariate(1)), 30)
            model, tenant = chance.choice(MODELS), chance.choice(TENANTS)
            ending = chance.choice(["", " please"])
            reply = await cache.chat(
                f"What may one say of topic {topic} {topic} {topic} in a few short words" + ending,
                model=model, tenant=tenant,
                cache_control="no-store" if chance.random() < 0.05 else None,
            )
            usage = reply.usage
            return [reply.status, reply.shared, model, tenant, usage]
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        ends = []
        for _ in range(10):
            ends += await asyncio.gather(*(call() for _ in range(20)))
        print(json.dumps(ends), flush=True)

asyncio.run(main(*sys.argv[1:]))
""".replace("MODELS", repr(MODELS)).replace("TENANTS", repr(TENANTS))


async def replay(*arguments: str) -> list[Any]:
    """Return what the calls of four processes came to."""
    pipe = asyncio.subprocess.PIPE
    workers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WORKER, *arguments, str(seed)),
            stdin=pipe,
            stdout=pipe,
            limit=2**24,
            cwd=Path(__file__).parents[2],
        )
        for seed in range(4)
    ]
    ends = []
    for worker in workers:
        assert worker.stdout
        assert await worker.stdout.readline() == b"ready\n"
    printed = await asyncio.gather(*(worker.communicate(b"\n") for worker in workers))
    for worker, (lines, _) in zip(workers, printed, strict=True):
        assert worker.returncode == 0
        ends += json.loads(lines)
    return ends


def usage_of(body: Any) -> Answer:
    """Answer with token counts that differ from call to call."""
    said = len(str(body["messages"])) % 97
    usage = {
        "prompt_tokens": 1_000 + said,
        "completion_tokens": 7 * said + 1,
        "total_tokens": 1_001 + 8 * said,
        "prompt_tokens_details": {"cached_tokens": 512 if said % 2 else 0},
    }
    return Answer(text="An answer.", usage=usage)


def is_saved(end: Any) -> bool:
    status, is_shared, *_ = end
    return status in ("exact", "semantic") or (status == "miss" and is_shared)


def cost_of(end: Any) -> Decimal:
    *_, model, _, usage = end
    spent = Usage(
        input_tokens=usage["prompt_tokens"],
        output_tokens=usage["completion_tokens"],
        cache_read_tokens=usage["prompt_tokens_details"]["cached_tokens"],
    )
    return calc_price(spent, model).total_price


async def test_counts_of_four_processes_are_the_truth(redis_url, upstream, namespace, make_cache):
    upstream.default = usage_of
    replayed = await replay(redis_url, upstream.base_url, namespace)

    cache = await make_cache().open()
    expect_calls_and_tokens(await cache.server_stats(), replayed)
    expect_usd(await cache.server_stats(window="24h"), replayed, upstream.embedding_inputs)
    priced = make_cache(prices={"in-house": Price(input_usd=1, output_usd=2)})
    for tenant in TENANTS:
        ends = [end for end in replayed if end[3] == tenant]
        stats = await priced.server_stats(window="24h", tenant=tenant)
        expect_calls_and_tokens(stats, ends)
        expect_own_prices(stats, ends)


def expect_calls_and_tokens(stats: Any, ends: list[Any]) -> None:
    saved = [end for end in ends if is_saved(end)]
    by_status = Counter(end[0] for end in ends)
    assert {name: stats[name] for name in by_status} == by_status
    assert min(by_status[name] for name in ("exact", "semantic", "miss", "bypass")) > 0
    assert stats["bypass_reasons"] == {"no-store": by_status["bypass"]}
    assert stats["shared"] == sum(end[0] == "miss" and end[1] for end in ends)
    assert stats["prompt_tokens_saved"] == sum(end[4]["prompt_tokens"] for end in saved)
    assert stats["completion_tokens_saved"] == sum(end[4]["completion_tokens"] for end in saved)
    assert stats["cached_prompt_tokens_saved"] == sum(
        end[4]["prompt_tokens_details"]["cached_tokens"] for end in saved
    )
    for model in MODELS:
        calls = Counter(end[0] for end in ends if end[2] == model)
        assert {name: stats["models"][model][name] for name in calls} == calls


def expect_usd(stats: Any, ends: list[Any], embedded: list[str]) -> None:
    # The upstream bills a token for each four characters begun.
    paid = sum(len(text) // 4 + 1 for text in embedded)
    assert (stats["embedding"]["tokens"], stats["embedding"]["texts"]) == (paid, len(embedded))
    embedding = calc_price(
        Usage(input_tokens=paid), "text-embedding-3-small", provider_id="openai"
    )

    usd = sum(cost_of(end) for end in ends if is_saved(end) and end[2] != "in-house")
    assert stats["usd_saved"] == pytest.approx(float(usd), abs=1e-9)
    assert stats["usd_saved_net"] == pytest.approx(float(usd - embedding.total_price), abs=1e-9)
    assert stats["unpriced_models"] == ["in-house"]
    assert stats["models"]["in-house"]["usd_saved"] is None


def expect_own_prices(stats: Any, ends: list[Any]) -> None:
    own = [end[4] for end in ends if is_saved(end) and end[2] == "in-house"]
    usd = sum(usage["prompt_tokens"] + 2 * usage["completion_tokens"] for usage in own) / 1e6
    assert stats["models"]["in-house"]["usd_saved"] == pytest.approx(usd)
    assert stats["unpriced_models"] == []
