"""A connection of redis-py's whose replies come without a stream between."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Connection as RedisConnection
from redis.exceptions import BusyLoadingError, InvalidResponse, NoScriptError
from redis.exceptions import ConnectionError as RedisConnectionError

from llm_cache._redis.connection import Connection
from llm_cache._redis.wire import Wire, packed


async def wired(connection: Connection) -> Wire:
    made = connection.lane().dedicated()
    await made.connect()  # type: ignore[no-untyped-call]
    return Wire(made)


@pytest.fixture
async def wire(connection: Connection) -> AsyncIterator[Wire]:
    wire = await wired(connection)
    yield wire
    await wire.close()


class Server:
    """Listens on loopback, and says what it is told to."""

    def __init__(self) -> None:
        self.peers: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._came = asyncio.Event()

    async def __aenter__(self) -> "Server":
        async def take(*peer: Any) -> None:
            self.peers.append(peer)
            self._came.set()

        self._server = await asyncio.start_server(take, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        for _reader, writer in self.peers:
            writer.close()
        self._server.close()

    async def wire(self) -> Wire:
        host, port = self._server.sockets[0].getsockname()
        # No greeting: it would not be answered.
        made = RedisConnection(host=host, port=port, protocol=2)
        for name in ("driver_info", "lib_name", "lib_version"):
            setattr(made, name, None)
        await made.connect()  # type: ignore[no-untyped-call]
        return Wire(made)

    async def say(self, words: bytes) -> None:
        await self._came.wait()
        self.peers[0][1].write(words)


async def test_replies_come_in_the_order_of_the_commands(wire):
    await wire.send(packed(("ECHO", f"{i}") for i in range(500)))
    assert await wire.replies(200) == [f"{i}".encode() for i in range(200)]
    assert await wire.replies(300) == [f"{i}".encode() for i in range(200, 500)]


async def test_what_was_refused_is_among_the_replies(wire):
    await wire.send(packed([("EVALSHA", "0" * 40, 0), ("PING",)]))
    refused, pong = await wire.replies(2)
    assert isinstance(refused, NoScriptError)
    assert pong == b"PONG"


async def test_reply_that_arrives_in_pieces_is_one():
    async with Server() as server:
        wire = await server.wire()
        reading = asyncio.create_task(wire.replies(1))
        for byte in b"$5\r\nhello\r\n":
            assert not reading.done()
            await server.say(bytes([byte]))
            await asyncio.sleep(0.001)
        assert await reading == [b"hello"]
        await wire.close()


@pytest.mark.parametrize(
    ("said", "error"),
    [(b"@nothing\r\n", InvalidResponse), (b"-LOADING the dataset\r\n", BusyLoadingError)],
)
async def test_what_is_no_reply_is_an_error(said, error):
    async with Server() as server:
        wire = await server.wire()
        await server.say(said)
        with pytest.raises(error):
            await wire.replies(1)
        await wire.close()


async def test_whoever_waits_hears_that_the_server_went_away():
    async with Server() as server:
        wire = await server.wire()
        reading = asyncio.create_task(wire.replies(1))
        await server.say(b"$5\r\nhel")
        server.peers[0][1].close()
        with pytest.raises(RedisConnectionError):
            await reading
        assert not wire.is_open
        for use in (wire.send(b"PING\r\n"), wire.replies(1)):
            with pytest.raises(RedisConnectionError):
                await use
        await wire.close()


async def test_reply_that_came_before_the_server_went_away_is_read(wire, redis):
    await wire.send(packed([("CLIENT", "ID")]))
    (number,) = await wire.replies(1)
    await wire.send(packed([("ECHO", "last")]))
    await redis.client_kill_filter(_id=number)
    with suppress(RedisConnectionError):
        # Which of the two the server did first is up to it.
        assert await wire.replies(1) == [b"last"]
    with pytest.raises(RedisConnectionError):
        await wire.replies(1)


async def test_sending_waits_for_room_and_ends_with_the_connection():
    async with Server() as server:
        wire = await server.wire()
        sending = asyncio.create_task(wire.send(b"x" * 64_000_000))  # nobody reads it
        for _ in range(100):
            await asyncio.sleep(0)
        assert not sending.done()
        await wire.close(nowait=True)
        server.peers[0][1].transport.abort()
        await sending
        with pytest.raises(RedisConnectionError):
            await wire.send(b"PING\r\n")


async def test_sending_goes_on_when_there_is_room():
    async with Server() as server:
        wire = await server.wire()
        sending = asyncio.create_task(wire.send(b"x" * 8_000_000))
        await server.say(b"+OK\r\n")
        await server.peers[0][0].readexactly(8_000_000)
        await sending
        assert await wire.replies(1) == [b"OK"]
        await wire.close()


async def test_one_who_is_cancelled_leaves_the_wire_to_be_closed(wire):
    reading = asyncio.create_task(wire.replies(1))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert wire.is_open
