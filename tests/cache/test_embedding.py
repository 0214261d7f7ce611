"""The embedding path: few requests, each caller its own vector, and nobody pays for a stranger."""

import asyncio
import gc
import logging
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
import openai
import pytest

from llm_cache import CacheConfig, CallableEmbedder, LLMCache
from llm_cache._core.keys import Keys
from llm_cache._embedding import EmbeddingQueue
from llm_cache._redis.connection import Connection
from llm_cache._redis.embeddings import KeptEmbeddings
from llm_cache.embedders import OpenAIEmbedder
from llm_cache.errors import (
    CacheClosed,
    ConfigurationError,
    EmbedderError,
    EmbedderTimeout,
    InvalidEmbedding,
    MissingExtra,
    StoreUnavailable,
)
from llm_cache.events import DependencyFailed, Event, TextsEmbedded
from llm_cache.testing import Answer, FakeEmbedder

POISON = "a text that is refused"


class Recorder(FakeEmbedder):
    """A fake embedder that knows which texts came together, and refuses some."""

    def __init__(self, *, max_batch: int = 64, max_in_flight: int | None = 4) -> None:
        super().__init__()
        self.max_batch = max_batch
        self.max_in_flight = max_in_flight
        self.batches: list[list[str]] = []
        self.refuse: dict[str, Exception] = {}

    async def embed(self, texts: Sequence[str]) -> Any:
        self.batches.append(list(texts))
        vectors = await super().embed(texts)
        for text in texts:
            if text in self.refuse:
                raise self.refuse[text]
        return vectors


class StatusError(Exception):
    def __init__(self, status_code: int) -> None:
        super().__init__(f"HTTP {status_code}")
        self.status_code = status_code


@pytest.fixture
def embedder() -> Recorder:
    return Recorder()


@pytest.fixture
def queue(embedder: Recorder) -> EmbeddingQueue:
    return EmbeddingQueue(embedder, timeout_s=5.0)


def texts(n: int) -> list[str]:
    return [f"text number {i}" for i in range(n)]


async def embed_all(queue: EmbeddingQueue, wanted: Sequence[str]) -> list[Any]:
    return await asyncio.gather(*map(queue.embed, wanted), return_exceptions=True)


async def start(queue: EmbeddingQueue, wanted: Sequence[str]) -> list[asyncio.Task[Any]]:
    """Start an embedding of each text, and return once all of them are in the queue."""
    tasks = [asyncio.create_task(queue.embed(text)) for text in wanted]
    await asyncio.sleep(0)
    return tasks


# ---------------------------------------------------------------------- through the public API


async def test_200_concurrent_misses_take_at_most_10_requests(make_cache, upstream):
    cache = await make_cache(embedder=OpenAIEmbedder(upstream.client())).open()

    replies = await asyncio.gather(*(cache.chat(text) for text in texts(200)))

    assert {str(reply.status) for reply in replies} == {"miss"}
    assert upstream.calls == 200
    assert sorted(upstream.embedding_inputs) == sorted(texts(200))
    assert upstream.embedding_calls <= 10


async def test_each_caller_gets_the_vector_of_its_own_text(make_cache, upstream):
    cache = await make_cache(embedder=OpenAIEmbedder(upstream.client())).open()
    prompts = texts(100)
    await asyncio.gather(*(cache.store_semantic(text, f"of {text}") for text in prompts))

    replies = await asyncio.gather(*map(cache.lookup_semantic, reversed(prompts)))

    assert [reply.text for reply in replies] == [f"of {text}" for text in reversed(prompts)]
    assert upstream.embedding_calls < 20


async def test_text_asked_in_many_scopes_is_embedded_once(cache, embedder):
    embedder.gate = asyncio.Event()
    asked = [asyncio.create_task(cache.lookup_semantic("a", system=f"{i}")) for i in range(20)]
    await embedder.called()
    asked += [asyncio.create_task(cache.lookup_semantic("a", system=f"{i}")) for i in range(20)]
    embedder.gate.set()
    await asyncio.gather(*asked)

    assert embedder.texts == ["a"]


async def test_poisoned_text_hurts_only_its_caller(make_cache, upstream):
    def embeddings(given: list[str], _body: object) -> Any:
        return Answer(status=400 if POISON in given else 200)

    upstream.embeddings = embeddings
    cache = await make_cache(embedder=OpenAIEmbedder(upstream.client())).open()
    prompts = [*texts(40), POISON]

    replies = await asyncio.gather(*map(cache.chat, prompts))

    assert [reply.reason for reply in replies] == [None] * 40 + ["embedder"]


async def test_failing_embedder_is_told_with_the_error_of_the_sdk(make_cache, upstream):
    upstream.embeddings = lambda _texts, _body: Answer(status=429)
    cache = await make_cache(embedder=OpenAIEmbedder(upstream.client())).open()

    with pytest.raises(EmbedderError, match="raised RateLimitError") as caught:
        await cache.lookup_semantic("a")
    assert isinstance(caught.value.__cause__, openai.RateLimitError)


async def test_missing_key_is_told_every_time(redis_url, monkeypatch, namespace):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    async with LLMCache(redis_url, config=CacheConfig(namespace=namespace)) as cache:
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="LocalEmbedder"):
                await cache.lookup_semantic("a")


# ---------------------------------------------------------------------- batches


async def test_lone_text_goes_out_at_once(queue, embedder):
    np.testing.assert_allclose(await queue.embed("a"), embedder.vector("a"), rtol=1e-6)


async def test_texts_that_come_together_travel_together(queue, embedder):
    await embed_all(queue, ["a", "b", "a", "c"])

    assert embedder.batches == [["a", "b", "c"]]


async def test_texts_that_come_meanwhile_travel_in_the_next_batch(queue, embedder):
    embedder.gate = asyncio.Event()
    first = await start(queue, ["a"])
    await embedder.called()
    later = await start(queue, ["b"]) + await start(queue, ["c"]) + await start(queue, ["a"])

    embedder.gate.set()
    vectors = await asyncio.gather(*first, *later)

    assert embedder.batches == [["a"], ["b", "c"]]
    for text, vector in zip("abca", vectors, strict=True):
        np.testing.assert_allclose(vector, embedder.vector(text), rtol=1e-6)


async def test_slow_request_is_not_waited_for(queue, embedder):
    embedder.gate = asyncio.Event()
    asked = []
    for i in range(4):
        asked += await start(queue, [f"{i}"])
        await embedder.called(i + 1)
    asked += await start(queue, ["4", "5"])

    embedder.gate.set()
    await asyncio.gather(*asked)

    assert embedder.batches == [["0"], ["1"], ["2"], ["3"], ["4", "5"]]


async def test_batch_of_just_the_bound_is_one_and_a_larger_one_two():
    for n, sizes in ((3, [3]), (4, [3, 1])):
        embedder = Recorder(max_batch=3)
        await embed_all(EmbeddingQueue(embedder, timeout_s=5.0), texts(n))
        assert [len(batch) for batch in embedder.batches] == sizes


async def test_batch_is_bounded_in_characters(queue, embedder):
    await embed_all(queue, ["a" * 60_000, "b" * 40_000, "c" * 40_000, "d" * 60_001, "e" * 200_000])

    assert [[text[0] for text in batch] for batch in embedder.batches] == [
        ["a", "b"],
        ["c"],
        ["d"],
        ["e"],
    ]


async def test_requests_in_flight_are_bounded(embedder):
    embedder.max_in_flight, embedder.max_batch = 2, 2
    embedder.gate = asyncio.Event()
    asked = await start(EmbeddingQueue(embedder, timeout_s=5.0), texts(6))
    await embedder.called(2)
    await asyncio.sleep(0)
    assert embedder.calls == 2

    embedder.gate.set()
    await asyncio.gather(*asked)
    assert embedder.calls == 3


async def test_embedder_with_a_queue_of_its_own_gets_every_text_as_it_comes(embedder):
    embedder.max_in_flight = None
    embedder.gate = asyncio.Event()
    queue = EmbeddingQueue(embedder, timeout_s=5.0)
    asked = []
    for i in range(10):
        asked += await start(queue, [f"{i}"])
        await embedder.called(i + 1)

    embedder.gate.set()
    await asyncio.gather(*asked)


async def test_no_task_is_left_when_nothing_is_asked(queue):
    before = asyncio.all_tasks()
    await embed_all(queue, texts(200))
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("bound", ["max_batch", "max_in_flight"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4"])
def test_bound_that_is_none_is_refused(bound, value):
    async def embed(_texts: list[str]) -> Any: ...

    with pytest.raises(ConfigurationError, match=bound):
        CallableEmbedder(embed, model_id="m", **{bound: value})
    with pytest.raises(ConfigurationError, match=bound):
        OpenAIEmbedder(**{bound: value})
    embedder = FakeEmbedder()
    setattr(embedder, bound, value)
    with pytest.raises(ConfigurationError, match=bound):
        LLMCache("redis://localhost", embedder=embedder)


# ---------------------------------------------------------------------- callers that leave


async def test_cancelled_caller_leaves_the_request_to_the_others(queue, embedder):
    embedder.gate = asyncio.Event()
    leader, follower, neighbour = await start(queue, ["a", "a", "b"])
    await embedder.called()

    embedder.gate.set()
    leader.cancel()

    np.testing.assert_allclose(await follower, embedder.vector("a"), rtol=1e-6)
    np.testing.assert_allclose(await neighbour, embedder.vector("b"), rtol=1e-6)
    assert leader.cancelled()
    assert embedder.calls == 1


async def test_text_that_nobody_waits_for_any_more_is_not_sent(embedder):
    embedder.max_in_flight = 1
    embedder.gate = asyncio.Event()
    queue = EmbeddingQueue(embedder, timeout_s=5.0)
    asked = await start(queue, ["a"])
    await embedder.called()
    left, stays = await start(queue, ["b", "c"])

    left.cancel()
    embedder.gate.set()
    await asyncio.gather(*asked, stays)

    assert embedder.texts == ["a", "c"]


async def test_request_that_nobody_waits_for_any_more_makes_room(embedder):
    embedder.max_in_flight = 1
    embedder.gate = asyncio.Event()
    queue = EmbeddingQueue(embedder, timeout_s=5.0)
    hung = await start(queue, ["a", "b"])
    await embedder.called()
    again = await start(queue, ["c"])
    for task in hung:
        task.cancel()
    again += await start(queue, ["a"])

    await embedder.called(2)
    embedder.gate.set()
    await asyncio.gather(*again)

    assert embedder.batches == [["a", "b"], ["c", "a"]]


async def test_caller_is_out_of_time_by_its_own_clock(embedder):
    embedder.gate = asyncio.Event()
    patient = EmbeddingQueue(embedder, timeout_s=5.0)
    hasty = EmbeddingQueue(embedder, timeout_s=0.01)

    assert {type(error) for error in await embed_all(hasty, ["a", "a", "b"])} == {EmbedderTimeout}
    with pytest.raises(EmbedderError, match=r"took longer than embed_timeout_s=0\.01 s"):
        await hasty.embed("a")
    asked = await start(patient, ["a"])
    embedder.gate.set()
    await asyncio.gather(*asked, hasty.embed("a"))


async def test_closing_the_cache_ends_embeddings_that_are_under_way(make_cache, embedder):
    before = asyncio.all_tasks()
    cache = await make_cache().open()
    embedder.gate = asyncio.Event()
    embedder.max_in_flight = 1
    asked = [asyncio.create_task(cache.lookup_semantic(text)) for text in "ab"]
    await embedder.called()
    asked.append(asyncio.create_task(cache.lookup_semantic("c")))
    await asyncio.sleep(0)

    await cache.aclose()

    ended = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(end) for end in ended] == [CacheClosed] * 3
    assert asyncio.all_tasks() == before


async def test_closing_the_loop_in_the_middle_warns_of_nothing(embedder, caplog):
    async def leave() -> None:
        embedder.gate = asyncio.Event()
        queue = EmbeddingQueue(embedder, timeout_s=5.0)
        asked = await start(queue, ["a", "b"])
        await embedder.called()
        asked += await start(queue, ["c"])

    with caplog.at_level(logging.DEBUG, "asyncio"):
        await asyncio.to_thread(asyncio.run, leave())
        gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_caller_of_a_request_that_somebody_cancels_does_not_hang(queue, embedder):
    embedder.gate = asyncio.Event()
    asked = await start(queue, ["a", "b"])
    await embedder.called()

    for task in asyncio.all_tasks():
        if task.get_name() == "llm_cache.batch":
            task.cancel()
    await asyncio.wait(asked, timeout=5)

    assert all(task.cancelled() for task in asked)


async def test_failure_that_nobody_waits_for_warns_of_nothing(queue, embedder, caplog):
    embedder.gate, embedder.fail_with = asyncio.Event(), RuntimeError("no route to host")
    asked = await start(queue, ["a", "b"])
    await embedder.called()

    embedder.gate.set()
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    gc.collect()

    assert not caplog.records


# ---------------------------------------------------------------------- embedders that fail


async def test_failure_reaches_every_caller_of_the_batch_and_no_other(queue, embedder):
    embedder.gate = asyncio.Event()
    failing = await start(queue, ["a", "b", "b"])
    await embedder.called()
    embedder.fail_with = RuntimeError("no route to host")
    fine = await start(queue, ["c"])

    embedder.gate.set()
    errors = await asyncio.gather(*failing, return_exceptions=True)
    embedder.fail_with = None
    await asyncio.gather(*fine)

    assert {type(error) for error in errors} == {EmbedderError}
    assert len({id(error) for error in errors}) == 3
    assert {type(error.__cause__) for error in errors} == {RuntimeError}


async def test_tracebacks_do_not_grow_with_the_callers(queue, embedder):
    embedder.fail_with = RuntimeError("no route to host")

    errors = await embed_all(queue, ["a"] * 50)

    assert embedder.calls == 1
    assert {len(traceback.extract_tb(error.__traceback__)) for error in errors} == {3}
    assert len(traceback.extract_tb(errors[0].__cause__.__traceback__)) < 5


async def test_error_of_ours_keeps_its_type_and_its_words(queue, embedder):
    embedder.fail_with = MissingExtra("onnxruntime", "local")

    for error in await embed_all(queue, ["a", "b"]):
        assert isinstance(error, MissingExtra)
        assert "pip install 'llm-cache[local]'" in str(error)
        assert error is not embedder.fail_with


async def test_embedder_that_cancels_itself_has_failed(queue, embedder):
    embedder.fail_with = asyncio.CancelledError()

    with pytest.raises(EmbedderError, match="cancelled"):
        await queue.embed("a")


async def test_embedders_own_timeout_is_a_failure_like_others(queue, embedder):
    embedder.fail_with = TimeoutError()

    with pytest.raises(EmbedderError, match="raised TimeoutError"):
        await queue.embed("a")


@pytest.mark.parametrize(
    "refusal", [StatusError(400), StatusError(413), StatusError(422), InvalidEmbedding("zeros")]
)
async def test_only_the_callers_of_refused_texts_fail(queue, embedder, refusal):
    embedder.refuse = {POISON: refusal}

    *served, failed, also_failed = await embed_all(queue, [*texts(63), POISON, POISON])

    for text, vector in zip(texts(63), served, strict=True):
        np.testing.assert_allclose(vector, embedder.vector(text), rtol=1e-6)
    assert isinstance(failed, EmbedderError)
    assert isinstance(also_failed, EmbedderError)
    assert embedder.calls <= 13


async def test_empty_answer_for_one_text_of_many_is_that_texts_own(queue, embedder):
    embedder.set(POISON, np.zeros(64))

    *served, failed = await embed_all(queue, [*texts(20), POISON])

    assert all(isinstance(vector, np.ndarray) for vector in served)
    assert isinstance(failed, InvalidEmbedding)


async def test_several_long_texts_that_are_refused_hurt_nobody_else(queue, embedder):
    long = [f"{i}" * 1000 for i in range(4)]
    embedder.refuse = dict.fromkeys(long, StatusError(400))

    ended = await embed_all(queue, [*texts(30), *long, *texts(60)[30:]])

    assert [type(end) for end in ended].count(EmbedderError) == 4


async def test_embedder_that_refuses_everything_is_asked_a_bounded_number_of_times(
    queue, embedder
):
    embedder.fail_with = StatusError(400)

    ended = await embed_all(queue, texts(64))

    assert {type(end) for end in ended} == {EmbedderError}
    assert embedder.calls <= 19


@pytest.mark.parametrize("status", [401, 404, 408, 429, 500, 503])
async def test_trouble_that_concerns_all_texts_is_not_multiplied(queue, embedder, status):
    embedder.fail_with = StatusError(status)

    await embed_all(queue, texts(64))

    assert embedder.calls == 1


async def test_wrong_number_of_vectors_serves_nobody_a_strangers(queue, embedder):
    embedder.returns = [embedder.vector("a")]

    ended = await embed_all(queue, ["a", "b"])

    # Alone, each gets what it asked for; together, nobody could tell whose vector it was.
    assert embedder.batches == [["a", "b"], ["a"], ["b"]]
    assert all(isinstance(end, np.ndarray) for end in ended)


# ---------------------------------------------------------------------- kept embeddings


def unkept(embedder: FakeEmbedder, told: list[str]) -> EmbeddingQueue:
    """Return a queue whose kept embeddings are in a Redis that is not there."""

    def tell(event: Event) -> None:
        if isinstance(event, TextsEmbedded):
            return
        assert isinstance(event, DependencyFailed)
        assert isinstance(event.error, StoreUnavailable)
        told.append(event.operation)

    nowhere = Connection("redis://127.0.0.1:1", max_connections=5, timeout_s=5.0)
    kept = KeptEmbeddings(nowhere, Keys("n"), model_id="fake", ttl_ms=60_000)
    return EmbeddingQueue(embedder, timeout_s=5.0, kept=kept, tell=tell)


async def kept_keys(redis: Any, namespace: str) -> list[bytes]:
    return [key async for key in redis.scan_iter(f"{namespace}:emb:*")]


async def test_kept_embedding_saves_the_request_of_another_process(make_cache, embedder):
    await make_cache(keep_embeddings_s=60).store_semantic("a", "of a")
    other = make_cache(keep_embeddings_s=60)

    assert (await other.lookup_semantic("a")).text == "of a"
    assert embedder.texts == ["a"]


async def test_embeddings_are_not_kept_unless_asked_for(make_cache, embedder, redis, namespace):
    for _ in range(2):
        await make_cache().lookup_semantic("a")

    assert await kept_keys(redis, namespace) == []
    assert embedder.texts == ["a", "a"]


async def test_kept_embedding_takes_two_bytes_a_dimension_and_expires(
    make_cache, redis, namespace
):
    await make_cache(keep_embeddings_s=60).lookup_semantic("a")

    (key,) = await kept_keys(redis, namespace)
    assert await redis.strlen(key) == 2 * 64
    assert 59_000 < await redis.pttl(key) <= 60_000


@pytest.mark.one_server("an MGET does not leave its slot")
async def test_kept_embeddings_of_a_burst_are_read_in_few_commands(make_cache, embedder, redis):
    cache = make_cache(keep_embeddings_s=60)
    await asyncio.gather(*map(cache.lookup_semantic, texts(100)))
    calls = embedder.calls
    await redis.config_resetstat()
    await asyncio.gather(*map(cache.lookup_semantic, texts(100)))

    assert embedder.calls == calls
    assert (await redis.info("commandstats"))["cmdstat_mget"]["calls"] <= 10


async def test_kept_vectors_have_unit_length(redis_url, namespace, embedder):
    connection = Connection(redis_url, max_connections=5, timeout_s=5.0)
    await connection.open()
    kept = KeptEmbeddings(connection, Keys(namespace), model_id="fake", ttl_ms=60_000)
    vectors = np.array([embedder.vector("a b c"), embedder.vector("d")])
    await kept.store(["a b c", "d"], vectors)

    found = await kept.lookup(["d", "nothing", "a b c"], 64)
    await connection.aclose()

    assert found[1] is None
    for vector, true in ((found[0], vectors[1]), (found[2], vectors[0])):
        assert vector is not None
        assert vector.dtype == np.float32
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        assert vector @ true == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\x00" * 128,
        b"\x00\x3c" + b"\x00\x00" * 62,
        b"\x00\x3c" + b"\x00\x00" * 64,
        b"\x00\x3c" + b"\x00" * 126 + b"\x00",
        b"\x00\x3c" * 64,
        b"\x00\x7e" * 64,
        b"\x00\x7c" * 64,
    ],
    ids=["empty", "zeros", "short", "long", "odd", "not of unit length", "NaN", "infinite"],
)
async def test_corrupt_kept_embedding_is_replaced(make_cache, embedder, redis, namespace, blob):
    cache = make_cache(keep_embeddings_s=60)
    await cache.store_semantic("a", "of a")
    (key,) = await kept_keys(redis, namespace)
    good = await redis.get(key)
    await redis.set(key, blob)

    assert (await cache.lookup_semantic("a")).text == "of a"
    assert embedder.texts == ["a", "a"]
    assert await redis.get(key) == good
    assert await redis.pttl(key) > 0


async def test_embeddings_of_other_models_and_lengths_are_never_used(make_cache, upstream):
    for model, dimensions in (("m", 64), ("m", 32), ("n", 64)):
        embedder = OpenAIEmbedder(upstream.client(), model=model, dimensions=dimensions)
        await make_cache(embedder=embedder, keep_embeddings_s=60).lookup_semantic("a")

    assert upstream.embedding_inputs == ["a", "a", "a"]


async def test_embedder_without_dimensions_keeps_too(make_cache):
    asked: list[str] = []

    async def embed(given: list[str]) -> list[list[float]]:
        asked.extend(given)
        return [[1.0, 0.0, 0.0] for _ in given]

    for _ in range(2):
        embedder = CallableEmbedder(embed, model_id="three")
        await make_cache(embedder=embedder, keep_embeddings_s=60).lookup_semantic("a")

    assert asked.count("a") == 1


async def test_text_in_flight_is_not_looked_up_again(embedder):
    told: list[str] = []
    queue = unkept(embedder, told)
    embedder.gate = asyncio.Event()
    asked = await start(queue, ["a"])
    await embedder.called()
    asked += await start(queue, ["a"])

    embedder.gate.set()
    await asyncio.gather(*asked)

    assert told.count("lookup_embedding") == 1


async def test_redis_trouble_never_fails_an_embedding_and_is_told(embedder):
    told: list[str] = []

    await unkept(embedder, told).embed("a")

    assert told == ["lookup_embedding", "store_embedding"]


@pytest.mark.parametrize("value", [0, -1, True, "60", float("nan"), float("inf")])
def test_time_to_keep_out_of_its_range_is_named(value):
    with pytest.raises(ConfigurationError, match="keep_embeddings_s"):
        CacheConfig(keep_embeddings_s=value)


@pytest.mark.parametrize("value", [None, 0.001, 3600])
def test_time_to_keep_at_the_edge_of_its_range_is_taken(value):
    assert CacheConfig(keep_embeddings_s=value).keep_embeddings_s == value
