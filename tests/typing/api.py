"""The public API as a caller's type checker sees it. Checked by mypy, never run."""

from __future__ import annotations

from typing import Any, assert_type

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from llm_cache import (
    CachedValue,
    CacheInfo,
    CacheStatus,
    ChatReply,
    ChatStream,
    Explanation,
    LLMCache,
    Neighbour,
    cache_info,
)
from llm_cache.calibrate import Calibration
from llm_cache.verify import LLMVerifier


async def life() -> None:
    async with LLMCache("embedded://") as cache:
        assert_type(cache, LLMCache)
    assert_type(await LLMCache().open(), LLMCache)


async def chat(cache: LLMCache) -> None:
    reply = await cache.chat("Hi", model="m", temperature=0, tenant="acme", tags=["a"])
    assert_type(reply, ChatReply)
    assert_type(reply.text, str)
    assert_type(reply.status, CacheStatus)
    assert_type(reply.similarity, float | None)
    assert_type(reply.usage, dict[str, Any] | None)
    assert_type(reply.completion, ChatCompletion)
    assert_type(await cache.chat([{"role": "user", "content": "Hi"}], stream=False), ChatReply)


async def stream(cache: LLMCache) -> None:
    pieces = await cache.chat("Hi", stream=True)
    assert_type(pieces, ChatStream[str])
    async with pieces:
        async for piece in pieces:
            assert_type(piece, str)
    assert_type(pieces.info, CacheInfo)


async def wrap(cache: LLMCache) -> None:
    client = cache.wrap(AsyncOpenAI(), tenant="acme", ttl_s=60)
    assert_type(client, AsyncOpenAI)
    answer = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "Hi"}]
    )
    assert_type(answer, ChatCompletion)
    assert_type(cache_info(answer), CacheInfo | None)
    cache.wrap(AsyncOpenAI(), tennant="acme")  # type: ignore[call-arg]


async def any_provider(cache: LLMCache) -> None:
    async def produce() -> dict[str, Any]:
        return {"text": "Hi"}

    kept = await cache.get_or_create({"prompt": "Hi"}, produce, producer="p", semantic=False)
    assert_type(kept, CachedValue)
    await cache.get_or_create({"prompt": "Hi"}, dict)  # type: ignore[arg-type]


async def decorator(cache: LLMCache) -> None:
    @cache.cached(prompt="question")
    async def ask(question: str, *, depth: int = 1) -> list[str]:
        return [question] * depth

    assert_type(await ask("Hi", depth=2), list[str])
    await ask(1)  # type: ignore[arg-type]
    await ask("Hi", 2)  # type: ignore[call-arg]


async def explain(cache: LLMCache) -> None:
    told = await cache.explain("Hi")
    assert_type(told, Explanation)
    assert_type(told.neighbours, tuple[Neighbour, ...])


async def correct_hits(client: AsyncOpenAI, calibration: Calibration) -> None:
    cache = LLMCache(verifier=LLMVerifier(client))
    await cache.set_policy(calibration.stored)
    await cache.set_policy(calibration.to_json(), tenants=["acme"])
    assert_type(await cache.remove_policy(tenants={"acme"}), int)
    await cache.set_policy(0.85)  # type: ignore[arg-type]
    LLMCache(verifier=lambda new, cached, answer: True)  # type: ignore[arg-type]
