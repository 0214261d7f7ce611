"""What people say of answers holds in every process."""

import asyncio

import pytest

from llm_cache._core.keys import answer_digest

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."
ANOTHER = "Name the capital city that France has."


@pytest.fixture
async def served(make_cache, embedder):
    """Two workers, and an answer that two rephrasings were answered with."""
    embedder.similar(QUESTION, REPHRASED, 0.95)
    embedder.similar(QUESTION, ANOTHER, 0.95)
    one, two = make_cache(), make_cache()
    reply = await one.chat(QUESTION)
    assert (await two.chat(REPHRASED)).status == "semantic"
    assert (await two.chat(REPHRASED)).status == "exact"
    return one, two, reply


async def test_alias_expires_with_its_origin(served, redis, namespace):
    _, _, reply = served
    ends = {await redis.pexpiretime(k) for k in await redis.keys(f"{namespace}:x:*")}
    assert max(ends) - min(ends) < 1_000
    assert await redis.pexpiretime(reply.key) in ends


async def test_rejected_answer_is_gone_with_its_aliases_in_every_process(served, redis, namespace):
    one, two, reply = served
    assert (await one.reject(reply.key)).reached == 1
    for worker in (one, two):
        for prompt in (QUESTION, REPHRASED, ANOTHER):
            assert await worker.lookup_exact(prompt) is None
            assert await worker.lookup_semantic(prompt) is None
    left = [k for kind in ("x", "s", "refs") for k in await redis.keys(f"{namespace}:{kind}:*")]
    assert left == []


async def test_new_answer_is_not_served_to_the_rejected_rephrasing(served, upstream):
    one, two, reply = served
    await one.reject(reply.key)
    await one.chat(QUESTION)

    assert (await two.chat(REPHRASED)).status == "miss"
    assert (await two.chat(ANOTHER)).status in {"semantic", "miss"}
    assert (await two.chat(QUESTION)).status == "exact"


async def test_rejection_names_the_request_by_its_own_key_too(served):
    one, two, _ = served
    alias = (await two.explain(REPHRASED)).key
    await one.reject(alias)
    assert await two.lookup_exact(QUESTION) is None
    await one.chat(QUESTION)
    assert await two.lookup_semantic(REPHRASED) is None


async def test_rejection_with_a_prompt_remembers_that_pair(make_cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    one, two = make_cache(), make_cache()
    reply = await one.chat(QUESTION)
    await one.reject(reply.key, REPHRASED)
    await one.chat(QUESTION)
    assert await two.lookup_semantic(REPHRASED) is None
    assert await two.lookup_semantic(QUESTION) is not None


async def test_rejected_answers_do_not_crowd_out_a_good_one(make_cache, embedder):
    cache = make_cache()
    near = [f"Name the capital of France, variant {letter}" for letter in "abcdef"]
    for prompt in near:
        embedder.similar(QUESTION, prompt, 0.99)
        key = await cache.store_semantic(prompt, "wrong")
        await cache.reject(key, QUESTION)
        await cache.store_semantic(prompt, "still wrong")
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await cache.store_semantic(REPHRASED, "right")
    assert (await cache.chat(QUESTION)).text == "right"


async def test_promotion_that_races_a_rejection_leaves_no_alias(served, embedder):
    one, two, reply = served
    promote = two._exact.promote

    async def promote_late(*args, **kwargs):
        await one.reject(reply.key)
        # Another answer to the original is there again by the time of the promotion.
        await one.chat(QUESTION)
        await promote(*args, **kwargs)

    two._exact.promote = promote_late
    await two.chat(ANOTHER)
    assert await two.lookup_exact(ANOTHER) is None


async def test_pattern_that_races_a_promotion_leaves_no_alias(served):
    one, two, _ = served
    promote = two._exact.promote

    async def promote_late(*args, **kwargs):
        # The alias itself does not look like this.
        await one.invalidate(pattern="what is*")
        await one.chat(QUESTION)
        await promote(*args, **kwargs)

    two._exact.promote = promote_late
    await two.chat(ANOTHER)
    assert await two.lookup_exact(ANOTHER) is None


async def test_approved_answer_is_served_at_once_in_every_process(make_cache):
    one, two = make_cache(), make_cache()
    reply = await one.chat(QUESTION)
    assert await one.approve(reply.key, "Capital of FR?")
    found = await two.chat("Capital of FR?")
    assert (found.status, found.text, found.origin) == ("exact", reply.text, reply.key)
    assert found.similarity is None


async def test_approval_takes_back_a_rejection(served):
    one, two, reply = served
    await one.reject(reply.key)
    again = await one.chat(QUESTION)
    assert await two.lookup_semantic(REPHRASED) is None
    assert await two.approve(again.key, REPHRASED)
    assert (await one.chat(REPHRASED)).text == again.text


async def test_approved_answer_takes_the_place_of_one_that_was_invalidated(make_cache):
    cache = make_cache()
    good = await cache.chat(QUESTION)
    bad = await cache.chat("Capital of FR?")
    await cache.reject(bad.key)
    assert await cache.approve(good.key, "Capital of FR?")
    assert (await cache.chat("Capital of FR?")).origin == good.key


async def test_entry_of_what_an_approved_answer_replaced_is_forgotten(
    make_cache, embedder, redis, namespace
):
    """An alias has none: it would be the nearest to others for as long as the alias lives."""
    embedder.similar(REPHRASED, ANOTHER, 0.97)
    cache = make_cache()
    good = await cache.store_semantic(QUESTION, "Paris.")
    replaced = await cache.store_semantic(REPHRASED, "Lyon.")
    assert await cache.approve(good, REPHRASED)

    assert await cache.lookup_semantic(ANOTHER) is None
    (left,) = await redis.keys(f"{namespace}:s:*")
    assert answer_digest(left.decode()) == answer_digest(good)
    assert (await cache.lookup_exact(REPHRASED)).text == "Paris."
    assert await redis.exists(replaced)


async def test_approved_alias_goes_with_its_origin(make_cache):
    one, two = make_cache(), make_cache()
    reply = await one.chat(QUESTION, tags=["geo"])
    for invalidate in (one.reject, lambda key: one.invalidate(key=key)):
        assert await one.approve(reply.key, "Capital of FR?")
        await invalidate(reply.key)
        assert await two.lookup_exact("Capital of FR?") is None
        reply = await one.chat(QUESTION, tags=["geo"])
    await one.approve(reply.key, "Capital of FR?")
    await one.invalidate(tag="geo")
    assert await two.lookup_exact("Capital of FR?") is None


async def test_alias_of_an_alias_is_an_alias_of_the_origin(served):
    one, two, reply = served
    alias = (await two.explain(REPHRASED)).key
    assert await one.approve(alias, "Capital of FR?")
    assert (await two.chat("Capital of FR?")).origin == reply.key


async def test_answer_that_is_gone_cannot_be_approved(make_cache):
    cache = make_cache()
    reply = await cache.chat(QUESTION)
    await cache.invalidate(key=reply.key)
    assert not await cache.approve(reply.key, REPHRASED)


async def test_rejections_of_many_at_once_are_all_remembered(make_cache, redis, namespace):
    cache = make_cache()
    reply = await cache.chat(QUESTION)
    await asyncio.gather(*(cache.reject(reply.key, f"prompt {i}") for i in range(50)))
    assert await redis.zcard(f"{namespace}:rejected") == 50
