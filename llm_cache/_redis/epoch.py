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
from llm_cache._redis.connection import Connection

_MAX_AGE_S = 10.0
"""How long a copy of the table is used while the epoch stands still. Reading it now and then keeps
a table that nobody changes from being the first thing that `allkeys-lru` evicts."""

# A token is the server's clock in µs, as 16 hexadecimal digits so that tokens compare as text,
# and 16 random digits so that nobody can guess one. It is made to grow even where the clock goes
# back. A table that is gone takes its knowledge with it: it is born again, and what was stored
# before its birth is dead. With RENEW the same is done although the table is there, because the
# epoch is gone.
_PURGE = """
local time = redis.call('TIME')
local now = string.format('%016x', time[1] * 1000000 + time[2])
local last = redis.call('HGET', KEYS[1], 'epoch')
if last and string.sub(last, 1, 16) >= now then
  now = string.format('%016x', tonumber(string.sub(last, 1, 16), 16) + 1)
end
local token = now .. ARGV[1]
if not last or ARGV[2] == 'renew' then
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
        self._read_at_s = 0.0

    async def current(self, seen: bytes | None) -> Purges:
        """Return the purge table that belongs to the epoch just *seen*.

        No round trip while the epoch stands still (one every 10 s), one when it has moved, three
        when it or the table is lost.
        """
        purges = self._purges
        if (
            purges is not None
            and seen is not None
            and purges.epoch == seen.decode("latin-1")
            and self._clock() - self._read_at_s < _MAX_AGE_S
        ):
            return purges
        self._purges = await self._read(seen)
        self._read_at_s = self._clock()
        return self._purges

    async def purge(self, targets: Iterable[str], *, renew: bool = False) -> str:
        """Invalidate *targets*, and return the token of it. Two round trips."""
        mode = "renew" if renew else "keep"
        token: bytes = await self._connection.execute(
            "EVAL", _PURGE, 1, self._keys.purges, secrets.token_hex(8), mode, *targets
        )
        await self._connection.execute("EVAL", _ADVANCE, 1, self._keys.epoch, token)
        return token.decode("latin-1")

    async def _read(self, seen: bytes | None) -> Purges:
        table = await self._connection.run(self._connection.client.hgetall(self._keys.purges))
        fields = {_text(name): _text(value) for name, value in table.items()}
        if seen is None or "born" not in fields:
            token = await self.purge((), renew=True)
            return Purges(epoch=token, born=token)
        return Purges(
            epoch=_text(seen),
            born=fields["born"],
            tokens={name[1:]: token for name, token in fields.items() if name.startswith(":")},
        )


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")
