async def test_statistics_begin_at_nothing(cache):
    assert cache.stats() == {
        "exact": 0,
        "semantic": 0,
        "stale": 0,
        "miss": 0,
        "bypass": 0,
        "hit_rate": 0.0,
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
