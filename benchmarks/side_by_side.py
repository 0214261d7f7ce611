"""Ours and others on one Redis, in one run: the same vectors, the same answers, the same stream.

Everybody runs in a process of its own, ours too, and is told what to do in batches: so 200 callers
are concurrent inside that process, and what is timed there is the library's own call. Beside
every peer ours does the same in turn with it; ours beside itself tells how much of a difference
is noise. One that cannot run is a row that says why.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from redis.exceptions import RedisError

from benchmarks.embedding import MeteredEmbedder
from benchmarks.errors import BadInput
from benchmarks.histograms import Latencies
from benchmarks.peers.environments import (
    ENVIRONMENTS,
    OURS,
    UNGUARDED,
    Batch,
    Peer,
    PeerUnavailable,
    RunningPeer,
    environment,
    running,
)
from benchmarks.peers.server import reachable
from benchmarks.peers.turns import in_turns, per_s
from benchmarks.results import Results
from benchmarks.session import Session, forget, used_memory_bytes
from benchmarks.workloads import Workload, shipped
from benchmarks.workloads.zipf import popular

Json = dict[str, Any]
Vector = np.ndarray
_ANSWER = "An answer of some length. ".ljust(500, "x")
_INSTALL_S = 900.0
_PLACES = ("speeds", "faq", "traps")
"""Namespaces of a peer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much."""

    entries: int = 1_024
    """A multiple of the 1,024 by which an index grows, so that no unused room is weighed."""
    reads: int = 200
    """In each of so many blocks, in turn with ours."""
    blocks: int = 10
    callers: int = 200
    seconds_each: float = 120.0
    """How long a peer may take, its installation left out."""
    installs: bool = False
    """Whether peers that are not installed yet are."""


QUICK = Plan(reads=100, blocks=6)


@dataclass(frozen=True, slots=True)
class _Layer:
    """What is stored in a layer, and what is asked of it."""

    name: str
    store: str
    look_up: str
    stored: Sequence[Sequence[Any]]
    more: Sequence[Sequence[Any]]
    """To be stored by many at once."""
    asked: Sequence[Sequence[Any]]


async def measure(
    session: Session,
    results: Results,
    plan: Plan,
    embedder: MeteredEmbedder,
    peers: Sequence[Peer],
    *,
    environments: Path = ENVIRONMENTS,
) -> None:
    """Measure ours and *peers*, and put the rows into *results*."""
    section = results.section("peers")
    layers, dimensions = await _layers(session, plan, embedder)
    section.update(
        entries=plan.entries, dimensions=dimensions, callers=plan.callers, rows=(rows := [])
    )
    async with reachable(session.redis_url) as url, AsyncExitStack() as stack:
        bench = _Bench(session, plan, embedder, dimensions, layers, environments, url)
        try:
            ours = await bench.ours(stack)
        except PeerUnavailable as error:
            raise BadInput(f"ours could not be started beside others: {error}") from error
        for peer in (OURS, UNGUARDED, *peers):
            if session.stop.is_set():
                return
            session.progress.say(f"side by side: {peer.name}")
            rows.append(await bench.row(peer, ours))
            results.save()
    if not peers:
        results.note("Nobody is beside ours: --peers none was given.")


async def _layers(
    session: Session, plan: Plan, embedder: MeteredEmbedder
) -> tuple[list[_Layer], int]:
    prompts = [question.wordings[0] for question in popular(plan.entries, session.seed)]
    with session.progress.bar("side by side: embedding", None):
        vectors = (await embedder.vectors(prompts)).tolist()
    pairs = list(zip(prompts, vectors, strict=True))
    reads = [i % plan.entries for i in range(plan.reads)]
    layers = [
        _Layer(
            "exact",
            "exact_set",
            "exact_get",
            stored=[[prompt, _ANSWER] for prompt in prompts],
            more=[[f"{prompt} Now?", _ANSWER] for prompt in prompts],
            asked=[[prompts[i]] for i in reads],
        ),
        # Prompts of its own, so that no exact answer of before is replaced.
        _Layer(
            "semantic",
            "semantic_store",
            "semantic_check",
            stored=[[f"{prompt} Thanks!", vector, _ANSWER] for prompt, vector in pairs],
            more=[[f"{prompt} Thank you!", vector, _ANSWER] for prompt, vector in pairs],
            asked=[[f"{prompts[i]} Thanks!", vectors[i]] for i in reads],
        ),
    ]
    return layers, len(vectors[0])


class _Bench:
    """Measures one peer after another."""

    def __init__(
        self,
        session: Session,
        plan: Plan,
        embedder: MeteredEmbedder,
        dimensions: int,
        layers: Sequence[_Layer],
        environments: Path,
        url: str,
    ) -> None:
        self._session = session
        self._plan = plan
        self._embedder = embedder
        self._dimensions = dimensions
        self._layers = layers
        self._environments = environments
        self._url = url

    async def ours(self, stack: AsyncExitStack) -> RunningPeer:
        """Start ours, with everything stored, to stand beside whoever is measured."""
        stack.push_async_callback(self._forget, "beside")
        ours = await stack.enter_async_context(running(OURS, self._environments))
        await self._open(ours, "beside")
        for layer in self._layers:
            await ours.call(layer.store, layer.stored, callers=10)
        return ours

    async def row(self, peer: Peer, ours: RunningPeer) -> Json:
        """Return the figures of *peer*; of what failed, why."""
        row: Json = {"name": peer.name, "version": peer.version, "how": peer.about}
        row |= dict.fromkeys(("why_not", "exact", "semantic", "faq", "traps"))
        try:
            async with _bounded(self._session.stop, _INSTALL_S):
                await environment(peer, self._environments, installs=self._plan.installs)
            async with (
                _bounded(self._session.stop, self._plan.seconds_each),
                running(peer, self._environments, installs=False) as started,
            ):
                await self._fill(row, started, ours)
        except PeerUnavailable as error:
            row["why_not"] = str(error)
        except RedisError as error:
            row["why_not"] = f"Redis stopped answering ({type(error).__name__})"
        except TimeoutError:
            is_stopped = self._session.stop.is_set()
            limit = f"it took more than {self._plan.seconds_each:g} s"
            row["why_not"] = "it was stopped" if is_stopped else limit
        finally:
            await self._forget(*_PLACES)
        return row

    async def _fill(self, row: Json, peer: RunningPeer, ours: RunningPeer) -> None:
        speeds, faq, traps = _PLACES
        await self._open(peer, speeds)
        for layer in self._layers:
            if layer.look_up in peer.offers:
                row[layer.name] = await self._speeds(layer, peer, ours)
        if "semantic_check" in peer.offers:
            await self._open(peer, faq)
            row["faq"] = await self._replay(peer, shipped.faq(self._session.seed))
            await self._open(peer, traps)
            row["traps"] = await self._fall_into(peer, shipped.traps())

    async def _open(self, peer: RunningPeer, name: str) -> None:
        """Open *peer* with nothing in it."""
        await self._forget(name)
        await peer.open(
            url=self._url,
            dimensions=self._dimensions,
            threshold=self._embedder.similarity_threshold,
            namespace=self._session.namespace(name),
        )

    async def _forget(self, *names: str) -> None:
        with suppress(RedisError, OSError):
            for name in names:
                await forget(self._url, self._session.namespace(name))

    async def _speeds(self, layer: _Layer, peer: RunningPeer, ours: RunningPeer) -> Json:
        callers, asked = self._plan.callers, layer.asked
        before = await used_memory_bytes(self._url)
        storing = await peer.call(layer.store, layer.stored)
        grown = await used_memory_bytes(self._url) - before
        stored = sum(error is None for error in storing.errors)
        # What is made at the first call is nobody's usual call.
        await peer.call(layer.look_up, asked[:20])
        hits = await in_turns(ours, peer, layer.look_up, asked, blocks=self._plan.blocks)
        crowd = [*asked, *asked, *asked]
        together = await in_turns(ours, peer, layer.look_up, crowd, callers=callers, blocks=3)
        crowding = await peer.call(layer.store, layer.more, callers=callers)
        return {
            "store": _figures([storing]),
            "bytes_per_entry": grown / stored if stored else None,
            "hit": {**_figures(hits.theirs, _ANSWER), "times_ours": hits.times_ours},
            "crowd": {
                **_figures(together.theirs, _ANSWER),
                "per_s": per_s(together.theirs),
                "ours_per_s": per_s(together.ours),
            },
            "crowd_store": {**_figures([crowding]), "per_s": per_s([crowding])},
        }

    async def _replay(self, peer: RunningPeer, workload: Workload) -> Json:
        """Ask a stream: look up, and store what was not found."""
        requests = hits = wrong = 0
        for ask in workload.asks():
            vector = await self._vector(ask.prompt)
            (found,) = (await peer.call("semantic_check", [[ask.prompt, vector]])).found
            requests += 1
            if found is None:
                await peer.call("semantic_store", [[ask.prompt, vector, str(ask.answer_id)]])
            else:
                hits += 1
                wrong += found != ask.answer_id
        return {"requests": requests, "hit_rate": hits / requests, "hits": hits, "wrong": wrong}

    async def _fall_into(self, peer: RunningPeer, workload: Workload) -> Json:
        """Store the first of each pair, then ask the second of each.

        All pairs share one cache here, since not everybody has tenants. So only the answer of the
        pair's own first counts: another pair's may be right, who knows.
        """
        asks = list(workload.asks())
        firsts, seconds = asks[::2], asks[1::2]
        stored = [[a.prompt, await self._vector(a.prompt), str(a.answer_id)] for a in firsts]
        await peer.call("semantic_store", stored)
        asked = [[a.prompt, await self._vector(a.prompt)] for a in seconds]
        found = (await peer.call("semantic_check", asked)).found
        counts = Counter(
            (first.answer_id == second.answer_id, answer == first.answer_id)
            for first, second, answer in zip(firsts, seconds, found, strict=True)
        )
        return {
            "paraphrases": counts[True, True] + counts[True, False],
            "paraphrases_served": counts[True, True],
            "traps": counts[False, True] + counts[False, False],
            "traps_served": counts[False, True],
        }

    async def _vector(self, prompt: str) -> list[float]:
        (vector,) = (await self._embedder.vectors([prompt])).tolist()
        return list(vector)


def _figures(batches: Sequence[Batch], wanted: str | None = None) -> Json:
    """Return how long the calls took, and how many failed or did not find what is there."""
    latencies, failures, missed = Latencies(), Counter[str](), 0
    for batch in batches:
        failures.update(batch.failures)
        for found, took_us, error in zip(batch.found, batch.times_us, batch.errors, strict=True):
            if error is None:
                latencies.add(took_us / 1e6)
                missed += wanted is not None and found != wanted
    return {**latencies.figures(), "failures": dict(failures), "missed": missed}


@asynccontextmanager
async def _bounded(stop: asyncio.Event, seconds: float) -> AsyncIterator[None]:
    """End the block with a `TimeoutError` after so many seconds, or when told to stop."""
    async with asyncio.timeout(seconds) as limit:
        loop = asyncio.get_running_loop()

        def end(waiting: asyncio.Task[Any]) -> None:
            if not waiting.cancelled() and not limit.expired():
                limit.reschedule(loop.time())

        waiting = asyncio.create_task(stop.wait())
        waiting.add_done_callback(end)
        try:
            yield
        finally:
            waiting.cancel()
