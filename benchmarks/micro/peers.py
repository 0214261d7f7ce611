"""Peers on the same work and the same Redis over TCP, each as its own users call it.

Exact: 2,000 answers of 500 bytes; hits one at a time, and by 100 callers at once. Semantic:
10,000 entries in one scope, at 384 dimensions (real vectors) and at 1,536 (the same under a random
orthogonal map, which keeps all cosines); look-ups with the vector given, one at a time, half of
them hits. Ours and the peer are timed in turn, a block each, so that whatever
else the machine does hits both; what a peer's row compares with is what ours took beside it.

Ours is `chat()` for exact hits (hashing, epoch and decoding included) and
`lookup_semantic(vector=…)` with its answer; no peer has guards, so ours is compared without, and
the time with them stands beside it. RedisVL's `SemanticCache`, on which langchain-redis and
LiteLLM stand, searches without a graph (FLAT), in time in proportion to the entries; ours is HNSW.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.micro import material
from benchmarks.micro.semantic import THRESHOLD
from benchmarks.micro.settings import Micro, Row, Settings
from benchmarks.peers.environments import (
    OURS,
    PEERS,
    UNGUARDED,
    Peer,
    PeerUnavailable,
    RunningPeer,
    running,
)
from benchmarks.peers.server import reachable
from benchmarks.peers.turns import Turns, in_turns, median_us, per_s

_CALLERS = 100
_DIMENSIONS = (384, 1_536)
_AT_A_TIME = 1_000
"""Entries handed to a driver at a time, which come as JSON."""


@dataclass(frozen=True, slots=True)
class _Work:
    """What everybody stores and asks."""

    dimensions: int
    values: Sequence[Sequence[str]]
    """Keys and what is stored under them."""
    stored: Sequence[Sequence[Any]]
    """Prompts, their vectors and their answers."""
    asked: Sequence[Sequence[Any]]
    """Prompts and their vectors."""


async def run(settings: Settings) -> list[Row]:
    """Measure ours beside each peer."""
    rows: list[Row] = []
    async with (
        reachable(settings.url) as url,
        running(OURS, settings.cache) as guarded,
        running(UNGUARDED, settings.cache) as plain,
    ):
        for dimensions in _DIMENSIONS:
            work = await _work(settings, dimensions)
            for ours in (guarded, plain):
                await _open(ours, url, work)
                await _store(ours, work)
            for peer in PEERS.values():
                rows += await _beside(settings, peer, (guarded, plain), work, url)
                settings.keep(rows)
    return rows


async def _open(peer: RunningPeer, url: str, work: _Work) -> None:
    namespace = f"bench.peers.{time.time_ns()}"
    await peer.open(url=url, dimensions=work.dimensions, threshold=THRESHOLD, namespace=namespace)


async def _store(peer: RunningPeer, work: _Work) -> None:
    for operation, items in (("exact_set", work.values), ("semantic_store", work.stored)):
        if operation not in peer.offers:
            continue
        for start in range(0, len(items), _AT_A_TIME):
            part = items[start : start + _AT_A_TIME]
            failures = (await peer.call(operation, part, callers=10)).failures
            if failures:
                raise PeerUnavailable(f"{operation}: {next(iter(failures))}")


async def _work(settings: Settings, dimensions: int) -> _Work:
    given = await material.load(settings)
    if dimensions != given.stored.vectors.shape[1]:
        given = given.lifted(dimensions, settings.seed)
    rng = np.random.default_rng(settings.seed)
    exact, entries = (100, 500) if settings.quick else (2_000, 10_000)
    stored = given.stored.part(rng.choice(len(given.stored.texts), entries, replace=False))
    # A hit is a stored text with a little of another wording in it.
    near = rng.choice(entries, 300, replace=False)
    other = given.asked.vectors[rng.choice(len(given.asked.texts), 300)]
    hits = material.unit(stored.vectors[near] * np.float32(0.9) + other * np.float32(0.1))
    far = rng.choice(len(given.foreign.texts), 300)
    asked = [[stored.texts[i], hit.tolist()] for i, hit in zip(near, hits, strict=True)]
    asked += [[given.foreign.texts[i], given.foreign.vectors[i].tolist()] for i in far]
    values = list(material.answers(given.stored, exact, 500, rng))
    answers = list(material.answers(given.stored, entries, 500, rng))
    vectors = stored.vectors.tolist()
    return _Work(
        dimensions=dimensions,
        values=[[f"Question number {i}?", value] for i, value in enumerate(values)],
        stored=[list(each) for each in zip(stored.texts, vectors, answers, strict=True)],
        asked=[asked[i] for i in rng.permutation(len(asked))],
    )


async def _beside(
    settings: Settings,
    peer: Peer,
    ours: tuple[RunningPeer, RunningPeer],
    work: _Work,
    url: str,
) -> list[Row]:
    about: Row = {"peer": peer.name, "versions": " ".join(peer.requirements), "how": peer.about}
    rows: list[Row] = []
    try:
        async with running(peer, settings.cache) as theirs:
            await _open(theirs, url, work)
            await _store(theirs, work)
            for measure in (_exact, _semantic):
                rows += [{**about, **row} for row in await measure(ours, theirs, work)]
    except PeerUnavailable as error:
        rows.append({**about, "what": "failed", "why": str(error)})
    return rows


async def _exact(
    ours: tuple[RunningPeer, RunningPeer], peer: RunningPeer, work: _Work
) -> list[Row]:
    if "exact_get" not in peer.offers or work.dimensions != _DIMENSIONS[0]:
        return []
    rows = []
    # Many callers get through all keys in a twentieth of a second: too short a time to compare.
    for callers, times in ((1, 1), (_CALLERS, 5)):
        keys = [[key] for key, _ in work.values] * times
        values = [value for _, value in work.values] * times
        turns = await in_turns(ours[0], peer, "exact_get", keys, callers=callers)
        for batch in (*turns.ours, *turns.theirs):
            if batch.found != values:
                raise PeerUnavailable("exact_get: a value is missing or another's")
        rows.append({"what": "exact hit", **_compare(turns, callers)})
    return rows


async def _semantic(
    ours: tuple[RunningPeer, RunningPeer], peer: RunningPeer, work: _Work
) -> list[Row]:
    if "semantic_check" not in peer.offers:
        return []
    guarded, plain = ours
    turns = await in_turns(plain, peer, "semantic_check", work.asked)
    beside = await in_turns(guarded, plain, "semantic_check", work.asked)
    return [
        {
            "what": "semantic look-up",
            "dimensions": work.dimensions,
            "entries": len(work.stored),
            "hits": _hits(turns.ours[-1].found),
            "guarded_hits": _hits(beside.ours[-1].found),
            "peer_hits": _hits(turns.theirs[-1].found),
            "guarded_us": median_us(beside.ours),
            **_compare(turns, 1),
        }
    ]


def _hits(found: Sequence[str | None]) -> int:
    return sum(text is not None for text in found)


def _compare(turns: Turns, callers: int) -> Row:
    ours_per_s, peer_per_s = per_s(turns.ours), per_s(turns.theirs)
    return {
        "callers": callers,
        "ours_us": median_us(turns.ours),
        "peer_us": median_us(turns.theirs),
        "ours_per_s": round(ours_per_s),
        "peer_per_s": round(peer_per_s),
        # One at a time, latency is what counts; together, throughput.
        "faster": turns.times_ours if callers == 1 else ours_per_s / peer_per_s,
    }


BENCHMARK = Micro(
    name="peers",
    run=run,
    about=__doc__,
    is_long=True,
    columns={
        "peer": "peer",
        "how it is called": "how",
        "": "what",
        "dims": "dimensions:,",
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
