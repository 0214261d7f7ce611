"""How long one answer of Redis is waited for."""

import asyncio
import socket
import time
from contextlib import closing

import pytest

from llm_cache.errors import StoreTimeout


async def test_reply_that_came_while_the_loop_stood_still_is_not_given_up(connection):
    async def reply_in_time() -> bytes:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        with theirs, closing(writer):
            theirs.send(b"reply")
            time.sleep(0.1)  # noqa: ASYNC251 - the loop stands still
            return await reader.read(5)

    assert await connection.run(reply_in_time(), timeout_s=0.05) == b"reply"


async def test_reply_that_does_not_come_is_given_up_in_time(connection):
    with pytest.raises(StoreTimeout, match=r"0\.05 s of added_latency_budget_s"):
        await connection.run(asyncio.Event().wait(), timeout_s=0.05)
