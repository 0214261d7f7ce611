"""The index and its two plans."""

import asyncio

import numpy as np
import pytest

from llm_cache._core.kept import Kept
from llm_cache._core.keys import Keys
from llm_cache._core.vectors import check_vectors, salted_blob
from llm_cache._redis import sizes
from llm_cache._redis import vectors as module
from llm_cache._redis.connection import Connection
from llm_cache._redis.lease import Script
from llm_cache._redis.vectors import Gone, VectorStore, forget_gone
from llm_cache.errors import StoreUnavailable
from llm_cache.testing import FakeClock

DIMENSIONS = 32


@pytest.fixture
async def connection(redis_url):
    connection = Connection(redis_url, max_connections=5, timeout_s=10)
    await connection.open()
    yield connection
    await connection.aclose()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
async def store(connection, namespace, clock):
    store = VectorStore(connection, Keys(namespace), space="s", dimensions=DIMENSIONS, clock=clock)
    await store.ensure_index()
    yield store
    await store.aclose()


def unit(seed: int, count: int = 1) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, DIMENSIONS))
    return check_vectors(rows, count=count, dimensions=DIMENSIONS, model_id="e")


async def fill(connection, store, scope: str, rows: np.ndarray, ttl_ms: int = 60_000) -> None:
    pipeline = connection.client.pipeline(transaction=False)
    for i, row in enumerate(rows):
        digest = f"{scope}{i}".ljust(32, "x")
        key, fields = store.entry(
            digest=digest, scope=scope, vector=row, kept=Kept(f"{scope} {i}")
        )
        pipeline.hset(key, items=fields)
        pipeline.pexpire(key, ttl_ms)
    await pipeline.execute()


@pytest.fixture
def sent(store, monkeypatch):
    """What the store sends to Redis, one list for each round trip."""
    execute_all, trips = store.line.execute_all, []

    async def note(*commands):
        trips.append(commands)
        return await execute_all(*commands)

    monkeypatch.setattr(store.line, "execute_all", note)
    return trips


def shapes(trips) -> list[list[str]]:
    """Return what was asked in each round trip: a search by its plan, or a count."""
    names = {"FT.INFO": "count", "FT.AGGREGATE": "count"}
    return [
        [names.get(c[0]) or ("exact" if c[2].startswith("@") else "graph") for c in commands]
        for commands in trips
    ]


async def test_nearest_come_first_and_only_from_their_scope(connection, store):
    rows = unit(1, 8)
    await fill(connection, store, "a", rows)
    await fill(connection, store, "b", rows)

    found = await store.nearest("a", rows[3], limit=4)

    assert found[0].prompt == "a 3"
    assert found[0].similarity == pytest.approx(1, abs=0.0003)
    assert all(candidate.prompt.startswith("a ") for candidate in found)
    similarities = [candidate.similarity for candidate in found]
    assert similarities == sorted(similarities, reverse=True)


async def test_both_plans_agree(connection, store, monkeypatch, clock):
    rows = unit(2, 50)
    for scope in ("a", "b", "c"):
        await fill(connection, store, scope, rows)
    exact = await store.nearest("b", rows[7], limit=1)

    monkeypatch.setattr(sizes, "small_scope", lambda _: 10)
    clock.advance(61)
    await store.nearest("b", rows[7], limit=1)
    await store.nearest("b", rows[7], limit=1)
    graph = await store.nearest("b", rows[7], limit=1)

    assert [c.key for c in exact] == [c.key for c in graph]


async def test_known_scope_costs_one_round_trip_and_the_first_search_one_more(store, sent):
    for _ in range(3):
        await store.nearest("a", unit(1)[0], limit=4)

    assert shapes(sent) == [["count", "count"], ["exact"], ["exact"], ["exact"]]


async def test_small_index_is_asked_once_for_all_scopes(store, sent):
    for scope in "abc":
        await store.nearest(scope, unit(1)[0], limit=4)

    assert shapes(sent) == [["count", "count"], ["exact"], ["exact"], ["exact"]]


async def test_scope_of_a_large_index_is_asked_for_by_itself(connection, store, sent, monkeypatch):
    monkeypatch.setattr(sizes, "small_scope", lambda _: 10)
    await fill(connection, store, "a", unit(3, 11))

    await store.nearest("a", unit(1)[0], limit=4)
    await store.nearest("b", unit(1)[0], limit=4)

    assert shapes(sent) == [["count", "count"], ["graph"], ["count"], ["exact"]]


async def test_search_of_a_graph_looks_as_wide_as_its_index_is_large(
    connection, store, sent, monkeypatch
):
    monkeypatch.setattr(sizes, "small_scope", lambda _: 10)
    monkeypatch.setattr(sizes, "ef_runtime", lambda entries: 1000 + entries)
    await fill(connection, store, "a", unit(3, 11))
    await fill(connection, store, "b", unit(4, 5))

    await store.nearest("a", unit(1)[0], limit=4)

    assert "EF_RUNTIME 1016 " in sent[-1][0][2]


@pytest.mark.parametrize(
    ("entries", "ef"),
    [(0, 20), (10_000, 20), (40_000, 35), (100_000, 50), (1_000_000, 126), (10**8, 400)],
)
def test_width_of_a_search_grows_with_the_graph(entries, ef):
    assert sizes.ef_runtime(entries) == ef


@pytest.mark.parametrize(
    ("entries", "small"), [(0, 500), (3_000, 500), (10_000, 800), (10**6, 8_000)]
)
def test_larger_scopes_are_small_in_a_larger_index(entries, small):
    assert sizes.small_scope(entries) == small


async def test_scope_grown_large_is_noticed_beside_a_search_within_a_minute(
    connection, store, sent, monkeypatch, clock
):
    monkeypatch.setattr(sizes, "small_scope", lambda _: 10)
    await fill(connection, store, "a", unit(3, 10))
    await store.nearest("a", unit(1)[0], limit=4)
    await fill(connection, store, "a", unit(4, 11))
    sent.clear()
    clock.advance(60)
    await store.nearest("a", unit(1)[0], limit=4)
    clock.advance(1)
    for _ in range(2):
        await store.nearest("a", unit(1)[0], limit=4)

    assert shapes(sent) == [["exact"], ["exact", "count", "count"], ["graph"]]


async def test_size_that_is_old_is_asked_for_by_one_of_many_searches(store, sent, clock):
    await store.nearest("a", unit(1)[0], limit=4)
    clock.advance(61)
    sent.clear()

    await asyncio.gather(*(store.nearest("a", unit(1)[0], limit=4) for _ in range(5)))

    counts = [shape for shape in shapes(sent) if "count" in shape]
    assert counts == [["exact", "count", "count"]]


async def test_unknown_scope_has_no_neighbours(store):
    assert await store.nearest("nobody", unit(5)[0], limit=4) == []


async def test_expired_entries_are_no_candidates(connection, store):
    row = unit(6)
    await fill(connection, store, "a", row, ttl_ms=1)
    while await connection.client.exists("t:gone"):
        pass
    await asyncio.sleep(0.01)

    assert await store.nearest("a", row[0], limit=4) == []


async def test_index_is_made_once_by_any_number_of_workers(connection, namespace):
    stores = [
        VectorStore(connection, Keys(namespace), space="many", dimensions=8) for _ in range(8)
    ]
    await asyncio.gather(*(store.ensure_index() for store in stores))
    await asyncio.gather(*(store.aclose() for store in stores))


@pytest.mark.parametrize("dimensions", [0, -1, 32_769])
def test_dimensions_have_limits(connection, namespace, dimensions):
    with pytest.raises(ValueError, match="dimensions"):
        VectorStore(connection, Keys(namespace), space="s", dimensions=dimensions)


@pytest.fixture
def reader():
    nowhere = Connection("redis://nowhere", max_connections=1, timeout_s=1)
    return VectorStore(nowhere, Keys("n"), space="f", dimensions=DIMENSIONS)


REPLY = [1, b"n:s:f:{aa}:0", [b"scope", b"s", b"distance", b"0.25", b"prompt", b"p"]]


def test_reply_is_read(reader):
    (candidate,) = reader._candidates(REPLY, "s")
    assert (candidate.digest, candidate.prompt, candidate.similarity) == ("aa", "p", 0.75)


def test_row_of_another_scope_is_dropped(reader):
    assert reader._candidates(REPLY, "t") == []


@pytest.mark.parametrize("reply", [[1, b"n:s:f:{aa}:0", None], [1, b"n:s:f:{aa}:0", []], [0]])
def test_row_that_expired_meanwhile_is_no_candidate(reader, reply):
    assert reader._candidates(reply, "s") == []


@pytest.mark.parametrize("info", [[b"num_docs", b"-1"], [b"num_docs", b"many"], [], None])
def test_what_tells_no_number_of_entries_leaves_what_was_known(info):
    known = sizes.Sizes(clock=FakeClock())
    known.learn(None, [b"num_docs", b"1000000"])
    with pytest.raises(StoreUnavailable, match=r"FT\.INFO"):
        known.learn(None, info)
    assert known.ef_runtime == sizes.ef_runtime(1_000_000)
    assert known.unknown("scope") == ("scope",)


@pytest.mark.parametrize(
    ("key", "distance"),
    [
        (b"m:s:f:{aa}:0", b"0.25"),
        (b"n:s:g:{aa}:0", b"0.25"),
        (b"n:s:f:{aa}:1", b"0.25"),
        (b"n:s:f:{aa}:0", b"nan"),
        (b"n:s:f:{aa}:0", b"-inf"),
        (b"n:s:f:{aa}:0", b"-0.02"),
        (b"n:s:f:{aa}:0", b"2.02"),
    ],
)
def test_row_that_cannot_be_ours_is_no_candidate(reader, key, distance):
    assert reader._candidates([1, key, [b"scope", b"s", b"distance", distance]], "s") == []


OF_NO_KEY = [1, 2, [b"scope", b"s", b"distance", b"0.1"]]


@pytest.mark.parametrize("reply", [7, {}, [1, b"n:s:f:{aa}:0"], OF_NO_KEY])
def test_reply_to_something_else_is_an_error_of_ours(reader, reply):
    with pytest.raises(StoreUnavailable, match="something else"):
        reader._candidates(reply, "s")


def test_rows_in_any_order_are_sorted(reader):
    def row(key: bytes, distance: bytes) -> list[object]:
        return [key, [b"scope", b"s", b"distance", distance, b"prompt", b"p"]]

    reply = [2, *row(b"n:s:f:{far}:0", b"0.4"), *row(b"n:s:f:{near}:0", b"0.1")]
    assert [c.digest for c in reader._candidates(reply, "s")] == ["near", "far"]


@pytest.mark.parametrize("size_is_known", [False, True])
async def test_index_that_was_lost_is_made_anew_and_is_empty(
    connection, store, redis, size_is_known
):
    rows = unit(1, 2)
    if size_is_known:
        await store.nearest("s", rows[0], limit=4)
    await redis.execute_command("FT.DROPINDEX", store.index)

    assert await store.nearest("s", rows[0], limit=4) == []
    await fill(connection, store, "s", rows)
    assert len(await store.nearest("s", rows[0], limit=4)) == 2


async def test_lost_index_counts_nothing_and_is_made_anew(store, redis):
    await redis.execute_command("FT.DROPINDEX", store.index)

    assert await store.count() == 0
    assert store.index.encode() in await redis.execute_command("FT._LIST")


@pytest.mark.parametrize(
    "answer",
    [
        "i: no such index",
        "i: No such index i",
        "Unknown index name",
        "Unknown Index name",
        "SEARCH_INDEX_NOT_FOUND Index not found: i",
    ],
)
async def test_loss_of_the_index_is_told_in_many_words(connection, store, monkeypatch, answer):
    execute_all = store.line.execute_all

    async def lose(*commands):
        if commands[0][0] == "FT.CREATE":
            return await execute_all(*commands)
        raise StoreUnavailable(f"Redis answered: {answer}")

    monkeypatch.setattr(store.line, "execute_all", lose)
    assert await store.nearest("s", unit(1)[0], limit=4) == []


async def test_other_trouble_of_a_search_is_raised(connection, store, monkeypatch):
    async def refuse(*_: object) -> None:
        raise StoreUnavailable("Redis answered: OOM command not allowed")

    monkeypatch.setattr(store.line, "execute_all", refuse)
    with pytest.raises(StoreUnavailable, match="OOM"):
        await store.nearest("s", unit(1)[0], limit=4)


# ---------------------------------------------------------------------------- the answer beside it

ASKED = "asked".ljust(32, "x")


async def found_with(store, vector: np.ndarray, *, scope: str = "a", least: float = 0.9):
    return await store.nearest_and_answer(
        scope, vector, limit=4, asked=ASKED, least_similarity=least
    )


@pytest.fixture
async def answered(connection, store, redis, namespace):
    """Entries of two scopes, and the answers that they lead to."""
    keys, rows = Keys(namespace), unit(3, 4)
    for scope in ("a", "b"):
        await fill(connection, store, scope, rows)
        for i in range(len(rows)):
            await redis.set(keys.answer(f"{scope}{i}".ljust(32, "x")), f"{scope}{i}", px=50_000)
    await redis.set(keys.epoch, "now")
    return rows


async def test_answer_of_the_nearest_comes_with_the_search(
    store, answered, sent, redis, namespace
):
    digest = "a2".ljust(32, "x")
    await redis.zadd(Keys(namespace).rejected, {f"{ASKED}:{digest}": 7})
    await found_with(store, answered[2])
    sent.clear()
    candidates, read = await found_with(store, answered[2])

    assert len(sent) == 1
    assert candidates == await store.nearest("a", answered[2], limit=4)
    assert read.digest == candidates[0].digest == digest
    blob, epoch, left_ms, rejected = read.values
    assert (blob, epoch, float(rejected)) == (b"a2", b"now", 7)
    assert 0 < left_ms <= 50_000


async def test_answer_of_what_is_not_near_stays_where_it_is(store, answered):
    candidates, read = await found_with(store, unit(99)[0])
    assert len(candidates) == 4
    assert read is None


async def test_search_that_finds_nothing_reads_nothing(store, answered):
    assert await found_with(store, answered[0], scope="nobody") == ([], None)


async def test_answer_of_another_scope_is_not_read(store, answered, monkeypatch):
    """A search through the graph may find what is next to nothing of its own scope."""
    monkeypatch.setattr(module, "_EXACT", "@scope:{{b}}=>[KNN {limit} @vector $v AS distance]")
    monkeypatch.setattr(module, "salted_blob", lambda vector, _: salted_blob(vector, "b"))
    assert await found_with(store, answered[0]) == ([], None)


async def test_answer_that_is_gone_is_read_as_gone(store, answered, redis, namespace):
    await redis.delete(Keys(namespace).answer("a1".ljust(32, "x")))
    _, read = await found_with(store, answered[1])
    assert read.values == [None, b"now", -2, None]


async def test_script_that_redis_does_not_know_any_more_is_sent_again(store, answered, redis):
    await found_with(store, answered[1])
    await redis.script_flush()
    _, read = await found_with(store, answered[1])
    assert read.values[0] == b"a1"


async def test_redis_that_does_not_search_from_a_script_is_asked_twice(
    store, answered, sent, monkeypatch
):
    """So does one that spreads a search over several servers."""
    refused = Script("return redis.error_reply('Cannot perform `FT.SEARCH`: Cannot block')")
    monkeypatch.setattr(module, "_SEARCH", refused)
    for _ in range(2):
        sent.clear()
        candidates, read = await found_with(store, answered[1])
        assert candidates[0].digest == "a1".ljust(32, "x")
        assert read is None
    assert [commands[0][0] for commands in sent] == ["FT.SEARCH"]


async def test_index_that_was_lost_is_made_anew_from_a_script_too(store, answered, redis):
    # The sizes are known, so that it is the script that finds it gone.
    await found_with(store, answered[0])
    await redis.execute_command("FT.DROPINDEX", store.index)
    assert await found_with(store, answered[0]) == ([], None)
    assert store.index.encode() in await redis.execute_command("FT._LIST")


@pytest.mark.parametrize("reply", [b"x", [], [[0], b"digest"], {}, 7])
async def test_what_is_no_reply_to_the_script_is_an_error_of_ours(
    store, answered, monkeypatch, reply
):
    async def answer(*_: object) -> list[object]:
        return [reply]

    await found_with(store, answered[0])
    monkeypatch.setattr(store.line, "execute_all", answer)
    with pytest.raises(StoreUnavailable, match="something else"):
        await found_with(store, answered[0])


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        ((None, b""), 0),
        ((b"new", b""), 1),
        ((None, b"old"), 1),
        ((b"new" * 30, (b"old" * 30)[:52]), 1),
        ((b"x" * 60, b"x" * 52), 0),
        ((b"short", b"short"), 0),
    ],
)
async def test_entries_are_forgotten_unless_their_answer_was_replaced(
    connection, redis, namespace, answer, left
):
    keys, (there, seen) = Keys(namespace), answer
    entry = keys.entry("s", "digest")
    await redis.hset(entry, "vector", "v")
    if there is not None:
        await redis.set(keys.answer("digest"), there)
    await forget_gone(connection, keys, [Gone(entry, "digest", seen)])
    assert await redis.exists(entry) == left
