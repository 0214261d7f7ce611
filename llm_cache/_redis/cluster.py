"""Which server has a key: the slots of a Redis Cluster, learned from it and kept up to date.

Commands go over redis-py's pools, one for each primary, and not through its `RedisCluster`. That
raises where no connection is free instead of waiting, and after a failure of one node closes the
connections of others and has every caller wait while it looks for the slots, at nodes that may not
answer either. Here a lost node is the trouble of those alone who ask for its keys.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, RedisError

from llm_cache._flight import SharedRun
from llm_cache._redis.address import Address
from llm_cache._redis.lanes import Command, Lane, lane_over, node_pool
from llm_cache.errors import StoreError, StoreUnavailable

_HEAD_START_S = 0.1
"""How long one node is asked alone for the slots before another is asked too."""
_PAUSE_S = 0.3
"""Between two looks at a cluster in trouble: it takes seconds to find another primary."""
# The others have their first key in the first place.
_KEYLESS = frozenset({"CLUSTER", "COMMAND", "ECHO", "FT._LIST", "INFO", "PING", "SCRIPT", "TIME"})
_SCRIPTS = frozenset({"EVAL", "EVALSHA"})

Host = tuple[str, int]
Send = Callable[[Lane, Sequence[Command]], Awaitable[list[Any]]]


class Cluster:
    """The lanes to the primaries of one cluster.

    Args:
        address: Nodes to begin with, and what connections are made with.
        max_connections: To each primary.
        timeout_s: Most that a look at the slots takes.
    """

    def __init__(self, address: Address, *, max_connections: int, timeout_s: float) -> None:
        self._address = address
        self._max_connections = max_connections
        self._timeout_s = timeout_s
        self._all: dict[Host, Lane] = {}
        """Every server there has been a lane to."""
        self._slots: dict[int, Lane] = {}
        self._lanes: tuple[Lane, ...] = ()
        self._known: list[Host] = list(address.hosts)
        self._looking = SharedRun(self._look, name="llm_cache.cluster")
        self._watching: asyncio.Task[None] | None = None

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """One for each primary that has slots, in the order of their names."""
        return self._lanes

    def lane(self, key: str | bytes) -> Lane:
        """Return the way to the primary of *key*.

        Raises:
            StoreUnavailable: no primary has its slot.
        """
        lane = self._slots.get(key_slot(key if isinstance(key, bytes) else key.encode()))
        if lane is None:
            self.suspect()
            raise StoreUnavailable("no primary of the cluster has the slot of this key")
        return lane

    async def open(self) -> None:
        """Learn the slots.

        Raises:
            StoreUnavailable: no node answers, or none of a cluster.
        """
        await self._looking.join()

    async def aclose(self) -> None:
        """Close all connections."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        lanes, self._all, self._slots, self._lanes = list(self._all.values()), {}, {}, ()
        for lane in lanes:
            await lane.client.aclose()

    def suspect(self) -> None:
        """Look at the slots again in the background: something has failed."""
        if self._lanes and (self._watching is None or self._watching.done()):
            self._watching = asyncio.create_task(self._watch(), name="llm_cache.cluster.watch")

    def learn(self, error: MovedError) -> None:
        """Take over where a slot is now, and look at the others in the background.

        At once, and for everybody: what other nodes say may lag behind.
        """
        self._slots[error.slot_id] = self._lane_at((error.host, error.port))
        self._lanes = _distinct(self._slots)
        self.suspect()

    async def route(
        self,
        commands: Sequence[Command],
        send: Send,
        *,
        before: Command | None = None,
    ) -> list[Any]:
        """Return the answers to *commands*, each sent to the primary of its first key.

        Those of one primary travel together, in their order, behind *before*, whose answer is
        dropped. What failed is among them as its error, so that a lost primary is that of its own
        keys alone. What has moved is asked for once more, where it is now.
        """
        answers: list[Any] = [None] * len(commands)
        groups: dict[Lane, list[int]] = {}
        for at, command in enumerate(commands):
            try:
                groups.setdefault(self._lane_of(command), []).append(at)
            except StoreUnavailable as error:
                answers[at] = error
        first = () if before is None else (before,)

        async def ask(lane: Lane, places: list[int]) -> None:
            try:
                found = await send(lane, [*first, *(commands[at] for at in places)])
                found = found[len(first) :]
            except (RedisError, OSError, StoreError) as error:
                self.suspect()
                found = [error] * len(places)
            for at, answer in zip(places, found, strict=True):
                answers[at] = answer

        if len(groups) == 1:
            ((lane, places),) = groups.items()
            await ask(lane, places)
        else:
            await asyncio.gather(*(ask(lane, places) for lane, places in groups.items()))
        # One after the other, so that commands on one key keep their order.
        for at, answer in enumerate(answers):
            if isinstance(answer, AskError):
                answers[at] = await self._ask_again(answer, [*first, commands[at]])
        return answers

    async def _ask_again(self, error: AskError, commands: Sequence[Command]) -> Any:
        """Return the answer to the last of *commands* from where *error* says its key is."""
        if isinstance(error, MovedError):
            self.learn(error)
        lane = self._lane_at((error.host, error.port))
        # `MovedError` is a kind of `AskError` to redis-py.
        asking = () if isinstance(error, MovedError) else (("ASKING",),)
        try:
            return (await lane.send([*commands[:-1], *asking, commands[-1]]))[-1]
        except (RedisError, OSError) as again:
            return again

    def _lane_of(self, command: Command) -> Lane:
        key = key_of(command)
        return random.choice(self._some()) if key is None else self.lane(key)  # noqa: S311

    def _some(self) -> Sequence[Lane]:
        if not self._lanes:
            raise StoreUnavailable("the connection to Redis is not open")
        return self._lanes

    def _lane_at(self, host: Host) -> Lane:
        lane = self._all.get(host)
        if lane is None:
            pool = node_pool(self._address, *host, max_connections=self._max_connections)
            name = f"{host[0]}:{host[1]}"
            lane = self._all[host] = lane_over(name, pool)
        return lane

    async def _watch(self) -> None:
        with suppress(StoreError):
            await self._looking.join()
        # Whoever fails meanwhile is part of the same trouble.
        await asyncio.sleep(_PAUSE_S)

    async def _look(self) -> None:
        """Learn the slots from whichever node answers first."""
        try:
            async with asyncio.timeout(self._timeout_s):
                slots = await self._first_answer()
        except TimeoutError as error:
            raise StoreUnavailable(
                f"no node of the cluster told its slots within {self._timeout_s:g} s"
            ) from error
        lanes = {host: self._lane_at(host) for host in set(slots.values())}
        self._slots = {slot: lanes[host] for slot, host in slots.items()}
        self._lanes = _distinct(self._slots)
        self._known = list(dict.fromkeys([*lanes, *self._known, *self._address.hosts]))
        for host in self._all.keys() - lanes.keys():
            # It may come back; what it was connected with is not worth keeping.
            await self._all[host].client.connection_pool.disconnect(inuse_connections=False)

    async def _first_answer(self) -> dict[int, Host]:
        """Ask the nodes in turn, without waiting long for one that is silent."""
        waiting: set[asyncio.Task[dict[int, Host]]] = set()
        problem: BaseException | None = None
        hosts = random.sample(self._known, len(self._known))
        try:
            while hosts or waiting:
                if hosts:
                    waiting.add(asyncio.create_task(self._slots_from(hosts.pop())))
                done, waiting = await asyncio.wait(
                    waiting,
                    timeout=_HEAD_START_S if hosts else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    if (problem := task.exception()) is None:
                        return task.result()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        raise StoreUnavailable(str(problem) or type(problem).__name__) from problem

    async def _slots_from(self, host: Host) -> dict[int, Host]:
        """Return what one node says of who has which slot."""
        # As two words, which redis-py hands on as they are and answers as Redis does.
        asked = self._lane_at(host).client.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
        return {
            # A node that does not know its own name leaves it out.
            slot: (_decoded(name) or host[0], int(port))
            for first, last, (name, port, *_), *_ in await asked
            for slot in range(first, last + 1)
        }


def _decoded(name: bytes | str | None) -> str | None:
    return name.decode() if isinstance(name, bytes) else name


def key_of(command: Command) -> str | bytes | None:
    """Return the key that says where *command* is carried out; `None` where any server does."""
    name = command[0]
    if name in _SCRIPTS:
        return _text(command[3])
    if name == "FT.CURSOR":
        return _text(command[2])
    return None if name in _KEYLESS else _text(command[1])


def _text(key: Any) -> str | bytes:
    return key if isinstance(key, bytes) else str(key)


def _distinct(slots: dict[int, Lane]) -> tuple[Lane, ...]:
    return tuple(sorted(set(slots.values()), key=lambda lane: lane.name))
