"""`embeddings.create` of a wrapped client: each input is looked up, and only the rest is asked."""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from openai.resources.embeddings import AsyncEmbeddings
from openai.types import CreateEmbeddingResponse

from llm_cache._call import CALL_OPTIONS, Call, CallOptions, plan_value
from llm_cache._core.types import CacheStatus, Json
from llm_cache._http.upstream import Upstream
from llm_cache.errors import StoreError
from llm_cache.events import DependencyFailed
from llm_cache.reply import CacheInfo, set_cache_info

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from llm_cache.cache import LLMCache

_NOT_IN_KEY = frozenset({"encoding_format", "timeout", "extra_headers"})
"""How a vector travels, not what it is."""


class CachedEmbeddings(AsyncEmbeddings):
    """The SDK's resource, with every input of `create` taken from the cache if it is there.

    `usage` is what was paid now: that of the request for the missing inputs, zero without one.
    """

    def __init__(
        self, client: AsyncOpenAI, cache: LLMCache, upstream: Upstream, options: CallOptions
    ) -> None:
        super().__init__(client)
        self._cache = cache
        self._upstream = upstream
        self._options = options

    # `input` is what the SDK calls it.
    async def create(self, *, input: Any, model: Any, **params: Any) -> Any:  # noqa: A002
        """Create embeddings, or take them from the cache. One `MGET`, and a `SET` for each new."""
        options: Any = {name: params.pop(name) for name in CALL_OPTIONS & params.keys()}
        items = _items(input)
        if not items or "x-stainless-raw-response" in {
            name.lower() for name in params.get("extra_headers") or {}
        }:
            return await super().create(input=input, model=model, **params)
        calls = [self._plan(item, model, params, options) for item in items]
        found, epoch = await self._look_up(calls)
        missing = [i for i, answer in enumerate(found) if answer is None]
        asked: dict[str, int] = {}
        for i in missing:
            asked.setdefault(calls[i].digest, i)  # the same input twice has one vector
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        if asked:
            order = list(asked)
            reply: CreateEmbeddingResponse = await super().create(
                input=[items[asked[digest]] for digest in order], model=model, **params
            )
            usage = reply.usage.model_dump()
            vectors = [row.embedding for row in sorted(reply.data, key=lambda row: row.index)]
            fresh = dict(zip(order, vectors, strict=True))
            for i in missing:
                found[i] = _pack(fresh[calls[i].digest])
            if epoch is not None:
                await self._store([(calls[i], found[i]) for i in asked.values()], epoch)
        as_text = params.get("encoding_format") == "base64"
        rows = [
            {"object": "embedding", "index": i, "embedding": _unpack(answer, as_text=as_text)}
            for i, answer in enumerate(found)
        ]
        response = CreateEmbeddingResponse.construct(
            object="list", model=model, data=rows, usage=usage
        )
        return set_cache_info(response, _info(len(items), len(missing), epoch))

    def _plan(self, item: Any, model: Any, params: dict[str, Any], options: CallOptions) -> Call:
        sent = {name: value for name, value in params.items() if name not in _NOT_IN_KEY}
        request = {
            "base_url": self._upstream.base_url,
            "defaults": self._upstream.defaults.get("extra_query", {}),
            "model": model,
            "body": sent,
            "input": item,
        }
        given: CallOptions = {**self._options, **options, "semantic": False}
        return plan_value(request, config=self._cache.config, producer="embeddings", **given)

    async def _look_up(self, calls: Sequence[Call]) -> tuple[list[Json], str | None]:
        """Return an answer or `None` for each call, and the epoch; no epoch if Redis failed."""
        if calls[0].bypass is not None:
            return [None] * len(calls), None
        try:
            await self._cache.open()
            lookups = await self._cache._exact.lookup_many([c.digest for c in calls])  # noqa: SLF001
        except StoreError as error:
            self._cache._tell(DependencyFailed("redis", "lookup_exact", error))  # noqa: SLF001
            return [None] * len(calls), None
        now_s = self._cache._clock()  # noqa: SLF001
        answers = [
            found.entry.answer
            if found.entry is not None and call.control.accepts(now_s - found.entry.created_s)
            else None
            for call, found in zip(calls, lookups, strict=True)
        ]
        return answers, lookups[0].epoch

    async def _store(self, fresh: Sequence[tuple[Call, Json]], epoch: str) -> None:
        engine = self._cache._engine  # noqa: SLF001
        await asyncio.gather(
            *(engine.store(call, answer, epoch=epoch, place=None) for call, answer in fresh)
        )


def _items(given: Any) -> list[Any]:
    """Return the inputs: a text or a list of tokens is one, a list of them several."""
    if isinstance(given, str):
        return [given]
    items = list(given)
    return [items] if items and all(isinstance(item, int) for item in items) else items


def _pack(vector: str | Sequence[float]) -> Json:
    """Return *vector* as it is stored: base64 of FLOAT32, if that is all there is to it."""
    if isinstance(vector, str):
        return vector
    short = np.asarray(vector, dtype="<f4")
    if all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(short.tolist(), vector, strict=True)):
        return base64.b64encode(short.tobytes()).decode()
    return list(vector)


def _unpack(answer: Json, *, as_text: bool) -> str | list[float]:
    if not isinstance(answer, str):
        return list(answer)
    return answer if as_text else np.frombuffer(base64.b64decode(answer), "<f4").tolist()


def _info(asked_for: int, missing: int, epoch: str | None) -> CacheInfo:
    if epoch is None:
        return CacheInfo(status=CacheStatus.BYPASS)
    status = CacheStatus.MISS if missing else CacheStatus.EXACT
    return CacheInfo(status=status, reason=f"{asked_for - missing} of {asked_for} were cached")
