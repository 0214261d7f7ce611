"""Environments of peers: made once, with pinned versions, outside of the project.

    async with running(PEERS["redisvl"], cache_folder, url=…, dimensions=384, …) as peer:
        answer = await peer.call("semantic_check", items=[[prompt, vector]], callers=1)

A peer that cannot be installed or started raises `PeerUnavailable` with the reason, which is a
row of the results like any other.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DRIVERS = Path(__file__).parent / "drivers"
_INSTALL_S = 900
_CALL_S = 600
_LINE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Peer:
    """A cache to compare with: what to install, and what drives it."""

    name: str
    requirements: tuple[str, ...]
    driver: str
    """File among the drivers."""
    about: str
    """How it is called, which is how its own users call it."""


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "redisvl",
            ("redisvl==0.28.0",),
            "redisvl_driver.py",
            "SemanticCache.astore and acheck, vector given",
        ),
        Peer(
            "litellm",
            ("litellm==1.105.0", "redis[hiredis]==6.4.0"),
            "litellm_driver.py",
            'Cache(type="redis").async_add_cache and async_get_cache',
        ),
        Peer(
            "langchain-redis",
            ("langchain-redis==0.2.6",),
            "langchain_driver.py",
            "RedisCache and RedisSemanticCache: aupdate and alookup",
        ),
        Peer(
            "cashews",
            ("cashews[redis]==7.6.0", "hiredis==3.3.0"),
            "cashews_driver.py",
            "cache.set and cache.get, default serializer",
        ),
        Peer(
            "aiocache",
            ("aiocache[redis]==0.12.3", "hiredis==3.3.0"),
            "aiocache_driver.py",
            "RedisCache with StringSerializer: set and get",
        ),
        Peer(
            "gptcache",
            ("gptcache==0.1.44", "redis==5.0.8", "sqlalchemy==2.0.58"),
            "gptcache_driver.py",
            "put and get with the vector store for Redis",
        ),
        Peer(
            "betterdb",
            ("betterdb-semantic-cache==0.13.0",),
            "betterdb_driver.py",
            "SemanticCache.store and check",
        ),
    )
}


class PeerUnavailable(Exception):
    """A peer could not be installed, started or asked; the message says why."""


class RunningPeer:
    """A peer in its own process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Have the peer carry out *operation*: see `drivers/protocol.py`.

        Raises:
            PeerUnavailable: it failed, cannot do that, took too long or is gone.
        """
        assert self._process.stdin is not None  # noqa: S101 - started with pipes
        assert self._process.stdout is not None  # noqa: S101
        request = json.dumps({"op": operation, **arguments}) + "\n"
        try:
            async with asyncio.timeout(_CALL_S):
                self._process.stdin.write(request.encode())
                await self._process.stdin.drain()
                line = await self._process.stdout.readline()
        except (TimeoutError, OSError) as error:
            raise PeerUnavailable(f"{operation}: {type(error).__name__}") from error
        if not line:
            raise PeerUnavailable(f"{operation}: the driver ended")
        answer: dict[str, Any] = json.loads(line)
        if not answer.pop("ok"):
            raise PeerUnavailable(f"{operation}: {answer['error']}")
        return answer


@asynccontextmanager
async def running(
    peer: Peer, cache: Path, *, url: str, dimensions: int, threshold: float, namespace: str
) -> AsyncIterator[RunningPeer]:
    """Run *peer* against the Redis at *url*, installed under *cache* if it is not yet.

    Raises:
        PeerUnavailable: it cannot be installed, or does not start.
    """
    python = await environment(peer, cache)
    log = cache / f"{peer.name}.log"
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            python,
            str(DRIVERS / peer.driver),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            limit=_LINE_BYTES,
            env=_surroundings(cache),
        )
        driver = RunningPeer(process)
        try:
            await driver.call(
                "open", url=url, dimensions=dimensions, threshold=threshold, namespace=namespace
            )
            yield driver
            await driver.call("close")
        except PeerUnavailable as error:
            raise PeerUnavailable(f"{error} (its output is in {log})") from error
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def environment(peer: Peer, cache: Path) -> str:
    """Return the interpreter of the environment of *peer*; make it if need be.

    Raises:
        PeerUnavailable: pip could not install it; the message has its last words.
    """
    wanted = hashlib.sha256("\n".join([sys.version, *peer.requirements]).encode()).hexdigest()
    folder = cache / f"{peer.name}-{wanted[:8]}"
    python, stamp = folder / "bin" / "python", folder / "installed"
    if not stamp.is_file():
        await _succeed(sys.executable, "-m", "venv", "--clear", str(folder))
        pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input")
        await _succeed(str(python), *pip, *peer.requirements)
        stamp.write_text("\n".join(peer.requirements), encoding="utf-8")
    return str(python)


async def _succeed(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(_INSTALL_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise PeerUnavailable(f"not installed within {_INSTALL_S} s") from None
    if process.returncode != 0:
        words = output.decode(errors="replace").strip().splitlines() or ["no output"]
        raise PeerUnavailable(f"not installed: {words[-1][:200]}")


def _surroundings(cache: Path) -> dict[str, str]:
    """Return the environment of a driver: nothing of ours is on its path, nothing phones home."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "TMPDIR": str(cache),
    }
