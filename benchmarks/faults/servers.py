"""A Redis process on a port of loopback that can be killed, stopped, and started again."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

from redis import asyncio as redis_py

# It is the server that `embedded://` would start, which has no public door; nothing of the cache
# is reached behind its public names.
from llm_cache._redis.embedded import find_server

_START_S = 30.0
_POLL_S = 0.01


class RedisProcess:
    """One server with RediSearch. Its port and its data outlive the process.

    Every write is on disk before it is answered (`appendfsync always`), so that after a SIGKILL
    what was stored is there: where it is not found, that is the cache's fault.

    Args:
        folder: Of its data.
        options: Further options of redis-server.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        """What a client connects to."""
        return f"redis://127.0.0.1:{self.port}"

    def spawn(self, *options: str) -> None:
        """Start it, this time with further *options*, and do not wait until it answers."""
        found = find_server()
        modules = [part for module in found.modules for part in ("--loadmodule", str(module))]
        self._process = subprocess.Popen(  # noqa: S603 - our own argument list, no shell
            [
                *(str(found.executable), "--bind", "127.0.0.1", "--port", str(self.port)),
                *("--dir", str(self._folder), "--save", "", "--enable-debug-command", "yes"),
                *("--appendonly", "yes", "--appendfsync", "always", *modules),
                *(*self._options, *options),
            ],
            stdout=subprocess.DEVNULL,
            # Ctrl-C is for the benchmark, which ends it in its own time.
            start_new_session=True,
        )

    async def start(self) -> None:
        """Start it, and return when it answers."""
        self.spawn()
        await answers(self.port)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it with SIGKILL."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def client(self) -> Any:
        """Return a client of it, past any proxy; the caller closes it."""
        return redis_py.Redis(port=self.port, decode_responses=True)


async def answers(port: int, *, within_s: float = _START_S) -> None:
    """Return when the server at *port* answers `PING` with `PONG`."""
    async with asyncio.timeout(within_s):
        while not await pong(port):  # noqa: ASYNC110 - another process sets no Event
            await asyncio.sleep(_POLL_S)


async def pong(port: int) -> bool:
    """Tell whether a new connection gets an answer to `PING` within half a second."""
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


def free_port() -> int:
    """Return a port of loopback that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
