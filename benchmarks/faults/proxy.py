"""A TCP proxy that misbehaves, in a process of its own: `Proxy` starts it and tells it what to do.

What is wrong with the network takes hold at once, on the connections that exist as well as on new
ones. It happens to what the server says; what the client says is only ever held back. Chunks are
what one `recv` returns: one reply under little load, several of them, or a part of one.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Self

_START_S = 30.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with the network. Nothing, by default."""

    delay_s: float = 0.0
    """Seconds by which each chunk comes late."""
    withhold: bool = False
    """A black hole: connections are taken, nothing comes through until it ends."""
    refuse: bool = False
    """Nobody listens, and what was connected is reset."""
    reset: float = 0.0
    """Share of chunks in the middle of which the connection is reset."""
    cut: float = 0.0
    """The same, but it is closed in good order."""
    corrupt: float = 0.0
    """Share of chunks of which one byte is another."""
    trickle: bool = False
    """One byte at a time."""


class Proxy:
    """A proxy on a port of loopback in front of *port*.

    Args:
        port: Of the server behind it, on loopback.
        seed: Of what it draws.
    """

    def __init__(self, port: int, *, seed: int) -> None:
        self._target = port
        self._seed = seed
        self._process: asyncio.subprocess.Process | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.faults.proxy", str(self._target), str(self._seed)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then closes stdin
        )
        self.port = int(await self._answer())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            await self._process.wait()

    async def suffer(self, trouble: Trouble) -> None:
        """Return once *trouble* has taken the place of what was wrong before."""
        assert self._process is not None and self._process.stdin is not None  # noqa: S101, PT018
        self._process.stdin.write(json.dumps(asdict(trouble)).encode() + b"\n")
        await self._answer()

    async def _answer(self) -> bytes:
        assert self._process is not None and self._process.stdout is not None  # noqa: S101, PT018
        async with asyncio.timeout(_START_S):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the proxy has ended")
        return line


class _Network:
    """The proxy itself."""

    def __init__(self, target: int, seed: int) -> None:
        self._target = target
        self._random = random.Random(seed)  # noqa: S311 - faults, not secrets
        self._trouble = Trouble()
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def listen(self) -> None:
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", self.port, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def suffer(self, trouble: Trouble) -> None:
        was, self._trouble = self._trouble, trouble
        self._changed.set()
        self._changed = asyncio.Event()
        if trouble.refuse and self._server is not None:
            self._server.close()
            self._server = None
            for writer in list(self._writers):
                _reset(writer)
        elif was.refuse and not trouble.refuse:
            await self.listen()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind, ahead = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _reset(writer)
            return
        ends = {writer, ahead}
        self._writers |= ends
        try:
            await asyncio.gather(
                self._pipe(reader, ahead, self._as_it_is, ends),
                self._pipe(behind, writer, self._with_trouble, ends),
            )
        finally:
            self._writers -= ends

    async def _pipe(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        forward: Callable[[bytes, asyncio.StreamWriter], Awaitable[None]],
        ends: set[asyncio.StreamWriter],
    ) -> None:
        with suppress(OSError):
            while chunk := await source.read(65_536):
                while self._trouble.withhold:
                    await self._changed.wait()
                await forward(chunk, sink)
                await sink.drain()
        for end in ends:
            end.close()

    async def _as_it_is(self, chunk: bytes, sink: asyncio.StreamWriter) -> None:
        sink.write(chunk)

    async def _with_trouble(self, chunk: bytes, sink: asyncio.StreamWriter) -> None:
        trouble = self._trouble
        if trouble.delay_s:
            await asyncio.sleep(trouble.delay_s)
        if self._is_due(trouble.corrupt):
            chunk = _corrupted(chunk, self._random)
        if self._is_due(trouble.reset):
            await self._break_off(chunk, sink, _reset)
        elif self._is_due(trouble.cut):
            await self._break_off(chunk, sink, asyncio.StreamWriter.close)
        elif trouble.trickle:
            for at in range(len(chunk)):
                sink.write(chunk[at : at + 1])
                await asyncio.sleep(0)
        else:
            sink.write(chunk)

    async def _break_off(
        self,
        chunk: bytes,
        sink: asyncio.StreamWriter,
        end: Callable[[asyncio.StreamWriter], None],
    ) -> None:
        sink.write(chunk[: self._random.randrange(len(chunk))])
        await asyncio.sleep(0.001)  # so that the beginning is on its way before the end is
        end(sink)
        raise ConnectionResetError

    def _is_due(self, share: float) -> bool:
        return share > 0 and self._random.random() < share


def _corrupted(chunk: bytes, source: random.Random) -> bytes:
    at = source.randrange(len(chunk))
    other = (chunk[at] + source.randrange(1, 256)) % 256
    return chunk[:at] + bytes([other]) + chunk[at + 1 :]


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST: with no time to linger, nothing that is queued is sent."""
    with suppress(OSError):
        end: socket.socket | None = writer.get_extra_info("socket")
        if end is not None:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _serve(target: int, seed: int) -> None:
    """Print the port, then obey what comes on stdin, a line a trouble, until it ends."""
    network = _Network(target, seed)
    await network.listen()
    print(network.port, flush=True)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    while line := await orders.readline():
        given: dict[str, Any] = json.loads(line)
        await network.suffer(Trouble(**given))
        print("done", flush=True)
    # Without farewell to connections that are being withheld for ever.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
