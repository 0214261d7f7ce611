"""Caches to compare, each in a process of its own.

    async with running(PEERS["redisvl"], cache_folder) as peer:
        await peer.open(url=…, dimensions=384, threshold=0.85, namespace=…)
        batch = await peer.call("semantic_check", [[prompt, vector]], callers=200)

Ours runs as the others do, in the environment of whoever measures. The others' environments are
made once, with pinned versions, outside of the project. A peer that cannot be installed or started
raises `PeerUnavailable` with the reason, which is a row of the results like any other.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llm_cache

ENVIRONMENTS = Path.home() / ".cache" / "llm_cache-benchmarks"
"""Where environments are, unless another folder is named."""
DRIVERS = Path(__file__).parent / "drivers"
_INSTALL_S = 900
_CALL_S = 600
_LINE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Peer:
    """A cache to compare with: what to install, and what drives it."""

    name: str
    requirements: tuple[str, ...]
    """What pip is to install; nothing, for what runs where this does."""
    driver: str
    """File among the drivers."""
    about: str
    """How it is called, which is how its own users call it."""
    arguments: tuple[str, ...] = ()
    """Of the driver."""

    @property
    def version(self) -> str:
        """Its release."""
        if not self.requirements:
            return llm_cache.__version__
        return self.requirements[0].partition("==")[2]


OURS = Peer("llm_cache", (), "llm_cache_driver.py", "chat, store_exact; lookup_semantic")
UNGUARDED = Peer("llm_cache, no guards", (), "llm_cache_driver.py", OURS.about, ("--no-guards",))
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
            "litellm-semantic",
            ("litellm==1.105.0", "redisvl==0.28.0"),
            "litellm_semantic_driver.py",
            'Cache(type="redis-semantic").async_add_cache and async_get_cache',
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
            ("gptcache==0.1.44", "redis==5.0.8", "redis-om==1.1.0", "sqlalchemy==2.0.58"),
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


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of the calls of a batch, in the order of its items."""

    found: Sequence[str | None]
    """What a look-up returned; `None` of whatever is no look-up."""
    times_us: Sequence[float]
    errors: Sequence[str | None]
    """Why a call failed; `None` where it did not."""
    total_s: float

    @property
    def failures(self) -> dict[str, int]:
        """How many calls failed, by what they raised."""
        return dict(Counter(error for error in self.errors if error is not None))


class RunningPeer:
    """A peer in its own process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.offers: frozenset[str] = frozenset()
        """The batches it has."""

    async def open(self, *, url: str, dimensions: int, threshold: float, namespace: str) -> None:
        """Connect it, anew if it was open before.

        Args:
            url: Of Redis, over TCP.
            dimensions: Of the vectors that will be given.
            threshold: Least cosine similarity of a hit.
            namespace: Of its keys and indexes.

        Raises:
            PeerUnavailable: it cannot.
        """
        told = await self._tell(
            "open", url=url, dimensions=dimensions, threshold=threshold, namespace=namespace
        )
        self.offers = frozenset(told["offers"])

    async def call(
        self, operation: str, items: Sequence[Sequence[Any]], *, callers: int = 1
    ) -> Batch:
        """Let so many callers at once carry out *operation* on every item.

        A call that fails is part of what is returned.

        Raises:
            PeerUnavailable: it has no such operation, took too long or is gone.
        """
        return Batch(**await self._tell(operation, items=items, callers=callers))

    async def close(self) -> None:
        """Let it end by itself.

        Raises:
            PeerUnavailable: it does not.
        """
        await self._tell("close")

    async def _tell(self, operation: str, **arguments: Any) -> dict[str, Any]:
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
async def running(peer: Peer, cache: Path, *, installs: bool = True) -> AsyncIterator[RunningPeer]:
    """Start *peer*, to be opened.

    Args:
        peer: Which.
        cache: Folder of the environments.
        installs: Whether to install what is not installed yet.

    Raises:
        PeerUnavailable: it is not installed, cannot be, or something was asked in vain.
    """
    python = await environment(peer, cache, installs=installs)
    cache.mkdir(parents=True, exist_ok=True)
    log = cache / f"{peer.name}.log"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            python,
            str(DRIVERS / peer.driver),
            *peer.arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            limit=_LINE_BYTES,
            env=_surroundings(peer, cache, Path(python).parent),
            # Ctrl-C is for the benchmark, which ends its peers in order.
            start_new_session=True,
        )
        started = RunningPeer(process)
        try:
            yield started
            await started.close()
        except PeerUnavailable as error:
            raise PeerUnavailable(f"{error} (its output is in {log})") from error
        finally:
            await _end(process)


async def environment(peer: Peer, cache: Path, *, installs: bool = True) -> str:
    """Return the interpreter of the environment of *peer*; make it if need be.

    Raises:
        PeerUnavailable: it is not there and *installs* is false, or pip could not install it; the
            message has its last words.
    """
    if not peer.requirements:
        return sys.executable
    wanted = hashlib.sha256("\n".join([sys.version, *peer.requirements]).encode()).hexdigest()
    folder = cache / f"{peer.name}-{wanted[:8]}"
    python, stamp = folder / "bin" / "python", folder / "installed"
    if not stamp.is_file():
        if not installs:
            raise PeerUnavailable("not installed; --peers all installs it, from PyPI")
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
        raise PeerUnavailable(f"not installed within {_INSTALL_S} s") from None
    finally:
        await _end(process)
    if process.returncode != 0:
        words = output.decode(errors="replace").strip().splitlines() or ["no output"]
        raise PeerUnavailable(f"not installed: {words[-1][:200]}")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
    await process.wait()


def _surroundings(peer: Peer, cache: Path, programs: Path) -> dict[str, str]:
    """Return the environment of a driver, whose interpreter is among *programs*.

    Nothing of ours is on the path of others, and nothing phones home. A peer that installs
    something by itself, with the `python` that it finds, finds its own.
    """
    kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    project = Path(llm_cache.__file__).parent.parent
    path = [DRIVERS] if peer.requirements else [DRIVERS, project]
    return {
        **kept,
        "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "TMPDIR": str(cache),
    }
