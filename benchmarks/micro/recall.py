"""Recall of the vector search: how often the true nearest neighbour in a scope is what comes back.

Two layouts that break simpler designs: one scope of many real texts, and a thousand scopes that
all hold the same ten prompts (one FAQ, many tenants). The truth is computed by brute force over
the same FLOAT16 vectors; only queries whose true neighbour is above the threshold count.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.micro.settings import Micro, Row, Settings
from llm_cache import CacheConfig, LLMCache, LocalEmbedder

Vectors = npt.NDArray[np.float32]

_CONCURRENCY = 16
_THRESHOLD = 0.8
_TIE = 0.001
"""Two neighbours this close are one to FLOAT16; either is right."""


@dataclass(frozen=True, slots=True)
class Recall:
    """What one layout gave."""

    layout: str
    entries: int
    queries: int
    """Queries whose true neighbour is above the threshold."""
    found: int
    inserts_per_s: float
    lookup_ms: float
    """Median, answer included, one at a time."""

    @property
    def recall(self) -> float:
        """Share of the true neighbours that came back."""
        return self.found / self.queries if self.queries else 0.0


@dataclass(frozen=True, slots=True)
class _Layout:
    name: str
    systems: Sequence[str]
    """One scope for each system message; all hold the same prompts."""
    stored: Sequence[str]
    kept: Vectors
    asked: Sequence[str]
    sought: Vectors


async def run(settings: Settings) -> list[Row]:
    """Measure both layouts."""
    results = [
        await one_scope(settings.url, settings.folder()),
        await shared_prompts(settings.url, scopes=50 if settings.quick else 1_000),
    ]
    return [{**asdict(result), "recall": result.recall} for result in results]


async def one_scope(url: str, data: Path, *, entries: int = 5_500, queries: int = 1_000) -> Recall:
    """Store *entries* texts of Banking77 in one scope, and look up texts of its test half."""
    stored = _banking77(data / "banking77_train.csv.gz")[:entries]
    asked = _banking77(data / "banking77_test.csv.gz")[:queries]
    embedder = LocalEmbedder()
    kept, sought = await embedder.embed(stored), await embedder.embed(asked)
    return await _measure(
        url, _Layout("one scope, Banking77", [""], stored, kept, asked, sought), queries
    )


async def shared_prompts(url: str, *, scopes: int = 1_000, queries: int = 1_000) -> Recall:
    """Store the same ten questions in each of *scopes* scopes, and look up what is near them.

    What is looked up lies between a question and one of its rephrasings, so that there are true
    neighbours at all distances.
    """
    groups = _faq_groups()[:10]
    systems = [f"You answer for shop {i}." for i in range(scopes)]
    stored = [group[0] for group in groups]
    asked = [wording for group in groups for wording in group[1:]]
    embedder = LocalEmbedder()
    kept, rephrased = await embedder.embed(stored), await embedder.embed(asked)
    between = rephrased + np.repeat(kept, len(asked) // len(stored), axis=0)
    sought = between / np.linalg.norm(between, axis=1, keepdims=True)
    name = f"{scopes:,} scopes, the same {len(stored)} prompts"
    return await _measure(url, _Layout(name, systems, stored, kept, asked, sought), queries)


async def _measure(url: str, layout: _Layout, queries: int) -> Recall:
    # The plain search is what is measured: no guards, and a threshold below which little matters.
    config = CacheConfig(
        namespace=f"bench.recall.{time.time_ns()}",
        guards=False,
        similarity_threshold=_THRESHOLD,
    )
    async with LLMCache(url, embedder=LocalEmbedder(), config=config) as cache:
        start = time.perf_counter()
        await _each([partial(_store, cache, layout, *at) for at in _places(layout, layout.stored)])
        entries = len(layout.systems) * len(layout.stored)
        rate = entries / (time.perf_counter() - start)
        places = list(_places(layout, layout.asked))
        chosen = np.random.default_rng(0).permutation(len(places))[:queries]
        counted, found, times = 0, 0, []
        for system, i in (places[c] for c in chosen):
            start = time.perf_counter()
            reply = await cache.lookup_semantic(
                layout.asked[i], vector=layout.sought[i], system=system
            )
            times.append(time.perf_counter() - start)
            verdict = _is_true_neighbour(layout, system, i, None if reply is None else reply.text)
            if verdict is not None:
                counted, found = counted + 1, found + verdict
        median_ms = float(np.median(times)) * 1e3
        return Recall(layout.name, entries, counted, found, rate, median_ms)


def _places(layout: _Layout, texts: Sequence[str]) -> Iterator[tuple[str, int]]:
    return itertools.product(layout.systems, range(len(texts)))


async def _store(cache: LLMCache, layout: _Layout, system: str, i: int) -> None:
    await cache.store_semantic(
        layout.stored[i], f"{system}|{i}", vector=layout.kept[i], system=system
    )


def _is_true_neighbour(layout: _Layout, system: str, i: int, text: str | None) -> bool | None:
    """Tell whether *text* is the answer of the true neighbour; `None` where there is none."""
    truth = layout.kept.astype(np.float16).astype(np.float32) @ layout.sought[i]
    best = float(truth.max())
    if best < _THRESHOLD + _TIE:
        return None
    if text is None:
        return False
    answered_for, _, which = text.rpartition("|")
    return answered_for == system and bool(truth[int(which)] >= best - _TIE)


async def _each(jobs: Sequence[Callable[[], Awaitable[object]]]) -> None:
    """Run *jobs*, a few at a time."""
    queue = iter(jobs)

    async def work() -> None:
        for job in queue:
            await job()

    await asyncio.gather(*(work() for _ in range(_CONCURRENCY)))


def _banking77(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        rows = [row["text"].strip() for row in csv.DictReader(lines)]
    # Shuffled, so that a part of it holds all intents.
    return [rows[i] for i in np.random.default_rng(77).permutation(len(rows))]


def _faq_groups() -> list[list[str]]:
    text = (files("llm_cache") / "_data" / "faq_groups.jsonl").read_text(encoding="utf-8")
    groups: dict[str, list[str]] = {}
    for line in text.splitlines():
        row = json.loads(line)
        groups.setdefault(row["group"], []).append(row["text"])
    return list(groups.values())


BENCHMARK = Micro(
    name="recall",
    run=run,
    about=__doc__,
    columns={
        "layout": "layout",
        "entries": "entries:,",
        "queries": "queries:,",
        "recall": "recall:.4f",
        "look-up p50 ms": "lookup_ms:.2f",
        "inserts/s": "inserts_per_s:,.0f",
    },
)
