"""aiocache: a plain key-value cache of text."""

from __future__ import annotations

from urllib.parse import urlsplit

from aiocache import RedisCache
from aiocache.serializers import StringSerializer
from protocol import Driver, serve


class AioCache(Driver):
    async def open(self, url, *, dimensions, threshold, namespace):
        parts = urlsplit(url)
        self._cache = RedisCache(
            endpoint=parts.hostname,
            port=parts.port,
            namespace=namespace,
            serializer=StringSerializer(),
        )

    async def exact_set(self, key, value):
        await self._cache.set(key, value, ttl=3600)

    async def exact_get(self, key):
        return await self._cache.get(key)

    async def close(self):
        await self._cache.close()


serve(AioCache())
