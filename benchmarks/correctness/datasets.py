"""The labelled texts: streams of requests with the answer each needs, and pairs of prompts."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and which answer it needs."""

    prompt: str
    answer_id: str
    is_novel: bool = False
    """Whether no other prompt needs the same answer: out-of-scope questions."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two prompts, and whether one answer does for both."""

    a: str
    b: str
    same: bool
    category: str = ""


def banking77(data: Path) -> list[Request]:
    """Return the 13,083 questions of Banking77, train before test."""
    rows: list[Request] = []
    for split in ("train", "test"):
        with gzip.open(data / f"banking77_{split}.csv.gz", "rt", encoding="utf-8") as lines:
            rows += [Request(row["text"], row["category"]) for row in csv.DictReader(lines)]
    return rows


def clinc150(data: Path) -> list[Request]:
    """Return the 23,700 questions of CLINC150; each out of scope needs an answer of its own."""
    rows = []
    for number, row in enumerate(_rows(data / "clinc150.jsonl.gz")):
        is_novel = row["intent"] == "oos"
        answer_id = f"oos-{number}" if is_novel else row["intent"]
        rows.append(Request(row["text"], answer_id, is_novel))
    return rows


def faq(data: Path) -> list[Request]:
    """Return the 200 wordings of 40 questions."""
    return [Request(row["text"], row["group"]) for row in _rows(data / "faq_groups.jsonl.gz")]


def qqp(data: Path) -> list[Pair]:
    """Return the 20,000 question pairs of Quora; a few in a hundred labels are wrong."""
    rows = _rows(data / "qqp_pairs_calibration.jsonl.gz")
    return [Pair(row["a"], row["b"], bool(row["same"])) for row in rows]


def traps(data: Path) -> list[Pair]:
    """Return 111 pairs of near-identical prompts."""
    rows = _rows(data / "trap_pairs.jsonl.gz")
    return [Pair(row["a"], row["b"], bool(row["same"]), row["category"]) for row in rows]


def fresh() -> list[Pair]:
    """Return 131 pairs from everyday domains, written for this project after the guards were."""
    lines = (Path(__file__).parent / "fresh_pairs.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return [Pair(a, b, same == "1", domain) for a, b, same, domain in rows]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)
