"""`embeddings.create` of a wrapped client."""

import pytest

from llm_cache import cache_info


@pytest.fixture
def client(cache, upstream):
    return cache.wrap(upstream.client())


async def embed(client, texts, **params):
    reply = await client.embeddings.create(model="text-embedding-3-small", input=texts, **params)
    return [row.embedding for row in reply.data], reply


async def test_inputs_are_cached_one_by_one(client, upstream):
    first, reply = await embed(client, ["one", "two"])
    assert cache_info(reply).status == "miss"
    second, reply = await embed(client, ["two", "three", "one"])

    assert upstream.embedding_inputs == ["one", "two", "three"]
    assert second[0] == first[1]
    assert second[2] == first[0]
    assert [row.index for row in reply.data] == [0, 1, 2]
    assert cache_info(reply).reason == "2 of 3 were cached"


async def test_cached_vectors_equal_those_of_the_api(client, upstream):
    fresh, _ = await embed(upstream.client(), ["one"])
    stored, _ = await embed(client, ["one"])
    cached, reply = await embed(client, ["one"])

    assert fresh == stored == cached
    assert cache_info(reply).status == "exact"
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
    assert cache_info(reply).status == "exact"
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
    assert cache_info(reply).status == "bypass"


async def test_no_input_is_the_apis_business(client, upstream):
    with pytest.raises(Exception, match=r"400|input"):
        await embed(client, [])
