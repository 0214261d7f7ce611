"""Invalidation without scanning: one token that moves, and the table of what was purged when.

`<ns>:epoch` holds the token of the last invalidation; every look-up reads it together with the
answer. `<ns>:purges` maps each invalidated target to the token of its last time; a client keeps a
copy and reads the table again when the epoch has moved. The two keys may live on different nodes,
so the table is always written first: whoever sees a new epoch finds what it stands for.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable

from llm_cache._core.keys import Keys
from llm_cache._core.policy import Purges
from llm_cache._flight import SharedRun
from llm_cache._redis.connection import Connection

_MAX_AGE_S = 10.0
"""How long a copy of the table is used while the epoch stands still. Reading it now and then keeps
a table that nobody changes from being the first thing that `allkeys-lru` evicts."""

# A token is the server's clock in µs, as 16 hexadecimal digits so that tokens compare as text,
# and 16 random digits so that nobody can guess one. It is made to grow even where the clock goes
# back. A table that is gone takes its knowledge with it: it is born again, and what was stored
# before its birth is dead. The same is done although the table is there when the epoch is gone;
# then ARGV[2] is the epoch that the table was last seen with, so that of many who find it gone at
# once only the first begins anew.
_PURGE = """
local time = redis.call('TIME')
local now = string.format('%016x', time[1] * 1000000 + time[2])
local last = redis.call('HGET', KEYS[1], 'epoch')
if last and string.sub(last, 1, 16) >= now then
  now = string.format('%016x', tonumber(string.sub(last, 1, 16), 16) + 1)
end
local token = now .. ARGV[1]
if ARGV[2] ~= 'keep' and last and last ~= ARGV[2] then return last end
if ARGV[2] ~= 'keep' or not last then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'born', token)
end
redis.call('HSET', KEYS[1], 'epoch', token)
for i = 3, #ARGV do
  redis.call('HSET', KEYS[1], ':' .. ARGV[i], token)
end
return token
"""
# Two invalidations may arrive here in the other order; the epoch never goes back.
_ADVANCE = """
local last = redis.call('GET', KEYS[1])
if last and last >= ARGV[1] then return last end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
"""


class Epochs:
    """This client's knowledge of what has been invalidated."""

    def __init__(
        self, connection: Connection, keys: Keys, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._clock = clock
        self._purges: Purges | None = None
        self._epoch = b""
        self._read_at_s = 0.0
        self._reading = SharedRun(self._refresh, name="llm_cache.epoch")

    async def current(self, seen: bytes | None) -> Purges:
        """Return the purge table for an answer that was read together with the epoch *seen*.

        No round trip while the epoch stands still (one every 10 s), one when it has moved, three
        when it or the table is lost.
        """
        if (known := self.known(seen)) is not None:
            return known
        # A read that was under way already may be older than what this caller has seen.
        may_be_older = self._reading.is_running
        purges = await self._reading.join()
        if may_be_older and self.known(seen) is None:
            purges = await self._reading.join()
        return purges

    def known(self, seen: bytes | None) -> Purges | None:
        """Return what `current` does, where no round trip is needed for it."""
        if self._purges is None or self._clock() - self._read_at_s >= _MAX_AGE_S:
            return None
        # Most look-ups see the very epoch that the table was read under.
        is_new_enough = seen == self._epoch or (seen is not None and self._epoch >= seen)
        return self._purges if is_new_enough else None

    async def purge(self, targets: Iterable[str]) -> str:
        """Invalidate *targets*, and return the token of it. Two round trips."""
        return await self._write("keep", targets)

    async def _refresh(self) -> Purges:
        self._purges = purges = await self._read()
        self._epoch = purges.epoch.encode()
        self._read_at_s = self._clock()
        return purges

    async def _read(self) -> Purges:
        # The epoch first: the table is written before it, and so is never older than it here.
        pipeline = self._connection.client.pipeline(transaction=False)
        pipeline.get(self._keys.epoch)
        pipeline.hgetall(self._keys.purges)
        epoch, table = await self._connection.run(pipeline.execute())
        fields = {_text(name): _text(value) for name, value in table.items()}
        if epoch is None or "born" not in fields:
            token = await self._write(fields.get("epoch", ""))
            return Purges(epoch=token, born=token)
        return Purges(
            epoch=_text(epoch),
            born=fields["born"],
            tokens={name[1:]: token for name, token in fields.items() if name.startswith(":")},
        )

    async def _write(self, mode: str, targets: Iterable[str] = ()) -> str:
        token: bytes = await self._connection.execute(
            "EVAL", _PURGE, 1, self._keys.purges, secrets.token_hex(8), mode, *targets
        )
        await self._connection.execute("EVAL", _ADVANCE, 1, self._keys.epoch, token)
        return _text(token)


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")
