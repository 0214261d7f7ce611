"""What an entry takes in Redis, the index's own copy of the vector included."""

from __future__ import annotations

import asyncio
from itertools import count

from benchmarks.embedding import InstantEmbedder
from benchmarks.results import Results
from benchmarks.session import Advance, Session, forget, used_memory_bytes
from llm_cache import CacheConfig, LLMCache
from llm_cache.testing import ScriptedUpstream

ENTRIES = 4_096
"""A multiple of the 1,024 by which an index grows, so that no unused room is weighed."""
ANSWER_BYTES = 500
DIMENSIONS = (384, 1536)
_WRITERS = 16


async def measure(session: Session, results: Results, *, entries: int = ENTRIES) -> None:
    """Store *entries* answers of 500 bytes, exact only and with vectors, and weigh them."""
    rows = results.section("memory").setdefault("rows", [])
    results.section("memory").update(entries=entries, answer_bytes=ANSWER_BYTES)
    for dimensions in (None, *DIMENSIONS):
        if session.stop.is_set():
            return
        name = "exact only" if dimensions is None else f"{dimensions} dimensions"
        with session.progress.bar(f"memory, {name}", entries) as advance:
            used, stored = await _weigh(session, entries, dimensions, advance)
        rows.append(
            {
                "name": name,
                "dimensions": dimensions,
                "entries": stored,
                "bytes_per_entry": used / stored if stored else None,
            }
        )


async def _weigh(
    session: Session, entries: int, dimensions: int | None, advance: Advance
) -> tuple[int, int]:
    namespace = session.namespace("memory")
    await forget(session.redis_url, namespace)
    config = CacheConfig(namespace=namespace, semantic=dimensions is not None)
    answer = "An answer of some length. ".ljust(ANSWER_BYTES, "x")
    numbers = count()
    async with (
        ScriptedUpstream(record=False) as upstream,
        LLMCache(
            session.redis_url,
            client=upstream.client(),
            embedder=InstantEmbedder(dimensions or 384),
            config=config,
        ) as cache,
    ):
        before = await used_memory_bytes(session.redis_url)
        stored = 0

        async def write() -> None:
            nonlocal stored
            while (number := next(numbers)) < entries and not session.stop.is_set():
                # Thirty characters or so of words that differ, as prompts do.
                prompt = f"Question {number} on topic {number * 7919 % 10_007}, please?"
                if dimensions is None:
                    await cache.store_exact(prompt, answer)
                else:
                    await cache.store_semantic(prompt, answer)
                stored += 1
                advance()

        try:
            await asyncio.gather(*(write() for _ in range(_WRITERS)))
            return await used_memory_bytes(session.redis_url) - before, stored
        finally:
            await forget(session.redis_url, namespace)
