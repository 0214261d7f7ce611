"""Real vectors: texts of public data sets, embedded once, and points between texts of one intent.

Banking77 and CLINC150 are short questions sorted by intent; texts of one intent are neighbours as
the rephrasings of one question are. Where a benchmark needs more entries than there are texts, it
gets points on the line between two texts of one intent: inside the cloud that the intent fills,
where further wordings would be. Random vectors are nowhere used: they have no near neighbours.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.micro.settings import Settings
from llm_cache import LocalEmbedder

Vectors = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts with their intents and their vectors, row for row."""

    texts: list[str]
    intents: list[str]
    vectors: Vectors

    def part(self, rows: Indices) -> Texts:
        """Return the texts at *rows*."""
        return Texts(
            [self.texts[i] for i in rows], [self.intents[i] for i in rows], self.vectors[rows]
        )


@dataclass(frozen=True, slots=True)
class Material:
    """What a benchmark stores, and what it asks."""

    stored: Texts
    asked: Texts
    """Texts of the intents that are stored, none of them stored itself."""
    neighbouring: Texts
    """Texts of intents of the same domains of which nothing is stored."""
    foreign: Texts
    """Texts about something else: code, maths, writing."""

    def lifted(self, dimensions: int, seed: int) -> Material:
        """Return the same in a space of more *dimensions*."""
        return Material(
            *(
                replace(texts, vectors=lifted(texts.vectors, dimensions, seed))
                for texts in (self.stored, self.asked, self.neighbouring, self.foreign)
            )
        )


async def load(settings: Settings) -> Material:
    """Return real texts and their vectors; those are embedded the first time (two minutes)."""
    folder = settings.folder()
    questions = [*_banking77(folder), *_clinc150(folder)]
    rng = np.random.default_rng(settings.seed)
    order = rng.permutation(len(questions))
    texts = [questions[i][0] for i in order]
    intents = [questions[i][1] for i in order]
    known = Texts(texts, intents, await _embedded(settings, texts))
    names = sorted(set(intents))
    left_out = set(rng.choice(names, len(names) // 5, replace=False))
    is_asked = rng.random(len(texts)) < 0.1
    is_left_out = np.array([intent in left_out for intent in intents])
    foreign = _arena(folder)
    return Material(
        stored=known.part(np.flatnonzero(~is_left_out & ~is_asked)),
        asked=known.part(np.flatnonzero(~is_left_out & is_asked)),
        neighbouring=known.part(np.flatnonzero(is_left_out)),
        foreign=Texts(foreign, ["foreign"] * len(foreign), await _embedded(settings, foreign)),
    )


def between(texts: Texts, count: int, rng: np.random.Generator) -> tuple[Vectors, Indices]:
    """Return *count* unit vectors, each between two texts of one intent, and which text is nearer.

    Where it lies on the line is uniform.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for row, intent in enumerate(texts.intents):
        members[intent].append(row)
    first = rng.integers(0, len(texts.texts), count)
    second = np.array([rng.choice(members[texts.intents[row]]) for row in first])
    share = rng.random((count, 1), dtype=np.float32)
    mixed = texts.vectors[first] * share + texts.vectors[second] * (1 - share)
    nearer = np.where(share[:, 0] >= 0.5, first, second)
    return unit(mixed), nearer


def answers(texts: Texts, count: int, size: int, rng: np.random.Generator) -> Iterator[str]:
    """Yield *count* answers of *size* characters of natural text: sentences in random order."""
    for _ in range(count):
        answer = ""
        while len(answer) < size:
            answer += texts.texts[rng.integers(len(texts.texts))] + " "
        yield answer[:size]


def unit(vectors: Vectors) -> Vectors:
    """Return *vectors* at unit length."""
    scaled: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def lifted(vectors: Vectors, dimensions: int, seed: int) -> Vectors:
    """Return *vectors* in a space of more *dimensions*, turned so that every coordinate is used.

    A random orthogonal map keeps every cosine as it is: neighbours and their distances are those
    of the real vectors.
    """
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((dimensions, vectors.shape[1])))
    turned: Vectors = np.ascontiguousarray(vectors @ basis.T.astype(np.float32))
    return turned


async def _embedded(settings: Settings, texts: list[str]) -> Vectors:
    embedder = LocalEmbedder()
    name = hashlib.sha256("\0".join([embedder.model_id, *texts]).encode()).hexdigest()[:16]
    path = settings.cache / f"vectors-{name}.npy"
    if path.is_file():
        kept: Vectors = np.load(path)
        return kept
    try:
        vectors = await embedder.embed(texts)
    finally:
        await embedder.aclose()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part.npy")
    np.save(partial, vectors)
    partial.rename(path)
    return vectors


def _banking77(folder: Path) -> list[tuple[str, str]]:
    rows = []
    for half in ("train", "test"):
        path = folder / f"banking77_{half}.csv.gz"
        with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
            rows += [(r["text"].strip(), f"b:{r['category']}") for r in csv.DictReader(lines)]
    return rows


def _clinc150(folder: Path) -> list[tuple[str, str]]:
    with gzip.open(folder / "clinc150.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(row["text"], f"c:{row['intent']}") for row in rows if row["intent"] != "oos"]


def _arena(folder: Path) -> list[str]:
    path = folder / "arena_hard_prompts_v01.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["prompt"][:400] for line in lines]
