"""In shadow mode the cache only watches, and counts what it would have been worth."""

import asyncio

import pytest

from llm_cache._redis.review import Review
from tests.cache.test_verifying import Says

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."
TRAP = "What is the capital of Spain?"


@pytest.fixture
def shadow(make_cache):
    return make_cache(shadow=True)


async def outcomes(cache) -> dict[str, int]:
    await asyncio.gather(*cache._engine._background.tasks)
    counts: dict[str, int] = cache.stats()["shadow"]
    return counts


async def test_every_call_asks_the_model(shadow, upstream, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    prompts = (QUESTION, QUESTION, REPHRASED)
    statuses = [(await shadow.chat(prompt)).status for prompt in prompts]

    assert (statuses, upstream.calls) == (["miss"] * 3, 3)


async def test_callers_of_one_request_each_ask(shadow, upstream):
    await asyncio.gather(*[shadow.chat(QUESTION) for _ in range(3)])
    assert upstream.calls == 3


async def test_a_stale_answer_is_not_served_either(make_cache, upstream):
    from llm_cache.testing import FakeClock

    clock = FakeClock()
    cache = make_cache(shadow=True, clock=clock, ttl_s=10, stale_while_revalidate_s=100)
    await cache.chat(QUESTION)
    clock.advance(20)

    assert (await cache.chat(QUESTION)).status == "miss"
    assert upstream.calls == 2


@pytest.mark.parametrize(
    "case",
    [
        (REPHRASED, 0.95, "Paris.", "right_hit"),
        (REPHRASED, 0.95, "Lyon.", "wrong_hit"),
        (REPHRASED, 0.7, " paris.", "missed_hit"),
        (TRAP, 0.95, "Madrid.", "right_miss"),
    ],
)
async def test_the_fresh_answer_tells_what_the_decision_was_worth(
    shadow, upstream, embedder, case
):
    prompt, similarity, answer, outcome = case
    embedder.similar(QUESTION, prompt, similarity)
    upstream.answer("Paris.")
    await shadow.chat(QUESTION)
    upstream.answer(answer)
    reply = await shadow.chat(prompt)

    assert reply.text == answer
    assert await outcomes(shadow) == {outcome: 1}
    assert (await shadow.server_stats())["shadow"] == {outcome: 1}


async def test_streams_are_compared_too(shadow, upstream, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    upstream.answer("Paris.")
    await shadow.chat(QUESTION)
    upstream.answer("Paris.")
    stream = await shadow.chat(REPHRASED, stream=True)

    assert "".join([piece async for piece in stream]) == "Paris."
    assert await outcomes(shadow) == {"right_hit": 1}


async def test_a_repeat_is_no_decision(shadow):
    await shadow.chat(QUESTION)
    await shadow.chat(QUESTION)
    assert await outcomes(shadow) == {}


async def test_a_verifier_compares_in_place_of_the_texts(make_cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    says = Says(True)
    cache = make_cache(shadow=True, verifier=says)
    first = await cache.chat(QUESTION)
    await cache.chat(REPHRASED)

    assert await outcomes(cache) == {"right_hit": 1}
    assert says.asked == [(REPHRASED, QUESTION, first.text)]


async def test_comparisons_are_recorded_as_labels(make_cache, upstream, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    embedder.similar(QUESTION, TRAP, 0.97)
    cache = make_cache(shadow=True, review_sample_rate=1.0)
    for prompt, answer in ((QUESTION, "Paris."), (REPHRASED, "Paris."), (TRAP, "Madrid.")):
        upstream.answer(answer)
        await cache.chat(prompt)
    await outcomes(cache)
    await cache._review.flush()
    items = await Review(cache._connection, cache._keys).read()

    assert [(item.new, item.cached, item.label) for item in items] == [
        (REPHRASED, QUESTION, "same"),
        (TRAP, QUESTION, "different"),
    ]
    assert items[0].verdict == "served"
    assert items[1].verdict.startswith("guard: ")


async def test_explain_says_that_it_only_watches(shadow):
    await shadow.chat(QUESTION)
    told = await shadow.explain(QUESTION)
    assert (told.status, "shadow" in told.reason) == ("miss", True)
