"""Redis is told of hits in batches, and lets nothing live longer than it may."""

import time

import pytest

from llm_cache._redis.sliding import Sliding
from llm_cache.errors import StoreError, StoreUnavailable
from llm_cache.testing import FakeClock

SPACE = "space"
DIGEST = "d" * 28


@pytest.fixture
def clock():
    return FakeClock(time.time())


@pytest.fixture
async def sliding(connection, keys, clock):
    sliding = Sliding(connection, keys, spaces=lambda: [SPACE], clock=clock, pause_s=0)
    yield sliding
    await sliding.aclose()


async def test_all_keys_of_an_answer_live_on_together(sliding, put, redis, keys, clock):
    await put(DIGEST, ttl_s=10)
    await redis.sadd(keys.refs(DIGEST), "x")
    await redis.expire(keys.refs(DIGEST), 10)
    sliding.prolong(DIGEST, clock() + 1_000, ttl_s=100)
    await sliding._tell()
    names = (keys.answer(DIGEST), keys.refs(DIGEST), keys.entry(SPACE, DIGEST))
    assert len({await redis.pexpiretime(name) for name in names}) == 1
    assert 95 < await redis.ttl(keys.answer(DIGEST)) <= 100


@pytest.mark.parametrize(("end_s", "expected_s"), [(50, 50), (5, 10)])
async def test_life_ends_where_it_must_and_is_never_shortened(
    sliding, put, *, redis, keys, clock, end_s, expected_s
):
    await put(DIGEST, ttl_s=10)
    sliding.prolong(DIGEST, clock() + end_s, ttl_s=100)
    await sliding._tell()
    assert expected_s - 3 < await redis.pttl(keys.answer(DIGEST)) / 1000 <= expected_s


async def test_what_is_gone_is_not_brought_back(sliding, redis, keys, clock):
    sliding.prolong(DIGEST, clock() + 1_000, ttl_s=100)
    await sliding._tell()
    assert not await redis.exists(keys.answer(DIGEST))


async def test_many_hits_travel_together(sliding, redis, clock):
    await redis.config_resetstat()
    for number in range(1_200):
        for _ in range(3):
            sliding.prolong(f"{number:028}", clock() + 1_000, ttl_s=100)
    await sliding.aclose()
    stats = await redis.info("commandstats")
    assert stats["cmdstat_pexpireat"]["calls"] == 3 * 1_200


async def test_outage_is_told_and_harms_nobody(connection, keys, clock):
    told: list[StoreError] = []
    sliding = Sliding(connection, keys, spaces=list, clock=clock, failed=told.append)

    async def fail(operation):
        operation.close()
        raise StoreUnavailable("down")

    connection.run = fail
    sliding.prolong(DIGEST, clock() + 1_000, ttl_s=100)
    await sliding.aclose()
    assert [str(error) for error in told] == ["down"]
