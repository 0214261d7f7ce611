"""Logs that do not support the claim, and what `calibrate` says to them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.correctness.datasets import Pair, Request
from benchmarks.correctness.table import similarity
from benchmarks.correctness.vectors import Vectors
from llm_cache import LocalEmbedder
from llm_cache.calibrate import LabelledPair, LoggedRequest, calibrate
from llm_cache.errors import CalibrationRefused


@dataclass(frozen=True, slots=True)
class Refusal:
    """What came of one log."""

    log: str
    said: str | None
    """`None` where the claim was certified after all."""


def all_refusals(
    requests: Sequence[Request], vectors: Vectors, pairs: Sequence[Pair]
) -> Iterator[Refusal]:
    """Yield what is said to logs too small or too noisy, at 1 %."""
    order = np.random.default_rng(7).permutation(len(requests))[:6_000]
    log = [LoggedRequest(requests[at].prompt, requests[at].answer_id) for at in order]
    yield _said("50 labels of Banking77, per hit", log[:50], vectors[order[:50]], "hits")
    yield _said("50 labels of Banking77, per request", log[:50], vectors[order[:50]], "requests")
    noisy = _noisy(log, share=0.3)
    yield _said("Banking77 with 30 % random labels, per hit", noisy, vectors[order], "hits")
    yield _said(
        "Banking77 with 30 % random labels, per request", noisy, vectors[order], "requests"
    )
    cosines = similarity(pairs, "qqp").tolist()
    labelled = [
        LabelledPair(pair.a, pair.b, pair.same, cosine)
        for pair, cosine in zip(pairs, cosines, strict=True)
    ]
    yield _said("20,000 pairs of Quora (QQP), per hit", labelled, None, "hits")


def _noisy(log: Sequence[LoggedRequest], *, share: float) -> list[LoggedRequest]:
    random = np.random.default_rng(8)
    answers = [row.answer_id for row in log]
    return [
        LoggedRequest(
            row.prompt,
            answers[random.integers(len(answers))] if random.random() < share else row.answer_id,
        )
        for row in log
    ]


def _said(
    name: str,
    log: Sequence[LoggedRequest] | Sequence[LabelledPair],
    vectors: Vectors | None,
    basis: Literal["hits", "requests"],
) -> Refusal:
    try:
        asyncio.run(calibrate(log, embedder=LocalEmbedder(), vectors=vectors, basis=basis))
    except CalibrationRefused as refusal:
        return Refusal(name, str(refusal))
    return Refusal(name, None)
