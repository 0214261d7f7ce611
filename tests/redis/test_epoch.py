"""What is lost or invalidated never comes back."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from llm_cache._core.keys import Keys
from llm_cache._core.targets import Kind, target
from llm_cache._redis.connection import Connection
from llm_cache._redis.epoch import Epochs
from llm_cache.errors import StoreTimeout
from llm_cache.testing import FakeClock

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."


@pytest.fixture
async def connection(redis_url):
    connection = Connection(redis_url, max_connections=5, timeout_s=5)
    await connection.open()
    yield connection
    await connection.aclose()


@pytest.fixture
def keys(namespace):
    return Keys(namespace)


@pytest.fixture
def epochs(connection, keys):
    return Epochs(connection, keys)


@pytest.mark.parametrize("lost", [["epoch"], ["purges"], ["epoch", "purges"]])
async def test_nothing_older_is_served_once_the_epoch_or_the_table_is_lost(
    make_cache, redis, namespace, embedder, lost
):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await make_cache().chat(QUESTION)
    await redis.delete(*(f"{namespace}:{name}" for name in lost))

    cache = make_cache()
    assert await cache.lookup_exact(QUESTION) is None
    assert await cache.lookup_semantic(REPHRASED) is None
    assert (await cache.chat(QUESTION)).status == "miss"
    assert (await cache.chat(QUESTION)).status == "exact"


async def test_client_that_knows_the_epoch_notices_its_loss_at_once(cache, redis, namespace):
    await cache.chat(QUESTION)
    await redis.delete(f"{namespace}:epoch")

    assert (await cache.chat(QUESTION)).status == "miss"


async def test_tokens_grow_and_cannot_be_guessed(epochs):
    tokens = [await epochs.purge(["all"]) for _ in range(20)]
    assert tokens == sorted(set(tokens))
    assert len({token[16:] for token in tokens}) == 20
    assert all(len(token) == 32 for token in tokens)


async def test_tokens_grow_although_the_clock_goes_back(epochs, redis, keys):
    far_ahead = "00ffffffffffffff" + "0" * 16
    await redis.hset(keys.purges, mapping={"epoch": far_ahead, "born": far_ahead})

    assert await epochs.purge(["all"]) > far_ahead


async def test_epoch_never_goes_back(epochs, redis, keys):
    later = "f" * 32
    await redis.set(keys.epoch, later)
    await epochs.purge(["all"])

    assert (await redis.get(keys.epoch)).decode() == later


@pytest.mark.parametrize(
    "target",
    [
        target(Kind.ALL),
        target(Kind.MODEL, "m"),
        target(Kind.ALL, tenant_id="acme"),
        target(Kind.TAG, "profiles"),
    ],
)
async def test_purged_target_is_dead_in_every_client(make_cache, target):
    mine, other = make_cache(model="m"), make_cache(model="m")
    options = {"tenant": "acme", "tags": ["profiles"]}
    await mine.chat(QUESTION, **options)
    assert (await other.chat(QUESTION, **options)).status == "exact"

    await mine._epochs.purge([target])

    assert (await other.chat(QUESTION, **options)).status == "miss"
    assert (await mine.chat(QUESTION, **options)).status == "exact"


async def test_purge_of_something_else_leaves_it_alive(make_cache):
    cache = make_cache()
    await cache.chat(QUESTION, tags=["a"])
    others = [target(Kind.TAG, "b"), target(Kind.ALL, tenant_id="x"), target(Kind.MODEL, "y")]
    await cache._epochs.purge(others)

    assert (await cache.chat(QUESTION, tags=["a"])).status == "exact"


async def test_answer_that_was_under_way_while_its_target_was_purged_is_not_served(
    make_cache, upstream
):
    upstream.hold()
    cache = make_cache()
    asked = asyncio.create_task(cache.chat(QUESTION))
    await upstream.called()
    await cache._epochs.purge([target(Kind.ALL)])
    upstream.answer("made of old documents")
    await asked

    assert await cache.lookup_exact(QUESTION) is None


async def test_table_is_read_again_now_and_then(connection, keys, redis):
    clock = FakeClock()
    epochs = Epochs(connection, keys, clock=clock)
    seen = (await epochs.purge([])).encode()
    await epochs.current(seen)
    await redis.config_resetstat()

    async def reads() -> int:
        await epochs.current(seen)
        stats = await redis.info("commandstats")
        return int(stats.get("cmdstat_hgetall", {}).get("calls", 0))

    clock.advance(9.9)
    assert await reads() == 0
    clock.advance(0.2)
    assert await reads() == 1


async def test_callers_share_one_read_and_its_failure(epochs, connection):
    reads = 0

    async def time_out(operation: Coroutine[Any, Any, Any]) -> None:
        nonlocal reads
        reads += 1
        operation.close()
        raise StoreTimeout("no answer")

    connection.run = time_out
    ends = await asyncio.gather(*(epochs.current(None) for _ in range(6)), return_exceptions=True)

    assert [type(end) for end in ends] == [StoreTimeout] * 6
    assert reads == 1
    with pytest.raises(StoreTimeout):
        await epochs.current(None)
    assert reads == 2


async def test_read_that_was_under_way_is_not_enough_for_a_newer_epoch(epochs, connection):
    old = await epochs.purge(["all"])
    has_read, go_on = asyncio.Event(), asyncio.Event()
    run = connection.run

    async def hold(operation: Coroutine[Any, Any, Any]) -> Any:
        connection.run = run
        value = await run(operation)
        has_read.set()
        await go_on.wait()
        return value

    connection.run = hold
    early = asyncio.create_task(epochs.current(None))
    await has_read.wait()
    new = await epochs.purge(["all"])
    late = asyncio.create_task(epochs.current(new.encode()))
    go_on.set()

    assert (await early).epoch == old
    assert (await late).epoch == new
