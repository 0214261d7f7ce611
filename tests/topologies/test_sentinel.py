"""Sentinels that name the master, and name another one when it is lost."""

import asyncio

import pytest

from llm_cache._redis.connection import Connection
from llm_cache.errors import StoreUnavailable
from tests.topologies.servers import HOST, SERVICE, Sentinels

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."


async def test_answers_go_to_the_master_that_the_sentinels_name(make_cache, sentinels):
    cache = make_cache(sentinels.url)

    reply = await cache.chat(QUESTION)

    assert sentinels.master().command("EXISTS", reply.key) == 1
    assert (await cache.chat(QUESTION)).status == "exact"


async def test_sentinels_that_are_away_are_passed_over(make_cache, sentinels):
    dead = f"redis+sentinel://{HOST}:1,{sentinels.sentinels[0].address}/{SERVICE}"

    assert (await make_cache(dead).chat(QUESTION)).status == "miss"


async def test_sentinel_that_stands_still_is_passed_over(make_cache, sentinels):
    sentinels.sentinels[0].pause()
    try:
        assert (await make_cache(sentinels.url).chat(QUESTION)).status == "miss"
    finally:
        sentinels.sentinels[0].resume()


async def test_service_that_nobody_watches_is_named(sentinels):
    address = sentinels.sentinels[0].address
    url = f"redis+sentinel://{address}/another"
    connection = Connection(url, max_connections=1, timeout_s=2)
    with pytest.raises(StoreUnavailable, match="another"):
        await connection.open()


async def test_master_that_is_told_to_step_down_is_left(make_cache, sentinels, upstream):
    cache = make_cache(sentinels.url)
    first = await cache.chat(QUESTION)
    await asyncio.to_thread(sentinels.fail_over)

    async with asyncio.timeout(20):
        while (await cache.chat(QUESTION)).status != "exact":
            pass

    assert sentinels.master().command("EXISTS", first.key) == 1


async def test_another_master_takes_over_and_calls_are_answered_meanwhile(make_cache, embedder):
    with await asyncio.to_thread(Sentinels) as sentinels:
        embedder.similar(QUESTION, REPHRASED, 0.97)
        cache = make_cache(sentinels.url, redis_timeout_s=0.5)
        first = await cache.chat(QUESTION)
        sentinels.master().kill()

        statuses: list[str] = []
        async with asyncio.timeout(30):
            while "exact" not in statuses[-1:]:
                reply = await cache.chat(QUESTION)
                assert reply.text == first.text
                statuses.append(reply.status)

        assert set(statuses[:-1]) <= {"bypass", "miss"}
        assert (await cache.chat(REPHRASED)).status == "semantic"
