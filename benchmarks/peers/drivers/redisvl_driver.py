"""RedisVL: its `SemanticCache`, with the vector given."""

from __future__ import annotations

from protocol import Driver, serve
from redisvl.extensions.cache.llm import SemanticCache
from redisvl.utils.vectorize import CustomVectorizer


class RedisVL(Driver):
    async def open(self, url, *, dimensions, threshold, namespace):
        self._cache = SemanticCache(
            name=namespace,
            # RedisVL's cosine distance is 1 - similarity.
            distance_threshold=round(1 - threshold, 6),
            redis_url=url,
            # Only its dimensions are used: every vector is given.
            vectorizer=CustomVectorizer(embed=lambda _text: [0.0] * (dimensions - 1) + [1.0]),
        )

    async def semantic_store(self, prompt, vector, answer):
        await self._cache.astore(prompt, answer, vector=vector)

    async def semantic_check(self, prompt, vector):
        found = await self._cache.acheck(vector=vector)
        return found[0]["response"] if found else None

    async def close(self):
        await self._cache.adisconnect()


serve(RedisVL())
