"""A look at one stored answer, with all that belongs to it."""

# ruff: noqa: SLF001 - works on an open cache from the inside, as its own modules do

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from llm_cache._core.keys import answer_digest
from llm_cache._core.policy import Purges
from llm_cache._core.types import Entry, Json
from llm_cache._redis.bulk import BulkEntries, Stored
from llm_cache.cache import LLMCache
from llm_cache.errors import InvalidRequest

_KEY = re.compile(r"([A-Za-z0-9_.-]+):(x|s|refs):[^{}\s]*\{[A-Za-z0-9_-]+\}\S*")
_TOLD_APART = frozenset({"answer", "created_s", "model", "tenant", "tags", "origin", "similarity"})


class StoredStatus(StrEnum):
    """Whether what is stored may be served."""

    ALIVE = "alive"
    INVALIDATED = "invalidated"
    """It may not; it goes with its TTL, or before."""
    FOREIGN = "foreign"
    """Of another version of the format: workers of that release can read it."""
    CORRUPT = "corrupt"
    """Nobody can read it; a call counts it as missing."""


@dataclass(frozen=True, slots=True)
class StoredPrompt:
    """A semantic entry that leads to an answer."""

    key: str
    scope: str
    prompt: str = field(repr=False)
    """Empty where prompts are not kept."""
    vector_bytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is stored under a key."""

    key: str
    status: StoredStatus
    ttl_left_s: float
    size_bytes: int
    """Of the answer alone, as it is packed."""
    age_s: float | None = None
    """`None`, as the rest, where it cannot be read."""
    model: str | None = None
    tenant: str | None = None
    """As it is stored."""
    tags: tuple[str, ...] = ()
    origin: str | None = None
    """For an alias: the key it is a copy of."""
    similarity: float | None = None
    """For an alias: the similarity with which it was promoted."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else is stored about it."""
    semantic: tuple[StoredPrompt, ...] = ()
    aliases: tuple[str, ...] = ()
    """Keys of its aliases."""
    answer: Json = field(default=None, repr=False)

    @property
    def usage(self) -> dict[str, Any] | None:
        """Tokens that the answer took, as the model reported them."""
        usage = self.answer.get("usage") if isinstance(self.answer, dict) else None
        return usage if isinstance(usage, dict) else None


def is_key(text: str) -> bool:
    """Tell whether *text* looks like a key of an answer, or of what leads to one."""
    return _KEY.fullmatch(text) is not None


async def inspect_stored(cache: LLMCache, key: str) -> Inspection | None:
    """Return what is stored under *key*, as `reply.key` or an index names it; `None` for nothing.

    Three round trips. Nothing is counted, and no TTL changed.

    Raises:
        InvalidRequest: *key* is none, or of another namespace than that of *cache*.
        StoreError: Redis failed.
    """
    found = _KEY.fullmatch(key)
    if found is None:
        raise InvalidRequest("not a key of an answer: that is <namespace>:x:{<digest>}")
    if found[1] != cache.config.namespace:
        raise InvalidRequest(
            f"a key of the namespace {found[1]}, while this is {cache.config.namespace}; name the"
            " other one"
        )
    await cache.open()
    bulk = BulkEntries(cache._connection, cache._keys, cipher=cache._cipher)
    read = await bulk.read([answer_digest(key)], spaces=await cache._answers.spaces())
    if not read.found:
        return None
    purges = await cache._epochs.current(read.epoch)
    return _inspection(cache, read.found[0], purges)


def _inspection(cache: LLMCache, stored: Stored, purges: Purges) -> Inspection:
    keys, now_s, entry = cache._keys, cache._clock(), stored.entry
    about: dict[str, Any] = {}
    if entry is not None:
        about = {
            "age_s": max(0.0, now_s - entry.created_s),
            "model": entry.model,
            "tenant": entry.tenant,
            "tags": entry.tags,
            "origin": None if entry.origin is None else keys.answer(entry.origin),
            "similarity": entry.similarity,
            "details": _details(entry),
            "answer": entry.answer,
        }
    return Inspection(
        key=keys.answer(stored.digest),
        status=_status(stored, purges),
        ttl_left_s=max(0.0, stored.expires_ms / 1000 - now_s),
        size_bytes=stored.size_bytes,
        semantic=tuple(
            StoredPrompt(
                keys.entry(part.space, stored.digest),
                part.scope,
                part.prompt,
                len(part.vector or b""),
            )
            for part in stored.semantic
        ),
        aliases=tuple(keys.answer(digest) for digest in stored.aliases),
        **about,
    )


def _status(stored: Stored, purges: Purges) -> StoredStatus:
    if stored.entry is not None:
        is_alive = purges.allow(stored.entry, stored.digest)
        return StoredStatus.ALIVE if is_alive else StoredStatus.INVALIDATED
    return StoredStatus.FOREIGN if stored.problem is None else StoredStatus.CORRUPT


def _details(entry: Entry) -> dict[str, Any]:
    """Return the fields of *entry* that have something to say, but for those told apart."""
    return {
        about.name: value
        for about in fields(entry)
        if about.name not in _TOLD_APART and (value := getattr(entry, about.name)) != about.default
    }
