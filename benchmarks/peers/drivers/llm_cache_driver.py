"""Ours, as the others are asked: `chat` for what was asked before, a layer at a time else.

An exact hit is one of `chat`: hashing, epoch and decoding included. The model that it would ask on
a miss is a scripted one, whose answer is nobody's.
"""

from __future__ import annotations

import sys

from protocol import Driver, serve

from llm_cache import CacheConfig, LLMCache
from llm_cache.testing import ScriptedUpstream


class Given:
    """Stands for an embedder whose vectors are always given."""

    model_id = "given"

    def __init__(self, dimensions, threshold):
        self.dimensions = dimensions
        self.similarity_threshold = threshold

    async def embed(self, texts):
        raise NotImplementedError("every vector is given")


class Unguarded(Driver):
    """Guards stand in the semantic layer alone, so without them that is all there is to ask."""

    guards = False

    async def open(self, url, *, dimensions, threshold, namespace):
        self._upstream = ScriptedUpstream(record=False)
        await self._upstream.open()
        self._cache = LLMCache(
            url,
            client=self._upstream.client(),
            embedder=Given(dimensions, threshold),
            config=CacheConfig(namespace=namespace, guards=self.guards),
        )
        await self._cache.open()

    async def semantic_store(self, prompt, vector, answer):
        await self._cache.store_semantic(prompt, answer, vector=vector)

    async def semantic_check(self, prompt, vector):
        found = await self._cache.lookup_semantic(prompt, vector=vector)
        return None if found is None else found.text

    async def close(self):
        await self._cache.aclose()
        await self._upstream.aclose()


class Ours(Unguarded):
    guards = True

    async def exact_set(self, key, value):
        await self._cache.store_exact(key, value)

    async def exact_get(self, key):
        return (await self._cache.chat(key)).text


serve(Unguarded() if "--no-guards" in sys.argv else Ours())
