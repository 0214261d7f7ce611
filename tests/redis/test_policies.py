"""Calibrated policies in Redis."""

import pytest

from llm_cache._core.keys import Keys
from llm_cache._core.policy_file import encode
from llm_cache._redis.connection import Connection
from llm_cache._redis.policies import PolicyStore
from llm_cache.errors import UnusablePolicy
from tests.core.test_policy_file import STORED, altered


@pytest.fixture
async def connection(redis_url):
    connection = Connection(redis_url, max_connections=2, timeout_s=2.0)
    await connection.open()
    yield connection
    await connection.aclose()


@pytest.fixture
def store(connection, namespace):
    return PolicyStore(connection, Keys(namespace), space=STORED.space)


async def test_all_workers_load_what_one_has_saved(connection, namespace, store):
    await store.save(STORED)
    other = PolicyStore(connection, Keys(namespace), space=STORED.space)
    assert (await other.load()).of(None) == STORED
    assert (await other.load()).of("anybody") == STORED


async def test_without_a_policy_there_is_none(store):
    assert (await store.load()).of(None) is None


async def test_a_tenant_may_have_a_policy_of_its_own(store):
    await store.save(STORED, tenants=["acme", "globex"])
    policies = await store.load()
    assert policies.of("acme") == policies.of("globex") == STORED
    assert policies.of("initech") is None
    assert policies.of(None) is None


async def test_no_tenant_is_called_everybody(store):
    await store.save(STORED, tenants=["*"])
    assert (await store.load()).of(None) is None


async def test_another_embedder_finds_no_policy(connection, namespace, store):
    await store.save(STORED)
    other = PolicyStore(connection, Keys(namespace), space="another")
    assert (await other.load()).of(None) is None
    with pytest.raises(UnusablePolicy):
        await other.save(STORED)


async def test_an_unusable_policy_is_not_replaced_by_a_looser_rule(namespace, redis, store):
    await redis.hset(Keys(namespace).policy(STORED.space), "*", altered(version=99))
    policies = await store.load()
    with pytest.raises(UnusablePolicy, match="update"):
        policies.of(None)


async def test_an_unusable_policy_of_a_tenant_does_not_fall_back(namespace, redis, store):
    await store.save(STORED)
    key = Keys(namespace).policy(STORED.space)
    await redis.hset(key, "tenant:acme", encode(STORED)[:100])
    policies = await store.load()
    with pytest.raises(UnusablePolicy):
        policies.of("acme")
    assert policies.of("globex") == STORED


async def test_a_policy_can_be_removed(store):
    await store.save(STORED)
    assert await store.remove() == 1
    assert await store.remove() == 0
    assert (await store.load()).of(None) is None
