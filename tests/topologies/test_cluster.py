"""A real cluster of three primaries: slots that move, primaries that are lost, searches of all."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import aclosing

import pytest
from redis.crc import key_slot

from llm_cache._core.keys import Keys
from llm_cache._redis.connection import Connection
from llm_cache._redis.reads import SplitReads, as_pair
from llm_cache._redis.shards import ShardedVectors
from llm_cache.errors import StoreTimeout, StoreUnavailable
from llm_cache.events import DependencyFailed, Event
from tests.topologies.servers import Cluster, Server

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."
PATIENCE_S = 0.5


@pytest.fixture
async def connection(cluster):
    connection = Connection(cluster.url, max_connections=5, timeout_s=PATIENCE_S)
    await connection.open()
    yield connection
    await connection.aclose()


@pytest.fixture
async def reads(connection, namespace):
    reads = SplitReads(connection, f"{namespace}:companion", as_pair)
    yield reads
    await reads.aclose()


@pytest.fixture
def cache(make_cache, cluster):
    return make_cache(cluster.url)


@pytest.fixture
def paused(cluster) -> Iterator[list[Server]]:
    """Servers that stand still until the end of the test."""
    servers: list[Server] = []
    yield servers
    for server in servers:
        server.resume()
    cluster.wait_until_whole()


def others_than(cluster: Cluster, *keys: str) -> Server:
    """Return a primary that has none of *keys*."""
    taken = [cluster.primary_of(key) for key in keys]
    return next(server for server in cluster.primaries() if server not in taken)


async def test_keys_of_all_primaries_are_read_at_the_same_time(connection, reads, namespace):
    keys = [f"{namespace}:{i}" for i in range(300)]
    await connection.execute_all([("SET", key, key) for key in keys])
    await connection.execute("SET", f"{namespace}:companion", "now")

    found = await asyncio.gather(*(reads.get(key) for key in keys * 2))

    assert found == [(key.encode(), b"now") for key in keys * 2]
    assert {connection.lane(key).name for key in keys} == {lane.name for lane in connection.lanes}


async def test_same_key_is_read_once_for_all_who_wait(cluster, reads, namespace):
    key = f"{namespace}:same"
    server = cluster.primary_of(key)
    server.command("CONFIG", "RESETSTAT")

    await asyncio.gather(*(reads.get(key) for _ in range(100)))

    companion = int(cluster.primary_of(f"{namespace}:companion") is server)
    assert server.info("commandstats")["cmdstat_get"]["calls"] <= 2 * (1 + companion)


async def test_reader_that_is_cancelled_takes_nobody_along(connection, reads, namespace):
    keys = [f"{namespace}:{i}" for i in range(20)]
    await connection.execute_all([("SET", key, key) for key in keys])
    readers = [asyncio.create_task(reads.get(key)) for key in keys]
    await asyncio.sleep(0)
    for reader in readers[::2]:
        reader.cancel()

    assert [value for value, _ in await asyncio.gather(*readers[1::2])] == [
        key.encode() for key in keys[1::2]
    ]


async def test_commands_of_one_call_keep_their_order_on_each_primary(connection, namespace):
    keys = [f"{namespace}:{i}" for i in range(30)]
    commands = [(*command, key) for key in keys for command in (("INCR",), ("INCR",), ("GET",))]

    answers = await connection.execute_all(commands)

    assert answers == [1, 2, b"2"] * 30


@pytest.mark.parametrize("finish", [True, False], ids=["moved", "half moved"])
async def test_answer_whose_slot_moves_is_hit_again_at_once(cache, cluster, upstream, finish):
    question = f"{QUESTION} {finish}"
    first = await cache.chat(question)
    target = others_than(cluster, first.key)
    slot = key_slot(first.key.encode())
    await asyncio.to_thread(cluster.move_slot, slot, target, finish=finish)

    again = [await cache.chat(question) for _ in range(3)]

    await asyncio.to_thread(cluster.finish_slot, slot, target)
    assert [reply.status for reply in again] == ["exact"] * 3
    assert upstream.calls == 1


async def test_rephrased_question_is_found_on_whichever_primary_it_is(cache, cluster, embedder):
    # So many that hardly ever one of three primaries has none of them.
    questions = [f"question {i}" for i in range(40)]
    for question in questions:
        embedder.similar(question, f"{question}, rephrased", 0.97)
    first = await asyncio.gather(*(cache.chat(question) for question in questions))

    again = [await cache.chat(f"{question}, rephrased") for question in questions]

    assert [reply.key for reply in again] == [reply.key for reply in first]
    assert {reply.status for reply in again} == {"semantic"}
    assert {cluster.primary_of(reply.key) for reply in first} == set(cluster.primaries())


async def test_every_primary_has_one_index_whoever_comes(make_cache, cluster, namespace):
    caches = [make_cache(cluster.url) for _ in range(4)]
    await asyncio.gather(*(cache.open() for cache in caches))

    for server in cluster.primaries():
        names = [name.decode() for name in server.command("FT._LIST")]
        assert len([name for name in names if name.startswith(f"{namespace}:idx:")]) == 1


async def test_index_whose_name_has_moved_away_is_replaced(cache, cluster, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.97)
    first = await cache.chat(QUESTION)
    index = next(
        name.decode()
        for name in cluster.primary_of(first.key).command("FT._LIST")
        if name.startswith(cache.config.namespace.encode())
    )
    target = others_than(cluster, first.key)
    await asyncio.to_thread(cluster.move_slot, key_slot(index.encode()), target)

    found = None
    async with asyncio.timeout(10):
        # The new index reads in the background what is there.
        while found is None:
            found = await cache.lookup_semantic(REPHRASED)

    assert found.key == first.key


async def test_lost_primary_is_the_trouble_of_its_own_callers(
    cluster, connection, reads, namespace, paused
):
    await connection.execute("SET", f"{namespace}:companion", "now")
    keys = [f"{namespace}:{i}" for i in range(60)]
    lost = others_than(cluster, f"{namespace}:companion")
    await connection.execute_all([("SET", key, key) for key in keys])
    paused.append(lost)
    lost.pause()

    found = await asyncio.gather(*(reads.get(key) for key in keys), return_exceptions=True)

    for key, answer in zip(keys, found, strict=True):
        if cluster_had(connection, key, lost):
            assert isinstance(answer, StoreTimeout)
        else:
            assert answer == (key.encode(), b"now")


def cluster_had(connection: Connection, key: str, server: Server) -> bool:
    return connection.lane(key).name == server.address


async def test_search_goes_on_without_a_primary_and_tells_so_once(
    cache, cluster, embedder, events, paused
):
    namespace = cache.config.namespace
    questions = {}
    for i in range(12):
        embedder.similar(f"old {i}", f"old {i}, rephrased", 0.97)
        reply = await cache.chat(f"old {i}")
        questions[f"old {i}, rephrased"] = cluster.primary_of(reply.key)
    control = cluster.primary_of(f"{namespace}:epoch")
    lost = next(server for server in cluster.primaries() if server is not control)
    vectors = cache._semantic.vectors
    places = {text: await cache._semantic.locate(text, "") for text in questions}
    scope = (await scopes(cluster, namespace)).pop()
    paused.append(lost)
    lost.pause()

    for text, server in questions.items():
        found = await vectors.nearest(scope, places[text].vector, limit=1)
        is_near = [candidate.similarity > 0.9 for candidate in found] == [True]
        assert is_near == (server is not lost)

    told = [event for event in events.events if isinstance(event, DependencyFailed)]
    assert [event.operation for event in told] == ["lookup_semantic"]


async def test_primary_that_has_lost_its_slots_meanwhile_is_left_out(
    connection, namespace, monkeypatch
):
    """Whoever was asked first for the slots may not have heard yet that a replica took over."""
    told: list[Event] = []
    before = connection.lanes
    vectors = ShardedVectors(
        connection, Keys(namespace), space="s" * 26, dimensions=8, tell=told.append
    )
    monkeypatch.setattr(vectors, "_lanes", lambda: before)
    lost = connection.lane("0")
    learned = connection._cluster
    monkeypatch.setattr(learned, "suspect", lambda: None)
    learned._slots = {at: lane for at, lane in learned._slots.items() if lane is not lost}
    learned._lanes = tuple(lane for lane in before if lane is not lost)

    async with aclosing(vectors):
        await vectors.ensure_index()

        # Others have them now, all of them: no number leads to this one.
        learned._slots = dict.fromkeys(range(16_384), learned._lanes[0])
        with pytest.raises(StoreUnavailable, match="no slots"):
            await vectors._part(lost)

    (failed,) = told
    assert isinstance(failed, DependencyFailed)
    assert str(failed.error) == f"{lost.name} has no slots any more"
    assert set(vectors._parts) == {*before} - {lost}


async def test_searches_of_one_moment_share_a_connection_to_each_primary(connection, namespace):
    vectors = ShardedVectors(connection, Keys(namespace), space="s" * 26, dimensions=8)
    async with aclosing(vectors):
        for lane in connection.lanes:
            parts = await asyncio.gather(*(vectors._part(lane) for _ in range(10)))
            assert len(set(parts)) == 1
            assert vectors._parts[lane] is parts[0]


async def scopes(cluster: Cluster, namespace: str) -> set[str]:
    """Return the scopes of the entries of a namespace."""
    found = set()
    for server in cluster.primaries():
        for key in server.command("KEYS", f"{namespace}:s:*"):
            found.add(server.command("HGET", key, "scope").decode())
    return found


async def test_cache_is_opened_although_a_primary_is_lost(make_cache, cluster, namespace, paused):
    control = {cluster.primary_of(f"{namespace}:{key}") for key in ("epoch", "purges")}
    lost = next(server for server in cluster.primaries() if server not in control)
    paused.append(lost)
    lost.pause()
    cache = make_cache(cluster.url, redis_timeout_s=PATIENCE_S)

    answers: dict[str, str | None] = {}
    status = ""
    async with asyncio.timeout(30):
        for question in itertools.cycle(f"{QUESTION} {i}" for i in range(6)):
            text, status = await cache.chat(question)
            assert answers.setdefault(question, text) == text
            if status == "exact":
                break

    assert status == "exact"


async def test_invalidation_reaches_answers_on_every_primary(cache):
    questions = [f"tagged {i}" for i in range(12)]
    await asyncio.gather(*(cache.chat(question, tags=["old"]) for question in questions))

    counted = await cache.invalidate(tag="old", dry_run=True)
    await cache.invalidate(tag="old")

    assert counted.reached == 12
    assert {(await cache.chat(question)).status for question in questions} == {"miss"}


async def test_node_of_a_cluster_is_not_taken_for_a_server(cluster, namespace):
    connection = Connection(f"redis://{cluster.first[0].address}", max_connections=1, timeout_s=1)
    await connection.open()
    key = next(
        f"{namespace}:{i}"
        for i in range(100)
        if cluster.primary_of(f"{namespace}:{i}") is not cluster.first[0]
    )
    with pytest.raises(StoreUnavailable, match=r"redis\+cluster://"):
        await connection.execute("GET", key)
    await connection.aclose()


async def test_replica_takes_over_and_calls_are_answered_meanwhile(make_cache, upstream):
    with Cluster(3, replicas=1) as cluster:
        cache = make_cache(cluster.url, redis_timeout_s=PATIENCE_S)
        first = await cache.chat(QUESTION)
        cluster.primary_of(first.key).kill()

        statuses: list[str] = []
        async with asyncio.timeout(20):
            while "exact" not in statuses[-1:]:
                reply = await cache.chat(QUESTION)
                assert reply.text == first.text
                statuses.append(reply.status)

        assert set(statuses[:-1]) <= {"bypass", "miss"}
