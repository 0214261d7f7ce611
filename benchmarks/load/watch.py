"""Watches Redis and the processes of a load test from outside, once a second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import psutil
from redis import asyncio as redis_py
from redis.exceptions import RedisError

_EVERY_S = 1.0


class Watch:
    """What was seen, second by second."""

    def __init__(self, redis_url: str, pids: Sequence[int]) -> None:
        self._url = redis_url
        self._processes = [psutil.Process(pid) for pid in pids]
        self.points: list[dict[str, Any]] = []
        self.lost_at_s: float | None = None
        """When Redis first gave no answer."""

    async def look(self, at_s: float, client: redis_py.Redis) -> None:
        """Look once."""
        point: dict[str, Any] = {"at_s": round(at_s, 2), "rss_bytes": self._rss_bytes()}
        try:
            async with asyncio.timeout(2 * _EVERY_S):
                info = await client.info()
        except (RedisError, OSError, TimeoutError):
            if self.lost_at_s is None:
                self.lost_at_s = at_s
        else:
            point.update(
                redis_memory_bytes=info["used_memory"],
                redis_rss_bytes=info.get("used_memory_rss"),
                redis_cpu_s=info["used_cpu_user"] + info["used_cpu_sys"],
                redis_commands=info["total_commands_processed"],
                redis_connections=info["connected_clients"],
                evicted=info.get("evicted_keys", 0),
            )
        self.points.append(point)

    def _rss_bytes(self) -> list[int]:
        found = []
        for process in self._processes:
            with suppress(psutil.Error):
                found.append(process.memory_info().rss)
        return found

    def figures(self, requests: int) -> dict[str, Any]:
        """Return what the seconds add up to."""
        seen = [point for point in self.points if "redis_cpu_s" in point]
        figures: dict[str, Any] = {
            "redis_lost_at_s": self.lost_at_s,
            "redis_cpu_share": None,
            "commands_per_request": None,
            "redis_connections": max((p["redis_connections"] for p in seen), default=None),
            "redis_memory_bytes": seen[-1]["redis_memory_bytes"] if seen else None,
            "client_rss_bytes": sum(self.points[-1]["rss_bytes"]) if self.points else None,
            "evicted": seen[-1]["evicted"] - seen[0]["evicted"] if seen else None,
        }
        if len(seen) > 1:
            length_s = seen[-1]["at_s"] - seen[0]["at_s"]
            if length_s > 0:
                spent_s = seen[-1]["redis_cpu_s"] - seen[0]["redis_cpu_s"]
                figures["redis_cpu_share"] = spent_s / length_s
            if requests:
                # INFO itself is one command for each look.
                commands = seen[-1]["redis_commands"] - seen[0]["redis_commands"] - len(seen) + 1
                figures["commands_per_request"] = commands / requests
        return figures


@asynccontextmanager
async def watching(redis_url: str, pids: Sequence[int]) -> AsyncIterator[Watch]:
    """Watch while the block runs, from its first moment to its last."""
    watch = Watch(redis_url, pids)
    clock = asyncio.get_running_loop().time
    started_s = clock()
    client = redis_py.Redis.from_url(redis_url)

    is_over = asyncio.Event()

    async def again_and_again() -> None:
        while not is_over.is_set():
            await watch.look(clock() - started_s, client)
            with suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_S):
                    await is_over.wait()

    task = asyncio.create_task(again_and_again())
    try:
        yield watch
    finally:
        # Asked to end, not cancelled: redis-py waits with `asyncio.wait_for`, and that of Python
        # 3.11 may swallow a cancellation, for which this would wait for ever.
        is_over.set()
        await asyncio.gather(task, return_exceptions=True)
        await watch.look(clock() - started_s, client)
        await client.aclose()
