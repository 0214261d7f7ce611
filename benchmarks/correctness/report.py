"""The report: what was measured, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.correctness import datasets, faq, known_truth, refusals, speed, streams, table
from benchmarks.correctness.streams import Half, Workload
from benchmarks.correctness.vectors import embed
from benchmarks.correctness.workers import Each
from llm_cache import LocalEmbedder
from llm_cache._core.hit_policy import ThresholdPolicy

_FIRST_SEED = 1_000
_PAIRS_MAX_WRONG = 0.03


def lines(
    data: Path, resamples: int, logs: int, peers_python: Path | None, each: Each
) -> Iterator[str]:
    """Measure everything, and yield the report line by line."""
    yield "## What was measured"
    yield ""
    yield f"Written by `python -m benchmarks correctness --data DIR --resamples {resamples}"
    yield f"--logs {logs} --write docs/correctness.md`. Embeddings are those of `LocalEmbedder`"
    yield f"(`{LocalEmbedder.model_id}`); no model is asked in a decision."
    yield ""
    yield from _words()
    yield from _table(data, peers_python)
    yield from _faq(data)
    yield from _streams(data, resamples, each)
    yield from _refusals(data, streams.load("banking77", data))
    yield from _known_truth(logs, each)
    yield from _speed()


def _words() -> Iterator[str]:
    yield "Two rates are told apart: wrong hits *per request* (how often a user gets a wrong"
    yield "answer) and *per hit* (how often a cached answer is wrong). The thresholds that"
    yield "`llm_cache` starts with are rules of thumb and uncertified; `calibrate` replaces them"
    yield "by a policy with evidence, or refuses."
    yield ""


def _table(data: Path, peers_python: Path | None) -> Iterator[str]:
    pairs = datasets.qqp(data)
    policy = table.calibrated(pairs[::2], "qqp-even", max_wrong=_PAIRS_MAX_WRONG)
    sets = {
        "traps": ("Near-identical prompts", datasets.traps(data)),
        "fresh": ("Pairs written after the guards were, in other domains", datasets.fresh()),
        "qqp-odd": ("Question pairs of Quora, whose labels are noisy", pairs[1::2]),
    }
    yield "## Served, and traps served"
    yield ""
    yield "The first prompt of a pair is in the cache, the second is asked; a pair that needs two"
    yield "answers is a trap. All rules see the same embeddings. Rows with a version ask the"
    yield "peer's own package, others apply its documented default. The policy is calibrated on"
    yield f"the other half of Quora's pairs, at {_PAIRS_MAX_WRONG:.0%} wrong hits per request;"
    yield "pairs show no neighbourhood, so it has similarity, words and guards to go by."
    yield ""
    for name, (title, rows) in sets.items():
        same = sum(pair.same for pair in rows)
        yield f"{title}: {same:,} pairs with one answer, {len(rows) - same:,} with two."
        yield ""
        yield "| rule | served | traps served |"
        yield "|---|---|---|"
        for row in table.rows(rows, name, policy, peers_python):
            yield f"| {row.rule} | {row.served:.1%} | {row.traps_served:.1%} |"
        yield ""


def _faq(data: Path) -> Iterator[str]:
    requests = datasets.faq(data)
    vectors = embed([request.prompt for request in requests], name="faq")
    threshold, isolated = LocalEmbedder.similarity_threshold, LocalEmbedder.isolated_threshold
    compared = {
        f"guards, similarity from {threshold}": ThresholdPolicy(threshold),
        f"the default: the same, or from {isolated} where no rival is near": ThresholdPolicy(
            threshold, isolated_threshold=isolated
        ),
        "guards, similarity from 0.8": ThresholdPolicy(0.8),
    }
    yield "## An FAQ: 40 questions in five wordings, each asked once, 20 shuffles"
    yield ""
    yield "| rule | semantic hits per request | wrong hits, of all shuffles |"
    yield "|---|---|---|"
    for name, policy in compared.items():
        asked = faq.ask(requests, vectors, policy)
        yield f"| {name} | {asked.hit_rate:.1%} | {asked.wrong} |"
    yield ""


def _streams(data: Path, resamples: int, each: Each) -> Iterator[str]:
    yield "## Calibrated at 1 % wrong hits per request"
    yield ""
    yield "A random order of the data set is a stream. `calibrate` sees its first half. Then the"
    yield "whole stream is replayed from an empty cache, and the second half is counted. The best"
    yield "fixed threshold is chosen in hindsight, on the second half itself. A bound is broken"
    yield "where wrong hits are above 1 % by more than the chance of a half (95 %). Out of scope"
    yield "are questions that nothing in the cache can answer."
    yield ""
    yield (
        "| stream | orders | best fixed threshold | calibrated hits: mean, least | wrong per"
        " request: mean, most | wrong per hit | out of scope answered: mean, most | refused |"
        " bound broken |"
    )
    yield "|---" * 9 + "|"
    for name in ("banking77", "clinc150"):
        seeds = range(_FIRST_SEED, _FIRST_SEED + resamples)
        halves = list(each(partial(streams.calibrated_half, name=name, data=data), seeds))
        _, best = streams.best_fixed_threshold(streams.load(name, data), _FIRST_SEED)
        yield _stream_row(name, best, halves)
    yield ""


def _stream_row(name: str, best: Half, halves: Sequence[Half | None]) -> str:
    held = [half for half in halves if half is not None]
    hits = [half.hit_rate for half in held]
    wrong = [half.wrong_rate for half in held]
    novel = [half.novel_rate for half in held]
    per_hit = sum(half.wrong for half in held) / max(1, sum(half.hits for half in held))
    broken = sum(half.breaks_the_bound for half in held)
    out = f"{statistics.mean(novel):.2%}, {max(novel):.2%}" if held[0].novel else "–"
    return (
        f"| {name} | {len(halves)} | {best.hit_rate:.1%} hits |"
        f" {statistics.mean(hits):.1%}, {min(hits):.1%} |"
        f" {statistics.mean(wrong):.2%}, {max(wrong):.2%} | {per_hit:.2%} | {out} |"
        f" {len(halves) - len(held)} | {broken} |"
    )


def _refusals(data: Path, banking: Workload) -> Iterator[str]:
    yield "## Refused"
    yield ""
    yield "Asked for 1 %, `calibrate` says of these logs:"
    yield ""
    yield "| log | answer |"
    yield "|---|---|"
    for refusal in refusals.all_refusals(banking.requests, banking.vectors, datasets.qqp(data)):
        yield f"| {refusal.log} | {refusal.said or 'certified'} |"
    yield ""


def _known_truth(logs: int, each: Each) -> Iterator[str]:
    yield f"## Where the truth is known: {logs:,} synthetic logs of each kind"
    yield ""
    yield f"At {known_truth.MAX_WRONG:.0%} and {known_truth.CONFIDENCE:.0%} confidence. Broken are"
    yield "the logs whose policy is in truth wrong more often than certified; the last column is"
    yield "what chance allows (99 %) a procedure that breaks its bound 5 times in 100."
    yield ""
    yield "| labels | basis | certified | mean hits | broken | allowed |"
    yield "|---|---|---|---|---|---|"
    for measure in (known_truth.pairs, known_truth.streams):
        for basis in ("hits", "requests"):
            known = measure(logs, basis=basis, each=each)
            yield (
                f"| {known.kind} | {basis} | {known.certified:,} of {known.logs:,} |"
                f" {known.hit_rate:.1%} | {known.broken} | {known.allowed} |"
            )
    yield ""


def _speed() -> Iterator[str]:
    policy = ThresholdPolicy(LocalEmbedder.similarity_threshold)
    took = speed.measure(speed.SIMILAR, policy)
    yield "## What a decision costs"
    yield ""
    yield f"Four candidates that all have to be read: {took.from_prompts_us:.0f} µs (median),"
    yield f"{took.to_first_us:.0f} µs up to the first that may be served, where a hit ends,"
    yield f"{took.from_known_us:.0f} µs where they were compared with another prompt before,"
    yield f"{took.from_signatures_us:.0f} µs where entries keep signatures. No round trip."
