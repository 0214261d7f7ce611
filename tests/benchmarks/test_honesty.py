"""The harness shows what is wrong: stalls, and caches that are broken on purpose."""

import asyncio
import itertools
import time
from dataclasses import asdict, replace
from typing import Any

import pytest
from redis import asyncio as redis_py

from benchmarks.load.arrivals import arrivals
from benchmarks.load.drive import Meter, closed_loop, open_loop
from benchmarks.quality import probes
from benchmarks.quality.figures import of_outcomes
from benchmarks.quality.replay import Policy, Replayer
from benchmarks.workloads import Ask, listed
from benchmarks.workloads.zipf import zipf
from llm_cache import CacheConfig, LLMCache

STALL_S = 0.2


def stalling_once(at: int):
    """Answer at once, but stop the whole process for 200 ms at one call."""
    calls = itertools.count()

    async def ask() -> str:
        if next(calls) == at:
            time.sleep(STALL_S)  # noqa: ASYNC251 - the stall
        return "exact"

    return ask


async def test_an_open_loop_shows_a_stall_in_every_request_that_fell_into_it():
    meter = Meter(block_s=1.0)

    await open_loop(stalling_once(100), arrivals("constant", 400), meter, seconds=1.0)

    assert meter.offered == meter.finished == 400
    assert (meter.latencies["exact"].at(99.9) or 0) >= 0.15
    # 10 % of them came in the half of the stall that takes them past 100 ms.
    assert (meter.latencies["exact"].at(92) or 0) > STALL_S / 2


async def test_a_closed_loop_would_have_shown_it_once():
    meter = Meter(block_s=1.0)

    await closed_loop(stalling_once(100), meter, callers=1, seconds=0.5)

    assert (meter.latencies["exact"].at(92) or 1) < STALL_S / 2


async def test_a_stall_of_redis_shows_in_the_open_loop(redis_url, make_cache):
    cache = await make_cache().open()
    await cache.chat("What is the capital of France?")
    redis: Any = redis_py.Redis.from_url(redis_url)
    calls = itertools.count()

    async def ask() -> str:
        if next(calls) == 50:
            await redis.execute_command("CLIENT", "PAUSE", "200", "ALL")
        return str((await cache.chat("What is the capital of France?")).status)

    meter = Meter(block_s=1.0)
    await open_loop(ask, arrivals("constant", 200), meter, seconds=1.0)
    await redis.aclose()

    assert meter.statuses == {"exact": 200}
    assert (meter.latencies["exact"].at(99.9) or 0) >= 0.15


class WrongScope(LLMCache):
    """Forgets who asks."""

    async def chat(self, prompt: Any, **options: Any) -> Any:
        options.pop("tenant", None)
        options.pop("system", None)
        return await super().chat(prompt, **options)


class TtlIgnored(LLMCache):
    """Keeps everything for a day."""

    async def chat(self, prompt: Any, **options: Any) -> Any:
        options.pop("ttl_s", None)
        return await super().chat(prompt, **options)


class EmbedsTwice(LLMCache):
    """Looks up by meaning before it looks up."""

    async def chat(self, prompt: Any, **options: Any) -> Any:
        await self.lookup_semantic(prompt, tenant=options.get("tenant"))
        return await super().chat(prompt, **options)


def without_single_flight(url: str, *, config: CacheConfig, **options: Any) -> LLMCache:
    return LLMCache(url, config=replace(config, single_flight=False), **options)


class NeverLooks(LLMCache):
    """Asks the model every time."""

    async def chat(self, prompt: Any, **options: Any) -> Any:
        return await super().chat(prompt, cache_control="no-cache", **options)


async def test_a_sound_cache_holds_everything(around, results):
    probes.report(results, await probes.probe(around))

    assert [check for check in results.data["checks"] if not check["ok"]] == []
    assert len(results.data["checks"]) == 5


@pytest.mark.parametrize(
    ("make_broken", "figure"),
    [
        (WrongScope, "foreign_answers"),
        (without_single_flight, "model_calls_per_question"),
        (EmbedsTwice, "embeddings_per_lookup"),
        (TtlIgnored, "served_past_ttl"),
        (NeverLooks, "repeats_not_exact"),
    ],
)
async def test_a_broken_cache_is_caught_by_its_figure(around, results, make_broken, figure):
    probed = await probes.probe(around, make_cache=make_broken)
    probes.report(results, probed)

    sound = {"model_calls_per_question": 1, "embeddings_per_lookup": 1}
    assert getattr(probed, figure) > sound.get(figure, 0)
    assert any(not check["ok"] for check in results.data["checks"])


async def test_answers_of_another_tenant_are_wrong_hits(around, metered):
    asks = [Ask("What is my balance?", f"of {who}", tenant=who) for who in ("ann", "bob", "ann")]
    stream = listed("tenants", asks, source="this test")

    sound = await Replayer(around, metered).run(stream, Policy("default"))
    broken = await Replayer(around, metered, make_cache=WrongScope).run(stream, Policy("default"))

    assert (sound.tally.wrong.total(), sound.tally.foreign) == (0, 0)
    assert (broken.tally.wrong.total(), broken.tally.foreign) == (1, 1)


async def test_an_answer_that_no_model_gave_is_a_wrong_hit(around, metered):
    class Inventive(LLMCache):
        async def chat(self, prompt: Any, **options: Any) -> Any:
            await self.store_exact(prompt, "Somebody.")
            return await super().chat(prompt, **options)

    stream = listed("invented", [Ask("Who are you?")], source="this test")
    outcome = await Replayer(around, metered, make_cache=Inventive).run(stream, Policy("default"))

    assert outcome.tally.unknown == outcome.tally.wrong["exact"] == 1


async def test_without_guards_the_near_misses_are_found_out(around, metered):
    stream = zipf(requests=300, seed=3)

    outcome = await Replayer(around, metered).run(stream, Policy("no guards", 0.7, guards=False))

    figures = of_outcomes([outcome], seed=0, price_model="gpt-4o-mini")
    assert figures["wrong_hits"] > 0
    assert figures["kinds"]["near_miss"]["wrong"] > 0
    assert figures["search_recall"]["recall"] == 1.0


async def test_the_same_seed_gives_exactly_the_same_figures(around, metered):
    def counted(outcome: Any) -> dict[str, Any]:
        return {**asdict(outcome.tally), "model_calls": outcome.model_calls}

    runs = [
        await Replayer(around, metered).run(zipf(requests=250, seed=seed), Policy("default"))
        for seed in (1, 1, 2)
    ]

    assert counted(runs[0]) == counted(runs[1])
    assert counted(runs[0]) != counted(runs[2])


async def test_every_lookup_that_is_no_exact_hit_is_one_embedding(around, metered):
    outcome = await Replayer(around, metered).run(zipf(requests=200, seed=0), Policy("default"))

    statuses = outcome.tally.statuses
    assert outcome.embedded_texts == statuses["semantic"] + statuses["miss"]
    assert outcome.model_calls == statuses["miss"]


async def test_requests_that_never_end_are_in_the_latencies():
    meter = Meter(block_s=1.0)

    async def never() -> str:
        await asyncio.Event().wait()
        return "exact"

    await open_loop(never, arrivals("constant", 50), meter, seconds=0.2, drain_s=0.1)

    assert (meter.offered, meter.finished, meter.unfinished) == (10, 0, 10)
    assert (meter.latencies["unfinished"].at(100) or 0) >= 0.25


async def test_requests_beyond_what_may_be_in_flight_are_not_omitted():
    meter = Meter(block_s=1.0)

    async def never() -> str:
        await asyncio.Event().wait()
        return "exact"

    await open_loop(
        never, arrivals("constant", 100), meter, seconds=0.2, max_in_flight=5, drain_s=0.1
    )

    assert (meter.offered, meter.unfinished) == (20, 20)


async def test_a_call_that_fails_is_counted_by_its_error():
    meter = Meter(block_s=1.0)

    async def fail() -> str:
        raise ConnectionError

    await open_loop(fail, arrivals("constant", 50), meter, seconds=0.1)

    assert meter.errors == {"ConnectionError": 5}
    assert meter.figures()["finished"] == 0
