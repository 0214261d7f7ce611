"""`savings`: what your log would have saved, by threshold and TTL.

Hit rate, wrong hits, USD a month, and the memory in Redis with its price. Every cell is a replay
of the log through the cache.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.command import add_options, measured
from benchmarks.embedding import MeteredEmbedder, make_embedder
from benchmarks.errors import BadInput
from benchmarks.quality.figures import cost_usd, of_outcomes
from benchmarks.quality.replay import HITS, Policy, Replayer
from benchmarks.results import Results
from benchmarks.session import Session
from benchmarks.workloads import Ask, Workload, logs
from benchmarks.workloads.zipf import zipf

Json = dict[str, Any]
DAYS_A_MONTH = 30
_OVERHEAD = 1.2
"""Memory to pay for, over what entries take: replication buffers and fragmentation."""
_GIB = 1024**3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_options(parser)
    parser.add_argument("--log", type=Path, help="JSONL or CSV with a column prompt")
    parser.add_argument("--prompt-column", default="prompt")
    parser.add_argument("--max-requests", type=int, default=20_000, help="most requests replayed")
    parser.add_argument("--thresholds", type=_numbers, default=[0.8, 0.85, 0.9, 0.95])
    parser.add_argument("--ttls-h", type=_numbers, default=[1, 24, 168], help="hours")
    parser.add_argument("--no-guards", action="store_true")
    add_price_options(parser)


def add_price_options(parser: argparse.ArgumentParser) -> None:
    """Add what a request, a token and a gigabyte cost."""
    parser.add_argument(
        "--daily-requests", type=float, help="default: as the log's timestamps say, else 10,000"
    )
    parser.add_argument("--input-tokens", type=int, default=500, help="where the log has none")
    parser.add_argument("--output-tokens", type=int, default=300, help="where the log has none")
    parser.add_argument("--price-model", default="gpt-4o-mini", help="whose prices")
    parser.add_argument("--input-usd", type=float, help="per million tokens, instead of its price")
    parser.add_argument("--output-usd", type=float, help="per million tokens")
    parser.add_argument("--redis-usd-per-gb-month", type=float, default=10.0)


def run(arguments: argparse.Namespace) -> int:
    """Measure and write the report."""

    async def measure(session: Session, results: Results) -> None:
        await savings(arguments, session, results)

    return measured(arguments, measure)


@dataclass(frozen=True, slots=True)
class Prices:
    """What a million tokens cost, in USD."""

    input_usd: float
    output_usd: float

    def daily_usd(
        self, daily_requests: float, hit_rate: float, input_tokens: float, output_tokens: float
    ) -> float:
        """Return what hits save a day."""
        per_hit = input_tokens * self.input_usd + output_tokens * self.output_usd
        return daily_requests * hit_rate * per_hit / 1e6


def prices(arguments: argparse.Namespace) -> Prices:
    """Return the prices to reckon with.

    Raises:
        BadInput: none is known for the model, and none is given.
    """
    given = arguments.input_usd, arguments.output_usd
    if None not in given:
        return Prices(*given)
    listed = [cost_usd(*tokens, arguments.price_model) for tokens in ((10**6, 0), (0, 10**6))]
    if None in listed:
        raise BadInput(
            f"no price is known for {arguments.price_model!r}: take another --price-model, give"
            " --input-usd and --output-usd, or pip install 'llm-cache[prices]'"
        )
    found = [own if own is not None else price for own, price in zip(given, listed, strict=True)]
    return Prices(float(found[0] or 0), float(found[1] or 0))


async def savings(arguments: argparse.Namespace, session: Session, results: Results) -> None:
    """Fill the table, cell by cell."""
    paid = prices(arguments)
    workload = _workload(arguments, session, results)
    embedder = MeteredEmbedder(await make_embedder(arguments.embedder), remembers=True)
    replayer = Replayer(session, embedder)
    span = _span(workload)
    daily = arguments.daily_requests or span.daily_requests or 10_000.0
    section = results.section("savings")
    section.update(
        workload=workload.name,
        source=workload.source,
        requests=span.requests,
        has_times=span.has_times,
        daily_requests=daily,
        input_usd_per_million=paid.input_usd,
        output_usd_per_million=paid.output_usd,
        redis_usd_per_gb_month=arguments.redis_usd_per_gb_month,
        rows=[],
    )
    ttls_h: list[float | None] = list(arguments.ttls_h)
    if not span.has_times:
        results.note("savings: without timestamps in the log, no TTL can be tried: one of no end")
        ttls_h = [None]
    total = span.requests * len(arguments.thresholds) * len(ttls_h)
    with session.progress.bar("savings", total) as advance:
        for threshold in arguments.thresholds:
            for ttl_h in ttls_h:
                if session.stop.is_set():
                    return
                ttl_s = None if ttl_h is None else 3600 * ttl_h
                policy = Policy(
                    f"{threshold:g}", threshold, guards=not arguments.no_guards, ttl_s=ttl_s
                )
                outcome = await replayer.run(
                    workload, policy, advance=advance, measure_memory=True
                )
                figures = of_outcomes([outcome], seed=session.seed, price_model="")
                alive = span.most_alive(ttl_s, outcome.tally.statuses["miss"], daily)
                row = _row(arguments, paid, daily, figures, alive)
                section["rows"].append({"threshold": threshold, "ttl_h": ttl_h, **row})
                for stopped in figures["stopped"]:
                    results.note(f"savings at {threshold:g}: {stopped}")


def _row(
    arguments: argparse.Namespace, paid: Prices, daily: float, figures: Json, alive: float | None
) -> Json:
    hits = sum(figures["statuses"].get(status, 0) for status in HITS)
    hit_rate = figures["hit_rate"] or 0.0
    tokens = (
        (figures["prompt_tokens_saved"] / hits, figures["completion_tokens_saved"] / hits)
        if hits
        else (0.0, 0.0)
    )
    per_entry = figures["memory_per_entry_bytes"]
    memory = None if per_entry is None or alive is None else per_entry * alive * _OVERHEAD
    redis_usd = None if memory is None else memory / _GIB * arguments.redis_usd_per_gb_month
    return {
        "hit_rate": figures["hit_rate"],
        "exact_hit_rate": figures["exact_hit_rate"],
        "semantic_hit_rate": figures["semantic_hit_rate"],
        "labelled": figures["labelled"],
        "wrong_hits": figures["wrong_hits"],
        "wrong_per_hit": figures["wrong_per_hit"],
        "usd_a_month": DAYS_A_MONTH * paid.daily_usd(daily, hit_rate, *tokens),
        "entries_alive": alive,
        "memory_bytes": memory,
        "redis_usd_a_month": redis_usd,
    }


@dataclass(frozen=True, slots=True)
class Span:
    """What the times of a log tell."""

    requests: int
    length_s: float | None

    @property
    def has_times(self) -> bool:
        """Whether the log has timestamps that differ."""
        return bool(self.length_s)

    @property
    def daily_requests(self) -> float | None:
        """Requests a day, if the log goes on as it is."""
        return None if not self.length_s else self.requests * 86_400 / self.length_s

    def most_alive(self, ttl_s: float | None, misses: int, daily: float) -> float | None:
        """Return how many answers are alive at a time: those stored within one TTL.

        By the mean rate of misses. Without a TTL, or one longer than the log, those of the log.
        """
        if ttl_s is None or not self.length_s:
            return float(misses)
        per_s = misses / self.requests * daily / 86_400 if self.requests else 0.0
        return per_s * ttl_s


def _span(workload: Workload) -> Span:
    count, first, last = 0, None, None
    for ask in workload.asks():
        count += 1
        if ask.at_s is not None:
            first = ask.at_s if first is None else min(first, ask.at_s)
            last = ask.at_s if last is None else max(last, ask.at_s)
    length = None if first is None or last is None or last <= first else last - first
    return Span(count, length)


def _workload(arguments: argparse.Namespace, session: Session, results: Results) -> Workload:
    if arguments.log is None:
        results.note("savings: no --log was given; the table is that of the generator's stream")
        made = zipf(requests=min(2_000, arguments.max_requests), seed=session.seed)
        # A request every 40 s: a day or so, in which an hour is short and a day is long.
        return _with_tokens(_timed(made, every_s=40.0), arguments)
    told: deque[str] = deque(maxlen=20)

    def hear(reading: logs.Reading) -> None:
        for note in reading.notes():
            if note not in told:
                told.append(note)
                results.note(f"{arguments.log.name}: {note}")

    log = logs.load(arguments.log, prompt_column=arguments.prompt_column, on_read=hear)
    return _with_tokens(log.take(arguments.max_requests), arguments)


def _timed(workload: Workload, *, every_s: float) -> Workload:
    asks = workload.asks

    def timed() -> Iterator[Ask]:
        for number, ask in enumerate(asks()):
            yield replace(ask, at_s=1_750_000_000.0 + every_s * number)

    return replace(workload, asks=timed)


def _with_tokens(workload: Workload, arguments: argparse.Namespace) -> Workload:
    asks = workload.asks

    def counted() -> Iterator[Ask]:
        for ask in asks():
            prompt, spoken = ask.prompt_tokens, ask.completion_tokens
            yield replace(
                ask,
                prompt_tokens=arguments.input_tokens if prompt is None else prompt,
                completion_tokens=arguments.output_tokens if spoken is None else spoken,
            )

    return replace(workload, asks=counted)


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0:
        raise argparse.ArgumentTypeError("numbers above 0, as 0.8,0.9")
    return numbers
