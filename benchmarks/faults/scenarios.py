"""What is broken, and how it is mended.

A fault is an async context manager over a `Stage`: entering breaks something while the callers
ask, leaving mends it. What is mended may still take its time to answer again; that is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from redis.crc import key_slot

from benchmarks.faults.proxy import Trouble
from benchmarks.faults.stage import Settings, Stage, cluster, every, sentinels, standalone
from llm_cache.testing import Answer
from tests.topologies.servers import Cluster, Sentinels, Server, Standalone, Topology

_TopologyT = TypeVar("_TopologyT", bound=Topology)

Fault = Callable[[Stage], AbstractAsyncContextManager[None]]
Setting = Callable[..., AbstractAsyncContextManager[Stage]]
"""Makes the stage, from settings and the upstream's URL."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing that goes wrong."""

    name: str
    about: str
    fault: Fault
    stage: Setting = standalone
    data_survives: bool = True
    """Whether what was stored before must still be hit afterwards."""
    quick_s: float | None = None
    """Seconds that the fault lasts in a quick run, where those of the settings do not do."""
    most_s: float | None = None
    """Most seconds that it lasts in a full one."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the stage."""

    def lasts_s(self, settings: Settings) -> float:
        """Return how long the fault lasts."""
        if settings.quick:
            return settings.fault_s if self.quick_s is None else self.quick_s
        return settings.fault_s if self.most_s is None else min(settings.fault_s, self.most_s)


# ---------------------------------------------------------------------- nothing


@asynccontextmanager
async def nothing(_stage: Stage) -> AsyncIterator[None]:
    """Break nothing: what the callers see of this machine and of this measurement."""
    yield


# ---------------------------------------------------------------------- the server


@asynccontextmanager
async def killed(stage: Stage) -> AsyncIterator[None]:
    """SIGKILL, and a restart. Where loading takes its time, `LOADING` is what is answered then."""
    server = _server(stage)
    server.kill()
    yield
    server.launch()


@asynccontextmanager
async def stopped(stage: Stage) -> AsyncIterator[None]:
    """SIGSTOP: connections stay, and nobody answers."""
    server = _server(stage)
    server.pause()
    try:
        yield
    finally:
        server.resume()


@asynccontextmanager
async def slept(stage: Stage) -> AsyncIterator[None]:
    """DEBUG SLEEP: busy with one command, as with a slow script."""
    seconds = 0.9 if stage.settings.quick else 3.0
    sleeping = asyncio.create_task(stage.admin.execute_command("DEBUG", "SLEEP", seconds))
    yield
    await sleeping


@asynccontextmanager
async def clients_killed(stage: Stage) -> AsyncIterator[None]:
    """CLIENT KILL of every connection, five times a second."""
    kill = partial(
        stage.admin.execute_command, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"
    )
    async with _repeated(0.2, kill):
        yield


@asynccontextmanager
async def subscribers_killed(stage: Stage) -> AsyncIterator[None]:
    """CLIENT KILL of the connections on which news of other processes come."""
    kill = partial(stage.admin.execute_command, "CLIENT", "KILL", "TYPE", "pubsub")
    async with _repeated(0.2, kill):
        yield


@asynccontextmanager
async def full(stage: Stage) -> AsyncIterator[None]:
    """Out of memory with `noeviction`: reads are answered, writes are refused."""
    used = int((await stage.admin.info("memory"))["used_memory"])
    await stage.admin.config_set("maxmemory", used // 2)
    try:
        yield
    finally:
        await stage.admin.config_set("maxmemory", 0)


@asynccontextmanager
async def evicting(stage: Stage) -> AsyncIterator[None]:
    """`allkeys-lru` at the memory in use, and others who write: anything may go at any time."""
    used = int((await stage.admin.info("memory"))["used_memory"])
    await stage.admin.config_set("maxmemory-policy", "allkeys-lru")
    await stage.admin.config_set("maxmemory", used + 200_000)
    numbers = iter(range(1_000_000))

    async def press() -> None:
        pipeline = stage.admin.pipeline(transaction=False)
        for _ in range(20):
            pipeline.set(f"others:{next(numbers)}", "x" * 10_000, ex=60)
        await pipeline.execute(raise_on_error=False)

    try:
        async with _repeated(0.1, press):
            yield
    finally:
        await stage.admin.config_set("maxmemory", 0)


@asynccontextmanager
async def flushed(stage: Stage) -> AsyncIterator[None]:
    """FLUSHALL twice a second: no answers, no index, no epoch."""
    async with _repeated(0.5, stage.admin.flushall):
        yield


@asynccontextmanager
async def index_dropped(stage: Stage) -> AsyncIterator[None]:
    """FT.DROPINDEX twice a second; the entries stay."""

    async def drop() -> None:
        for name in await stage.admin.execute_command("FT._LIST"):
            with contextlib.suppress(Exception):  # somebody else may have dropped it
                await stage.admin.execute_command("FT.DROPINDEX", name)

    async with _repeated(0.5, drop):
        yield


@asynccontextmanager
async def read_only(stage: Stage) -> AsyncIterator[None]:
    """The server becomes the replica of nobody: READONLY, as after a fail-over."""
    await stage.admin.execute_command("REPLICAOF", "127.0.0.1", 1)
    try:
        yield
    finally:
        await stage.admin.execute_command("REPLICAOF", "NO", "ONE")


@asynccontextmanager
async def locked_out(stage: Stage) -> AsyncIterator[None]:
    """A password is demanded, and connections are closed: NOAUTH on each that is made."""
    own = await stage.admin.client_id()
    await stage.admin.execute_command("ACL", "SETUSER", "default", "resetpass", ">secret")
    kill = ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await stage.admin.execute_command(*kill)
    try:
        yield
    finally:
        if own != await stage.admin.client_id():
            raise RuntimeError("the one who locks up has lost its own connection")
        await stage.admin.execute_command("ACL", "SETUSER", "default", "nopass")


# ---------------------------------------------------------------------- several servers


@asynccontextmanager
async def failed_over(stage: Stage) -> AsyncIterator[None]:
    """SIGKILL of the master; sentinels make a replica the master; the old one comes back."""
    topology = _topology(stage, Sentinels)
    old = await asyncio.to_thread(topology.master)
    old.kill()
    yield
    await asyncio.to_thread(topology.wait_for_other_than, old)
    old.launch()


@asynccontextmanager
async def node_replaced(stage: Stage) -> AsyncIterator[None]:
    """SIGKILL of a primary; its replica takes over; it comes back as a replica."""
    topology = _topology(stage, Cluster)
    lost = topology.first[0]
    lost.kill()
    yield
    await asyncio.to_thread(topology.wait_for_fail_over, lost)
    lost.launch()


@asynccontextmanager
async def node_lost(stage: Stage) -> AsyncIterator[None]:
    """SIGKILL of a primary that nobody replaces, and a restart."""
    topology = _topology(stage, Cluster)
    lost = topology.first[0]
    lost.kill()
    yield
    await asyncio.to_thread(lost.start)
    await asyncio.to_thread(topology.wait_until_whole)


@asynccontextmanager
async def resharded(stage: Stage) -> AsyncIterator[None]:
    """Slots that hold keys move from one primary to the next, one by one, all the time."""
    topology = _topology(stage, Cluster)
    over = threading.Event()
    moving = asyncio.create_task(asyncio.to_thread(_move_slots, topology, over))
    try:
        yield
    finally:
        over.set()
        moved = await moving
    if not moved:
        raise RuntimeError("no slot was moved")


def _move_slots(topology: Cluster, over: threading.Event) -> int:
    moved = 0
    while not over.is_set():
        primaries = topology.primaries()
        for source, target in zip(primaries, [*primaries[1:], primaries[0]], strict=True):
            _, names = source.command("SCAN", 0, "COUNT", 200)
            for slot in sorted({key_slot(name) for name in names})[:20]:
                if over.is_set():
                    break
                topology.move_slot(slot, target)
                moved += 1
    return moved


# ---------------------------------------------------------------------- the network


@asynccontextmanager
async def troubled(stage: Stage, *, trouble: Trouble) -> AsyncIterator[None]:
    """The network has *trouble*."""
    if stage.proxy is None:
        raise RuntimeError("this stage has no proxy")
    await stage.proxy.suffer(trouble)
    try:
        yield
    finally:
        await stage.proxy.suffer(Trouble())


def network(**trouble: Any) -> Fault:
    """Return the fault of a network that has this *trouble*."""
    return partial(troubled, trouble=Trouble(**trouble))


# ---------------------------------------------------------------------- the embedder


def embedder(answer: Callable[[], Any]) -> Fault:
    """Return the fault of an embedder that gives *answer*: an `Answer`, or vectors."""

    @asynccontextmanager
    async def fault(stage: Stage) -> AsyncIterator[None]:
        if stage.embeddings is None:
            raise RuntimeError("this stage has no embedder that could fail")
        stage.embeddings.embeddings = lambda texts, _body: _made(answer(), len(texts))
        try:
            yield
        finally:
            stage.embeddings.embeddings = None

    return fault


def _made(answer: Any, texts: int) -> Any:
    return answer if isinstance(answer, Answer) else [answer] * texts


# ---------------------------------------------------------------------- all of them


def _server(stage: Stage) -> Server:
    return _topology(stage, Standalone).server


def _topology(stage: Stage, kind: type[_TopologyT]) -> _TopologyT:
    if not isinstance(stage.topology, kind):
        raise TypeError(f"this fault needs {kind.__name__}")
    return stage.topology


@asynccontextmanager
async def _repeated(seconds: float, do: Callable[[], Any]) -> AsyncIterator[None]:
    """Do it now and again, from now until the end of the block, where it is done once more."""
    repeating = asyncio.create_task(every(seconds, do))
    try:
        yield
    finally:
        repeating.cancel()
        await asyncio.wait([repeating])
        if not repeating.cancelled():
            repeating.result()  # which raises: it broke nothing any more
        await do()


_HTTP_EMBEDDER = {"http_embedder": True}

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("nothing", "nothing goes wrong", nothing, most_s=5),
        Scenario("sigkill", "SIGKILL of Redis, and a restart", killed),
        Scenario("sigstop", "SIGSTOP of Redis", stopped),
        Scenario("debug-sleep", "`DEBUG SLEEP`", slept),
        Scenario(
            "loading",
            "SIGKILL, and seconds of `LOADING`",
            killed,
            most_s=1,
            quick_s=0.1,
            # Each key takes 2 ms, and for each there are events to be processed meanwhile.
            options={
                "server": {
                    "key-load-delay": "2000",
                    "loading-process-events-interval-bytes": "1024",
                }
            },
        ),
        Scenario("black-hole", "nothing comes through", network(withhold=True)),
        Scenario("refused", "connections are refused", network(refuse=True)),
        Scenario("slow", "every reply comes 100 ms late", network(delay_s=0.1)),
        Scenario("very-slow", "every reply comes a second late", network(delay_s=1.0)),
        Scenario("one-byte", "one byte at a time", network(trickle=True)),
        Scenario("reset", "resets in the middle of replies", network(reset=0.2)),
        Scenario("cut", "replies that end in the middle", network(cut=0.2)),
        Scenario("corrupt", "a wrong byte in every fifth reply", network(corrupt=0.2)),
        Scenario("client-kill", "`CLIENT KILL`, five times a second", clients_killed),
        Scenario("subscribers", "`CLIENT KILL TYPE pubsub`", subscribers_killed, most_s=5),
        Scenario("oom", "out of memory, `noeviction`", full),
        Scenario("lru", "eviction under pressure, `allkeys-lru`", evicting, data_survives=False),
        Scenario("flushall", "`FLUSHALL`, twice a second", flushed, data_survives=False),
        Scenario("index", "`FT.DROPINDEX`, twice a second", index_dropped),
        Scenario("readonly", "`READONLY`", read_only),
        Scenario("noauth", "`NOAUTH`", locked_out),
        Scenario(
            "failover",
            "Sentinel: the master is killed",
            failed_over,
            stage=sentinels,
            most_s=0.1,
            quick_s=0.1,
        ),
        Scenario(
            "cluster-failover",
            "Cluster: a primary is killed, its replica takes over",
            node_replaced,
            stage=cluster,
            most_s=0.1,
            quick_s=0.1,
        ),
        Scenario(
            "cluster-node",
            "Cluster: a primary without replica is killed, and restarted",
            node_lost,
            stage=cluster,
            options={"replicas": 0},
        ),
        Scenario(
            "slots",
            "Cluster: slots move",
            resharded,
            stage=cluster,
            options={"replicas": 0},
        ),
        Scenario(
            "embedder-hangs",
            "the embedder does not answer",
            embedder(lambda: Answer(delay_s=3_600)),
            options=_HTTP_EMBEDDER,
        ),
        Scenario(
            "embedder-garbage",
            "the embedder answers NaN",
            embedder(lambda: [float("nan")] * 384),
            options=_HTTP_EMBEDDER,
        ),
        Scenario(
            "embedder-429",
            "the embedder refuses: too many requests",
            embedder(lambda: Answer(status=429)),
            options=_HTTP_EMBEDDER,
        ),
    )
}
"""By name, in the order of the table."""
