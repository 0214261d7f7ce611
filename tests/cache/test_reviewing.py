"""Semantic hits and near misses are kept for people, and what they say has consequences."""

from typing import Any

import pytest

from llm_cache._redis.review import Review, ReviewItem
from llm_cache.cli.review import _act
from llm_cache.labels import Verdict

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."
TRAP = "What is the capital of Spain?"


@pytest.fixture
def recorded(make_cache):
    return make_cache(review_sample_rate=1.0)


async def items(cache) -> list[ReviewItem]:
    await cache._review.flush()
    return await Review(cache._connection, cache._keys).read()


async def test_a_semantic_hit_is_kept_with_both_prompts(recorded, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    first = await recorded.chat(QUESTION)
    await recorded.chat(REPHRASED)
    (item,) = await items(recorded)

    assert (item.new, item.cached, item.verdict) == (REPHRASED, QUESTION, "served")
    assert recorded._keys.answer(item.digest) == first.key
    assert recorded._keys.answer(item.asked) == (await recorded.explain(REPHRASED)).key
    assert item.similarity == pytest.approx(0.95, abs=0.001)
    assert item.space == recorded._semantic.vectors.space


@pytest.mark.parametrize(
    ("similarity", "verdicts"), [(0.81, ["similarity below 0.9"]), (0.79, [])]
)
async def test_what_was_nearly_similar_enough_is_a_near_miss(
    recorded, embedder, similarity, verdicts
):
    embedder.similar(QUESTION, REPHRASED, similarity)
    await recorded.chat(QUESTION)
    await recorded.chat(REPHRASED)

    assert [item.verdict for item in await items(recorded)] == verdicts


async def test_what_a_guard_refused_is_a_near_miss(recorded, embedder):
    embedder.similar(QUESTION, TRAP, 0.98)
    await recorded.chat(QUESTION)
    await recorded.chat(TRAP)

    assert [item.verdict.partition(":")[0] for item in await items(recorded)] == ["guard"]


async def test_misses_and_exact_hits_are_not_kept(recorded):
    for prompt in (QUESTION, QUESTION, "How do I bake bread?"):
        await recorded.chat(prompt)
    assert await items(recorded) == []


async def test_nothing_is_kept_unless_asked(cache, redis, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await cache.chat(QUESTION)
    await cache.chat(REPHRASED)
    await cache.aclose()

    assert not await redis.exists(cache._keys.review)


async def test_what_was_kept_is_written_at_the_latest_when_the_cache_closes(
    make_cache, redis, embedder
):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    cache = make_cache(review_sample_rate=1.0)
    await cache.chat(QUESTION)
    await cache.chat(REPHRASED)
    await cache.aclose()

    assert await redis.xlen(cache._keys.review) == 1


async def test_what_was_kept_is_written_with_the_counters(make_cache, redis, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    cache = make_cache(review_sample_rate=1.0, stats_flush_s=0.01)
    await cache.chat(QUESTION)
    await cache.chat(REPHRASED)
    while not await redis.exists(cache._keys.review):
        pass


async def test_tenants_are_kept_as_they_stand_in_redis(make_cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    cache = make_cache(review_sample_rate=1.0, tenant_secret="0123456789abcdef")
    await cache.chat(QUESTION, tenant="acme")
    await cache.chat(REPHRASED, tenant="acme")
    (item,) = await items(cache)

    assert item.tenant not in (None, "acme")


# -- what people say


async def served(cache, embedder) -> tuple[ReviewItem, Any]:
    embedder.similar(QUESTION, REPHRASED, 0.95)
    first = await cache.chat(QUESTION)
    assert (await cache.chat(REPHRASED)).status == "semantic"
    (item,) = await items(cache)
    return item, first


async def test_a_wrong_hit_is_not_served_again_and_the_answer_stays(recorded, embedder):
    item, first = await served(recorded, embedder)
    await _act(recorded, item, Verdict.DIFFERENT)

    assert (await recorded.chat(REPHRASED)).status == "miss"
    again = await recorded.chat(QUESTION)
    assert (again.status, again.key) == ("exact", first.key)


async def test_a_wrong_hit_is_forgotten_by_other_workers_too(recorded, make_cache, embedder):
    other = await make_cache().open()
    item, _ = await served(recorded, embedder)
    await _act(recorded, item, Verdict.DIFFERENT)

    assert (await other.lookup_exact(REPHRASED)) is None
    assert (await other.lookup_semantic(REPHRASED)) is None


async def test_what_the_model_answered_since_is_kept(recorded, embedder):
    item, _ = await served(recorded, embedder)
    fresh = await recorded.chat(REPHRASED, cache_control="no-cache")
    await _act(recorded, item, Verdict.DIFFERENT)
    again = await recorded.chat(REPHRASED)

    assert (again.status, again.text, again.origin) == ("exact", fresh.text, None)


@pytest.mark.parametrize(
    ("verdict", "refused"), [(Verdict.SAME, False), (Verdict.DIFFERENT, True)]
)
async def test_other_verdicts_change_nothing(recorded, embedder, verdict, refused):
    item, _ = await served(recorded, embedder)
    if refused:
        item = ReviewItem(
            new=item.new,
            cached=item.cached,
            similarity=item.similarity,
            verdict="guard: names",
            digest=item.digest,
            asked=item.asked,
        )
    await _act(recorded, item, verdict)
    assert (await recorded.chat(REPHRASED)).status == "exact"
