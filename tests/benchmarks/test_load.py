"""Load: when requests arrive, where the knee is, and what the workers tell."""

import asyncio
import itertools
import os
import signal
from argparse import Namespace
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from redis import asyncio as redis_py

from benchmarks.errors import BadInput
from benchmarks.histograms import Latencies
from benchmarks.load import watch
from benchmarks.load.arrivals import KINDS, arrivals
from benchmarks.load.command import _mix
from benchmarks.load.fleet import Fleet, Step
from benchmarks.load.population import MODEL, Mix, Population, crossings
from benchmarks.load.soak_command import growth
from benchmarks.load.sweep import Limit, find_knee
from benchmarks.quality.replay import Policy, Replayer
from benchmarks.session import UpstreamProcess, forget
from benchmarks.workloads import Ask, Workload
from llm_cache import CacheConfig, LLMCache
from llm_cache.testing import FakeEmbedder, expected_answer

TRACE_S = np.array([0.0, 0.1, 0.2, 5.0, 9.0])


def first(count: int, kind: str, rate: float, **options: Any) -> list[float]:
    return list(itertools.islice(arrivals(kind, rate, trace_s=TRACE_S, **options), count))


@pytest.mark.parametrize("kind", KINDS)
def test_arrivals_have_the_rate_that_was_asked_for(kind):
    times = first(20_000, kind, 250.0)

    assert times == sorted(times)
    assert times[-1] == pytest.approx(20_000 / 250, rel=0.05)


@pytest.mark.parametrize("kind", ["constant", "trace"])
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_the_shares_of_the_workers_are_the_whole(kind, workers):
    shares = [first(40, kind, 10.0, worker=w, workers=workers) for w in range(workers)]

    whole = first(40, kind, 10.0)
    assert sorted(itertools.chain(*shares))[:40] == pytest.approx(whole)


def test_workers_draw_different_arrivals_and_the_same_again():
    assert first(9, "poisson", 5.0, worker=1, workers=2) != first(9, "poisson", 5.0, workers=2)
    assert first(9, "poisson", 5.0, seed=4) == first(9, "poisson", 5.0, seed=4)


def test_bursts_are_five_times_as_dense():
    times = np.array(first(50_000, "burst", 1_000.0)) % 5.0

    in_burst = (times < 0.5).sum() / 0.5
    assert in_burst / ((times >= 0.5).sum() / 4.5) == pytest.approx(5.0, rel=0.05)


# --- the knee ---------------------------------------------------------------------------------


def machine_of(capacity: float, *, tried: list[float], **others: Any) -> Any:
    """Measure a machine that reaches *capacity* and not a request more."""

    async def measure(rate: float) -> dict[str, Any]:
        tried.append(rate)
        figures = {
            "offered_per_s": rate,
            "offered": round(rate * 10),
            "seconds": 10.0,
            "achieved_per_s": min(rate, capacity),
            "latency": {"p99_s": 0.01 if rate <= capacity else 5.0},
            "errors": {},
            "redis_lost_at_s": None,
        }
        return {**figures, **others}

    return measure


@pytest.mark.parametrize("capacity", [3.0, 90.0, 1_000.0, 12_345.0])
async def test_the_knee_is_found_from_below_and_from_above(capacity):
    tried: list[float] = []

    found = await find_knee(machine_of(capacity, tried=tried), Limit(0.25), start_per_s=200.0)

    assert capacity / 1.25 <= found["knee_per_s"] <= capacity * 1.03
    assert found["too_much_per_s"] > capacity
    assert len(tried) <= 14
    assert [s["offered_per_s"] for s in found["steps"]] == sorted(tried)


async def test_a_rate_that_cannot_be_reached_at_all_is_no_endless_search():
    tried: list[float] = []

    found = await find_knee(machine_of(0.0, tried=tried), Limit(0.25), start_per_s=100.0)

    assert found["knee_per_s"] is None
    assert found["why"] == "0/s achieved"
    assert min(tried) == 1.0


async def test_the_search_ends_when_redis_is_gone():
    tried: list[float] = []
    measure = machine_of(1e9, tried=tried, redis_lost_at_s=3.0)

    found = await find_knee(measure, Limit(0.25), start_per_s=100.0)

    assert len(tried) == 1
    assert found["why"] == "Redis stopped answering after 3 s"


@pytest.mark.parametrize(
    ("figures", "why"),
    [
        ({"errors": {"APIError": 1}}, "errors: APIError"),
        ({"latency": {"p99_s": None}}, "no request was answered"),
        ({"latency": {"p99_s": 0.251}}, "p99 251 ms"),
        ({"latency": {"p99_s": 0.25}}, None),
        ({"achieved_per_s": 96.9}, "97/s achieved"),
        ({"achieved_per_s": 97.0}, None),
    ],
)
async def test_why_a_rate_is_not_kept_up_with(figures, why):
    step = {**await machine_of(1e9, tried=[])(100.0), **figures}

    assert Limit(0.25).why_not(step) == why


async def test_a_search_that_is_stopped_keeps_what_it_has():
    async def stopped(_rate: float) -> None:
        return None

    assert (await find_knee(stopped, Limit(0.25), start_per_s=1.0))["steps"] == []


# --- what is asked ----------------------------------------------------------------------------


async def test_the_mix_ends_as_it_is_meant_to(redis_url, namespace):
    async with (
        UpstreamProcess("--echo") as upstream,
        _client(upstream) as client,
        LLMCache(
            redis_url,
            client=client,
            embedder=FakeEmbedder(384),
            config=CacheConfig(namespace=namespace),
        ) as cache,
    ):
        mix = Mix(exact=0.5, semantic=0.3, miss=0.2, questions=10)
        population = Population(cache, mix, seed=0, worker=0, model=MODEL)
        for prompt in population.prompts:
            await population.send(prompt, 0)
        statuses = [await population.ask() for _ in range(200)]

        assert (population.wrong, population.foreign) == (0, 0)
        assert statuses.count("exact") == pytest.approx(100, abs=25)
        assert statuses.count("semantic") == pytest.approx(60, abs=25)
        assert statuses.count("miss") == pytest.approx(40, abs=25)
        assert (await upstream.stats())["calls"] == 10 + statuses.count("miss")


async def test_an_answer_to_another_question_is_counted(make_cache, upstream):
    upstream.default = "Something else."
    population = Population(make_cache(), Mix(tenants=2), seed=0, worker=0, model=MODEL)

    await population.send("Hello?", 0)

    assert population.wrong == 1


async def test_an_answer_with_two_tenants_has_crossed_within_and_between_workers(
    make_cache, upstream
):
    class WrongTenant(LLMCache):
        async def chat(self, prompt: Any, **options: Any) -> Any:
            return await super().chat(prompt, **{**options, "tenant": None})

    sound = make_cache()
    broken = WrongTenant(
        sound.redis_url, client=upstream.client(), embedder=FakeEmbedder(), config=sound.config
    )
    async with broken:
        one, two = (
            Population(broken, Mix(tenants=2), seed=0, worker=w, model=MODEL) for w in (0, 1)
        )
        await one.send("Hello?", 0)
        await two.send("Hello?", 1)
        assert (one.foreign, two.foreign) == (0, 0)
        assert crossings([one.tenants_of_ids() or "", two.tenants_of_ids() or ""]) == 1

        await one.send("Hello?", 1)
        assert one.foreign == 1


def test_a_mix_of_nothing_is_refused():
    with pytest.raises(ValueError, match="not all 0"):
        Mix(exact=0, semantic=0, miss=0)
    assert _mix("exact=1,semantic=0,miss=0,tenants=3") == replace(
        Mix(), exact=1.0, semantic=0.0, miss=0.0, tenants=3
    )


# --- worker processes -------------------------------------------------------------------------


async def test_two_processes_share_one_load(around):
    namespace = around.namespace("test_fleet")
    async with UpstreamProcess("--echo") as upstream:
        fleet = Fleet(
            around,
            workers=2,
            base_url=upstream.base_url,
            mix=Mix(questions=20, miss=0.1, tenants=2),
            embedder="instant",
            model=MODEL,
        )
        async with fleet:
            await fleet.open(namespace)
            await fleet.warm()
            step = await fleet.run(Step(1.5, 60.0, arrivals="constant"))
            crowd = await fleet.run(Step(0.5, callers=3))
    await forget(around.redis_url, namespace)

    assert step["offered"] == step["finished"] == 90
    assert (step["wrong"], step["foreign"], step["errors"], step["unfinished"]) == (0, 0, {}, 0)
    assert step["embeddings_per_lookup"] == pytest.approx(1.0, abs=0.3)
    assert step["latency"]["count"] == 90
    assert step["commands_per_request"] > 0.5
    assert crowd["finished"] > 0


async def test_a_load_that_is_stopped_has_the_rate_of_what_was_done(around):
    namespace = around.namespace("test_stopped")
    async with UpstreamProcess("--echo") as upstream:
        fleet = Fleet(
            around,
            workers=2,
            base_url=upstream.base_url,
            mix=Mix(questions=5),
            embedder="instant",
            model=MODEL,
        )
        async with fleet:
            await fleet.open(namespace)
            asyncio.get_running_loop().call_later(2.0, around.stop.set)
            step = await fleet.run(Step(60.0, 40.0, arrivals="constant"))
    await forget(around.redis_url, namespace)

    assert 1.0 < step["seconds"] < 30.0
    assert step["offered"] == pytest.approx(40.0 * step["seconds"], abs=6)
    assert step["achieved_per_s"] == pytest.approx(40.0, rel=0.2)
    assert 0 < step["client_cpu_share"] < 2


def test_more_workers_than_eight_are_refused(around):
    with pytest.raises(BadInput, match="from 1 to 8"):
        Fleet(around, workers=9, base_url="", mix=Mix(), embedder="instant", model=MODEL)


async def test_when_redis_goes_away_what_was_counted_stands(metered, around):
    async with LLMCache("embedded://", embedder=FakeEmbedder()) as holder:
        redis = redis_py.Redis.from_url(holder.redis_url)
        pid = (await redis.info("server"))["process_id"]
        await redis.aclose()

        def asks() -> Any:
            for number in range(1_000):
                if number == 20:
                    os.kill(pid, signal.SIGKILL)
                yield Ask(f"What is the status of ticket {number}?", str(number))

        gone = replace(around, redis_url=holder.redis_url)
        outcome = await Replayer(gone, metered).run(
            Workload("dying", asks, "this test"), Policy("default")
        )

    assert outcome.tally.stopped is not None
    assert "after 20 requests" in outcome.tally.stopped
    assert outcome.tally.statuses["miss"] == 20
    assert outcome.tally.statuses["bypass"] == 5


# --- figures ----------------------------------------------------------------------------------


def test_histograms_survive_the_way_between_processes():
    latencies = Latencies()
    for i in range(1, 1_001):
        latencies.add(i / 1_000)

    copy = Latencies.decoded(latencies.encoded())

    assert copy.count == 1_000
    assert copy.at(50) == pytest.approx(0.5, rel=0.002)
    assert copy.at(99.9) == pytest.approx(0.999, rel=0.002)
    assert Latencies.decoded(Latencies().encoded()).at(50) is None


@pytest.mark.parametrize(
    ("values", "grown"),
    [([1.0] * 89, None), ([1.0] * 90, 0.0), ([1.0] * 50 + [1.05] * 50, 0.05), ([0.0] * 90, None)],
)
def test_growth_is_told_from_the_ends(values, grown):
    assert growth(values) == (None if grown is None else pytest.approx(grown))


async def test_lognormal_delays_have_the_median_and_the_tail_that_were_asked_for():
    import random

    from llm_cache.testing.__main__ import _model_delay_s

    options = Namespace(delay_ms=200.0, p99_ms=900.0, jitter_ms=0.0)
    delay = _model_delay_s(options, random.Random(0))
    drawn = sorted(delay() for _ in range(20_000))

    assert drawn[10_000] == pytest.approx(0.2, rel=0.03)
    assert drawn[19_800] == pytest.approx(0.9, rel=0.08)


async def test_an_upstream_that_echoes_pads_its_answers():
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello?"}]}
    async with (
        UpstreamProcess("--echo", "--answer-chars", "20") as echo,
        UpstreamProcess("--answer-chars", "200") as plain,
    ):
        texts = []
        for each in (echo, plain):
            async with _client(each) as client:
                reply = await client.chat.completions.create(**body)
                texts.append(reply.choices[0].message.content)

    assert texts == ["Hello?".ljust(20), expected_answer(body).ljust(200)]


def _client(upstream: UpstreamProcess) -> Any:
    import openai

    return openai.AsyncOpenAI(base_url=upstream.base_url, api_key="test", max_retries=0)


async def test_the_watch_ends_although_a_cancellation_would_be_lost(redis_url, monkeypatch):
    looking = asyncio.Event()

    async def look(*_: Any) -> None:
        looking.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)

    monkeypatch.setattr(watch, "_EVERY_S", 0.01)
    monkeypatch.setattr(watch.Watch, "look", look)
    async with asyncio.timeout(10), watch.watching(redis_url, []):
        looking.clear()
        await looking.wait()
