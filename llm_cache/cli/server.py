"""A look at a Redis server beyond what the cache itself asks of it. Reads only."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from llm_cache._core.keys import Keys, fingerprint
from llm_cache._redis.connection import client_of_one
from llm_cache.errors import StoreUnavailable

_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Index:
    """A vector index of a namespace."""

    name: str
    dimensions: int
    layout: str
    """Algorithm, stored type and measure: what the cache makes is `HNSW FLOAT16 COSINE`."""
    entries: int
    failures: int
    """How often a hash could not be indexed: each try counts, also of the same hash."""


@dataclass(frozen=True, slots=True)
class Server:
    """What a Redis says of itself."""

    info: Mapping[str, Any]
    modules: Mapping[str, int] | None
    """Versions of the loaded modules by name; `None` when this user may not ask."""
    indexes: tuple[Index, ...] | None
    """Those of the namespace; `None` without a search module."""
    snapshots: str | None
    """When the server saves snapshots, `""` for never; `None` when this user may not ask."""
    compact_bytes: int | None
    """The longest value with which a hash is kept compactly; `None` when this user may not ask."""
    round_trip_s: float
    clock_ahead_s: float
    """How far its clock is ahead of ours."""


async def look_at(url: str, namespace: str) -> Server:
    """Return what the server at *url* says of itself and of *namespace*. Nine round trips or so.

    Of a cluster, what some primary says.

    Raises:
        StoreUnavailable: it does not answer within 3 s, or refuses us.
    """
    async with _connected(url) as client:
        await client.ping()
        started_s = time.time()
        server_s, microseconds = await client.time()
        ended_s = time.time()
        compact = await _setting(client, "hash-max-listpack-value")
        return Server(
            info=await client.info(),
            modules=await _modules(client),
            indexes=await _indexes(client, namespace),
            snapshots=await _setting(client, "save"),
            compact_bytes=None if compact is None else int(compact),
            round_trip_s=ended_s - started_s,
            clock_ahead_s=server_s + microseconds / 1e6 - (started_s + ended_s) / 2,
        )


async def indexes_of(url: str, namespace: str) -> tuple[Index, ...] | None:
    """Return the vector indexes of *namespace*; `None` without a search module.

    Raises:
        StoreUnavailable: the server does not answer within 3 s, or refuses us.
    """
    async with _connected(url) as client:
        return await _indexes(client, namespace)


def index_name(namespace: str, model_id: str, dimensions: int) -> str:
    """Return the name of the index that a cache with this embedder uses."""
    return Keys(namespace).index(fingerprint(model_id, dimensions))


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Any]:  # not every command is typed
    client = await client_of_one(
        url,
        timeout_s=_TIMEOUT_S,
        decode_responses=True,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        yield client
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreUnavailable(str(error) or type(error).__name__) from error
    finally:
        await client.aclose()


async def _modules(client: Any) -> dict[str, int] | None:
    try:
        rows = await client.execute_command("MODULE", "LIST")
    except ResponseError:
        return None
    modules = [_mapping(row) for row in rows]
    return {str(module["name"]).lower(): int(module["ver"]) for module in modules}


async def _indexes(client: Any, namespace: str) -> tuple[Index, ...] | None:
    try:
        names = await client.execute_command("FT._LIST")
    except ResponseError:
        return None
    prefix = Keys(namespace).index("")
    ours = sorted(str(name) for name in names if str(name).startswith(prefix))
    return tuple([_index(name, await client.execute_command("FT.INFO", name)) for name in ours])


def _index(name: str, reply: Any) -> Index:
    info = _mapping(reply)
    fields = [_mapping(field) for field in info.get("attributes", [])]
    vector = next((field for field in fields if field.get("type") == "VECTOR"), {})
    layout = (vector.get(part, "?") for part in ("algorithm", "data_type", "distance_metric"))
    return Index(
        name=name,
        dimensions=int(vector.get("dim", 0)),
        layout=" ".join(str(value).upper() for value in layout),
        entries=int(info.get("num_docs", 0)),
        failures=int(info.get("hash_indexing_failures", 0)),
    )


async def _setting(client: Any, name: str) -> str | None:
    try:
        reply = await client.execute_command("CONFIG", "GET", name)
    except ResponseError:
        return None
    value = _mapping(reply).get(name)
    return None if value is None else str(value)


def _mapping(value: Any) -> dict[str, Any]:
    """Return a RESP3 map, or a RESP2 list of names and values, as a dict."""
    if isinstance(value, Mapping):
        return {str(name): item for name, item in value.items()}
    items: Iterable[Any] = value
    names_and_values = list(items)
    # Lists that describe a field end with flags that have no value.
    return dict(zip(map(str, names_and_values[::2]), names_and_values[1::2], strict=False))
