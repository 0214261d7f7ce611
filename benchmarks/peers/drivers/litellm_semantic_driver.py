"""LiteLLM: its semantic cache in Redis, as its router and proxy use it.

Its vectors come from `litellm.aembedding`, which asks a provider: one that is registered here, and
returns what was given.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import litellm
from litellm.caching.caching import Cache
from protocol import Driver, serve


class Given(litellm.CustomLLM):
    """A provider of embeddings that were given."""

    def __init__(self, dimensions):
        super().__init__()
        self.known = {}
        self._any = [0.0] * (dimensions - 1) + [1.0]

    def embedding(self, *, model_response, **options):
        given = options["input"]
        texts = given if isinstance(given, list) else [given]
        model_response.data = [
            {"object": "embedding", "index": i, "embedding": self.known.get(text, self._any)}
            for i, text in enumerate(texts)
        ]
        return model_response

    async def aembedding(self, **options):
        return self.embedding(**options)


class LiteLLMSemantic(Driver):
    async def open(self, url, *, dimensions, threshold, namespace):
        parts = urlsplit(url)
        self._given = Given(dimensions)
        litellm.custom_provider_map = [{"provider": "given", "custom_handler": self._given}]
        litellm.cache = Cache(
            type="redis-semantic",
            redis_url=url,
            host=parts.hostname,
            port=str(parts.port),
            similarity_threshold=threshold,
            redis_semantic_cache_embedding_model="given/vectors",
            redis_semantic_cache_index_name=namespace,
        )

    async def semantic_store(self, prompt, vector, answer):
        self._given.known[prompt] = vector
        completion = litellm.ModelResponse(
            choices=[{"message": {"role": "assistant", "content": answer}}], model="gpt-4o-mini"
        )
        await litellm.cache.async_add_cache(completion.model_dump_json(), **self._request(prompt))

    async def semantic_check(self, prompt, vector):
        self._given.known[prompt] = vector
        found = await litellm.cache.async_get_cache(**self._request(prompt))
        if isinstance(found, str):
            found = litellm.ModelResponse.model_validate_json(found)
        return None if found is None else found["choices"][0]["message"]["content"]

    @staticmethod
    def _request(prompt):
        return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": prompt}]}


serve(LiteLLMSemantic())
