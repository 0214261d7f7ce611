"""Other ways to keep vectors than the product's: the parts that benchmarks of them are made of.

It speaks to `_redis` (what `FT.CREATE` the store sends), since no public door leads to other
layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from redis import asyncio as redis  # noqa: TC002 - one import reads better than two places

from benchmarks.micro.material import Vectors
from benchmarks.micro.settings import Row
from llm_cache._core.keys import Keys
from llm_cache._core.vectors import salted_blob
from llm_cache._redis.connection import Connection
from llm_cache._redis.vectors import VectorStore

_THRESHOLD = 0.8
_TIE = 0.002
"""Two neighbours this close are one to 16 bits; either is right."""

Statement = list[Any]
Convert = Callable[[bytes], bytes]


async def statement(url: str, namespace: str, dimensions: int) -> Statement:
    """Return the statement that the product makes an index of *namespace* with."""
    connection = Connection(url, max_connections=1, timeout_s=10)
    await connection.open()
    store = VectorStore(connection, Keys(namespace), space="v", dimensions=dimensions)
    try:
        return await statement_of(store)
    finally:
        await connection.aclose()


async def statement_of(store: VectorStore) -> Statement:
    """Return the statement that *store* makes its index with."""
    sent: list[Statement] = []

    async def note(*command: Any) -> None:
        sent.append(list(command))

    store.line.execute = note  # type: ignore[method-assign]
    await store._create_index()
    del store.line.execute
    return sent[0]


def with_value(name: str, value: Any) -> Callable[[Statement], Statement]:
    """Return a change of the value behind *name*."""

    def change(statement: Statement) -> Statement:
        at = statement.index(name) + 1
        return [*statement[:at], value, *statement[at + 1 :]]

    return change


def _float32(blob: bytes) -> bytes:
    return np.frombuffer(blob, dtype="<f2").astype("<f4").tobytes()


def _bfloat16(blob: bytes) -> bytes:
    # The upper half of a float32 is a bfloat16; with half of the last place added it is rounded.
    bits = np.frombuffer(_float32(blob), dtype="<u4") + np.uint32(0x8000)
    upper: bytes = np.right_shift(bits, 16, dtype="<u4").astype("<u2").tobytes()
    return upper


def _int8(blob: bytes) -> bytes:
    row = np.frombuffer(_float32(blob), dtype="<f4")
    scaled: bytes = np.round(row / np.abs(row).max() * 127).astype(np.int8).tobytes()
    return scaled


DTYPES: Mapping[str, Convert] = {
    "FLOAT16": lambda blob: blob,
    "BFLOAT16": _bfloat16,
    "FLOAT32": _float32,
    "INT8": _int8,
}
"""Types of stored coordinates, each with how it is made of what the product writes."""


async def graph_recall(
    bare: redis.Redis,
    index: str,
    scope: str,
    *,
    stored: Vectors,
    asked: Vectors,
    convert: Convert = DTYPES["FLOAT16"],
    ef: int | None = 50,
) -> Row:
    """Return how often a search finds the true nearest of *stored*, and what it takes.

    Args:
        bare: A client that speaks RESP2.
        index: Searched as a whole.
        scope: What the vectors are salted for.
        stored: What is in the index.
        asked: What is searched for; only what has a neighbour above 0.8 counts.
        convert: Makes a stored vector.
        ef: Candidates in view; `None` for an index without a graph.
    """
    width = "" if ef is None else f"EF_RUNTIME {ef} "
    query = f"*=>[KNN 4 @vector $v {width}AS distance]"
    counted = found = 0
    await bare.config_resetstat()
    for vector, best in zip(asked, (asked @ stored.T).max(axis=1).tolist(), strict=True):
        if best < _THRESHOLD + _TIE:
            continue
        reply = await bare.execute_command(
            *("FT.SEARCH", index, query, "PARAMS", 2, "v", convert(salted_blob(vector, scope))),
            *("RETURN", 1, "distance", "SORTBY", "distance", "LIMIT", 0, 4, "DIALECT", 2),
        )
        nearest = [float(row[1]) for row in reply[2::2] if row]
        counted += 1
        found += bool(nearest) and 1 - min(nearest) >= best - _TIE
    stats = await bare.info("commandstats")
    return {
        "recall": found / counted if counted else None,
        "queries": counted,
        "server_us": stats["cmdstat_FT.SEARCH"]["usec_per_call"] if counted else None,
    }
