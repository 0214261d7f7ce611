"""The servers that are broken: those that the tests of topologies start, at ports of loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

from tests.topologies.servers import Topology

_TopologyT = TypeVar("_TopologyT", bound=Topology)
ON_DISK: Mapping[str, str] = {"appendonly": "yes", "appendfsync": "always"}
"""Every write is on disk before it is answered: what was stored and is not found after a SIGKILL
is the cache's fault."""
_PATIENCE_S = 60.0
_POLL_S = 0.01


@asynccontextmanager
async def running(make: Callable[[], _TopologyT]) -> AsyncIterator[_TopologyT]:
    """Yield the servers that *make* starts, which blocks, and end them."""
    topology = await asyncio.to_thread(make)
    try:
        yield topology
    finally:
        await asyncio.to_thread(topology.close)


async def answers(port: int) -> None:
    """Return when the server at *port* answers `PING` with `PONG`, on a new connection."""
    async with asyncio.timeout(_PATIENCE_S):
        while not await _pong(port):  # noqa: ASYNC110 - another process sets no Event
            await asyncio.sleep(_POLL_S)


async def _pong(port: int) -> bool:
    writer = None
    try:
        async with asyncio.timeout(0.5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"PING\r\n")
            return await reader.readline() == b"+PONG\r\n"
    except (OSError, TimeoutError):
        return False
    finally:
        if writer is not None:
            writer.transport.abort()
