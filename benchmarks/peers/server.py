"""A Redis that every peer can reach: over TCP, which some of them cannot do without."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis import asyncio as redis
from redis.exceptions import ConnectionError as RedisConnectionError

from llm_cache._redis.embedded import find_server

_START_S = 30


@asynccontextmanager
async def reachable(url: str) -> AsyncIterator[str]:
    """Yield *url*, or for `embedded://` that of a server of its own on a free port of loopback.

    It is the server that `embedded://` would start (which has no public door), without data on
    disk; ours and the peers' go through the same TCP port. So it is for the socket of an embedded
    server, which not everybody can connect to.
    """
    if not url.startswith(("embedded:", "unix:")):
        yield url
        return
    found, port = find_server(), _free_port()
    # Some peers keep JSON documents; Redis Stack has the module for it beside the other.
    json = [module.with_name("rejson.so") for module in found.modules]
    loaded = [module for module in (*found.modules, *json) if module.is_file()]
    modules = [part for module in loaded for part in ("--loadmodule", str(module))]
    with tempfile.TemporaryDirectory(prefix="llm-cache-peers-") as folder:
        process = await asyncio.create_subprocess_exec(
            str(found.executable),
            *("--bind", "127.0.0.1", "--port", str(port), "--dir", folder),
            *("--save", "", "--appendonly", "no", *modules),
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            await _answers(port)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()
            await process.wait()


async def _answers(port: int) -> None:
    client = redis.Redis(port=port)
    try:
        async with asyncio.timeout(_START_S):
            while True:
                try:
                    await client.ping()
                except RedisConnectionError:
                    await asyncio.sleep(0.05)
                else:
                    return
    finally:
        await client.aclose()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
