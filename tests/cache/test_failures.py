"""Redis or the embedder fails: the caller is served all the same, and everybody is told."""

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from llm_cache import CacheConfig, CallableEmbedder, LLMCache
from llm_cache._redis.embedded import EmbeddedRedis, find_server
from llm_cache._redis.exact import Lookup
from llm_cache.errors import (
    EmbedderError,
    InvalidEmbedding,
    StoreTimeout,
    StoreUnavailable,
)
from llm_cache.events import DependencyFailed, StoreSkipped
from llm_cache.testing import Answer

QUESTION = "What is the capital of France?"
NOWHERE = "redis://127.0.0.1:1"


@contextmanager
def run_redis(port: int) -> Iterator[None]:
    """Run a Redis with search on a TCP *port*, for as long as the block lasts."""
    found = find_server()
    modules = [part for module in found.modules for part in ("--loadmodule", str(module))]
    command = [str(found.executable), "--port", str(port), "--save", "", *modules]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        yield
        server.terminate()


async def test_calls_are_answered_without_a_redis(make_cache, upstream, events):
    cache = make_cache(NOWHERE)

    reply = await cache.chat(QUESTION)

    assert (reply.status, reply.reason, reply.key) == ("bypass", "redis", None)
    assert reply.text
    assert events.of(DependencyFailed)[0].dependency == "redis"
    assert isinstance(events.of(DependencyFailed)[0].error, StoreUnavailable)


async def test_redis_that_comes_up_later_is_found(make_cache):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    cache = make_cache(f"redis://127.0.0.1:{port}")
    assert (await cache.chat(QUESTION)).status == "bypass"

    with run_redis(port):
        while (await cache.chat(QUESTION)).status == "bypass":
            pass
        assert (await cache.chat(QUESTION)).status == "exact"


async def test_open_says_that_no_redis_answers(make_cache):
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1.*docker compose up -d redis"):
        await make_cache(NOWHERE).open()


async def test_password_stays_out_of_the_error(make_cache):
    with pytest.raises(StoreUnavailable) as caught:
        await make_cache("redis://user:hunter2@127.0.0.1:1/0?client_name=hunter3").open()
    assert "hunter" not in str(caught.value)


async def test_redis_that_dies_turns_hits_into_bypasses(make_cache, upstream):
    server = EmbeddedRedis()
    cache = await make_cache(await server.start()).open()
    assert (await cache.chat(QUESTION)).status == "miss"
    assert (await cache.chat(QUESTION)).status == "exact"
    await server.stop()

    reply = await cache.chat(QUESTION)

    assert (reply.status, reply.reason) == ("bypass", "redis")
    assert upstream.calls == 2
    assert cache.stats()["bypass"] == 1


async def test_redis_that_does_not_answer_in_time_is_given_up(make_cache, events):
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(swallow, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        cache = make_cache(f"redis://127.0.0.1:{port}", redis_timeout_s=0.05)
        assert (await cache.chat(QUESTION)).status == "bypass"
        await cache.aclose()
    assert isinstance(events.of(DependencyFailed)[0].error, StoreTimeout)


async def test_failing_embedder_leaves_the_exact_layer_working(cache, embedder, events):
    embedder.fail_with = RuntimeError("no route to host")

    reply = await cache.chat(QUESTION)

    assert (reply.status, reply.reason) == ("bypass", "embedder")
    assert (await cache.chat(QUESTION)).status == "exact"
    error = events.of(DependencyFailed)[0].error
    assert isinstance(error, EmbedderError)
    assert isinstance(error.__cause__, RuntimeError)


async def test_embedder_that_hangs_is_given_up(make_cache, embedder):
    cache = make_cache(embed_timeout_s=0.05)
    embedder.gate = asyncio.Event()

    assert (await cache.chat(QUESTION)).reason == "embedder"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([[1.0, 2.0]], "2 dimensions instead of 64"),
        ([[float("nan")] * 64], "NaN"),
        ([[0.0] * 64], "zeros"),
        ([[1.0] * 64] * 2, "one vector a text"),
    ],
)
async def test_embedder_that_never_worked_is_told_and_bypassed(
    cache, events, embedder, answer, says
):
    embedder.returns = answer

    reply = await cache.chat(QUESTION)

    assert (reply.status, reply.reason) == ("bypass", "embedder")
    assert (await cache.chat(QUESTION)).status == "exact"
    (failed,) = events.of(DependencyFailed)
    assert isinstance(failed.error, InvalidEmbedding)
    assert says in str(failed.error)


async def test_embedder_that_worked_and_then_answers_garbage_is_bypassed(cache, embedder):
    await cache.chat("something else")
    embedder.returns = [[float("nan")] * 64]

    assert (await cache.chat(QUESTION)).reason == "embedder"


async def test_embedder_without_dimensions_is_asked_once_at_open(make_cache):
    asked: list[str] = []

    async def embed(texts: list[str]) -> list[list[float]]:
        asked.extend(texts)
        return [[1.0, 0.0, 0.0] for _ in texts]

    cache = make_cache(embedder=CallableEmbedder(embed, model_id="three"))
    await cache.open()
    assert len(asked) == 1
    assert (await cache.chat(QUESTION)).status == "miss"
    assert (await cache.chat("anything")).status == "semantic"


async def test_embedder_without_dimensions_that_answers_garbage_fails_open(make_cache):
    async def embed(texts: list[str]) -> list[list[float]]:
        return [[] for _ in texts]

    with pytest.raises(InvalidEmbedding):
        await make_cache(embedder=CallableEmbedder(embed, model_id="none")).open()


async def test_corrupt_entry_is_bypassed_and_healed(cache, redis, upstream, events):
    key = (await cache.chat(QUESTION)).key
    await redis.set(key, b"\x01\x00garbage that is long enough to have a header", ex=60)

    reply = await cache.chat(QUESTION)

    assert (reply.status, reply.reason) == ("bypass", "corrupt")
    assert upstream.calls == 2
    assert (await cache.chat(QUESTION)).status == "exact"


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\x02\x00" + bytes(60)])
async def test_corrupt_entry_in_a_batch_costs_the_others_nothing(
    make_cache, redis, upstream, damage
):
    cache = await make_cache(semantic=False).open()
    questions = [f"Question number {i}?" for i in range(40)]
    keys = [await cache.store_exact(question, f"To {question}") for question in questions]
    await redis.set(keys[7], damage, ex=60)

    replies = await asyncio.gather(*map(cache.chat, questions))

    assert (replies[7].status, replies[7].reason) == ("bypass", "corrupt")
    assert upstream.calls == 1
    others = [(reply.status, reply.text) for reply in replies[:7] + replies[8:]]
    assert others == [("exact", f"To {question}") for question in questions[:7] + questions[8:]]


async def test_ten_thousand_callers_at_once_get_their_answers_over_few_connections(
    make_cache, redis
):
    patient = {"redis_timeout_s": 30, "added_latency_budget_s": 30}
    cache = await make_cache(semantic=False, **patient).open()
    questions = [f"Question number {i}?" for i in range(100)]
    for question in questions:
        await cache.store_exact(question, f"To {question}")
    before = len(await redis.client_list())

    asked = [questions[i % 100] for i in range(10_000)]
    calls = asyncio.gather(*map(cache.chat, asked))
    most = before
    while not calls.done():
        most = max(most, len(await redis.client_list()))
        await asyncio.sleep(0.01)

    assert [(reply.status, reply.text) for reply in await calls] == [
        ("exact", f"To {question}") for question in asked
    ]
    assert most <= before + 2


async def test_answer_stored_under_another_key_is_never_served(cache, redis):
    one, two = await cache.chat("Question one"), await cache.chat("Question two")
    await redis.set(two.key, await redis.get(one.key), ex=60)

    reply = await cache.chat("Question two")

    assert reply.status == "bypass"
    assert reply.text == two.text


async def test_store_that_fails_keeps_the_miss_and_is_told(make_cache, upstream, events):
    server = EmbeddedRedis()
    cache = await make_cache(await server.start()).open()

    async def stop_redis_then_answer(_body: object) -> str:
        await server.stop()
        return "Paris."

    upstream.default = stop_redis_then_answer
    reply = await cache.chat(QUESTION)

    assert (reply.text, reply.status, reply.reason) == ("Paris.", "miss", "redis")
    assert [event.operation for event in events.of(DependencyFailed)] == ["store"]


async def test_answer_that_is_not_stored_is_told(cache, upstream, events):
    upstream.answer(Answer(text="cut", finish_reason="length"))
    await cache.chat(QUESTION)

    assert [event.reason for event in events.of(StoreSkipped)] == ["length"]
    assert cache.not_stored() == {"length": 1}


async def test_hook_that_raises_harms_nobody(make_cache, caplog):
    def broken(_event: object) -> None:
        raise RuntimeError("a bug in a hook")

    reply = await make_cache(hooks=[broken]).chat(QUESTION)

    assert reply.status == "miss"
    assert "hook" in caplog.text


async def test_events_and_logs_hold_no_prompt_and_no_answer(make_cache, upstream, events, caplog):
    upstream.answer("a secret answer")
    cache = make_cache(NOWHERE)
    reply = await cache.chat("a secret prompt")

    told = repr(events.events) + caplog.text + repr(reply) + repr(cache)
    assert "secret" not in told


async def test_client_that_is_missing_is_named(redis_url, monkeypatch, namespace, embedder):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = CacheConfig(namespace=namespace)
    async with LLMCache(redis_url, embedder=embedder, config=config) as cache:
        with pytest.raises(ValueError, match="OPENAI_API_KEY"):
            await cache.chat(QUESTION)


async def test_default_embedder_without_a_key_names_the_local_one(
    redis_url, monkeypatch, namespace, upstream
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = CacheConfig(namespace=namespace)
    async with LLMCache(redis_url, config=config) as cache:
        with pytest.raises(ValueError, match="LocalEmbedder"):
            await cache.chat(QUESTION)


async def test_answer_that_came_damaged_is_not_lost(cache, redis, monkeypatch):
    """Its own entry leads to it; an alias of itself in its place would be nobody's answer."""
    key = (await cache.chat(QUESTION)).key
    stored = await redis.get(key)
    read = cache._exact._reads.get

    async def damaged(name: str) -> Any:
        _, _, epoch = await read(name)
        value = await redis.get(name)
        return cache._exact._read_as(name, value and value[:-1] + b"?", epoch)

    with monkeypatch.context() as patch:
        patch.setattr(cache._exact._reads, "get", damaged)
        reply = await cache.chat(QUESTION)
    assert reply.status == "semantic"
    assert await redis.get(key) == stored
    assert (await cache.chat(QUESTION)).status == "exact"


async def test_answer_that_was_stored_since_the_look_up_is_no_copy_of_itself(
    cache, redis, monkeypatch
):
    key = (await cache.chat(QUESTION)).key
    stored, ttl_ms = await redis.get(key), await redis.pttl(key)
    lookup = cache._exact.lookup
    misses = [Lookup(None, (await lookup("nothing")).epoch, was_taken=True) for _ in range(2)]

    async def late(*args: Any, **options: Any) -> Any:
        return misses.pop() if misses else await lookup(*args, **options)

    monkeypatch.setattr(cache._exact, "lookup", late)
    assert (await cache.chat(QUESTION)).status == "semantic"
    assert await redis.get(key) == stored
    assert ttl_ms - 10_000 < await redis.pttl(key) <= ttl_ms
