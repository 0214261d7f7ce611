"""`hitrate`: how many calls hit, and how many hits are wrong, under one policy and many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.embedding import MeteredEmbedder
from benchmarks.quality.figures import Json, of_outcomes
from benchmarks.quality.replay import Outcome, Policy, Replayer
from benchmarks.results import Results
from benchmarks.session import Session
from benchmarks.workloads import Workload, shipped
from benchmarks.workloads.zipf import zipf

THRESHOLDS = (0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
POLICIES = (
    Policy("default"),
    Policy("exact only", semantic=False),
    Policy("no guards", guards=False),
)


_KEPT = (
    "hit_rate",
    "semantic_hit_rate",
    "requests",
    "wrong_hits",
    "wrong_per_hit",
    "wrong_per_request",
    "search_recall",
    "stopped",
)
"""Figures of a point of the curve."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure."""

    shuffles: int = 20
    """Orders in which the FAQ set is asked."""
    other_shuffles: int = 20
    """Those under policies that are no default."""
    curve_shuffles: int = 5
    thresholds: Sequence[float] = THRESHOLDS
    zipf_requests: int = 2_000
    curve_requests: int = 3_000
    """Most requests of a stream at each threshold."""
    max_requests: int | None = None
    price_model: str = "gpt-4o-mini"


QUICK = Plan(
    other_shuffles=2,
    curve_shuffles=1,
    thresholds=(0.75, 0.8, 0.85, 0.9),
    zipf_requests=600,
    curve_requests=300,
)


@dataclass(frozen=True, slots=True)
class Stream:
    """A workload in the orders in which it is to be asked."""

    orders: Sequence[Workload]

    @property
    def first(self) -> Workload:
        """The first order, which tells of all."""
        return self.orders[0]

    def requests(self) -> int | None:
        """Return how many requests all orders have together."""
        counts = [order.count for order in self.orders]
        return None if None in counts else sum(count or 0 for count in counts)


def own_streams(plan: Plan, seed: int) -> list[Stream]:
    """Return what the project ships: the FAQ in many orders, the traps, the generator."""
    return [
        Stream([shipped.faq(seed + shuffle) for shuffle in range(plan.shuffles)]),
        Stream([shipped.traps()]),
        Stream([zipf(requests=plan.zipf_requests, seed=seed)]),
    ]


class HitRates:
    """Measures streams and puts what it finds into *results*, after each replay.

    Args:
        session: Around it.
        embedder: Of the cache.
        results: Filled as it goes, so that whoever stops it keeps what there is.
        plan: How much.
        make_cache: For the tests, which break it.
    """

    def __init__(
        self,
        session: Session,
        embedder: MeteredEmbedder,
        results: Results,
        plan: Plan,
        **make_cache: Any,
    ) -> None:
        self._session = session
        self._results = results
        self._plan = plan
        self._embedder = embedder
        self._replayer = Replayer(session, embedder, **make_cache)

    async def measure(self, streams: Sequence[Stream]) -> None:
        """Replay all *streams* under every policy, and over the thresholds."""
        section = self._results.section("hitrate")
        section["embedder"] = self._embedder.model_id
        section["default_threshold"] = self._embedder.similarity_threshold
        workloads: list[Json] = section.setdefault("workloads", [])
        for stream in streams:
            figures: Json = {
                "name": stream.first.name,
                "source": stream.first.source,
                "note": stream.first.note,
                "is_pairs": stream.first.is_pairs,
                "orders": len(stream.orders),
                "policies": [],
                "curve": [],
            }
            workloads.append(figures)
            for policy in POLICIES:
                if self._session.stop.is_set():
                    return
                is_default = policy is POLICIES[0]
                orders = stream.orders[: None if is_default else self._plan.other_shuffles]
                figures["policies"].append(await self._figures(Stream(orders), policy))
            await self._curve(stream, figures["curve"])

    async def _curve(self, stream: Stream, points: list[Json]) -> None:
        plan = self._plan
        orders = [o.take(plan.curve_requests) for o in stream.orders[: plan.curve_shuffles]]
        for guards in (True, False):
            for threshold in plan.thresholds:
                if self._session.stop.is_set():
                    return
                policy = Policy(f"at {threshold:g}", threshold, guards=guards)
                figures = await self._figures(Stream(orders), policy)
                point = {name: figures[name] for name in _KEPT}
                points.append({"threshold": threshold, "guards": guards, **point})

    async def _figures(self, stream: Stream, policy: Policy) -> Json:
        plan = self._plan
        what = f"{stream.first.name}, {policy.name}"
        outcomes: list[Outcome] = []
        orders = [order.take(plan.max_requests) for order in stream.orders]
        with self._session.progress.bar(what, Stream(orders).requests()) as advance:
            for number, order in enumerate(orders):
                outcome = await self._replayer.run(
                    order, policy, advance=advance, measure_memory=number == 0
                )
                outcomes.append(outcome)
                if outcome.tally.stopped is not None:
                    self._results.note(f"{what}: {outcome.tally.stopped}")
                    break
        seed = self._session.seed
        counted = of_outcomes(outcomes, seed=seed, price_model=plan.price_model)
        if policy is not POLICIES[0]:
            del counted["timeline"]
        return {
            "policy": policy.name,
            "similarity_threshold": policy.similarity_threshold,
            "guards": policy.guards,
            "semantic": policy.semantic,
            **counted,
        }
