"""betterdb-semantic-cache: its `SemanticCache`, embedding with what was given."""

from __future__ import annotations

import valkey.asyncio as valkey
from betterdb_semantic_cache import SemanticCache, SemanticCacheOptions
from betterdb_semantic_cache.types import AnalyticsOptions
from protocol import Driver, serve


class BetterDB(Driver):
    async def open(self, url, *, dimensions, threshold, namespace):
        self._vectors = {}
        self._any = [0.0] * (dimensions - 1) + [1.0]
        self._client = valkey.Valkey.from_url(url)
        self._cache = SemanticCache(
            SemanticCacheOptions(
                client=self._client,
                embed_fn=self._embed,
                # Its cosine distance is 1 - similarity.
                default_threshold=round(1 - threshold, 6),
                name=namespace,
                analytics=AnalyticsOptions(disabled=True),
            )
        )
        await self._cache.initialize()

    async def _embed(self, text):
        return self._vectors.get(text, self._any)

    async def semantic_store(self, prompt, vector, answer):
        self._vectors[prompt] = vector
        await self._cache.store(prompt, answer)

    async def semantic_check(self, prompt, vector):
        self._vectors[prompt] = vector
        found = await self._cache.check(prompt)
        return found.response if found.hit else None

    async def close(self):
        await self._cache.shutdown()
        await self._client.aclose()


serve(BetterDB())
