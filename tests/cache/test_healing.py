"""What was lost comes back by itself: the index, the epoch, halves of pairs."""

import asyncio

import pytest

from llm_cache._redis.embedded import EmbeddedRedis
from llm_cache.testing import FakeEmbedder

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."
OTHER, OTHERWISE = "How tall is Mount Everest?", "What is the height of Mount Everest?"


@pytest.fixture
async def server():
    """A server of the test's own, which it may empty."""
    async with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def caches(make_cache, server, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    embedder.similar(OTHER, OTHERWISE, 0.95)
    return lambda **options: make_cache(server.url, **options)


async def indexes(cache) -> list[str]:
    names = await cache._connection.execute("FT._LIST")
    return sorted(name.decode() for name in names)


@pytest.mark.parametrize("command", ["FLUSHALL", "FLUSHDB"])
async def test_index_that_is_lost_is_made_once_by_many(caches, command):
    several = [await caches().open() for _ in range(4)]
    (index,) = await indexes(several[0])
    await several[0].chat(QUESTION)
    await several[0]._connection.execute(command)

    calls = [cache.chat(f"Question {n}") for n in range(20) for cache in several]
    replies = await asyncio.gather(*calls)

    assert {reply.status for reply in replies} <= {"miss", "semantic"}
    assert await indexes(several[0]) == [index]
    assert (await several[1].chat(QUESTION)).status == "miss"
    assert (await several[2].chat(REPHRASED)).status == "semantic"


async def test_entries_written_while_there_is_no_index_are_found(caches):
    cache = await caches().open()
    (index,) = await indexes(cache)
    await cache._connection.execute("FT.DROPINDEX", index)

    await cache.store_semantic(QUESTION, "Paris.")
    assert (await cache.chat(OTHER)).status == "miss"  # finds the index gone

    while await cache.lookup_semantic(REPHRASED) is None:
        pass
    assert (await cache.chat(REPHRASED)).text == "Paris."


async def test_answers_older_than_a_lost_epoch_are_dead_and_newer_ones_live(caches):
    first, second = [await caches().open() for _ in range(2)]
    await first.chat(QUESTION)
    await first._connection.execute("DEL", first._keys.epoch, first._keys.purges)

    assert (await second.chat(QUESTION)).status == "miss"
    assert (await first.chat(QUESTION)).status == "exact"
    assert (await first.chat(REPHRASED)).status == "semantic"


@pytest.mark.parametrize("lost", ["answer", "entry"])
async def test_half_of_a_pair_is_a_miss(caches, lost):
    cache = await caches().open()
    key = (await cache.chat(QUESTION)).key
    space = cache._semantic.vectors.space
    entry = cache._keys.entry(space, cache._keys.digest(key))
    await cache._connection.execute("DEL", key if lost == "answer" else entry)

    assert (await cache.chat(REPHRASED)).status == "miss"
    assert (await cache.chat(QUESTION)).status in ("exact" if lost == "entry" else "semantic")


async def test_changed_embedder_has_an_index_of_its_own_and_leaves_the_old_one(caches):
    old, new = FakeEmbedder(), FakeEmbedder(model_id="newer", dimensions=32)
    before = await caches(embedder=old).open()
    await before.chat(QUESTION, ttl_s=100)
    after = await caches(embedder=new).open()

    assert len(await indexes(after)) == 2
    assert await after.lookup_semantic(QUESTION) is None
    assert (await after.chat(QUESTION)).status == "exact"
    assert await before.lookup_semantic(QUESTION) is not None
    entry = before._keys.entry(
        before._semantic.vectors.space,
        before._keys.digest((await before.lookup_exact(QUESTION)).key),
    )
    assert 0 < await after._connection.execute("TTL", entry) <= 100


async def test_index_made_with_other_settings_bypasses_the_semantic_layer(caches, events):
    cache = await caches().open()
    (index,) = await indexes(cache)
    prefix = cache._keys.entry_prefix(cache._semantic.vectors.space)
    schema = "vector VECTOR HNSW 6 TYPE FLOAT16 DIM 8 DISTANCE_METRIC COSINE scope TAG"
    await cache._connection.execute("FT.DROPINDEX", index)
    await cache._connection.execute(
        *("FT.CREATE", index, "ON", "HASH", "PREFIX", 1, prefix, "SCHEMA"), *schema.split()
    )

    reply = await caches().chat(OTHER)

    assert (reply.status, reply.reason) == ("bypass", "search")
    assert (await caches().chat(OTHER)).status == "exact"
