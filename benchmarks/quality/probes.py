"""Small scenes in which a broken cache shows itself in a figure, whatever its hit rate.

Each returns what it measured; what must hold is put into the report beside it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from benchmarks.embedding import InstantEmbedder, MeteredEmbedder
from benchmarks.quality.replay import MakeCache
from benchmarks.results import Results
from benchmarks.session import Session, forget
from llm_cache import CacheConfig, LLMCache
from llm_cache.testing import Answer, ScriptedUpstream

_CALLERS = 50
_QUESTIONS = 4
_TTL_S = 0.2


@dataclass(frozen=True, slots=True)
class Probed:
    """What the scenes gave."""

    foreign_answers: int
    """Times a caller got what was made for another tenant or another system prompt."""
    model_calls_per_question: float
    """Of many callers who ask the same new question at the same time; 1 where they share."""
    embeddings_per_lookup: float
    """Texts embedded for each call that was not an exact hit."""
    served_past_ttl: int
    """Answers served after their lifetime."""
    repeats_not_exact: int
    """Repeats of a stored question that were not answered by one exact look-up."""


async def probe(session: Session, *, make_cache: MakeCache = LLMCache) -> Probed:
    """Play all scenes with a cache of *make_cache*."""
    namespace = session.namespace("probe")
    await forget(session.redis_url, namespace)
    embedder = MeteredEmbedder(InstantEmbedder())
    async with ScriptedUpstream(record=False) as upstream:
        # Every answer of the model is another one, so that none can be taken for another.
        upstream.default = lambda _: Answer(text=f"call {upstream.calls}")
        cache = make_cache(
            session.redis_url,
            client=upstream.client(),
            embedder=embedder,
            config=CacheConfig(namespace=namespace, stats_flush_s=60.0),
        )
        try:
            async with cache:
                return Probed(
                    foreign_answers=await _foreign(cache),
                    model_calls_per_question=await _stampede(cache, upstream),
                    embeddings_per_lookup=await _embeddings(cache, embedder),
                    served_past_ttl=await _past_ttl(cache),
                    repeats_not_exact=await _repeats(cache),
                )
        finally:
            await forget(session.redis_url, namespace)


def report(results: Results, probed: Probed) -> None:
    """Put what must hold into *results*."""
    section = results.section("probes")
    section.update({name: getattr(probed, name) for name in Probed.__slots__})
    expectations = (
        ("answers that crossed a tenant or a system prompt", probed.foreign_answers, 0),
        (
            f"calls of the model, for {_CALLERS} callers of one new question",
            probed.model_calls_per_question,
            1,
        ),
        ("texts embedded for a call that is no exact hit", probed.embeddings_per_lookup, 1),
        ("answers served past their TTL", probed.served_past_ttl, 0),
        ("repeats that were no exact hits", probed.repeats_not_exact, 0),
    )
    for name, measured, expected in expectations:
        results.check(
            name, ok=measured == expected, expected=f"{expected:g}", measured=f"{measured:g}"
        )


async def _foreign(cache: LLMCache) -> int:
    """Ask the same of many tenants and under many system prompts; equal answers are foreign."""
    question = "What is my balance?"
    texts = [(await cache.chat(question, tenant=f"tenant-{i}")).text for i in range(5)]
    texts += [(await cache.chat(question, system=f"You are bot {i}.")).text for i in range(5)]
    # Other words, so that only the semantic layer could answer.
    other = "what is MY balance?"
    texts += [(await cache.chat(other, tenant=f"stranger-{i}")).text for i in range(5)]
    return len(texts) - len(set(texts))


async def _stampede(cache: LLMCache, upstream: ScriptedUpstream) -> float:
    before = upstream.calls
    for i in range(_QUESTIONS):
        question = f"Who was first, number {i}?"
        await asyncio.gather(*(cache.chat(question, tenant=f"crowd-{i}") for _ in range(_CALLERS)))
    return (upstream.calls - before) / _QUESTIONS


async def _embeddings(cache: LLMCache, embedder: MeteredEmbedder) -> float:
    before = embedder.texts
    for i in range(_QUESTIONS):
        await cache.chat(f"Which way leads to village {i}?", tenant="walker")
    return (embedder.texts - before) / _QUESTIONS


async def _past_ttl(cache: LLMCache) -> int:
    # Each a tenant of its own: here only time may part a question from its answer.
    async def ask(i: int) -> str:
        tenant = f"clock-{i}"
        return (await cache.chat("What time is it?", tenant=tenant, ttl_s=_TTL_S)).text

    before = [await ask(i) for i in range(_QUESTIONS)]
    await asyncio.sleep(2 * _TTL_S)
    after = [await ask(i) for i in range(_QUESTIONS)]
    return len(set(before) & set(after))


async def _repeats(cache: LLMCache) -> int:
    statuses = []
    for i in range(_QUESTIONS):
        await cache.chat(f"Name river {i}.", tenant="rivers")
        statuses.append((await cache.chat(f"Name river {i}.", tenant="rivers")).status)
    return sum(status != "exact" for status in statuses)
