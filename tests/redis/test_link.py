"""One connection beside the pool: made when needed, and closed at any moment."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from llm_cache._redis.connection import Connection
from llm_cache._redis.link import Link
from llm_cache._redis.wire import packed
from llm_cache.errors import StoreUnavailable


@pytest.fixture
def made(connection, monkeypatch) -> list[Any]:
    """All connections that were made beside the pool."""
    lane = connection.lane()
    links: list[Any] = []

    def dedicated(_lane: Any, **settings: Any) -> Any:
        links.append(original(lane, **settings))
        return links[-1]

    original = type(lane).dedicated
    monkeypatch.setattr(type(lane), "dedicated", dedicated)
    return links


async def step(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def ping(link: Link) -> bytes:
    wire = await link.connected()
    await wire.send(packed([("PING",)]))
    (answer,) = await wire.replies(1)
    return bytes(answer)


async def test_connection_is_made_once_and_again_when_it_was_given_up(connection, made):
    link = Link(connection)
    assert [await ping(link), await ping(link)] == [b"PONG", b"PONG"]
    assert len(made) == 1
    await link.hang_up()
    assert not link.is_up
    assert await ping(link) == b"PONG"
    assert len(made) == 2
    await link.aclose()


@pytest.mark.parametrize("end", ["aclose", "cancel"])
async def test_connection_given_up_at_any_moment_is_closed(connection, made, end):
    for turns in range(1000):
        link = Link(connection)
        user = asyncio.create_task(ping(link))
        await step(turns)
        is_done = user.done()
        if end == "cancel":
            user.cancel()
        else:
            await link.aclose()
        with suppress(asyncio.CancelledError, StoreUnavailable, RedisConnectionError):
            await user
        if end == "cancel":
            await link.aclose()
        assert not any(each.is_connected for each in made)
        if is_done:
            break
    assert turns > 3


async def test_connection_that_the_server_closed_is_made_anew_before_it_is_used(
    connection, made, redis
):
    link = Link(connection)
    assert link.wire is None
    await ping(link)
    await redis.client_kill_filter(_type="normal", skipme=True)
    async with asyncio.timeout(5):
        while link.wire is not None:  # noqa: ASYNC110 - the link tells nobody
            await asyncio.sleep(0)
    assert await ping(link) == b"PONG"
    assert [each.is_connected for each in made] == [False, True]
    await link.aclose()


async def test_closed_link_is_not_made_again_and_one_that_was_reset_is(connection, made):
    link = Link(connection)
    await ping(link)
    await link.reset()
    assert await ping(link) == b"PONG"
    await link.aclose()
    with pytest.raises(StoreUnavailable, match="closed"):
        await link.connected()
    assert len(made) == 2


async def test_caller_is_cancelled_at_any_moment_although_the_url_bounds_replies(redis_url):
    connection = Connection(f"{redis_url}?socket_timeout=9", max_connections=2, timeout_s=9)
    await connection.open()
    for turns in range(1000):
        call = asyncio.create_task(connection.execute("PING"))
        await step(turns)
        if call.done():
            break
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert turns > 1
    await connection.aclose()
