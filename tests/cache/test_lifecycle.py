"""Opening, closing, and what has to be refused before anything is contacted."""

import asyncio
import warnings
from pathlib import Path
from typing import Any

import pytest

from llm_cache import CacheConfig, LLMCache
from llm_cache.errors import CacheClosed, ConfigurationError, IndexMismatch, SearchModuleMissing
from llm_cache.testing import FakeEmbedder

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://localhost:6379",
        "redis:/localhost",
        "redis://localhost:port",
        "redis://localhost:99999",
        "redis://localhost:6379/zero",
        "embedded://relative/path",
        "memcached://localhost",
        None.__class__,
    ],
)
def test_wrong_url_is_refused_at_once(url):
    with pytest.raises(ConfigurationError):
        LLMCache(url, embedder=FakeEmbedder())


def test_password_of_a_wrong_url_is_not_repeated():
    with pytest.raises(ConfigurationError) as caught:
        LLMCache("redis://user:hunter2@host:port", embedder=FakeEmbedder())
    assert "hunter2" not in str(caught.value)


def test_making_a_cache_contacts_nobody():
    LLMCache("redis://nowhere.invalid:1", embedder=FakeEmbedder())


@pytest.mark.parametrize("embedder", [3, "text-embedding-3-small", object()])
def test_embedder_that_is_none_is_refused(embedder):
    with pytest.raises(ConfigurationError, match="embedder must have"):
        LLMCache("redis://localhost", embedder=embedder)


def test_bare_function_is_wrapped_with_a_warning():
    async def embed(texts: Any) -> list[list[float]]:
        return [[1.0] for _ in texts]

    with pytest.warns(UserWarning, match=r"test_lifecycle.*embed.*0\.97"):
        LLMCache("redis://localhost", embedder=embed)


async def test_first_call_opens_the_cache(make_cache):
    cache = make_cache()
    assert (await cache.chat(QUESTION)).status == "miss"


async def test_opening_twice_is_opening_once(make_cache):
    cache = make_cache()
    assert await cache.open() is cache
    await asyncio.gather(cache.open(), cache.open())


async def test_closed_cache_says_so(make_cache):
    cache = await make_cache().open()
    await cache.aclose()
    await cache.aclose()

    with pytest.raises(CacheClosed):
        await cache.chat(QUESTION)
    with pytest.raises(CacheClosed):
        await cache.open()


async def test_closing_waits_for_what_is_in_flight(make_cache, upstream, redis):
    upstream.hold()
    cache = make_cache()
    asked = asyncio.create_task(cache.chat(QUESTION))
    await upstream.called()

    closing = asyncio.create_task(cache.aclose())
    upstream.answer("in time")
    await closing

    assert (await asked).text == "in time"
    assert (await make_cache().chat(QUESTION)).status == "exact"


@pytest.mark.parametrize(
    "config", [{"single_flight": False}, {"url": "redis://127.0.0.1:1"}], ids=str
)
@pytest.mark.parametrize("stream", [False, True])
async def test_closing_waits_for_calls_that_share_nothing(make_cache, upstream, config, stream):
    upstream.hold()
    cache = make_cache(**config)

    async def ask() -> str:
        said = await cache.chat(QUESTION, stream=stream)
        return "".join([piece async for piece in said]) if stream else said.text

    asked = asyncio.create_task(ask())
    await upstream.called()

    closing = asyncio.create_task(cache.aclose())
    done, _ = await asyncio.wait([closing], timeout=0.1)
    assert not done
    upstream.answer("in time")
    await closing
    assert await asked == "in time"


async def test_call_whose_store_is_cut_off_by_closing_has_its_answer(
    make_cache, upstream, monkeypatch
):
    upstream.answer("Paris.")
    cache = await make_cache(single_flight=False).open()
    storing = asyncio.Event()

    async def slow(*_: Any, **__: Any) -> None:
        storing.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(cache._engine._storing, "store", slow)
    asked = asyncio.create_task(cache.chat(QUESTION))
    await storing.wait()
    await cache._engine.aclose(wait_s=0)

    reply = await asked
    assert (reply.text, reply.status, reply.reason) == ("Paris.", "miss", "redis")


async def test_closing_leaves_no_task_behind(make_cache):
    before = asyncio.all_tasks()
    cache = await make_cache().open()
    await cache.chat(QUESTION)
    await cache.aclose()
    assert asyncio.all_tasks() == before


async def test_client_that_was_given_stays_open(make_cache, upstream):
    client = upstream.client()
    await make_cache(client=client).chat(QUESTION)
    await make_cache(client=client).aclose()

    assert not client.is_closed()


async def test_embedded_redis_lives_as_long_as_the_cache(upstream, tmp_path):
    url = f"embedded://{tmp_path}/data"
    collaborators: Any = {"client": upstream.client(), "embedder": FakeEmbedder()}
    async with LLMCache(url, **collaborators) as cache:
        assert (await cache.chat(QUESTION)).status == "miss"
    async with LLMCache(url, **collaborators) as cache:
        assert (await cache.chat(QUESTION)).status == "exact"
        assert (await cache.lookup_semantic(QUESTION)) is not None


async def test_two_embedded_caches_live_side_by_side(upstream):
    collaborators: Any = {"client": upstream.client(), "embedder": FakeEmbedder()}
    async with (
        LLMCache("embedded://", **collaborators) as one,
        LLMCache("embedded://", **collaborators) as two,
    ):
        await one.chat(QUESTION)
        assert (await two.chat(QUESTION)).status == "miss"


@pytest.mark.one_server("every primary has an index of its own name")
async def test_index_of_another_dimension_is_refused_and_left_alone(make_cache, redis, namespace):
    cache = await make_cache().open()
    index = cache._semantic.vectors.index
    await redis.execute_command("FT.DROPINDEX", index)
    schema = "vector VECTOR HNSW 6 TYPE FLOAT16 DIM 8 DISTANCE_METRIC COSINE scope TAG"
    prefix = f"{namespace}:other:"
    await redis.execute_command(
        "FT.CREATE", index, "ON", "HASH", "PREFIX", "1", prefix, "SCHEMA", *schema.split()
    )

    with pytest.raises(IndexMismatch, match=r"dim 8 instead of 64.*FT\.DROPINDEX"):
        await make_cache().open()
    assert index.encode() in await redis.execute_command("FT._LIST")


@pytest.fixture
async def plain_redis_url(tmp_path: Path) -> Any:
    from llm_cache._redis.embedded import EmbeddedRedis, ServerCommand, find_server

    found = find_server()
    server = EmbeddedRedis(command=ServerCommand(found.executable, (), "no modules"))
    yield await server.start()
    await server.stop()


async def test_redis_without_search_is_refused_with_the_way_out(make_cache, plain_redis_url):
    with pytest.raises(SearchModuleMissing, match=r"docker compose up -d redis.*semantic=False"):
        await make_cache(plain_redis_url).open()


async def test_redis_without_search_serves_the_exact_layer(make_cache, plain_redis_url, embedder):
    cache = await make_cache(plain_redis_url, semantic=False).open()

    assert (await cache.chat(QUESTION)).status == "miss"
    assert (await cache.chat(QUESTION)).status == "exact"
    assert embedder.calls == 0
    assert (await cache.server_stats())["entries"] is None
    with pytest.raises(ConfigurationError, match="semantic=False"):
        await cache.lookup_semantic(QUESTION)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_both_protocols_of_redis_are_spoken(upstream, tmp_path, protocol):
    from llm_cache._redis.embedded import EmbeddedRedis

    async with EmbeddedRedis() as server:
        url = f"{server.url}?protocol={protocol}"
        embedder = FakeEmbedder()
        embedder.similar(QUESTION, REPHRASED, 0.95)
        async with LLMCache(url, client=upstream.client(), embedder=embedder) as cache:
            assert (await cache.chat(QUESTION)).status == "miss"
            assert (await cache.chat(REPHRASED)).status == "semantic"
            assert (await cache.chat(REPHRASED)).status == "exact"
            assert (await cache.server_stats())["entries"] == 1


@pytest.mark.parametrize(
    "setting",
    [
        {"namespace": ""},
        {"namespace": "a:b"},
        {"namespace": "a b"},
        {"namespace": "ä"},
        {"ttl_s": 0},
        {"ttl_s": -1},
        {"ttl_s": 1e12},
        {"ttl_s": "3600"},
        {"ttl_s": float("nan")},
        {"similarity_threshold": 1.01},
        {"similarity_threshold": -0.01},
        {"similarity_threshold": True},
        {"normalization": "lowercase"},
        {"max_connections": 0},
        {"max_entry_bytes": 1.5},
        {"added_latency_budget_s": 0},
        {"added_latency_budget_s": float("inf")},
        {"store_queue_size": 0},
        {"redis_timeout_s": 0},
        {"redis_timeout_s": float("inf")},
        {"model": ""},
        {"review_sample_rate": 1.01},
        {"review_sample_rate": True},
        {"review_sample_rate": 0.1, "store_prompts": False, "guards": False},
        {"review_max_items": 0},
        {"review_ttl_s": 0},
    ],
    ids=str,
)
def test_setting_out_of_its_range_is_named(setting):
    with pytest.raises(ConfigurationError, match=next(iter(setting))):
        CacheConfig(**setting)


@pytest.mark.parametrize(
    "setting",
    [
        {"ttl_s": 0.001},
        {"added_latency_budget_s": 0.001},
        {"store_queue_size": 1},
        {"similarity_threshold": 0},
        {"similarity_threshold": 1},
        {"namespace": "A-z_0.9"},
        {"normalization": "casefold"},
        {"system": None},
        {"system": ""},
        {"review_sample_rate": 1},
    ],
    ids=str,
)
def test_setting_at_the_edge_of_its_range_is_taken(setting):
    with warnings.catch_warnings():
        CacheConfig(**setting)
