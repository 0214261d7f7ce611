"""From what a replay counted to the figures of the report. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.quality.intervals import clustered_rate
from benchmarks.quality.replay import HITS, Outcome, Tally

Json = dict[str, Any]


def share(part: float, whole: float) -> float | None:
    """Return the quotient; `None` where there is nothing to divide by."""
    return part / whole if whole else None


def of_outcomes(outcomes: Sequence[Outcome], *, seed: int, price_model: str) -> Json:
    """Return the figures of replays of one policy, taken together: shuffles of one set, say."""
    tallies = [outcome.tally for outcome in outcomes]
    statuses = _sum(tally.statuses for tally in tallies)
    requests = sum(tally.requests for tally in tallies)
    looked = sum(statuses[status] for status in (*HITS, "miss"))
    hits = sum(statuses[status] for status in HITS)
    wrong = _sum(tally.wrong for tally in tallies)
    right = _sum(tally.right for tally in tallies)
    could_hit = sum(tally.could_hit for tally in tallies)
    judged = wrong.total() + right.total()
    looked_beyond = looked - statuses["exact"] - statuses["stale"]
    texts = sum(outcome.embedded_texts for outcome in outcomes)
    prompt, spoken = (sum(o.tokens_saved[i] for o in outcomes) for i in (0, 1))
    return {
        "replays": len(outcomes),
        "requests": requests,
        "statuses": dict(statuses),
        "hit_rate": share(hits, looked),
        "exact_hit_rate": share(statuses["exact"], looked),
        "semantic_hit_rate": share(statuses["semantic"], looked),
        "semantic_hit_rates": [_semantic_rate(tally) for tally in tallies],
        "labelled": sum(tally.labelled for tally in tallies),
        "wrong_hits": wrong.total(),
        "wrong_by_status": dict(wrong),
        "wrong_per_hit": asdict(clustered_rate(_per_hit(tallies), seed=seed)),
        "wrong_per_request": asdict(clustered_rate(_per_request(tallies), seed=seed)),
        "precision": share(right.total(), judged),
        "recall": share(right.total(), could_hit),
        "could_hit": could_hit,
        "foreign_hits": sum(tally.foreign for tally in tallies),
        "unknown_answers": sum(tally.unknown for tally in tallies),
        "model_calls": sum(outcome.model_calls for outcome in outcomes),
        "model_calls_per_miss": share(
            sum(outcome.model_calls for outcome in outcomes),
            statuses["miss"] + statuses["bypass"],
        ),
        "embedder_calls": sum(outcome.embedder_calls for outcome in outcomes),
        "embedded_texts": texts,
        "embeddings_per_lookup": share(texts, looked_beyond),
        "prompt_tokens_saved": prompt,
        "completion_tokens_saved": spoken,
        "usd_saved": cost_usd(prompt, spoken, price_model),
        "price_model": price_model,
        "search_recall": _search_recall(tallies),
        "memory_per_entry_bytes": _memory_per_entry(outcomes),
        "kinds": _kinds(tallies),
        "timeline": _timeline(tallies),
        "errors": dict(_sum(tally.errors for tally in tallies)),
        "failures": dict(_sum(tally.failures for tally in tallies)),
        "stopped": [tally.stopped for tally in tallies if tally.stopped is not None],
    }


def cost_usd(prompt_tokens: int, completion_tokens: int, model: str) -> float | None:
    """Return what these tokens cost; `None` where no price is known. Offline."""
    try:
        from genai_prices import Usage, calc_price
    except ImportError:
        return None
    usage = Usage(input_tokens=prompt_tokens, output_tokens=completion_tokens)
    try:
        return float(calc_price(usage, model_ref=model).total_price)
    except LookupError:
        return None


def _sum(counters: Any) -> Counter[str]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return total


def _semantic_rate(tally: Tally) -> float | None:
    return share(tally.statuses["semantic"], tally.requests - tally.statuses["bypass"])


def _per_hit(tallies: Sequence[Tally]) -> list[tuple[int, int]]:
    return [(wrong, hits) for tally in tallies for hits, wrong in tally.answers.values()]


def _per_request(tallies: Sequence[Tally]) -> list[tuple[int, int]]:
    """Return a cluster for each answer: the request that it was made for, and its hits."""
    clusters = []
    for tally in tallies:
        clusters += [(wrong, 1 + hits) for hits, wrong in tally.answers.values()]
        hits = sum(counts[0] for counts in tally.answers.values())
        never_served_again = tally.requests - hits - len(tally.answers)
        clusters += [(0, 1)] * max(0, never_served_again)
    return clusters


def _search_recall(tallies: Sequence[Tally]) -> Json | None:
    sought = sum(tally.recall_sought for tally in tallies)
    found = sum(tally.recall_found for tally in tallies)
    return {"sought": sought, "found": found, "recall": found / sought} if sought else None


def _memory_per_entry(outcomes: Sequence[Outcome]) -> float | None:
    measured = [o for o in outcomes if o.memory_bytes is not None and o.entries]
    if not measured:
        return None
    return sum(o.memory_bytes or 0 for o in measured) / sum(o.entries or 0 for o in measured)


def _kinds(tallies: Sequence[Tally]) -> Json:
    kinds: dict[str, Counter[str]] = {}
    for tally in tallies:
        for kind, counts in tally.kinds.items():
            kinds.setdefault(kind, Counter()).update(counts)
    return {kind: dict(counts) for kind, counts in sorted(kinds.items())}


def _timeline(tallies: Sequence[Tally]) -> list[Json]:
    """Return the stretches of the stream; of equally long ones taken together."""
    alike = [t.timeline for t in tallies if len(t.timeline) == len(tallies[0].timeline)]
    seen = 0.0
    points = []
    for buckets in zip(*alike, strict=True):
        requests, exact, semantic, wrong = (sum(column) for column in zip(*buckets, strict=True))
        seen += requests / len(alike)
        points.append(
            {
                "requests": seen,
                "exact": exact / requests,
                "semantic": semantic / requests,
                "wrong": wrong / requests,
            }
        )
    return points
