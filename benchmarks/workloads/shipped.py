"""The project's own sets: questions people ask in several wordings, and traps."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workloads import Ask, Workload, listed

_TRAPS = Path(__file__).parent.parent.parent / "tests" / "data" / "trap_pairs.jsonl"


def faq_groups() -> dict[str, list[str]]:
    """Return the 40 questions by name, each in 5 wordings, the canonical one first."""
    lines = files("llm_cache").joinpath("_data", "faq_groups.jsonl").read_text("utf-8")
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for line in lines.splitlines():
        row = json.loads(line)
        groups[row["group"]].append(row["text"])
    return dict(groups)


def faq(shuffle: int) -> Workload:
    """Return every wording of every question once, in the order that *shuffle* seeds."""
    asks = [Ask(text, group) for group, texts in faq_groups().items() for text in texts]
    order = np.random.default_rng(shuffle).permutation(len(asks))
    return listed("faq", _with_kinds(asks[i] for i in order), source="own, CC0")


def traps() -> Workload:
    """Return the pairs that vectors cannot tell apart, and paraphrases among them."""
    lines = _TRAPS.read_text("utf-8").splitlines()
    return pairs("traps", (json.loads(line) for line in lines), source="own, CC0")


def pairs(
    name: str, rows: Iterable[Mapping[str, Any]], *, source: str, note: str = ""
) -> Workload:
    """Return pairs `a`, `b`, `same` as requests, each pair with a tenant of its own.

    The kind of the second request is the pair's category, or `same` or `different`.
    """
    asks: list[Ask] = []
    for number, row in enumerate(rows):
        is_same = bool(row["same"])
        kind = row.get("category") or ("same" if is_same else "different")
        tenant = f"pair-{number}"
        asks.append(Ask(row["a"], f"{number}a", "first", tenant=tenant))
        second = f"{number}a" if is_same else f"{number}b"
        asks.append(Ask(row["b"], second, kind, tenant=tenant))
    return listed(name, asks, source=source, note=note, is_pairs=True)


def _with_kinds(asks: Iterable[Ask]) -> list[Ask]:
    """Say of each request what it is to those before it."""
    from dataclasses import replace

    asked: set[str] = set()
    known: set[str | None] = set()
    told = []
    for ask in asks:
        kind = "paraphrase" if ask.answer_id in known else "new"
        told.append(replace(ask, kind="exact" if ask.prompt in asked else kind))
        asked.add(ask.prompt)
        known.add(ask.answer_id)
    return told
