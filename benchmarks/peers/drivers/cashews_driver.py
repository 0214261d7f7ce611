"""cashews: a plain key-value cache, with its default serializer."""

from __future__ import annotations

from cashews import cache
from protocol import Driver, serve


class Cashews(Driver):
    async def open(self, url, *, dimensions, threshold, namespace):
        self._prefix = namespace
        cache.setup(url, client_side=False)
        await cache.init()

    async def exact_set(self, key, value):
        await cache.set(f"{self._prefix}:{key}", value, expire="1h")

    async def exact_get(self, key):
        return await cache.get(f"{self._prefix}:{key}")

    async def close(self):
        await cache.close()


serve(Cashews())
