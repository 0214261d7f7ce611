"""Single-flight across processes: who makes an answer, and who waits for it.

Whoever wants to make the answer of a digest takes its lease first: `<ns>:lease:{<digest>}` holds
a random token for one second, and its holder renews it. The others wait. They are told on the
channel of the digest when the leader is done, and look at the lease again when it would run out,
so that a leader that died costs them one lease and not more.

A lease is a promise of Redis, not a lock: a leader that stood still for a second has lost it and
may not know. So the last step is fenced: an answer, what leads to it and the end of the lease are
written by one script, which lets a leader that was late overwrite nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from enum import StrEnum
from typing import Any, Self, TypeVar
from weakref import WeakSet

from redis.exceptions import NoScriptError

from llm_cache._core.keys import Keys
from llm_cache._flight import observe
from llm_cache._redis.connection import Connection
from llm_cache._redis.landings import Ear, Landings
from llm_cache._redis.line import Lines
from llm_cache.errors import StoreTimeout, StoreUnavailable

_log = logging.getLogger("llm_cache.lease")
_T = TypeVar("_T")

LEASE_S = 1.0
RENEW_S = 0.3
_TAKEN_TOGETHER = 64
_GONE = -2  # what PTTL answers for a key that is not there

HashWrite = tuple[str, Sequence[str | bytes]]
"""A key, and the names and values of the fields to write there."""


class Landing(StrEnum):
    """How the work of a leader ended; also the message that tells so."""

    LANDED = "landed"
    """There may be an answer now: look the key up again."""
    FAILED = "failed"
    """The leader has none to share. Waiting for the next leader in turn would make a queue."""


class Script:
    """A Lua script, sent by its digest, and in full where the server does not know it (yet)."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def run(
        self,
        execute: Callable[..., Awaitable[Any]],
        keys: Sequence[str],
        arguments: Sequence[str | bytes | float],
    ) -> Any:
        """Run the script by *execute*. One round trip, two where the server had to be sent it."""
        rest = (len(keys), *keys, *arguments)
        try:
            return await execute("EVALSHA", self._sha, *rest)
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, NoScriptError):
                raise
        # A server that was restarted, failed over or told `SCRIPT FLUSH`. This loads it.
        return await execute("EVAL", self._text, *rest)

    async def run_each(
        self, connection: Connection, calls: Iterable[tuple[Sequence[str], Sequence[str | bytes]]]
    ) -> list[Any]:
        """Run the script once for each of *calls*, their keys and arguments. One round trip."""
        commands = [
            ("EVALSHA", self._sha, len(keys), *keys, *arguments) for keys, arguments in calls
        ]
        # First of all, so that none of them can miss it.
        return await connection.execute_all(commands, before=("SCRIPT", "LOAD", self._text))


# `PUBLISH` is called so that its failure is ignored: a user without the right to the channel has
# stored all the same, and waiters have their fallback. The answer is written first, so that a
# server without memory refuses the whole.
_STORE = Script("""
local token, ttl = ARGV[1], ARGV[2]
local is_ours = token ~= '' and redis.call('GET', KEYS[2]) == token
local is_stored = 0
if token == '' or is_ours or redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ttl)
  if KEYS[3] then
    redis.call('HSET', KEYS[3], unpack(ARGV, 6))
    redis.call('PEXPIRE', KEYS[3], ttl)
  end
  is_stored = 1
end
if is_ours then redis.call('DEL', KEYS[2]) end
redis.pcall('PUBLISH', ARGV[4], ARGV[5])
return is_stored
""")
# A failure is told by the present leader alone: the waiters of a lost lease have moved on to the
# next leader, which has not failed. An answer is good news from anyone.
_RELEASE = Script("""
local is_ours = redis.call('GET', KEYS[1]) == ARGV[1]
if is_ours then redis.call('DEL', KEYS[1]) end
if is_ours or ARGV[3] == 'landed' then redis.pcall('PUBLISH', ARGV[2], ARGV[3]) end
return is_ours and 1 or 0
""")


class Lease:
    """The right to make the answer of one digest, renewed until it ends.

    Use it as `async with lease`: left without `release` or `Leases.store`, by an exception for
    instance, it tells the waiters that there is no answer.
    """

    def __init__(self, leases: Leases, digest: str, token: str, due_s: float) -> None:
        self._leases = leases
        self.digest = digest
        self.token = token
        self.due_s = due_s
        """When to renew it, by the clock of the event loop."""
        self.is_lost = False
        """Whether a renewal found it gone. False proves nothing; the fence decides."""
        self.is_taken = False
        """Whether Redis has said that it is ours."""
        self.is_ended = False
        """Whether it was given back, or that was tried."""

    async def release(self, outcome: Landing) -> bool:
        """Give the lease back, and wake who waits for it; return whether it was still ours.

        One round trip, none if it has ended before. Renewal stops in any case, so that a release
        that fails or is cancelled leaves a lease that runs out by itself.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        return await self._leases.release(self, outcome)

    async def abandon(self, outcome: Landing = Landing.FAILED) -> None:
        """Release the lease, and if Redis does not answer, let it run out."""
        try:
            await self.release(outcome)
        except StoreUnavailable as error:
            # Whoever leaves has an answer or an error of their own, and waiters have a fallback.
            _log.debug("a lease was left to run out: %s", error)

    def expire(self) -> None:
        """Let the lease run out: it is renewed no more. Asks Redis nothing."""
        self._leases.forget(self)

    async def __aenter__(self) -> Self:
        """Return the lease itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Abandon the lease, unless it has ended. Never raises because of Redis."""
        await self.abandon()


class Leases:
    """The leases of one namespace, as one process sees them.

    Needs Redis 7.0 (`SET … NX GET`). Nothing is sent and no task runs while there is no lease to
    take, hold or wait for.
    """

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        *,
        lease_s: float = LEASE_S,
        renew_s: float = RENEW_S,
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._lease_ms = round(lease_s * 1000)
        self._renew_s = renew_s
        # A lease whose holder is gone without a word is not kept alive by its renewal.
        self._held: WeakSet[Lease] = WeakSet()
        self._renewing: asyncio.Task[None] | None = None
        self._landings = Landings(connection)
        # What goes on for a caller that has left: leases that are being taken or given back.
        self._tasks: set[asyncio.Task[Any]] = set()
        # What is carried out twice leaves what once leaves: the second `SET` tells who has the
        # lease, the second store that it did nothing. A crowd takes its leases together, and so
        # has its prompts embedded together. Many stores at once keep one connection busy, for half
        # of what the pool's take.
        self._takes = Lines(connection, on_their_way=_TAKEN_TOGETHER)
        self._stores = Lines(connection)
        self._is_closed = False

    async def claim(
        self,
        digest: str,
        lookup: Callable[[], Awaitable[_T | None]],
        *,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Lease | _T | None:
        """Return the lease of *digest*, or the answer that another process made.

        `None` means that the leader waited for has failed: go on without a lease. To be called
        after a look-up that missed; *lookup* looks again. Two round trips for a leader. A waiting
        process sends four commands beside its first look-up when the leader takes less than a
        second, and about one more for each further second; there is no limit to the wait, during
        which a context of *waiting* is open.

        Cancelled, it leaves no waiter and no lease.

        Raises:
            StoreUnavailable: Redis did not answer; what *lookup* raises comes through.
        """
        while (lease := await self.acquire(digest)) is None:
            if await self.wait(digest, waiting=waiting) is Landing.FAILED:
                return None
            if (found := await lookup()) is not None:
                return found
        try:
            # The last leader may have landed between the look-up that missed and our lease.
            found = await lookup()
        except BaseException:
            self.let_go(lease)
            raise
        if found is None:
            return lease
        self.let_go(lease, Landing.LANDED)
        return found

    async def acquire(self, digest: str) -> Lease | None:
        """Take the lease of *digest*, or return `None`: somebody else has it.

        One command. The new holder looks the answer up once more before it makes one (`claim`).

        Cancelled, it gives back what the command takes that is on its way.

        Raises:
            StoreUnavailable: Redis did not answer. If it did take the lease, that runs out.
        """
        if self._is_closed:
            raise StoreUnavailable("this cache was closed")
        # Counted from before the command, so that a slow reply never delays the first renewal.
        lease = Lease(self, digest, secrets.token_hex(16), _now_s() + self._renew_s)
        taking = self._spawn(self._take(lease))
        try:
            return lease if await asyncio.shield(taking) else None
        except asyncio.CancelledError:
            # Nobody knows yet whether the lease is taken; whoever finds out gives it back.
            taking.add_done_callback(lambda _: self.let_go(lease) if lease.is_taken else None)
            raise

    async def _take(self, lease: Lease) -> bool:
        key, token = self._keys.lease(lease.digest), lease.token
        take = ("SET", key, token, "NX", "GET", "PX", self._lease_ms)
        holder = await self._takes.execute(*take)
        # Our own token comes back where the first reply was lost and the command sent again.
        lease.is_taken = holder is None or holder == token.encode()
        if lease.is_taken:
            self._held.add(lease)
            if self._renewing is None or self._renewing.done():
                self._renewing = asyncio.create_task(self._renew(), name="llm_cache.leases")
        return lease.is_taken

    def let_go(self, lease: Lease, outcome: Landing = Landing.FAILED) -> None:
        """Abandon *lease* without waiting for it; `aclose` does."""
        if not lease.is_ended:
            self._spawn(lease.abandon(outcome))

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work, name="llm_cache.lease")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        observe(task)

    async def wait(
        self,
        digest: str,
        *,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Landing:
        """Wait until the leader of *digest* is done, or its lease has run out.

        `LANDED` means no more than to look the key up again, and then to `acquire` again. Two
        commands (one for the subscription, one that asks how long the lease lasts), and one more
        each time the lease would have run out and was renewed instead.

        Cancelled, it leaves no waiter.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        key = self._keys.lease(digest)
        with self._landings.listen(self._channel(digest)) as ear:
            while True:
                await self._subscribe(ear)
                if ear.heard is None:
                    # Asked only when nothing later can be missed: a lease that ended before is
                    # gone by now.
                    left_ms = await self._connection.execute("PTTL", key)
                    if left_ms == _GONE:
                        return Landing.LANDED
                    if left_ms < 0:
                        # No leader wrote it: ours expire.
                        return Landing.FAILED
                    with waiting(), suppress(TimeoutError):
                        # Redis keeps a key through its last millisecond.
                        async with asyncio.timeout((left_ms + 1) / 1000):
                            await ear.news()
                if ear.heard is not None:
                    # What was published a moment before this leader took over may still arrive
                    # now. A failure that is not ours costs a call of the model, nothing else.
                    is_failed = ear.heard == Landing.FAILED.encode()
                    return Landing.FAILED if is_failed else Landing.LANDED

    async def release(self, lease: Lease, outcome: Landing) -> bool:
        """Release *lease*: see `Lease.release`."""
        if lease.is_ended:
            return False
        self.forget(lease)
        is_ours = await _RELEASE.run(
            self._connection.execute,
            [self._keys.lease(lease.digest)],
            [lease.token, self._channel(lease.digest), outcome],
        )
        return bool(is_ours)

    async def aclose(self) -> None:
        """Release what is held as failed, as far as Redis answers, and stop listening."""
        self._is_closed = True
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        while self._tasks:
            await asyncio.wait(list(self._tasks))
        await asyncio.gather(*(lease.abandon() for lease in list(self._held)))
        await self._landings.aclose()
        await self._takes.aclose()
        await self._stores.aclose()

    async def store(
        self,
        digest: str,
        blob: bytes,
        *,
        ttl_ms: int,
        entry: HashWrite | None = None,
        lease: Lease | None = None,
    ) -> bool:
        """Write an answer, and the semantic *entry* that leads to it, and end the *lease*.

        One round trip, and atomic: everything is there with its expiry, the lease is given back
        and the waiters are woken, or nothing has changed. Return whether it was stored: a leader
        that has lost its lease overwrites no answer, which may be a newer one. Without a lease
        what is there is replaced.

        Raises:
            StoreUnavailable: Redis did not answer; the answer may have been stored all the same.
                The lease is still held.
        """
        keys = [self._keys.answer(digest), self._keys.lease(digest)]
        fields: Sequence[str | bytes] = ()
        if entry is not None:
            keys.append(entry[0])
            fields = entry[1]
        token = "" if lease is None else lease.token
        is_stored = await _STORE.run(
            self._stores.execute,
            keys,
            [token, ttl_ms, blob, self._channel(digest), Landing.LANDED, *fields],
        )
        if lease is not None:
            self.forget(lease)
        return bool(is_stored)

    def forget(self, lease: Lease) -> None:
        """Renew *lease* no more: see `Lease.expire`."""
        lease.is_ended = True
        self._held.discard(lease)

    def _channel(self, digest: str) -> str:
        # A channel reaches all databases of a server; a digest may be led in each of them.
        return self._keys.landed(digest, database=self._connection.database)

    async def _subscribe(self, ear: Ear) -> None:
        try:
            await self._connection.run(ear.subscribed())
        except StoreTimeout as error:
            # The peer may be gone without a word: nobody should wait for that connection again.
            self._landings.hang_up(error)
            raise

    async def _renew(self) -> None:
        """Renew what is held, each lease when it is due, until nothing is."""
        # Leases that are due at nearly the same time travel together.
        tick_s = self._renew_s / 6
        while self._held:
            # No local variable keeps a lease during the pause.
            await self._extend([lease for lease in self._held if lease.due_s <= _now_s()])
            next_s = min((lease.due_s for lease in self._held), default=0.0)
            await asyncio.sleep(max(next_s - _now_s(), tick_s))
        # Without a pause since the look at what is held: the next lease starts another task.
        self._renewing = None

    async def _extend(self, leases: list[Lease]) -> None:
        """Renew *leases*. One round trip, none for no leases."""
        if not leases:
            return
        next_s = _now_s() + self._renew_s
        for lease in leases:
            lease.due_s = next_s
        try:
            # Tells the holder and renews in one plain command. The one time that we find we have
            # lost a lease, we have lengthened another's, as it does itself.
            holders = await self._connection.execute_all(
                [
                    ("GETEX", self._keys.lease(lease.digest), "PX", self._lease_ms)
                    for lease in leases
                ],
                raise_on_error=False,
            )
        except StoreUnavailable as error:
            # Tried again when next due. If it is lost meanwhile, the fence says so at the end.
            _log.debug("%d leases could not be renewed: %s", len(leases), error)
            return
        for lease, holder in zip(leases, holders, strict=True):
            if not isinstance(holder, Exception) and holder != lease.token.encode():
                lease.is_lost = True
                self._held.discard(lease)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
