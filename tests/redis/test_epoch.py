"""What is lost or invalidated never comes back."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from llm_cache._core.targets import Kind, target
from llm_cache._deadline import now_s
from llm_cache._redis.epoch import Epochs
from llm_cache._redis.exact import ExactStore
from llm_cache._redis.sliding import Sliding
from llm_cache.errors import StoreTimeout
from llm_cache.testing import FakeClock

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."


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


async def test_reading_goes_on_although_its_callers_have_no_time_for_it(epochs, monkeypatch):
    read, may_read = epochs._read, asyncio.Event()

    async def late() -> Any:
        await may_read.wait()
        return await read()

    monkeypatch.setattr(epochs, "_read", late)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(epochs.current(None), 0.01)
    may_read.set()
    await epochs._reading.settle()
    assert epochs.known(epochs._epoch) is not None


async def test_reading_under_way_is_given_up_at_closing(epochs, monkeypatch):
    monkeypatch.setattr(epochs, "_read", asyncio.Event().wait)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(epochs.current(None), 0.01)
    before = asyncio.all_tasks()
    await epochs.aclose()
    assert len(asyncio.all_tasks()) == len(before) - 1


async def test_call_that_this_process_has_kept_waiting_may_still_read_the_table(connection, keys):
    sliding = Sliding(connection, keys, spaces=list)
    exact = ExactStore(connection, keys, Epochs(connection, keys), sliding, timeout_s=0.2)
    # The event loop has stood still for a while since the call began.
    found = await exact.lookup("digest", since_s=now_s() - 5)
    assert found.entry is None
    await exact.aclose()


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
        assert epochs.known(seen) is not None
        await epochs._reading.settle()
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


async def test_read_that_has_just_ended_is_not_enough_for_a_newer_epoch(epochs, monkeypatch):
    old = await epochs.current(None)
    new = await epochs.purge(["all"])
    read = epochs._read
    has_old = False

    async def first_the_old_one() -> Any:
        nonlocal has_old
        if has_old:
            return await read()
        has_old = True
        return old

    monkeypatch.setattr(epochs, "_read", first_the_old_one)
    reading = epochs._reading.begin()
    await asyncio.sleep(0)
    # Done, in this very turn of the loop, in which nobody has heard of it yet.
    assert reading.done()
    assert (await epochs.current(new.encode())).epoch == new


async def test_table_that_went_back_has_forgotten_and_everything_older_is_dead(
    make_cache, redis, namespace
):
    """A replica takes over that had not heard of the last invalidation."""
    cache = make_cache()
    clock = FakeClock()
    cache._epochs._clock = clock
    await cache.chat(QUESTION, tags=["old"])
    names = [key async for key in redis.scan_iter(f"{namespace}:*")]
    backup = {name: await redis.dump(name) for name in names}
    await cache.invalidate(tag="old")
    assert await cache.lookup_exact(QUESTION) is None
    for name, dump in backup.items():
        await redis.restore(name, 100_000, dump, replace=True)

    assert await cache.lookup_exact(QUESTION) is None
    clock.advance(11)
    assert await cache.lookup_exact(QUESTION) is None
    for worker in (cache, make_cache()):
        assert await worker.lookup_exact(QUESTION) is None
    assert (await cache.chat(QUESTION)).status == "miss"
    assert (await make_cache().chat(QUESTION)).status == "exact"


async def test_reads_of_a_table_that_moves_are_not_taken_for_one_that_went_back(
    connection, keys, redis
):
    clients = [Epochs(connection, keys) for _ in range(5)]
    born = (await clients[0].current(None)).born
    for _ in range(20):
        await asyncio.gather(
            clients[0].purge([target(Kind.ALL)]),
            *(client.current(None) for client in clients),
            *(client.prune() for client in clients),
        )
    assert {(await client.current(None)).born for client in clients} == {born}


async def test_lines_are_kept_for_as_long_as_an_answer_may_live_that_they_reach(
    epochs, redis, keys
):
    await epochs.current(None)
    await epochs.remember_for(3_600_000)
    seconds, micros = await redis.time()

    def moment(ago_s: float) -> str:
        return f"{round((seconds - ago_s) * 1e6 + micros):016x}" + "0" * 16

    # Rounded up to a power of two, and a day for requests that are under way.
    kept_s = (1 << (3_600_000 - 1).bit_length()) / 1000 + 86_400
    lines = {
        target(Kind.KEY, "young"): moment(kept_s - 60),
        target(Kind.KEY, "old"): moment(kept_s + 60),
        target(Kind.AGE, tenant_id="young"): str(seconds - kept_s + 60),
        target(Kind.AGE, tenant_id="old"): str(seconds - kept_s - 60),
        target(Kind.PATTERN, "old*"): moment(kept_s + 60),
    }
    await redis.hset(keys.purges, mapping={f":{name}": value for name, value in lines.items()})

    assert await epochs.prune() == 3
    left = (await epochs.current(None)).tokens
    assert set(left) == {target(Kind.KEY, "young"), target(Kind.AGE, tenant_id="young")}


async def test_table_that_does_not_know_how_long_answers_live_is_kept(epochs, redis, keys):
    await epochs.purge([target(Kind.ALL)])
    await redis.hset(keys.purges, ":" + target(Kind.TAG, "t"), "0" * 32)
    assert await epochs.prune() == 0


async def test_younger_age_never_takes_the_place_of_an_older_one(epochs):
    line = target(Kind.AGE)
    for before_s in (100.5, 50.0, 200.25, 7.0):
        await epochs.purge([line], before_s=before_s)
    assert (await epochs.current(None)).tokens[line] == "200.25"


async def test_longest_lifetime_outlives_the_rest_of_the_table(epochs, redis, keys):
    await epochs.remember_for(5_000)
    await redis.delete(keys.epoch)
    await epochs.current(None)
    assert int(await redis.hget(keys.purges, "longest")) == 8_192


async def test_a_table_that_went_back_without_its_epoch_has_forgotten_too(
    make_cache, redis, namespace, keys
):
    """On a cluster the two may be on two primaries, of which one fails over."""
    cache = make_cache()
    await cache.chat(QUESTION, tags=["old"])
    backup = await redis.dump(f"{namespace}:purges")
    await cache.invalidate(tag="old")
    await redis.restore(f"{namespace}:purges", 0, backup, replace=True)

    assert await make_cache().lookup_exact(QUESTION) is None
    assert await make_cache().lookup_exact(QUESTION) is None
    assert (await make_cache().chat(QUESTION)).status == "miss"
    assert (await make_cache().chat(QUESTION)).status == "exact"


async def test_a_table_begun_anew_on_a_clock_that_is_behind_is_later_than_its_epoch(
    connection, keys, redis
):
    ahead = f"{2**52:016x}{0:016x}"
    await redis.set(keys.epoch, ahead)
    purges = await Epochs(connection, keys).current(None)
    assert purges.born > ahead
    assert (await redis.get(keys.epoch)).decode() == purges.epoch
    assert (await Epochs(connection, keys).current(None)).born == purges.born


async def test_a_server_that_took_over_without_the_last_invalidation_is_found_out_soon(
    connection, keys, redis
):
    clock = FakeClock()
    epochs = Epochs(connection, keys, clock=clock)
    before = await epochs.current(None)
    backup = {key: await redis.dump(key) for key in (keys.epoch, keys.purges)}
    await epochs.purge([target(Kind.ALL)])
    after = await epochs.current(await redis.get(keys.epoch))
    for key, dump in backup.items():
        await redis.restore(key, 0, dump, replace=True)

    assert await epochs.current(before.epoch.encode()) == after
    clock.advance(1)
    assert (await epochs.current(before.epoch.encode())).born > after.epoch


@pytest.mark.parametrize("damaged", ["", "0" * 32, "f" * 32])
async def test_a_reply_that_was_damaged_once_makes_nothing_forgotten(
    connection, keys, monkeypatch, damaged
):
    epochs = Epochs(connection, keys)
    born = (await epochs.current(None)).born
    whole = epochs._seen
    readings = []

    async def seen():
        readings.append(await whole())
        return (damaged, readings[-1][1]) if len(readings) == 1 else readings[-1]

    monkeypatch.setattr(epochs, "_seen", seen)
    assert (await epochs._refresh()).born == born
    assert len(readings) == 2
