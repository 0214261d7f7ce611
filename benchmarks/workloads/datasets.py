"""Public data sets from a folder of the user's, for `--data DIR`; never part of the project.

The folder holds `semantic_workload_10k.jsonl.gz`, `banking77_test.csv.gz`, `clinc150.jsonl.gz`,
`qqp_pairs_calibration.jsonl.gz` and `mooncake_conversation_arrivals.csv.gz`, or some of them.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.errors import BadInput
from benchmarks.workloads import Ask, Workload, listed
from benchmarks.workloads.shipped import pairs

_INTENTS = (
    "One intent counts as one answer, which is coarser than real answers are: 'wrong' misses"
    " some slips, and 'right' allows answers that fit the intent but not the words."
)


def load(folder: Path, *, seed: int, limit: int | None = None) -> tuple[list[Workload], list[str]]:
    """Return the workloads that *folder* holds, and a line for each one that it does not.

    Args:
        folder: Of the user's.
        seed: Of the order, where a set has none of its own.
        limit: Most requests of each.

    Raises:
        BadInput: the folder holds none of them, or one of them is damaged.
    """
    if not folder.is_dir():
        raise BadInput(f"--data: there is no folder {folder}")
    found, missing = [], []
    for name, loader in _LOADERS.items():
        path = folder / name
        if path.is_file():
            found.append(_read(loader, path, seed, limit))
        else:
            missing.append(f"{name} is not in {folder}: left out")
    if not found:
        raise BadInput(f"--data: {folder} holds none of {', '.join(_LOADERS)}")
    return found, missing


def arrivals(path: Path) -> np.ndarray:
    """Return when the requests of the Mooncake trace came, in seconds from the first.

    Raises:
        BadInput: it is not a gzipped CSV with a column `timestamp_ms`, or holds no request.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            times = np.array([float(row["timestamp_ms"]) for row in csv.DictReader(file)]) / 1e3
    except (OSError, EOFError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise BadInput(f"{path}: no gzipped CSV with a column timestamp_ms") from error
    if not len(times):
        raise BadInput(f"{path}: it holds no request")
    times.sort()
    shifted: np.ndarray = times - times[0]
    return shifted


def _read(
    loader: Callable[[Path, int, int | None], Workload], path: Path, seed: int, limit: int | None
) -> Workload:
    try:
        return loader(path, seed, limit)
    except (OSError, EOFError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise BadInput(f"--data: {path} is damaged ({type(error).__name__})") from error


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _semantic_workload(path: Path, _seed: int, limit: int | None) -> Workload:
    asks = [Ask(row["prompt"], str(row["cluster"]), row["kind"]) for row in _jsonl(path)][:limit]
    note = (
        "Labels come from people who judged question pairs and are noisy: some 'wrong' hits are"
        " right, and some pairs called the same are not."
    )
    source = "Quora question pairs through GPTCache's benchmark; Quora's terms, non-commercial"
    return listed("semantic_workload_10k", asks, source=source, note=note)


def _banking77(path: Path, seed: int, limit: int | None) -> Workload:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        asks = [Ask(row["text"], row["category"]) for row in csv.DictReader(file)]
    source = "PolyAI-LDN/task-specific-datasets, CC BY 4.0 (Casanueva et al. 2020), test half"
    return listed("banking77", _shuffled(asks, seed)[:limit], source=source, note=_INTENTS)


def _clinc150(path: Path, seed: int, limit: int | None) -> Workload:
    asks = []
    for number, row in enumerate(_jsonl(path)):
        if row["split"] in ("test", "oos_test"):
            is_out = row["intent"] == "oos"
            # What is out of scope has no answer in common with anything.
            answer_id = f"oos-{number}" if is_out else row["intent"]
            asks.append(Ask(row["text"], answer_id, "out_of_scope" if is_out else "in_scope"))
    source = "clinc/oos-eval, CC BY 3.0 (Larson et al. 2019), test with out-of-scope queries"
    return listed("clinc150", _shuffled(asks, seed)[:limit], source=source, note=_INTENTS)


def _qqp(path: Path, seed: int, limit: int | None) -> Workload:
    rows = list(_jsonl(path))
    count = 2_000 if limit is None else max(1, limit // 2)
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    note = f"{len(chosen):,} of {len(rows):,} pairs. Labels are noisy."
    source = "Quora question pairs; Quora's terms, non-commercial"
    return pairs("qqp_pairs", (rows[i] for i in chosen), source=source, note=note)


def _shuffled(asks: list[Ask], seed: int) -> list[Ask]:
    return [asks[i] for i in np.random.default_rng(seed).permutation(len(asks))]


_LOADERS: dict[str, Callable[[Path, int, int | None], Workload]] = {
    "semantic_workload_10k.jsonl.gz": _semantic_workload,
    "banking77_test.csv.gz": _banking77,
    "clinc150.jsonl.gz": _clinc150,
    "qqp_pairs_calibration.jsonl.gz": _qqp,
}
