"""A dependency that keeps failing is left alone, and is found again when it works."""

import asyncio
import logging
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from llm_cache._redis.embedded import EmbeddedRedis, ServerCommand, find_server
from llm_cache.events import BreakerChanged, CallEnded, DependencyFailed, LogHook

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."
NOWHERE = "redis://127.0.0.1:1"


@contextmanager
def run_redis(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Redis with search on a TCP *port*, for as long as the block lasts."""
    found = find_server()
    modules = [part for module in found.modules for part in ("--loadmodule", str(module))]
    command = [str(found.executable), "--port", str(port), "--save", "", *modules]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        yield server
        server.send_signal(signal.SIGCONT)
        server.terminate()


@pytest.fixture
def port() -> int:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        return int(reserved.getsockname()[1])


async def until(cache, dependency: str, state: str) -> int:
    """Call until the breaker of *dependency* is in *state*; return how many calls that took."""
    calls = 0
    while cache.stats()["breakers"][dependency] != state:
        calls += 1
        await cache.chat(f"Question {calls} that nobody has asked")
    return calls


async def answers(cache) -> None:
    """Call until Redis takes part again."""
    while (await cache.chat("anything")).status == "bypass":
        pass


async def test_redis_that_keeps_refusing_is_left_alone(make_cache, events):
    cache = make_cache(NOWHERE)
    await until(cache, "redis", "open")
    failures = len(events.of(DependencyFailed))

    replies = [await cache.chat(QUESTION) for _ in range(5)]

    assert {(reply.status, reply.reason) for reply in replies} <= {
        ("bypass", "breaker"),
        ("bypass", "redis"),  # the one call a second that tries
    }
    assert len(events.of(DependencyFailed)) <= failures + 1
    (changed,) = events.of(BreakerChanged)
    assert (changed.dependency, changed.state) == ("redis", "open")


async def test_redis_that_stands_still_costs_a_budget_and_then_nothing(make_cache, port, events):
    with run_redis(port) as server:
        cache = make_cache(f"redis://127.0.0.1:{port}", added_latency_budget_s=0.25)
        await answers(cache)
        server.send_signal(signal.SIGSTOP)
        await until(cache, "redis", "open")
        await asyncio.gather(*(cache.chat(f"Question {n}") for n in range(20)))
        skipped = [event for event in events.of(CallEnded) if event.reason == "breaker"]
        server.send_signal(signal.SIGCONT)
        await answers(cache)
        await cache.aclose()

    assert len(skipped) >= 15
    assert [event.state for event in events.of(BreakerChanged)] == ["open", "closed"]


async def test_redis_that_is_back_is_used_again_in_both_layers(make_cache, port, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    cache = make_cache(f"redis://127.0.0.1:{port}", added_latency_budget_s=2)
    with run_redis(port):
        await answers(cache)
    await until(cache, "redis", "open")
    with run_redis(port):
        # Until it answers pings it is the server's own time.
        while not await pings(port):
            pass
        back_s = time.monotonic()
        while (await cache.chat(QUESTION)).status != "exact":
            pass
        assert (await cache.chat(REPHRASED)).status == "semantic"
        assert time.monotonic() - back_s < 5
        assert cache.stats()["breakers"]["redis"] == "closed"
        await cache.aclose()


async def pings(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.write(b"PING\r\n")
    said = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return said == b"+PONG\r\n"


async def test_embedder_that_hangs_is_left_alone_and_the_exact_layer_works(make_cache, embedder):
    cache = await make_cache(added_latency_budget_s=0.2).open()
    await cache.chat(QUESTION)
    embedder.gate = asyncio.Event()
    await until(cache, "embedder", "open")

    assert (await cache.chat(QUESTION)).status == "exact"
    assert (await cache.chat("a new one")).reason in ("breaker", "budget")
    assert (await cache.chat("a new one")).status == "exact"

    embedder.gate.set()
    await until(cache, "embedder", "closed")
    assert (await cache.chat("another new one")).status == "miss"


async def test_embedder_that_is_slow_but_answers_is_not_left_alone(make_cache, embedder):
    cache = await make_cache(added_latency_budget_s=0.1).open()
    for n in range(12):
        embedder.gate = asyncio.Event()
        assert (await cache.chat(f"Question {n}")).reason == "budget"
        embedder.gate.set()
        while tasks := cache._engine._background.tasks:
            await asyncio.gather(*tasks)
    assert cache.stats()["breakers"]["embedder"] == "closed"


async def test_embedder_that_is_slow_is_found_again_after_an_outage(make_cache, embedder):
    cache = await make_cache(added_latency_budget_s=0.1).open()
    embedder.fail_with = RuntimeError("down")
    await until(cache, "embedder", "open")

    embedder.fail_with = None
    while cache.stats()["breakers"]["embedder"] != "closed":
        embedder.gate = asyncio.Event()
        await cache.chat("Is it back?", cache_control="no-cache")
        embedder.gate.set()
        while tasks := cache._engine._background.tasks:
            await asyncio.gather(*tasks)


@pytest.fixture
async def plain_redis(make_cache):
    found = find_server()
    async with EmbeddedRedis(command=ServerCommand(found.executable, (), "no modules")) as server:
        yield server.url


async def test_redis_without_search_serves_the_exact_layer_to_calls(
    make_cache, plain_redis, events
):
    cache = make_cache(plain_redis)
    reply = await cache.chat(QUESTION)
    assert (reply.status, reply.reason) == ("bypass", "search")
    assert (await cache.chat(QUESTION)).status == "exact"
    (failed,) = events.of(DependencyFailed)
    assert "search module" in str(failed.error)

    await until(cache, "search", "open")
    assert cache.stats()["breakers"]["redis"] == "closed"
    assert (await cache.chat(QUESTION)).status == "exact"


async def test_outage_makes_one_line_for_each_transition(make_cache, port, caplog):
    caplog.set_level(logging.INFO, "llm_cache")
    cache = make_cache(f"redis://127.0.0.1:{port}", hooks=[LogHook()], semantic=False)
    await until(cache, "redis", "open")
    while (await cache.chat(QUESTION)).reason == "breaker":
        pass
    with run_redis(port):
        await answers(cache)
        await cache.aclose()

    lines = [record.message for record in caplog.records if record.name == "llm_cache"]
    assert [line.split(",")[0].split(":")[0] for line in lines] == [
        "redis failed at lookup_exact",
        "redis keeps failing",
        "redis works again",
    ]


async def test_calls_of_many_tell_of_one_failure_each(make_cache, events):
    cache = make_cache(NOWHERE)
    await asyncio.gather(*(cache.chat(f"Question {n}") for n in range(50)))
    assert len(events.of(DependencyFailed)) == 50
    assert {event.operation for event in events.of(DependencyFailed)} == {"lookup_exact"}


async def test_server_that_refuses_writes_fails_one_event_a_call(make_cache, events, redis):
    cache = await make_cache().open()
    await redis.config_set("maxmemory", "1")
    try:
        reply = await cache.chat(QUESTION)
    finally:
        await redis.config_set("maxmemory", "0")
    assert (reply.status, reply.reason) == ("bypass", "redis")
    assert [event.operation for event in events.of(DependencyFailed)] == ["lease"]
