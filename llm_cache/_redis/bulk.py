"""Many answers at once, with all that belongs to them: for moving them, not for calls."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_cache._core.codec import decode_entry, encode_entry
from llm_cache._core.encryption import Cipher
from llm_cache._core.kept import Kept, read_kept
from llm_cache._core.keys import Keys
from llm_cache._core.types import Entry
from llm_cache._exports import Answer, SemanticEntry
from llm_cache._redis.connection import Command, Connection
from llm_cache._redis.replies import text
from llm_cache.errors import CorruptEntry

# A key changes hands only if it still holds what was looked at (its SHA-1, '' for nothing): what
# a call has stored since is newer than what is being moved.
_REPLACE = """
local there = redis.call('GET', KEYS[1])
if (there and redis.sha1hex(there) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PXAT', ARGV[3])
local at = 4
for i = 2, #KEYS do
  local count = tonumber(ARGV[at])
  redis.call('DEL', KEYS[i])
  redis.call('HSET', KEYS[i], unpack(ARGV, at + 1, at + count))
  redis.call('PEXPIREAT', KEYS[i], ARGV[3])
  at = at + count + 1
end
return 1
"""
_REPLACE_SHA = hashlib.sha1(_REPLACE.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Stored:
    """What is stored under a digest."""

    digest: str
    entry: Entry | None
    """`None` where the bytes cannot be read."""
    problem: Exception | None
    """Why they cannot; `None` for an entry, and for one of another version of the format."""
    expires_ms: int
    """Unix time in milliseconds."""
    content_sha: str = field(repr=False)
    size_bytes: int
    semantic: tuple[SemanticEntry, ...] = ()
    aliases: tuple[str, ...] = ()
    """Digests of the aliases of this answer."""


@dataclass(frozen=True, slots=True)
class Read:
    """Several digests, and the epoch they were read under."""

    epoch: bytes | None
    found: list[Stored]


class BulkEntries:
    """Reads and writes the answers of a namespace by the hundred."""

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        *,
        compress: bool = True,
        cipher: Cipher | None = None,
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._compress = compress
        self._cipher = cipher

    async def read(self, digests: Sequence[str], *, spaces: Sequence[str] = ()) -> Read:
        """Return what is stored under *digests*; what has nothing is left out.

        One round trip, with the aliases and the semantic entries in the vector *spaces*.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        commands: list[Command] = [("GET", self._keys.epoch)]
        for digest in digests:
            name, refs = self._keys.answer(digest), self._keys.refs(digest)
            commands += [("GET", name), ("PEXPIRETIME", name), ("SMEMBERS", refs)]
            commands += [("HGETALL", self._keys.entry(space, digest)) for space in spaces]
        epoch, *rest = await self._connection.execute_all(commands)
        width = 3 + len(spaces)
        found = []
        for i, digest in enumerate(digests):
            blob, expires_ms, members, *hashes = rest[i * width : (i + 1) * width]
            # What expired in between has no expiry any more; an answer without one is not ours.
            if blob is not None and int(expires_ms) > 0:
                aliases = sorted(filter(None, map(self._keys.digest, map(text, members))))
                entries = [
                    entry
                    for space, fields in zip(spaces, hashes, strict=True)
                    if fields and (entry := self._semantic(digest, space, fields)) is not None
                ]
                found.append(self._stored(digest, blob, int(expires_ms), entries, aliases))
        return Read(epoch, found)

    def _semantic(
        self, digest: str, space: str, fields: Mapping[bytes | str, bytes]
    ) -> SemanticEntry | None:
        """Return what is stored, in clear; `None` where it cannot be read here."""
        found = {text(name): value for name, value in fields.items()}
        entry = SemanticEntry(space, found)
        if "prompt" in found:
            kept = read_kept(found["prompt"], self._cipher, space, entry.scope, digest)
            if kept is None:
                return None
            found["prompt"] = kept.field(None)
        return entry

    async def write(
        self, answers: Iterable[tuple[Answer, Stored | None]], *, note: tuple[str, bytes, int]
    ) -> list[bool]:
        """Write each answer, with what leads to it, where there is still what was *Stored* there.

        With the answers goes a *note*: a key, its value, and the milliseconds it may live. One
        round trip, two on a cluster. Each answer is written with all that belongs to it and its
        expiry, or not at all; returned is which were.

        Raises:
            StoreUnavailable: Redis did not answer; some may have been written.
        """
        commands: list[Command] = []
        scripts = []
        for answer, seen in answers:
            scripts.append(len(commands))
            commands.append(("EVALSHA", _REPLACE_SHA, *self._replace(answer, seen)))
            origin = answer.entry.origin
            if origin is not None:
                # In another slot of a cluster, so not within the script.
                refs = self._keys.refs(origin)
                commands += [
                    ("SADD", refs, self._keys.answer(answer.digest)),
                    ("PEXPIREAT", refs, answer.expires_ms, "NX"),
                    ("PEXPIREAT", refs, answer.expires_ms, "GT"),
                ]
        key, value, ttl_ms = note
        # The note says that the answers are there.
        replies, _ = await self._connection.execute_then(
            commands, [("SET", key, value, "PX", ttl_ms)], before=("SCRIPT", "LOAD", _REPLACE)
        )
        return [bool(replies[position]) for position in scripts]

    def _stored(
        self,
        digest: str,
        blob: bytes,
        expires_ms: int,
        semantic: Sequence[SemanticEntry],
        aliases: Sequence[str],
    ) -> Stored:
        entry, problem = None, None
        try:
            entry = decode_entry(blob, digest, self._cipher)
        except CorruptEntry as error:
            problem = error
        return Stored(
            digest,
            entry,
            problem,
            expires_ms,
            content_sha=hashlib.sha1(blob, usedforsecurity=False).hexdigest(),
            size_bytes=len(blob),
            semantic=tuple(semantic),
            aliases=tuple(aliases),
        )

    def _replace(self, answer: Answer, seen: Stored | None) -> list[Any]:
        keys = [self._keys.answer(answer.digest)]
        arguments: list[Any] = [
            "" if seen is None else seen.content_sha,
            encode_entry(
                answer.entry, answer.digest, compress=self._compress, cipher=self._cipher
            ),
            answer.expires_ms,
        ]
        for entry in answer.semantic:
            keys.append(self._keys.entry(entry.space, answer.digest))
            found = dict(entry.fields)
            kept = read_kept(found.pop("prompt", b""), None) or Kept()
            if text := kept.field(self._cipher, entry.space, entry.scope, answer.digest):
                found["prompt"] = text
            fields = [part for pair in found.items() for part in pair]
            arguments += [len(fields), *fields]
        return [len(keys), *keys, *arguments]
