"""Lifetimes that slide: an answer that was hit expires later. Told to Redis in batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from llm_cache._core.keys import Keys
from llm_cache._redis.connection import Connection
from llm_cache.errors import StoreError

_PAUSE_S = 0.5
_AT_ONCE = 500


class Sliding:
    """Prolongs what was hit. A hit that Redis is not told of costs an answer some of its life.

    Args:
        spaces: The vector spaces whose entries lead to the answers.
        failed: Told where Redis did not take it.
        clock: Tells the Unix time in seconds.
    """

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        *,
        spaces: Callable[[], Sequence[str]],
        failed: Callable[[StoreError], object] = lambda _: None,
        clock: Callable[[], float] = time.time,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._spaces = spaces
        self._failed = failed
        self._clock = clock
        self._pause_s = pause_s
        self._until_ms: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def prolong(self, digest: str, end_s: float, *, ttl_s: float) -> None:
        """Let the answer *digest* live for *ttl_s* from now on, but not beyond *end_s*."""
        self._until_ms[digest] = round(1000 * min(self._clock() + ttl_s, end_s))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._tell_later(), name="llm_cache.sliding")

    async def aclose(self) -> None:
        """Tell Redis what is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._tell()

    async def _tell_later(self) -> None:
        while self._until_ms:
            await asyncio.sleep(self._pause_s)
            await self._tell()

    async def _tell(self) -> None:
        pending = list(self._until_ms.items())
        for start in range(0, len(pending), _AT_ONCE):
            some = pending[start : start + _AT_ONCE]
            spaces = self._spaces()
            commands = [
                # Never earlier: another worker may have said later.
                ("PEXPIREAT", key, until_ms, "GT")
                for digest, until_ms in some
                for key in self._keys.belongings(digest, spaces)
            ]
            try:
                await self._connection.execute_all(commands)
            except StoreError as error:
                self._failed(error)
                return
            for digest, until_ms in some:
                # Unless it was hit again meanwhile.
                if self._until_ms.get(digest) == until_ms:
                    del self._until_ms[digest]
