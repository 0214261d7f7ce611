"""`embeddings.create` of a wrapped client."""

import asyncio
import time
from typing import Any

import pytest
from openai.types import CreateEmbeddingResponse, Embedding

from llm_cache import cache_info
from llm_cache.errors import EmbedderError, InvalidRequest, OnlyIfCachedMiss
from llm_cache.events import DependencyFailed
from llm_cache.testing import Answer


@pytest.fixture
def client(cache, upstream):
    return cache.wrap(upstream.client())


def info(answer: object) -> Any:
    """Return what `cache_info` does, without the types of `None`."""
    return cache_info(answer)


async def embed(client: Any, texts: Any, **params: Any) -> Any:
    reply = await client.embeddings.create(model="text-embedding-3-small", input=texts, **params)
    return [row.embedding for row in reply.data], reply


async def test_inputs_are_cached_one_by_one(client, upstream):
    first, reply = await embed(client, ["one", "two"])
    assert info(reply).status == "miss"
    second, reply = await embed(client, ["two", "three", "one"])

    assert upstream.embedding_inputs == ["one", "two", "three"]
    assert second[0] == first[1]
    assert second[2] == first[0]
    assert [row.index for row in reply.data] == [0, 1, 2]
    assert info(reply).reason == "2 of 3 were cached"


async def test_cached_vectors_equal_those_of_the_api(client, upstream):
    fresh, _ = await embed(upstream.client(), ["one"])
    stored, _ = await embed(client, ["one"])
    cached, reply = await embed(client, ["one"])

    assert fresh == stored == cached
    assert info(reply).status == "exact"
    assert reply.usage.total_tokens == 0


async def test_same_input_twice_is_asked_once(client, upstream):
    (a, b), _ = await embed(client, ["one", "one"])
    assert a == b
    assert upstream.embedding_inputs == ["one"]


@pytest.mark.parametrize("texts", ["one", ["one"], [1, 2, 3], [[1, 2], [3]]])
async def test_every_form_of_input_is_taken(client, upstream, texts):
    first, _ = await embed(client, texts)
    second, reply = await embed(client, texts)
    assert first == second
    assert info(reply).status == "exact"
    assert upstream.embedding_calls == 1


async def test_base64_is_given_to_those_who_ask(client, upstream):
    numbers, _ = await embed(client, ["one"])
    text, _ = await embed(client, ["one"], encoding_format="base64")
    assert isinstance(text[0], str)
    assert upstream.embedding_calls == 1
    assert len(numbers[0]) == 1536


async def test_vectors_of_other_dimensions_models_and_tenants_are_apart(client, upstream):
    await embed(client, ["one"])
    await embed(client, ["one"], dimensions=8)
    await client.embeddings.create(model="another", input=["one"])
    await embed(client, ["one"], tenant="acme")
    assert upstream.embedding_calls == 4


async def test_redis_that_fails_is_bypassed(make_cache, upstream):
    client = make_cache("redis://127.0.0.1:1").wrap(upstream.client())
    vectors, reply = await embed(client, ["one"])
    assert len(vectors[0]) == 1536
    assert info(reply).status == "bypass"


async def test_embedder_that_fails_is_no_matter(make_cache, upstream, events):
    class Broken:
        model_id = "broken"
        dimensions = None
        similarity_threshold = 0.9

        async def embed(self, texts):
            raise EmbedderError("down")

    client = make_cache(embedder=Broken()).wrap(upstream.client())
    vectors, reply = await embed(client, ["one"])
    assert len(vectors[0]) == 1536
    assert info(reply).status == "miss"
    assert not events.of(DependencyFailed)


async def test_headers_and_query_of_call_and_client_are_part_of_the_key(cache, upstream):
    plain = cache.wrap(upstream.client())
    await embed(plain, ["one"])
    for client, params in (
        (plain, {"extra_headers": {"X-Variant": "b"}}),
        (plain, {"extra_query": {"api-version": "2"}}),
        (plain, {"extra_body": {"input_type": "query"}}),
        (cache.wrap(upstream.client(default_headers={"X-Variant": "c"})), {}),
        (cache.wrap(upstream.client(default_query={"api-version": "3"})), {}),
    ):
        assert info((await embed(client, ["one"], **params))[1]).status == "miss"
        assert info((await embed(client, ["one"], **params))[1]).status == "exact"
    same: list[dict[str, Any]] = [
        {"extra_headers": {"Authorization": "Bearer other", "X-Request-Id": "1"}},
        {"extra_headers": None, "extra_query": {}, "timeout": 9},
    ]
    for params in same:
        assert info((await embed(plain, ["one"], **params))[1]).status == "exact"


async def test_input_that_the_sdk_would_overwrite_is_refused(client, upstream):
    with pytest.raises(InvalidRequest, match="extra_body"):
        await embed(client, ["one"], extra_body={"input": ["two"]})
    assert upstream.embedding_calls == 0


async def test_cache_control_goes_through_extra_headers(client, upstream):
    async def status(texts: list[str], control: str) -> Any:
        _, reply = await embed(client, texts, extra_headers={"cache-CONTROL": control})
        return info(reply).status

    with pytest.raises(OnlyIfCachedMiss):
        await status(["one"], "only-if-cached")
    assert upstream.embedding_calls == 0
    assert await status(["one"], "no-store") == "bypass"
    assert await status(["one"], "no-cache") == "miss"
    assert await status(["one"], "only-if-cached") == "exact"
    assert await status(["one"], "no-cache") == "miss"
    with pytest.raises(OnlyIfCachedMiss):
        await status(["one", "two"], "only-if-cached")
    assert upstream.embedding_calls == 3


async def test_upstream_id_stands_for_the_base_url(make_cache, upstream):
    cache = make_cache(upstream_id="one service")
    elsewhere = upstream.base_url.replace("127.0.0.1", "localhost")
    await embed(cache.wrap(upstream.client()), ["one"])
    _, reply = await embed(cache.wrap(upstream.client(base_url=elsewhere)), ["one"])
    assert info(reply).status == "exact"


async def test_answer_that_is_no_json_is_handed_on_as_the_sdk_does(client, upstream):
    page = Answer(raw_body=b"<html>", headers={"content-type": "text/html"})
    upstream.embeddings = lambda texts, body: page
    # In any other format the SDK itself cannot read it.
    reply = await client.embeddings.create(model="m", input="one", encoding_format="float")
    assert reply == "<html>"


async def test_answers_are_the_sdks_and_hits_have_the_request_id_none(client):
    _, fresh = await embed(client, ["one"])
    _, hit = await embed(client, ["one"])
    assert hasattr(fresh, "_request_id")
    assert hit._request_id is None
    assert isinstance(hit, CreateEmbeddingResponse)
    assert isinstance(hit.data[0], Embedding)
    again = CreateEmbeddingResponse.model_validate(hit.model_dump())
    assert again.data[0].embedding == fresh.data[0].embedding
    assert hit.model_dump(exclude={"usage"}) == fresh.model_dump(exclude={"usage"})


async def test_many_cached_vectors_are_cheap_and_let_others_have_their_turn(client, upstream):
    texts = [f"text {i}" for i in range(300)]
    await embed(client, texts)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    # `construct` looks at every number: 300 vectors would take half a second of work.
    started_s = time.process_time()
    await embed(client, texts)
    spent_s = time.process_time() - started_s
    other = asyncio.create_task(count())
    _, reply = await embed(client, texts)
    other.cancel()

    assert info(reply).status == "exact"
    assert turns >= 300 // 64
    assert spent_s < 0.4


async def test_vectors_are_stored_a_few_at_a_time(cache, client):
    under_way = most = 0
    engine = cache._engine

    class Counting:
        async def keep(self, *args, **kwargs):
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            try:
                return await engine.keep(*args, **kwargs)
            finally:
                under_way -= 1

        def __getattr__(self, name):
            return getattr(engine, name)

    cache._engine = Counting()
    await embed(client, [f"text {i}" for i in range(40)])
    cache._engine = engine
    _, reply = await embed(client, [f"text {i}" for i in range(40)])
    assert info(reply).status == "exact"
    assert 1 < most <= 16


@pytest.mark.parametrize(("last", "is_exact"), [(0.1, True), (0.1 + 1e-12, True), (1e300, False)])
def test_vectors_are_packed_where_nothing_is_lost(last, is_exact):
    from llm_cache._wrap_embeddings import _pack, _unpack

    packed = _pack([1.0, -2.5, last])
    assert isinstance(packed, str) is is_exact
    assert _unpack(packed, as_text=False) == pytest.approx([1.0, -2.5, last], rel=1e-6)


async def test_no_input_is_the_apis_business(client, upstream):
    with pytest.raises(Exception, match=r"400|input"):
        await embed(client, [])
