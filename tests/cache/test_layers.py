"""The layers on their own: look-ups that ask no model, and explicit stores."""

import pytest

from llm_cache.errors import InvalidRequest, NotStorable

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."


async def test_exact_layer_stores_and_finds(cache):
    assert await cache.lookup_exact(QUESTION) is None
    key = await cache.store_exact(QUESTION, "Paris.")

    reply = await cache.lookup_exact(QUESTION)
    assert (reply.text, reply.status, reply.key) == ("Paris.", "exact", key)
    assert await cache.lookup_semantic(QUESTION) is None


async def test_semantic_layer_stores_in_both(cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    key = await cache.store_semantic(QUESTION, "Paris.")

    assert (await cache.lookup_exact(QUESTION)).key == key
    reply = await cache.lookup_semantic(REPHRASED)
    assert (reply.text, reply.status, reply.key) == ("Paris.", "semantic", key)
    assert await cache.lookup_exact(REPHRASED) is None


async def test_vector_may_be_given(cache, embedder):
    vector = [1.0, *[0.0] * 63]
    await cache.store_semantic(QUESTION, "Paris.", vector=vector)

    assert (await cache.lookup_semantic(REPHRASED, vector=vector)).text == "Paris."
    assert embedder.calls == 0


@pytest.mark.parametrize("vector", [[1.0], [0.0] * 64, ["x"] * 64, 3])
async def test_vector_that_is_none_is_refused(cache, vector):
    with pytest.raises(Exception, match="vector="):
        await cache.lookup_semantic(QUESTION, vector=vector)


async def test_whole_completion_can_be_stored(cache, upstream):
    completion = await upstream.client().chat.completions.create(
        model="m", messages=[{"role": "user", "content": "Hi"}]
    )
    await cache.store_exact("Hi", completion, model="m")

    reply = await cache.lookup_exact("Hi", model="m")
    assert reply.completion == completion


async def test_chat_finds_what_was_stored_by_hand(cache, upstream):
    await cache.store_exact(QUESTION, "Paris.", temperature=0)

    assert (await cache.chat(QUESTION, temperature=0.0)).text == "Paris."
    assert upstream.calls == 0


@pytest.mark.parametrize("answer", ["", {"choices": []}])
async def test_answer_that_is_not_complete_is_refused(cache, answer):
    with pytest.raises(NotStorable):
        await cache.store_exact(QUESTION, answer)


async def test_answer_of_another_kind_is_refused(cache):
    with pytest.raises(InvalidRequest, match="answer"):
        await cache.store_exact(QUESTION, 42)


async def test_request_without_a_user_turn_at_its_end_has_no_semantic_entry(cache):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    with pytest.raises(InvalidRequest, match="user"):
        await cache.store_semantic(messages, "x")
    await cache.store_exact(messages, "x")
    assert (await cache.lookup_exact(messages)).text == "x"


@pytest.mark.parametrize("ttl_s", [0, -1, 1e12, "60", True])
async def test_ttl_out_of_its_range_is_refused_before_anything_is_written(cache, redis, ttl_s):
    with pytest.raises(InvalidRequest, match="ttl_s"):
        await cache.store_exact(QUESTION, "x", ttl_s=ttl_s)
    assert await cache.lookup_exact(QUESTION) is None


@pytest.mark.parametrize("tags", ["one", [""], [3], [None]])
async def test_tags_must_be_a_list_of_names(cache, tags):
    with pytest.raises(InvalidRequest, match="tag"):
        await cache.chat(QUESTION, tags=tags)


@pytest.mark.one_server("a cluster is asked for answer and epoch apart")
async def test_semantic_look_up_brings_its_answer_in_one_round_trip(
    cache, embedder, redis, topology
):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await cache.store_semantic(QUESTION, "Paris.")
    # The sizes of index and scope are asked for once, and the script sent.
    await cache.lookup_semantic(REPHRASED)
    await redis.config_resetstat()

    assert (await cache.lookup_semantic(REPHRASED)).text == "Paris."

    ran = await redis.info("commandstats")
    counted = {name: stat["calls"] for name, stat in ran.items() if "config" not in name}
    within = {"cmdstat_FT.SEARCH": 1, "cmdstat_get": 2, "cmdstat_pttl": 1, "cmdstat_zscore": 1}
    expected = {"cmdstat_evalsha": 1, "cmdstat_ping": 1, **within}
    if topology == "sentinel":
        # They ask and tell the master things of their own, at any time.
        for asked in ("ping", "info", "publish"):
            counted.pop(f"cmdstat_{asked}", None)
        del expected["cmdstat_ping"]
    assert counted == expected
