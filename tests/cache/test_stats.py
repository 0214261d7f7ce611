import pytest

from llm_cache import CallableEmbedder, OpenAIEmbedder
from llm_cache.errors import ConfigurationError
from llm_cache.events import CallEnded, TextsEmbedded
from llm_cache.testing import Answer, FakeClock


async def test_statistics_begin_at_nothing(cache):
    assert cache.stats() == {
        "exact": 0,
        "semantic": 0,
        "stale": 0,
        "miss": 0,
        "bypass": 0,
        "hit_rate": 0.0,
        "verified": {},
        "shadow": {},
        "policy": "uncertified: similarity at least 0.9, guards",
        "breakers": {"redis": "closed", "search": "closed", "embedder": "closed"},
    }


async def test_every_call_is_counted_once(cache, embedder):
    embedder.similar("reset password", "password reset help", 0.95)
    for prompt in ("reset password", "password reset help", "reset password", "another thing"):
        await cache.chat(prompt)

    stats = cache.stats()
    assert (stats["exact"], stats["semantic"], stats["miss"]) == (1, 1, 2)
    assert stats["hit_rate"] == 0.5


async def test_hit_rate_has_three_places(cache):
    for prompt in ("one", "one", "two"):
        await cache.chat(prompt)
    assert cache.stats()["hit_rate"] == 0.333


async def test_counters_of_all_workers_add_up(make_cache):
    one, two = make_cache(), make_cache()
    await one.chat("question")
    await two.chat("question")
    await two.aclose()

    stats = await one.server_stats()
    assert (stats["miss"], stats["exact"], stats["hit_rate"]) == (1, 1, 0.5)


async def test_server_statistics_tell_entries_memory_and_tokens(cache):
    reply = await cache.chat("question")
    await cache.chat("question")

    stats = await cache.server_stats()
    assert stats["entries"] == 1
    assert stats["redis_memory_bytes"] > 1_000_000
    assert stats["prompt_tokens_saved"] == reply.usage["prompt_tokens"]
    assert stats["completion_tokens_saved"] == reply.usage["completion_tokens"]


async def test_each_tenant_has_statistics_of_its_own(cache):
    for tenant in (None, "acme", "acme", "umbrella"):
        await cache.chat("question", tenant=tenant)

    calls = {tenant: cache.stats(tenant=tenant) for tenant in (None, "acme", "umbrella", "other")}
    assert {tenant: (each["miss"], each["exact"]) for tenant, each in calls.items()} == {
        None: (1, 0),
        "acme": (1, 1),
        "umbrella": (1, 0),
        "other": (0, 0),
    }
    shared = await cache.server_stats(tenant="acme")
    assert (shared["miss"], shared["exact"], shared["is_complete"]) == (1, 1, True)


async def test_tenants_beyond_the_limit_are_counted_together(make_cache):
    cache = make_cache(stats_tenants=2)
    for tenant in ("a", "b", "c", "d"):
        await cache.chat("question", tenant=tenant)

    tenants = (await cache.server_stats())["tenants"]
    assert sorted(each["miss"] for each in tenants.values()) == [1, 1, 2]
    assert tenants["(other)"]["miss"] == 2
    assert not (await cache.server_stats(tenant="d"))["is_complete"]
    assert (await cache.server_stats(tenant="a"))["is_complete"]


async def test_names_of_tenants_are_nowhere_in_the_counts(cache, redis, namespace):
    await cache.chat("question", tenant="acme-secret")
    await cache.server_stats()

    keys = [key async for key in redis.scan_iter(f"{namespace}:stats:*")]
    dumped = b"".join(keys) + b"".join([await redis.dump(key) for key in keys])
    assert b"tenants" in dumped
    assert b"acme-secret" not in dumped


async def test_reasons_are_told_apart(cache, upstream):
    await cache.chat("question", cache_control="no-store")
    upstream.answer(Answer(text="cut", finish_reason="length"))
    await cache.chat("another question")

    stats = await cache.server_stats()
    assert stats["bypass_reasons"] == {"no-store": 1}
    assert stats["not_stored"] == cache.not_stored() == {"length": 1}


async def test_failures_are_counted(make_cache, embedder):
    cache = make_cache()
    await cache.chat("question")
    embedder.fail_with = RuntimeError("out of order")
    await cache.chat("another question")

    stats = await cache.server_stats()
    assert stats["failures"] == {"embedder.lookup_semantic": 1}
    assert stats["bypass_reasons"] == {"embedder": 1}


async def test_a_window_leaves_out_what_is_older(make_cache):
    clock = FakeClock()
    cache = make_cache(clock=clock)
    await cache.chat("question")
    await cache.server_stats()
    clock.advance(26 * 3600)
    await cache.chat("another question")

    assert (await cache.server_stats(window="24h"))["miss"] == 1
    assert (await cache.server_stats(window="2d"))["miss"] == 2
    assert (await cache.server_stats())["miss"] == 2


async def test_a_window_that_is_none_is_refused(cache):
    with pytest.raises(ConfigurationError, match="window"):
        await cache.server_stats(window="yesterday")


async def test_an_answer_that_does_not_say_what_it_took_is_told_apart(cache, upstream):
    upstream.default = Answer(text="hello", usage=None)
    await cache.chat("question")
    await cache.chat("question")

    stats = await cache.server_stats()
    assert (stats["calls_without_usage"], stats["prompt_tokens_saved"]) == (1, 0)


async def test_an_absurd_usage_neither_counts_nor_harms(cache, upstream):
    upstream.default = Answer(text="hello", usage={"prompt_tokens": 2**70, "completion_tokens": 1})
    await cache.chat("question")
    await cache.chat("question")
    assert (await cache.server_stats())["calls_without_usage"] == 1


@pytest.mark.parametrize(
    ("is_free", "told"),
    [(True, (1, 0, 0.0, [])), (False, (1, 2, None, ["ours"]))],
)
async def test_embeddings_nobody_counts_are_estimated_unless_free(make_cache, is_free, told):
    async def embed(texts):
        return [[1.0, 0.0]] * len(texts)

    embedder = CallableEmbedder(embed, model_id="ours", dimensions=2, is_free=is_free)
    cache = make_cache(embedder=embedder)
    await cache.chat("question")

    stats = await cache.server_stats()
    spent = stats["embedding"]
    assert (
        spent["texts"],
        spent["estimated_tokens"],
        spent["usd"],
        spent["unpriced_models"],
    ) == told
    assert (stats["usd_saved_net"] is None) is not is_free


async def test_embeddings_are_counted_by_what_is_billed(make_cache, upstream, events):
    cache = make_cache(embedder=OpenAIEmbedder(upstream.client()))
    await cache.chat("twelve chars")

    assert (await cache.server_stats())["embedding"]["tokens"] == 4
    (told,) = events.of(TextsEmbedded)
    assert (told.texts, told.tokens, told.is_estimate) == (1, 4, False)


async def test_a_hook_hears_only_what_it_wants(make_cache):
    heard = []

    class Hook:
        hears = (TextsEmbedded,)

        def __call__(self, event):
            heard.append(type(event))

    await make_cache(hooks=[Hook()]).chat("question")
    assert heard == [TextsEmbedded]


async def test_an_event_tells_tokens_and_operation(make_cache, events):
    cache = make_cache()
    reply = await cache.chat("question")
    async with await cache.chat("question", stream=True) as stream:
        assert [piece async for piece in stream]

    first, second = events.of(CallEnded)
    assert (first.status, first.operation) == ("miss", "chat")
    assert (second.status, second.operation) == ("exact", "stream")
    assert second.prompt_tokens == first.prompt_tokens == reply.usage["prompt_tokens"]
