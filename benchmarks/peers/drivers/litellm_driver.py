"""LiteLLM: its Redis cache as its router and proxy use it, the request's key made on each call."""

from __future__ import annotations

from urllib.parse import urlsplit

import litellm
from litellm.caching.caching import Cache
from protocol import Driver, serve


class LiteLLM(Driver):
    async def open(self, url, *, dimensions, threshold, namespace):
        parts = urlsplit(url)
        litellm.cache = Cache(
            type="redis", host=parts.hostname, port=str(parts.port), namespace=namespace
        )

    async def exact_set(self, key, value):
        answer = litellm.ModelResponse(
            choices=[{"message": {"role": "assistant", "content": value}}], model="gpt-4o-mini"
        )
        await litellm.cache.async_add_cache(answer.model_dump_json(), **self._request(key))

    async def exact_get(self, key):
        found = await litellm.cache.async_get_cache(**self._request(key))
        if isinstance(found, str):
            found = litellm.ModelResponse.model_validate_json(found)
        return None if found is None else found["choices"][0]["message"]["content"]

    async def close(self):
        await litellm.cache.disconnect()

    @staticmethod
    def _request(key):
        return {
            "model": "gpt-4o-mini",
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": key},
            ],
        }


serve(LiteLLM())
