"""Invalidation without scanning: one token that moves, and the table of what was purged when.

`<ns>:epoch` holds the token of the last invalidation; every look-up reads it together with the
answer. `<ns>:purges` maps each invalidated target to the token of its last time; a client keeps a
copy and reads the table again when the epoch has moved. The two keys may live on different nodes,
so the table is always written first: whoever sees a new epoch finds what it stands for.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping

from llm_cache._core.keys import Keys
from llm_cache._core.policy import Purges
from llm_cache._core.targets import Kind
from llm_cache._flight import SharedRun
from llm_cache._redis.connection import Connection
from llm_cache._redis.replies import text
from llm_cache.errors import StoreUnavailable

_READ_EVERY_S = 10.0
"""How long after the last time the table is read again although the epoch stands still: it keeps a
table that nobody changes from being the first thing that `allkeys-lru` evicts. No call waits."""
_OVERTAKEN_S = 1.0
"""How long one is used although an older epoch is seen. Two replies may overtake each other; what
goes on for longer is a server that does not know the last invalidations: a replica took over."""

# A token is the server's clock in µs, as 16 hexadecimal digits so that tokens compare as text,
# and 16 random digits so that nobody can guess one. It is made to grow even where the clock goes
# back. A table that is gone takes its knowledge with it: it is born again, and what was stored
# before its birth is dead. The same is done although the table is there when the epoch is gone, or
# either of the two has gone back; then ARGV[2] is the epoch that the table was last seen with, so
# that of many who find it so at once only the first begins anew. The token is later than ARGV[3],
# the latest epoch that is known to the caller: where the two keys have servers of their own, they
# have two clocks, and a table may go back once more between two commands.
_PURGE = """
local time = redis.call('TIME')
local now = string.format('%016x', time[1] * 1000000 + time[2])
local last = redis.call('HGET', KEYS[1], 'epoch')
local latest = last or ''
if ARGV[3] > latest then latest = ARGV[3] end
if string.sub(latest, 1, 16) >= now then
  now = string.format('%016x', tonumber(string.sub(latest, 1, 16), 16) + 1)
end
local token = now .. ARGV[1]
if ARGV[2] ~= 'keep' and last and last ~= ARGV[2] and last > ARGV[3] then return last end
if ARGV[2] ~= 'keep' or not last then
  local longest = redis.call('HGET', KEYS[1], 'longest')
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'born', token)
  if longest then redis.call('HSET', KEYS[1], 'longest', longest) end
end
redis.call('HSET', KEYS[1], 'epoch', token)
for i = 4, #ARGV, 2 do
  local field, value = ':' .. ARGV[i], ARGV[i + 1]
  if value == '' then
    value = token
  elseif tonumber(redis.call('HGET', KEYS[1], field) or '0') > tonumber(value) then
    value = redis.call('HGET', KEYS[1], field)
  end
  redis.call('HSET', KEYS[1], field, value)
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
# `longest` is the longest lifetime of an answer, in ms: so long must the table remember.
# `unindexed` is the Unix time in ms until which there are answers that no index has.
_RAISE = """
local value = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
if value < tonumber(ARGV[2]) then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
return redis.call('HGET', KEYS[1], ARGV[1])
"""
# What was purged again meanwhile stays.
_PRUNE = """
local pruned = 0
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    pruned = pruned + redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return pruned
"""
_TOKEN = re.compile("[0-9a-f]{32}")
_READINGS = 5
"""Others may be beginning anew meanwhile, in two commands."""
_PRUNED_AT_ONCE = 500
_SLACK_S = 86_400.0
"""A request may have been under way for as long when it stored its answer."""


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
        self._longest_ms = 0
        self._unindexed_until_ms = 0
        self._read_at_s = 0.0
        # A reading that its callers have no time for goes on for those who come next: if each of
        # them began anew, on a busy event loop none would ever end.
        self._reading = SharedRun(self._refresh, name="llm_cache.epoch", keeps_on=True)

    async def aclose(self) -> None:
        """Give up a reading that is under way."""
        await self._reading.settle(wait_s=0)

    async def current(self, seen: bytes | None) -> Purges:
        """Return the purge table for an answer that was read together with the epoch *seen*.

        No round trip while the epoch stands still (one every 10 s, for which nobody waits), one
        when it has moved, four when it or the table is lost.
        """
        if (known := self.known(seen)) is not None:
            return known
        # A read that was under way already may be older than what this caller has seen.
        may_be_older = self._reading.is_running
        purges = await self._reading.join()
        if may_be_older:
            purges = self.known(seen) or await self._reading.join()
        return purges

    def known(self, seen: bytes | None) -> Purges | None:
        """Return what `current` does, where no round trip is needed for it."""
        if self._purges is None:
            return None
        age_s = self._clock() - self._read_at_s
        # Most look-ups see the very epoch that the table was read under.
        if seen == self._epoch:
            if age_s >= _READ_EVERY_S:
                self._reading.begin()
            return self._purges
        was_overtaken = seen is not None and seen < self._epoch and age_s < _OVERTAKEN_S
        return self._purges if was_overtaken else None

    async def purge(self, targets: Iterable[str], *, before_s: float | None = None) -> str:
        """Invalidate *targets*, and return the token of it. Two round trips.

        Of the kind `AGE`, answers that were stored before the Unix time *before_s*.
        """
        value = "" if before_s is None else repr(before_s)
        return await self._write("keep", ((target, value) for target in targets))

    async def remember_for(self, lifetime_ms: int) -> None:
        """See to it that the table outlives answers of this lifetime.

        No round trip unless it is the longest yet, which is then rounded up to a power of two.
        """
        if lifetime_ms > self._longest_ms:
            longest_ms = 1 << (lifetime_ms - 1).bit_length()
            self._longest_ms = await self._raise("longest", longest_ms)

    async def note_unindexed(self, until_ms: int, *, lifetime_ms: int) -> None:
        """Note that until *until_ms*, Unix time, there is an answer that no index has.

        No round trip for most: it is noted ahead, for others of this lifetime that follow. It
        stands in the table, so that it is lost with it, when such answers are dead.
        """
        if until_ms > self._unindexed_until_ms:
            self._unindexed_until_ms = await self._raise("unindexed", until_ms + lifetime_ms)

    async def unindexed_until_ms(self) -> int:
        """Return until when there may be answers that no index has. One round trip."""
        return int(await self._connection.execute("HGET", self._keys.purges, "unindexed") or 0)

    async def prune(self) -> int:
        """Forget what no living answer can be reached by any more; return how many targets.

        Two round trips, and one for each 500 targets.
        """
        purges = await self._refresh()
        if not self._longest_ms:
            return 0
        # Where the clock of Redis went back, tokens still grow.
        server_s = int(purges.epoch[:16], 16) / 1e6
        (seconds, _) = await self._connection.execute("TIME")
        now_s = max(server_s, float(seconds))
        kept_s = self._longest_ms / 1000 + _SLACK_S
        old = [
            part
            for name, token in purges.tokens.items()
            if _moment_s(name, token) < now_s - kept_s
            for part in (f":{name}", token)
        ]
        pruned = 0
        for start in range(0, len(old), 2 * _PRUNED_AT_ONCE):
            some = old[start : start + 2 * _PRUNED_AT_ONCE]
            pruned += await self._connection.execute("EVAL", _PRUNE, 1, self._keys.purges, *some)
        return pruned

    async def _refresh(self) -> Purges:
        self._purges = purges = await self._read()
        self._epoch = purges.epoch.encode()
        self._read_at_s = self._clock()
        return purges

    async def _read(self) -> Purges:
        known = "" if self._purges is None else self._purges.epoch
        before: tuple[str, dict[str, str]] | None = None
        for _ in range(_READINGS):
            seen, fields = await self._seen()
            is_lost = _has_forgotten(seen, fields, known)
            # A damaged reply looks lost, too. What makes everything older dead is seen twice.
            if not is_lost or (seen, fields) == before:
                break
            before = seen, fields
        else:
            raise StoreUnavailable("readings of what was invalidated do not agree")
        self._longest_ms = int(fields.get("longest", "0"))
        self._unindexed_until_ms = int(fields.get("unindexed", "0"))
        if is_lost:
            token = await self._write(fields.get("epoch", ""), later_than=max(seen, known))
            return Purges(epoch=token, born=token)
        return Purges(
            epoch=seen,
            born=fields["born"],
            tokens={name[1:]: token for name, token in fields.items() if name.startswith(":")},
        )

    async def _seen(self) -> tuple[str, dict[str, str]]:
        """Return the epoch, empty where there is none, and the table."""
        # The epoch first: the table is written before it, and so is never older than it here.
        (epoch,), (table,) = await self._connection.execute_then(
            [("GET", self._keys.epoch)], [("HGETALL", self._keys.purges)]
        )
        fields = {text(name): text(value) for name, value in table.items()}
        seen = "" if epoch is None else text(epoch)
        tokens = [seen, fields.get("epoch", ""), fields.get("born", "")]
        # A damaged one would be used for a while, and make answers dead that are not.
        if not all(_TOKEN.fullmatch(token) for token in tokens if token) or tokens[2] > tokens[1]:
            raise StoreUnavailable("Redis answered nonsense about what was invalidated")
        return seen, fields

    async def _raise(self, field: str, value: int) -> int:
        return int(
            await self._connection.execute("EVAL", _RAISE, 1, self._keys.purges, field, value)
        )

    async def _write(
        self, mode: str, targets: Iterable[tuple[str, str]] = (), *, later_than: str = ""
    ) -> str:
        pairs = [part for pair in targets for part in pair]
        arguments = (secrets.token_hex(8), mode, later_than, *pairs)
        token: bytes = await self._connection.execute(
            "EVAL", _PURGE, 1, self._keys.purges, *arguments
        )
        await self._connection.execute("EVAL", _ADVANCE, 1, self._keys.epoch, token)
        return text(token)


def _has_forgotten(seen: str, fields: Mapping[str, str], known: str) -> bool:
    """Tell whether Redis has lost invalidations: one of the two keys is gone or went back.

    One that went back is a replica's that had not heard of the last ones. The epoch never is ahead
    of its table; where it is, it is the table that went back.
    """
    return not seen or seen < known or seen > fields.get("epoch", "") or "born" not in fields


def _moment_s(target: str, token: str) -> float:
    """Return the Unix time that *token* stands for."""
    is_age = target.startswith(f"{Kind.AGE} ")
    return float(token) if is_age else int(token[:16], 16) / 1e6
