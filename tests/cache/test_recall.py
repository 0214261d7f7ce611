"""Both plans of the search find the true neighbour, with real embeddings.

The full measurement, with Banking77, is `python -m benchmarks --data …`.
"""

import asyncio
import json
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from llm_cache import LLMCache, LocalEmbedder
from llm_cache._redis import sizes


@pytest.fixture(scope="module")
def faq() -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    text = (files("llm_cache") / "_data" / "faq_groups.jsonl").read_text(encoding="utf-8")
    for line in text.splitlines():
        row = json.loads(line)
        groups.setdefault(row["group"], []).append(row["text"])
    return list(groups.values())


@pytest.fixture
async def cache(make_cache: Any) -> LLMCache:
    cache: LLMCache = make_cache(
        embedder=LocalEmbedder(), guards=False, similarity_threshold=0.5, semantic=True
    )
    return cache


async def store(cache: LLMCache, systems: list[str], texts: list[str], rows: Any) -> None:
    async def fill(mine: list[str]) -> None:
        for system in mine:
            for text, row in zip(texts, rows, strict=True):
                await cache.store_semantic(text, f"{system}|{text}", vector=row, system=system)

    await asyncio.gather(*(fill(systems[i::16]) for i in range(16)))


async def recall(cache: LLMCache, systems: list[str], texts: list[str], rows: Any) -> float:
    """Return how often the true neighbour of a rephrasing came back, in its own scope."""
    embedder = LocalEmbedder()
    stored = [group[0] for group in texts]
    asked = [wording for group in texts for wording in group[1:]]
    sought = await embedder.embed(asked)
    truth = sought @ rows.T
    counted = found = 0
    for i, wording in enumerate(asked):
        if truth[i].max() < 0.51:
            continue
        system = systems[i % len(systems)]
        reply = await cache.lookup_semantic(wording, vector=sought[i], system=system)
        counted += 1
        if reply is not None:
            answered_for, _, text = reply.text.partition("|")
            is_nearest = truth[i][stored.index(text)] >= truth[i].max() - 0.001
            found += answered_for == system and is_nearest
    assert counted > 20
    return found / counted


async def test_thousand_scopes_with_the_same_prompts_find_their_own(cache, faq):
    groups = faq[:10]
    texts = [group[0] for group in groups]
    rows = await LocalEmbedder().embed(texts)
    systems = [f"You answer for shop {i}." for i in range(1_000)]
    await store(cache, systems, texts, rows)

    assert await recall(cache, systems, groups, rows) >= 0.99


async def test_large_scope_is_searched_through_the_graph_without_loss(cache, faq, monkeypatch):
    monkeypatch.setattr(sizes, "small_scope", lambda _: 0)
    texts = [group[0] for group in faq]
    rows = await LocalEmbedder().embed(texts)
    # Four thousand vectors of other scopes with the same prompts stand around the right ones.
    systems = [f"You answer for shop {i}." for i in range(100)]
    await store(cache, systems, texts, rows)

    assert await recall(cache, systems[:50], faq, np.asarray(rows)) >= 0.99
