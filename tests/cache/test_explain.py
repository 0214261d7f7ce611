"""`explain` says what would happen, and why."""

from typing import Any

from llm_cache.testing import FakeClock

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."
OTHER = "What is the capital of Spain?"


async def test_unknown_request_would_be_a_miss(cache, upstream):
    told = await cache.explain(QUESTION, temperature=0)

    assert (told.status, told.neighbours) == ("miss", ())
    assert told.parts["model"] == "gpt-4o-mini"
    assert told.parts["body"] == {"temperature": 0}
    assert told.parts["base_url"] == str(upstream.client().base_url)
    assert told.compared == told.parts["normalized"] == QUESTION


async def test_messages_are_told_without_what_is_compared(cache):
    parts = [{"type": "text", "text": QUESTION}, {"type": "text", "text": OTHER}]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    told = await cache.explain(turns)
    assert told.parts["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": 0}] * 2},
    ]
    assert told.compared == f"{QUESTION}\n{OTHER}"


async def test_nothing_decides_where_nothing_is_compared(cache):
    told = await cache.explain([{"role": "assistant", "content": QUESTION}])
    assert told.compared is told.similarity_threshold is told.policy is None


async def test_what_it_says_is_what_happens(cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await cache.chat(QUESTION)

    for prompt, status in ((QUESTION, "exact"), (REPHRASED, "semantic")):
        told = await cache.explain(prompt)
        assert told.status == status
        assert (await cache.chat(prompt)).status == status


async def test_it_changes_and_counts_nothing(cache, redis, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await cache.chat(QUESTION)
    before = await redis.dbsize(), cache.stats()
    await cache.explain(REPHRASED)
    assert (await redis.dbsize(), cache.stats()) == before


async def test_every_candidate_has_its_verdict(cache, redis, embedder):
    far, gone = "How do I bake bread?", "Name the capital of France, please."
    for prompt, similarity in ((REPHRASED, 0.93), (OTHER, 0.97), (far, 0.5), (gone, 0.95)):
        embedder.similar(QUESTION, prompt, similarity)
        key = await cache.store_semantic(prompt, "an answer")
    await redis.delete(key)

    told = await cache.explain(QUESTION)

    verdicts = {n.prompt: n.verdict for n in told.neighbours}
    assert verdicts[OTHER].startswith("guard: ")
    assert verdicts[gone] == "answer gone"
    assert verdicts[REPHRASED] == "served"
    assert verdicts[far] == "similarity below 0.9"
    assert [n.similarity for n in told.neighbours] == sorted(
        (n.similarity for n in told.neighbours), reverse=True
    )


async def test_call_that_would_be_bypassed_says_why(cache):
    told = await cache.explain(QUESTION, cache_control="no-store")
    assert (told.status, told.reason) == ("bypass", "the cache takes no part: no-store")


async def test_repr_shows_no_prompt(cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await cache.chat(QUESTION)
    told = await cache.explain(REPHRASED)
    assert told.neighbours
    assert "capital" not in repr(told)


async def test_values_of_headers_and_query_are_shown_as_digests(cache):
    def given(secret: str) -> dict[str, Any]:
        return {"extra_headers": {"X-Customer": secret}, "extra_query": {"sig": secret}}

    one, same, other = [
        (await cache.explain(QUESTION, **given(secret))).parts for secret in ("s3", "s3", "s4")
    ]
    assert "s3" not in str(one)
    assert one["headers"]["x-customer"].startswith("sha256:")
    assert len(one["query"]["sig"]) == len("sha256:") + 12
    assert (one["headers"], one["query"]) == (same["headers"], same["query"])
    assert one["headers"] != other["headers"]
    assert one["query"] != other["query"]


async def test_scope_tells_who_shares(cache):
    mine, same = await cache.explain(QUESTION), await cache.explain(OTHER)
    other = await cache.explain(QUESTION, tenant="acme")
    assert mine.scope == same.scope != other.scope
    assert mine.key != same.key


async def test_stale_and_rejected_answers_are_told_as_such(make_cache, embedder):
    clock = FakeClock()
    embedder.similar(QUESTION, REPHRASED, 0.95)
    cache = make_cache(clock=clock, ttl_s=10, stale_while_revalidate_s=10)
    key = (await cache.chat(QUESTION)).key
    await cache.reject(key, REPHRASED)
    await cache.chat(QUESTION)
    (neighbour,) = (await cache.explain(REPHRASED)).neighbours
    assert neighbour.verdict == "rejected for this request"
    clock.advance(15)
    assert (await cache.explain(QUESTION)).status == "stale"
    clock.advance(10)
    assert (await cache.explain(QUESTION)).status == "miss"
