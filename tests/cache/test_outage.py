"""Redis is silent, has lost everything, or holds what others wrote; a collaborator raises."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from llm_cache import CallableEmbedder
from llm_cache._core import guards
from llm_cache._redis.embedded import EmbeddedRedis
from llm_cache.errors import CacheClosed, EmbedderError, StoreTimeout
from llm_cache.events import DependencyFailed
from llm_cache.testing import FakeEmbedder

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."


class SilentServer:
    """Takes connections and never answers."""

    def __init__(self) -> None:
        self.url = ""
        self.connections = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with await asyncio.start_server(self._take, "127.0.0.1", 0) as server:
            self.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await reader.read()
        writer.close()


class GatedEmbedder:
    """Has to be asked for its dimensions when the cache is opened, and takes its time."""

    def __init__(self) -> None:
        self.calls = 0
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.embedder = CallableEmbedder(self._embed, model_id="gated")

    async def _embed(self, texts: list[str]) -> list[list[float]]:
        self.calls += 1
        self.asked.set()
        await self.gate.wait()
        return [[1.0, 0.0, 0.0] for _ in texts]


@pytest.fixture
def gated() -> GatedEmbedder:
    return GatedEmbedder()


async def test_callers_of_a_silent_redis_share_one_attempt(make_cache, upstream, events):
    server = SilentServer()
    async with server.running():
        cache = make_cache(server.url, redis_timeout_s=0.2)
        questions = [f"Question {i}" for i in range(6)]
        replies = await asyncio.gather(*map(cache.chat, questions))

        assert {(reply.status, reply.reason) for reply in replies} == {("bypass", "redis")}
        assert server.connections == 1
        errors = [event.error for event in events.of(DependencyFailed)]
        assert [type(error) for error in errors] == [StoreTimeout] * 6

        await cache.chat(QUESTION)
        assert server.connections == 2
        await cache.aclose()


@pytest.mark.parametrize(
    "said", [b"*1\r\n$1\r\nx\r\n", b":7\r\n", b"*-1\r\n", b"$3\r\nabc\r\n", b"garbage\r\n"]
)
async def test_server_that_talks_nonsense_is_bypassed(make_cache, events, said):
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            writer.write(said)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        cache = make_cache(f"redis://127.0.0.1:{port}", redis_timeout_s=0.2)
        reply = await cache.chat(QUESTION)
        await cache.aclose()

    assert (reply.status, reply.reason) == ("bypass", "redis")
    assert len(events.of(DependencyFailed)) == 1


async def test_opening_survives_a_caller_that_leaves(make_cache, gated):
    cache = make_cache(embedder=gated.embedder)
    leaving, staying = (asyncio.create_task(cache.open()) for _ in range(2))
    await gated.asked.wait()

    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    gated.gate.set()

    assert await staying is cache
    assert leaving.cancelled()
    assert gated.calls == 1


async def test_opening_that_everybody_left_leaves_nothing_behind(make_cache, gated):
    cache = make_cache(embedder=gated.embedder)
    opening = [asyncio.create_task(cache.open()) for _ in range(2)]
    await gated.asked.wait()
    for caller in opening:
        caller.cancel()
    # Comes while the first attempt is being given up.
    again = asyncio.create_task(cache.open())
    gated.gate.set()

    await asyncio.gather(*opening, return_exceptions=True)
    assert await again is cache
    assert (await cache.chat(QUESTION)).status == "miss"
    assert "llm_cache.open" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_opening_that_is_given_up_does_not_take_calls_along(make_cache, gated):
    cache = make_cache(embedder=gated.embedder)
    opening = asyncio.create_task(cache.open())
    await gated.asked.wait()
    call = asyncio.create_task(cache.chat(QUESTION))
    while not cache._exact.is_in_use:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    gated.gate.set()

    assert (await call).status in ("miss", "bypass")
    assert (await cache.chat("another")).status in ("miss", "semantic")


async def test_cache_that_is_closed_while_it_opens_says_so(make_cache, gated):
    before = asyncio.all_tasks()
    cache = make_cache(embedder=gated.embedder)
    opening = asyncio.create_task(cache.open())
    await gated.asked.wait()

    closing = asyncio.create_task(cache.aclose())
    gated.gate.set()
    await closing

    with pytest.raises(CacheClosed):
        await opening
    assert asyncio.all_tasks() == before


async def test_redis_that_lost_everything_is_filled_again(make_cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    async with EmbeddedRedis() as server:
        cache = await make_cache(server.url).open()
        await cache.chat(QUESTION)
        await cache._connection.execute("FLUSHALL")

        assert (await cache.chat(QUESTION)).status == "miss"
        assert (await cache.chat(REPHRASED)).status == "semantic"
        await cache._connection.execute("FLUSHALL")
        assert (await cache.server_stats())["entries"] == 0
        await cache.aclose()


async def test_cache_works_with_one_connection(make_cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    cache = make_cache(max_connections=1, redis_timeout_s=5, added_latency_budget_s=5)

    questions = [QUESTION, *(f"Question {i}" for i in range(5))]
    replies = await asyncio.gather(*map(cache.chat, questions))

    assert {reply.status for reply in replies} == {"miss"}
    assert (await cache.chat(REPHRASED)).status == "semantic"
    assert (await cache.chat(REPHRASED)).status == "exact"


async def test_answer_of_another_version_is_left_to_those_who_can_read_it(cache, redis, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    key = (await cache.chat(QUESTION)).key
    blob = await redis.get(key)
    await redis.set(key, b"\xff" + blob[1:], ex=60)

    assert await cache.lookup_semantic(REPHRASED) is None

    await redis.set(key, blob, ex=60)
    assert await cache.lookup_semantic(REPHRASED) is not None


async def test_guard_that_fails_is_a_veto(cache, embedder, monkeypatch):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await cache.chat(QUESTION)

    def fail(_text: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(guards, "analyse", fail)
    explained = await cache.explain(REPHRASED)
    assert [neighbour.verdict for neighbour in explained.neighbours] == [
        "guard failed: ZeroDivisionError"
    ]
    assert (await cache.chat(REPHRASED)).status == "miss"


class BlindEmbedder(FakeEmbedder):
    """Fails where it is asked what it cannot see."""

    def blind_spots(self, text: str) -> str:
        raise KeyError(text)


async def test_failing_blind_spots_leave_the_exact_layer_working(make_cache, events):
    cache = make_cache(embedder=BlindEmbedder())

    reply = await cache.chat(QUESTION)

    assert (reply.status, reply.reason) == ("bypass", "embedder")
    assert (await cache.chat(QUESTION)).status == "exact"
    error = events.of(DependencyFailed)[0].error
    assert isinstance(error, EmbedderError)
    assert isinstance(error.__cause__, KeyError)
    assert QUESTION not in str(error)
