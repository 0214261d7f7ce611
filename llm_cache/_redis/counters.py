"""Counts that add up over all workers: added in batches to hashes of an hour, a day and all time.

A batch counts once, however often it has to be sent: batches are numbered, and Redis remembers the
last number of each worker for a day. A worker that is killed takes with it what it has counted
since its last flush; what Redis loses (eviction, an empty replica) is lost.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llm_cache._core.counts import METRICS, NOBODY, OTHER, Row, Table, as_numbers, read
from llm_cache._core.keys import Keys
from llm_cache._redis.connection import Connection
from llm_cache._redis.replies import text
from llm_cache.errors import ConfigurationError

MAX_MODELS = 100
"""Models that have counts of their own; all further ones share one name."""
HOUR_S, DAY_S = 3_600, 86_400
_KEPT_HOURS, _KEPT_DAYS = 72, 400
_ROWS_AT_ONCE = 500
_MAX_WAITING_ROWS = 10_000
_WINDOW = re.compile(r"([1-9]\d{0,5})([hd])")

# The number of the batch is noted before its counts, so that an error in between can lose some of
# them, but never add the same again at each new attempt. The first so many names have rows of
# their own, the same in all workers and all hashes.
_ADD = f"""
local sent, tenants, models = KEYS[1], KEYS[2], KEYS[3]
local last = redis.call('GET', sent)
if last and tonumber(last) >= tonumber(ARGV[1]) then return 0 end
redis.call('SETEX', sent, {DAY_S}, ARGV[1])
local function naming(key, limit)
  local names, size = {{['{NOBODY}'] = '{NOBODY}', ['{OTHER}'] = '{OTHER}'}}, nil
  return function(name)
    if names[name] then return names[name] end
    size = size or redis.call('SCARD', key)
    names[name] = '{OTHER}'
    if redis.call('SISMEMBER', key, name) == 1 then
      names[name] = name
    elseif size < limit then
      redis.call('SADD', key, name)
      names[name], size = name, size + 1
    end
    return names[name]
  end
end
local tenant = naming(tenants, tonumber(ARGV[2]))
local model = naming(models, tonumber(ARGV[3]))
local metrics = {{{", ".join(f"'{name}'" for name in METRICS)}}}
for i = 4, #ARGV, 3 + #metrics do
  local row = ' ' .. tenant(ARGV[i]) .. ' ' .. ARGV[i + 1] .. ' ' .. model(ARGV[i + 2])
  for m = 1, #metrics do
    local number = ARGV[i + 2 + m]
    if number ~= '0' then
      for k = 4, #KEYS do redis.call('HINCRBY', KEYS[k], metrics[m] .. row, number) end
    end
  end
end
redis.call('EXPIRE', KEYS[5], {(_KEPT_HOURS + 1) * HOUR_S})
redis.call('EXPIRE', KEYS[6], {(_KEPT_DAYS + 1) * DAY_S})
return 1
"""


@dataclass(frozen=True, slots=True)
class _Batch:
    number: int
    hour: int
    rows: Table


@dataclass(frozen=True, slots=True)
class Shared:
    """What all workers have counted in some time."""

    rows: Table
    from_s: float | None
    """Unix time at which the first hour or day with counts in it begins; `None` for all time, or
    where there are none."""


class Counters:
    """What of this worker's counts Redis has not been told yet, and what all have told it.

    Args:
        connection: The way to Redis.
        keys: Names of the hashes.
        max_tenants: Tenants that have counts of their own, of all workers together.
        clock: Tells the Unix time in seconds.
    """

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        *,
        max_tenants: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._max_tenants = max_tenants
        self._clock = clock
        self._worker = ""
        self._number = self._tried = 0
        self._waiting: deque[_Batch] = deque()
        self._flushing = asyncio.Lock()

    def add(self, rows: Table) -> None:
        """Take *rows*, counted just now, to be told to Redis with the next flush."""
        hour = int(self._clock() // HOUR_S)
        # Names that nobody has bounded yet must not fill the memory during a long outage.
        is_crowded = sum(len(batch.rows) for batch in self._waiting) >= _MAX_WAITING_ROWS
        for row, counts in rows:
            self._batch_for(hour).rows.add(_nameless(row) if is_crowded else row, counts)

    async def flush(self) -> None:
        """Add what is waiting to the shared counts. One round trip for 500 rows, none without.

        Raises:
            StoreError: Redis did not take it; it stays waiting, as it does when cancelled, and
                counts once even if it did arrive.
        """
        async with self._flushing:
            # Not before: a process may be forked between making a cache and using it.
            self._worker = self._worker or secrets.token_hex(8)
            while self._waiting:
                batch = self._waiting[0]
                self._tried = batch.number
                await self._connection.execute(*self._command(batch))
                self._waiting.popleft()

    async def shared(self, window: str | None = None) -> Shared:
        """Return what all workers have counted, within *window* or since the beginning.

        One round trip. Windows are `24h`, `7d` and so on: up to 72 hours they consist of hours,
        beyond that of days, and the one they begin in counts as a whole.

        Raises:
            ConfigurationError: there is no such window.
            StoreError: Redis failed.
        """
        parts = ["total"] if window is None else self._parts(window)
        hashes: list[dict[Any, Any]] = await self._connection.execute_all(
            [("HGETALL", self._keys.stats(part)) for part in parts]
        )
        rows, first = Table(), None
        for part, numbers in zip(parts, hashes, strict=True):
            if numbers and first is None:
                first = part
            rows.update(
                read({text(name, "replace"): int(number) for name, number in numbers.items()})
            )
        return Shared(rows, None if first is None else _begins_s(first))

    def _batch_for(self, hour: int) -> _Batch:
        """Return the last batch, if it may still change, or a new one."""
        last = self._waiting[-1] if self._waiting else None
        # One that has been sent may have arrived, and has to stay as it is.
        is_open = last is not None and last.number > self._tried and last.hour == hour
        if last is None or not is_open or len(last.rows) >= _ROWS_AT_ONCE:
            self._number += 1
            last = _Batch(self._number, hour, Table())
            self._waiting.append(last)
        return last

    def _command(self, batch: _Batch) -> list[Any]:
        parts = (
            f"sent:{self._worker}",
            "tenants",
            "models",
            "total",
            f"hour:{batch.hour}",
            f"day:{batch.hour * HOUR_S // DAY_S}",
        )
        rows = [
            argument
            for (tenant, label, model), counts in batch.rows
            for argument in (tenant, label, model.encode(errors="replace"), *as_numbers(counts))
        ]
        keys = map(self._keys.stats, parts)
        return [
            "EVAL",
            _ADD,
            len(parts),
            *keys,
            batch.number,
            self._max_tenants,
            MAX_MODELS,
            *rows,
        ]

    def _parts(self, window: str) -> list[str]:
        hours = window_hours(window)
        now_s = self._clock()
        if hours <= _KEPT_HOURS:
            name, length_s = "hour", HOUR_S
        else:
            name, length_s = "day", DAY_S
        first, last = int((now_s - hours * HOUR_S) // length_s), int(now_s // length_s)
        return [f"{name}:{number}" for number in range(first, last + 1)]


def window_hours(window: str) -> int:
    """Return the length of *window*, `24h` or `7d`, in hours.

    Raises:
        ConfigurationError: it is none, or longer than counts are kept.
    """
    parsed = _WINDOW.fullmatch(window)
    hours = int(parsed[1]) * (1 if parsed[2] == "h" else 24) if parsed else 0
    if not 0 < hours <= _KEPT_DAYS * 24:
        raise ConfigurationError(
            f"window must be hours or days, as 24h or 7d, up to {_KEPT_DAYS}d; got {window!r}"
        )
    return hours


def _nameless(row: Row) -> Row:
    return Row(row.tenant if row.tenant == NOBODY else OTHER, row.label, OTHER)


def _begins_s(part: str) -> float | None:
    name, _, number = part.partition(":")
    return float(int(number) * (HOUR_S if name == "hour" else DAY_S)) if number else None
