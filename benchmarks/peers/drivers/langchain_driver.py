"""langchain-redis: its exact and its semantic cache, as LangChain calls them."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings
from langchain_core.outputs import Generation
from langchain_redis import RedisCache, RedisSemanticCache
from protocol import Driver, serve

_LLM = '{"model": "gpt-4o-mini"}'


class Given(Embeddings):
    """Returns the vectors that were given with the prompts."""

    def __init__(self, dimensions):
        self.known = {}
        self._any = [0.0] * (dimensions - 1) + [1.0]

    def embed_query(self, text):
        return self.known.get(text, self._any)

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


class LangChain(Driver):
    async def open(self, url, *, dimensions, threshold, namespace):
        self._embeddings = Given(dimensions)
        self._exact = RedisCache(redis_url=url, prefix=f"{namespace}:exact")
        self._semantic = RedisSemanticCache(
            embeddings=self._embeddings,
            redis_url=url,
            distance_threshold=round(1 - threshold, 6),
            name=f"{namespace}:semantic",
            prefix=f"{namespace}:semantic",
        )

    async def exact_set(self, key, value):
        await self._exact.aupdate(key, _LLM, [Generation(text=value)])

    async def exact_get(self, key):
        found = await self._exact.alookup(key, _LLM)
        return found[0].text if found else None

    async def semantic_store(self, prompt, vector, answer):
        self._embeddings.known[prompt] = vector
        await self._semantic.aupdate(prompt, _LLM, [Generation(text=answer)])

    async def semantic_check(self, prompt, vector):
        self._embeddings.known[prompt] = vector
        found = await self._semantic.alookup(prompt, _LLM)
        return found[0].text if found else None


serve(LangChain())
