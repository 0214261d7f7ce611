"""What every benchmark needs around it: a Redis, an upstream, and a bar that says how long yet."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, Self

from redis import asyncio as redis_py
from redis.exceptions import RedisError

from benchmarks.errors import BadInput
from llm_cache import CacheConfig, LLMCache
from llm_cache.errors import LLMCacheError
from llm_cache.testing import FakeEmbedder

NAMESPACE = "llm_cache_bench"
"""Prefix of every namespace that a benchmark uses, and removes."""


class Advance(Protocol):
    """Moves a bar."""

    def __call__(self, steps: float = 1, /) -> None:
        """Note that so many steps are done."""


class Progress:
    """Bars on standard error, with the time that is left; nothing where nobody looks."""

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console = Console(stderr=True, quiet=quiet)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, highlight=False, markup=False)

    @contextmanager
    def bar(self, what: str, total: float | None) -> Iterator[Advance]:
        """Show a bar of *total* steps while the block runs."""
        task = self._bars.add_task(what, total=total)

        def advance(steps: float = 1, /) -> None:
            self._bars.advance(task, steps)

        try:
            yield advance
        finally:
            self._bars.remove_task(task)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()


@dataclass(frozen=True, slots=True)
class Session:
    """What a benchmark is run with."""

    redis_url: str
    """Of a server that answers; never `embedded://`, so that other processes reach it too."""
    seed: int
    progress: Progress
    described_as: str
    """The URL as it was given, without a password."""
    stop: asyncio.Event
    """Set by Ctrl-C: finish what is at hand, and write what there is."""

    def namespace(self, name: str) -> str:
        """Return a namespace of one's own for *name*."""
        return f"{NAMESPACE}.{name}"


@asynccontextmanager
async def session(redis_url: str, *, seed: int, quiet: bool = False) -> AsyncIterator[Session]:
    """Start the embedded server if asked for, and make sure that Redis answers.

    Raises:
        BadInput: no Redis answers there, or it has no search module.
    """
    with Progress(quiet=quiet) as progress:
        # Opening a cache is the public way to start the embedded server and to check any other.
        config = CacheConfig(namespace=f"{NAMESPACE}.session")
        holder = LLMCache(redis_url, embedder=FakeEmbedder(), config=config)
        try:
            await holder.open()
        except LLMCacheError as error:
            raise BadInput(f"--redis-url: {error}") from error
        try:
            url = holder.redis_url
            yield Session(url, seed, progress, without_password(redis_url), asyncio.Event())
        finally:
            with suppress(RedisError, OSError):
                await forget(holder.redis_url, f"{NAMESPACE}.session")
            await holder.aclose()


def without_password(url: str) -> str:
    """Return *url* as it may be shown."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


async def forget(redis_url: str, namespace: str) -> None:
    """Remove every key and index of *namespace*, which must be one of a benchmark.

    Raises:
        ValueError: it is none.
    """
    if not namespace.startswith(f"{NAMESPACE}."):
        raise ValueError(f"{namespace} is no namespace of a benchmark")
    client: Any = redis_py.Redis.from_url(redis_url)
    try:
        with suppress(RedisError):  # without the search module there is no index either
            names = [n if isinstance(n, str) else n.decode() for n in await _indexes(client)]
            for name in names:
                if name == namespace or name.startswith(f"{namespace}:"):
                    await client.execute_command("FT.DROPINDEX", name)
        batch: list[Any] = []
        async for key in client.scan_iter(match=f"{namespace}:*", count=1_000):
            batch.append(key)
            if len(batch) >= 1_000:
                await client.unlink(*batch)
                batch.clear()
        if batch:
            await client.unlink(*batch)
    finally:
        await client.aclose()


async def _indexes(client: Any) -> list[Any]:
    names: list[Any] = await client.execute_command("FT._LIST")
    return names


async def used_memory_bytes(redis_url: str) -> int:
    """Return what Redis uses, its search indexes included."""
    client = redis_py.Redis.from_url(redis_url)
    try:
        return int((await client.info("memory"))["used_memory"])
    finally:
        await client.aclose()


class UpstreamProcess:
    """The scripted upstream in a process of its own, so that it takes no time from the clients.

    Args:
        options: Of `python -m llm_cache.testing`.
    """

    def __init__(self, *options: str) -> None:
        self._options = options
        self._process: asyncio.subprocess.Process | None = None
        self.base_url = ""

    @property
    def pid(self) -> int:
        """The process."""
        if self._process is None:
            raise RuntimeError("the upstream was not started")
        return self._process.pid

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "llm_cache.testing",
            *self._options,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C is for the benchmark, which still needs its upstream to finish in order.
            start_new_session=True,
        )
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        async with asyncio.timeout(60):
            self.base_url = (await self._process.stdout.readline()).decode().strip()
        if not self.base_url:
            raise BadInput(f"the upstream did not start: --{' '.join(self._options)}")
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        if process is None or process.stdin is None:
            return
        process.stdin.close()  # its signal to stop
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def stats(self) -> dict[str, int]:
        """Return how many requests came: `calls`, `embedding_calls`, `disconnects`."""
        host, _, port = self.base_url.removeprefix("http://").partition("/")[0].partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(
                f"GET /stats HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            )
            raw = await reader.read()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        counts: dict[str, int] = json.loads(raw[raw.index(b"{") : raw.rindex(b"}") + 1])
        return counts


async def redis_description(redis_url: str) -> dict[str, Any]:
    """Return the releases of the server and of its search module."""
    client: Any = redis_py.Redis.from_url(redis_url)
    try:
        info = await client.info("server")
        modules = await client.execute_command("MODULE", "LIST")
    finally:
        await client.aclose()
    described = {"version": info.get("redis_version"), "search_version": None}
    for module in modules:
        pairs = (
            module.items()
            if isinstance(module, dict)
            else zip(module[::2], module[1::2], strict=False)
        )
        told = {_text(name): value for name, value in pairs}
        if _text(told.get("name")) == "search":
            described["search_version"] = _release(told.get("ver"))
    return described


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _release(number: Any) -> str:
    """Return 20_10_05 as 2.10.5."""
    digits = int(number)
    return f"{digits // 10_000}.{digits // 100 % 100}.{digits % 100}"
