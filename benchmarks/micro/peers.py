"""Peers on the same work and the same Redis over TCP, each as its own users call it.

Exact: 2,000 answers of 500 bytes; hits one at a time, and by 100 callers at once. Semantic:
10,000 entries at 384 dimensions (real vectors) in one scope; look-ups with the vector given, one
at a time, half of them hits. Ours and the peer are timed in turn, a block each, so that whatever
else the machine does hits both; what a peer's row compares with is what ours took beside it.

Ours is `chat()` for exact hits (hashing, epoch and decoding included) and
`lookup_semantic(vector=…)` with its answer; no peer has guards, so ours is compared without.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.micro import loading, material
from benchmarks.micro.semantic import THRESHOLD, GivenVectors
from benchmarks.micro.settings import Micro, Row, Settings
from benchmarks.peers.environments import PEERS, Peer, PeerUnavailable, RunningPeer, running
from benchmarks.peers.server import reachable
from llm_cache import CacheConfig, LLMCache
from llm_cache.testing import ScriptedUpstream

_BLOCKS = 5
_CALLERS = 100
_DIMENSIONS = 384


_Caches = tuple[LLMCache, LLMCache]
"""With guards, and without."""


@dataclass(frozen=True, slots=True)
class _Work:
    """What everybody stores and asks."""

    keys: Sequence[str]
    values: Sequence[str]
    prompts: Sequence[str]
    vectors: Any
    answers: Sequence[str]
    asked: Sequence[tuple[str, Any]]


async def run(settings: Settings) -> list[Row]:
    """Measure ours beside each peer."""
    work = await _work(settings)
    rows: list[Row] = []
    async with reachable(settings.url) as url, ScriptedUpstream() as upstream:
        config = CacheConfig(
            namespace=f"bench.peers.{time.time_ns()}",
            redis_timeout_s=60,
            added_latency_budget_s=60,
        )
        async with LLMCache(
            url, client=upstream.client(), embedder=GivenVectors(_DIMENSIONS), config=config
        ) as cache:
            await _store(cache, work)
            plain = LLMCache(
                url,
                # The address of the model is part of every key.
                client=upstream.client(),
                embedder=GivenVectors(_DIMENSIONS),
                config=replace(config, guards=False),
            )
            async with plain:
                for peer in PEERS.values():
                    rows += await _beside(settings, peer, (cache, plain), work, url)
                    settings.keep(rows)
    return rows


async def _work(settings: Settings) -> _Work:
    given = await material.load(settings)
    rng = np.random.default_rng(settings.seed)
    exact, entries = (100, 500) if settings.quick else (2_000, 10_000)
    stored = given.stored.part(rng.choice(len(given.stored.texts), entries, replace=False))
    # A hit is a stored text with a little of another wording in it.
    near = rng.choice(entries, 300, replace=False)
    other = given.asked.vectors[rng.choice(len(given.asked.texts), 300)]
    hits = material.unit(stored.vectors[near] * np.float32(0.9) + other * np.float32(0.1))
    far = rng.choice(len(given.foreign.texts), 300)
    asked = [(stored.texts[i], hit) for i, hit in zip(near, hits, strict=True)]
    asked += [(given.foreign.texts[i], given.foreign.vectors[i]) for i in far]
    return _Work(
        keys=[f"Question number {i}?" for i in range(exact)],
        values=list(material.answers(given.stored, exact, 500, rng)),
        prompts=stored.texts,
        vectors=stored.vectors,
        answers=list(material.answers(given.stored, entries, 500, rng)),
        asked=[asked[i] for i in rng.permutation(len(asked))],
    )


async def _store(cache: LLMCache, work: _Work) -> None:
    async with loading.fast(cache):
        await loading.each(
            partial(cache.store_exact, key, value)
            for key, value in zip(work.keys, work.values, strict=True)
        )
        await loading.each(
            partial(cache.store_semantic, prompt, answer, vector=vector)
            for prompt, answer, vector in zip(
                work.prompts, work.answers, work.vectors, strict=True
            )
        )


async def _beside(
    settings: Settings, peer: Peer, caches: _Caches, work: _Work, url: str
) -> list[Row]:
    about: Row = {"peer": peer.name, "versions": " ".join(peer.requirements), "how": peer.about}
    rows: list[Row] = []
    try:
        async with running(
            peer,
            settings.cache,
            url=url,
            dimensions=_DIMENSIONS,
            threshold=THRESHOLD,
            namespace=f"peer{time.time_ns()}",
        ) as driver:
            for measure in (_exact, _semantic):
                try:
                    rows += [{**about, **row} for row in await measure(caches, driver, work)]
                except PeerUnavailable as error:
                    if "Unsupported" not in str(error):
                        rows.append({**about, "what": "failed", "why": str(error)})
    except PeerUnavailable as error:
        rows.append({**about, "what": "failed", "why": str(error)})
    return rows


async def _exact(caches: _Caches, peer: RunningPeer, work: _Work) -> list[Row]:
    cache, _ = caches
    pairs = [list(pair) for pair in zip(work.keys, work.values, strict=True)]
    await peer.call("exact_set", items=pairs, callers=10)

    async def ours(i: int) -> None:
        if (await cache.chat(work.keys[i])).text != work.values[i]:
            raise AssertionError("a caller got the answer of another")

    rows = []
    for callers in (1, _CALLERS):
        mine, theirs = [], []
        for _ in range(_BLOCKS):
            mine.append(await _block(ours, len(work.keys), callers))
            answer = await peer.call("exact_get", keys=work.keys, callers=callers)
            if answer["found"] != list(work.values):
                raise PeerUnavailable("exact_get: a value is missing or another's")
            theirs.append((answer["total_s"], answer["times_us"]))
        rows.append({"what": "exact hit", **_compare(mine, theirs, len(work.keys), callers)})
    return rows


async def _semantic(caches: _Caches, peer: RunningPeer, work: _Work) -> list[Row]:
    guarded, plain = caches
    stored = zip(work.prompts, work.vectors.tolist(), work.answers, strict=True)
    await peer.call("semantic_store", items=[list(item) for item in stored], callers=10)
    asked = [[text, vector.tolist()] for text, vector in work.asked]
    found = {True: [False] * len(asked), False: [False] * len(asked)}

    async def ours(cache: LLMCache, i: int) -> None:
        text, vector = asked[i]
        reply = await cache.lookup_semantic(text, vector=vector)
        found[cache is guarded][i] = reply is not None

    mine, with_guards, theirs = [], [], []
    for _ in range(_BLOCKS):
        with_guards.append(await _block(partial(ours, guarded), len(asked), 1))
        mine.append(await _block(partial(ours, plain), len(asked), 1))
        answer = await peer.call("semantic_check", items=asked, callers=1)
        theirs.append((answer["total_s"], answer["times_us"]))
    return [
        {
            "what": "semantic look-up",
            "entries": len(work.prompts),
            "hits": sum(found[False]),
            "guarded_hits": sum(found[True]),
            "peer_hits": sum(text is not None for text in answer["found"]),
            "guarded_us": _median_us(with_guards),
            **_compare(mine, theirs, len(asked), 1),
        }
    ]


async def _block(
    call: Callable[[int], Awaitable[None]], count: int, callers: int
) -> tuple[float, list[float]]:
    """Return the seconds of a block and the microseconds of each call, as a driver does."""
    times_us = [0.0] * count
    queue = iter(range(count))

    async def work() -> None:
        for i in queue:
            start = time.perf_counter()
            await call(i)
            times_us[i] = (time.perf_counter() - start) * 1e6

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(callers)))
    return time.perf_counter() - start, times_us


def _compare(
    mine: Sequence[tuple[float, list[float]]],
    theirs: Sequence[tuple[float, list[float]]],
    count: int,
    callers: int,
) -> Row:
    ours_us, peer_us = _median_us(mine), _median_us(theirs)
    ours_per_s, peer_per_s = (
        float(np.median([count / total_s for total_s, _ in blocks])) for blocks in (mine, theirs)
    )
    return {
        "callers": callers,
        "ours_us": ours_us,
        "peer_us": peer_us,
        "ours_per_s": round(ours_per_s),
        "peer_per_s": round(peer_per_s),
        # One at a time, latency is what counts; together, throughput.
        "faster": peer_us / ours_us if callers == 1 else ours_per_s / peer_per_s,
    }


def _median_us(blocks: Sequence[tuple[float, list[float]]]) -> float:
    return round(float(np.median([t for _, times in blocks for t in times])), 1)


BENCHMARK = Micro(
    name="peers",
    run=run,
    about=__doc__,
    is_long=True,
    columns={
        "peer": "peer",
        "how it is called": "how",
        "": "what",
        "callers": "callers:,",
        "ours p50 µs": "ours_us:.0f",
        "with guards": "guarded_us:.0f",
        "peer p50 µs": "peer_us:.0f",
        "ours/s": "ours_per_s:,",
        "peer/s": "peer_per_s:,",
        "times faster": "faster:.1f",
        "hits": "hits:,",
        "with guards ": "guarded_hits:,",
        "peer's hits": "peer_hits:,",
        "note": "why",
    },
)
