"""Commands of many callers over one connection."""

import asyncio
from contextlib import suppress

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from llm_cache._redis import line as module
from llm_cache._redis.connection import Connection
from llm_cache._redis.line import Line
from llm_cache.errors import StoreTimeout, StoreUnavailable


@pytest.fixture
async def connection(redis_url):
    connection = Connection(redis_url, max_connections=1, timeout_s=2)
    await connection.open()
    yield connection
    await connection.aclose()


@pytest.fixture
async def line(connection):
    line = Line(connection, on_their_way=4)
    yield line
    await line.aclose()


async def ids(redis) -> set[str]:
    return {client["id"] for client in await redis.client_list()}


async def test_everybody_gets_his_own_answer(line):
    texts = [f"text {i}".encode() for i in range(200)]
    assert await asyncio.gather(*(line.execute("ECHO", text) for text in texts)) == texts


async def test_many_callers_take_one_connection_and_none_of_the_pool(line, connection, redis):
    before = await ids(redis)
    callers = [asyncio.create_task(line.execute("ECHO", "x")) for _ in range(100)]
    assert await connection.execute("ECHO", "pool") == b"pool"
    await asyncio.gather(*callers)
    assert len(await ids(redis) - before) == 1


async def test_answers_of_commands_that_are_sent_together_come_together(line):
    assert await line.execute_all(("ECHO", "a"), ("PING",), ("ECHO", "b")) == [
        b"a",
        b"PONG",
        b"b",
    ]


@pytest.mark.parametrize(("lag_s", "turns"), [(0.0, 4), (0.01, 14), (1.0, 64)])
def test_late_event_loop_sends_more_at_a_time(lag_s, turns, monkeypatch):
    monkeypatch.setattr(module, "lag_s", lambda: lag_s)
    assert module.enough_on_their_way() == turns


async def test_no_more_are_on_their_way_than_allowed(line, monkeypatch):
    packed, sizes = module._packed, []

    def note(turns):
        sizes.append(len(turns))
        return packed(turns)

    monkeypatch.setattr(module, "_packed", note)
    await asyncio.gather(*(line.execute("PING") for _ in range(50)))
    assert sum(sizes) == 50
    assert max(sizes) == 4


@pytest.mark.parametrize("callers", [1, 20])
async def test_replies_that_got_out_of_step_reach_nobody(line, redis, monkeypatch, callers):
    packed, strays = module._packed, [b"ECHO stray\r\n"]

    def one_more(turns):
        return (strays.pop() if strays else b"") + packed(turns)

    monkeypatch.setattr(module, "_packed", one_more)
    for _ in range(2):
        texts = [f"{i}".encode() for i in range(callers)]
        assert await asyncio.gather(*(line.execute("ECHO", text) for text in texts)) == texts
    assert not strays


@pytest.mark.parametrize("company", [0, 3])
async def test_refused_command_fails_its_own_caller_alone(line, company):
    refused = line.execute_all(("ECHO", "a"), ("NO.SUCH.COMMAND",), ("ECHO", "b"))
    others = [line.execute("ECHO", f"{i}") for i in range(company)]
    error, *answers = await asyncio.gather(refused, *others, return_exceptions=True)

    assert isinstance(error, StoreUnavailable)
    assert "unknown command" in str(error)
    assert answers == [f"{i}".encode() for i in range(company)]
    assert await line.execute("ECHO", "after") == b"after"


@pytest.mark.parametrize("leaver", [0, 1, 2, 9])
async def test_caller_who_is_cancelled_takes_nobody_along(line, leaver):
    callers = [asyncio.create_task(line.execute("ECHO", f"{i}")) for i in range(12)]
    await asyncio.sleep(0)
    callers[leaver].cancel()
    answers = await asyncio.gather(*callers, return_exceptions=True)

    assert isinstance(answers.pop(leaver), asyncio.CancelledError)
    assert answers == [f"{i}".encode() for i in range(12) if i != leaver]


async def test_command_of_one_who_left_the_queue_is_not_sent(line, redis):
    callers = [asyncio.create_task(line.execute("PING")) for _ in range(3)]
    late = asyncio.create_task(line.execute("INCR", "never"))
    await asyncio.sleep(0)
    late.cancel()
    await asyncio.gather(*callers)
    assert await redis.exists("never") == 0


@pytest.mark.parametrize("company", [0, 20])
async def test_connection_that_was_closed_is_made_anew(line, redis, company):
    await line.execute("PING")
    await redis.client_kill_filter(_type="normal", skipme=True)

    answers = await asyncio.gather(*(line.execute("PING") for _ in range(1 + company)))
    assert answers == [b"PONG"] * (1 + company)


async def test_connection_lost_with_commands_on_their_way_is_no_failure(line, monkeypatch):
    read = module._read
    losses: list[object] = []

    async def lose(link, count):
        if len(losses) < 1 and line._sent:
            losses.append(link)
            raise RedisConnectionError("lost")
        return await read(link, count)

    monkeypatch.setattr(module, "_read", lose)
    answers = await asyncio.gather(*(line.execute("ECHO", f"{i}") for i in range(20)))
    assert answers == [f"{i}".encode() for i in range(20)]
    assert losses


async def test_connection_that_is_lost_again_and_again_is_a_failure(line, monkeypatch):
    async def lose(_link, _count):
        raise RedisConnectionError("lost")

    monkeypatch.setattr(module, "_read", lose)
    answers = await asyncio.gather(
        *(line.execute("PING") for _ in range(10)), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {StoreUnavailable}


async def test_reply_that_does_not_come_is_a_timeout_and_the_line_goes_on(redis_url, redis):
    connection = Connection(redis_url, max_connections=1, timeout_s=0.1)
    await connection.open()
    line = Line(connection)
    await redis.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    try:
        writes = [line.execute("SET", "late", "1", "PX", 1000) for _ in range(20)]
        answers = await asyncio.gather(*writes, return_exceptions=True)
    finally:
        await redis.client_unpause()

    assert {type(answer) for answer in answers} == {StoreTimeout}
    async with asyncio.timeout(5):
        while True:
            with suppress(StoreTimeout):
                assert await line.execute("ECHO", "again") == b"again"
                break
    await line.aclose()
    await connection.aclose()


async def test_closing_answers_whoever_waits_and_leaves_no_connection(line, redis, monkeypatch):
    before = await ids(redis)
    reads = asyncio.Event()

    async def hang(_link, _count):
        reads.set()
        await asyncio.Event().wait()

    first = asyncio.create_task(line.execute("PING"))
    callers = [asyncio.create_task(line.execute("PING")) for _ in range(10)]
    await first
    monkeypatch.setattr(module, "_read", hang)
    await reads.wait()
    await line.aclose()

    answers = await asyncio.gather(*callers, return_exceptions=True)
    late = [answer for answer in answers if answer != b"PONG"]
    assert late
    assert all("closed" in str(answer) for answer in late)
    with pytest.raises(StoreUnavailable, match="closed"):
        await line.execute("PING")
    # The server hears of it when it comes round to it.
    async with asyncio.timeout(5):
        while not await ids(redis) <= before:
            pass


async def test_line_asks_the_database_of_the_url(redis_url, redis):
    connection = Connection(f"{redis_url}?db=1", max_connections=1, timeout_s=2)
    await connection.open()
    line = Line(connection)
    await line.execute("SET", "here", "1", "PX", 1000)
    assert await redis.exists("here") == 0
    await line.aclose()
    await connection.aclose()
