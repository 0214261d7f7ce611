"""Invalidation, and what people say of answers: who is meant, and how it takes effect.

All kinds write a line into the purge table, whatever they reach: readers see it with their next
look-up, and a store that is under way brings nothing back. A single answer, and those that a
pattern finds, are removed at once; what else is dead, in the background.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from llm_cache._call import Call, Unset
from llm_cache._core import keys as identity
from llm_cache._core.keys import Keys
from llm_cache._core.policy import Purges
from llm_cache._core.targets import ANYONE, MOST_NAME_CHARS, Anyone, Kind, fold, matcher, target
from llm_cache._core.types import Entry
from llm_cache._redis.answers import Answers
from llm_cache._redis.epoch import Epochs
from llm_cache._redis.sweep import Sweeper
from llm_cache.config import CacheConfig, is_number
from llm_cache.errors import InvalidRequest, PartialInvalidation

_LAST = "f" * 32
"""Later than any token."""
_MOST_PATTERN_CHARS = 1_000
"""Every reader may have to hold its prompt against it."""


@dataclass(frozen=True, slots=True)
class Invalidation:
    """What an invalidation did, or with `dry_run` would do."""

    reached: int | None
    """How many answers; `None` where it took effect without being counted."""
    complete: bool = True
    """Whether everything that was meant has been reached."""
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Selection:
    """Which answers are meant: those of one kind and value, of one tenant or of all."""

    kind: Kind
    value: str = ""
    tenant_id: str | Anyone | None = ANYONE
    before_s: float | None = None
    """Of the kind `AGE`: the Unix time before which answers were stored."""

    @property
    def target(self) -> str:
        """The line of the purge table."""
        return target(self.kind, self.value, tenant_id=self.tenant_id)

    def as_if(self) -> Purges:
        """Return a purge table in which nothing but this was purged, later than anything."""
        token = _LAST if self.before_s is None else repr(self.before_s)
        return Purges(epoch=_LAST, born="", tokens={self.target: token})


_BY_NAME = {
    "key": Kind.KEY,
    "pattern": Kind.PATTERN,
    "tag": Kind.TAG,
    "dependency": Kind.SOURCE,
    "model": Kind.MODEL,
    "system": Kind.PROMPT,
    "shared_scope": Kind.SHARED,
}


def select(
    named: Mapping[str, str | None],
    *,
    older_than_s: float | None,
    tenant_id: str | Anyone | None,
    now_s: float,
) -> Selection | None:
    """Return what these arguments of `invalidate` mean; `None` for all of everybody's.

    A key and a pattern are of the kinds `KEY` and `PATTERN`, as they were given.

    Raises:
        InvalidRequest: an argument cannot work, or more than one says what is meant.
    """
    given = [name for name, value in named.items() if value is not None]
    if given == ["shared_scope"] and not isinstance(tenant_id, Anyone):
        raise InvalidRequest("what tenants share is no tenant's: leave tenant= out")
    if len(given) + (older_than_s is not None) > 1:
        others = [*given, "older_than_s"] if older_than_s is not None else given
        raise InvalidRequest(f"one thing at a time is invalidated; got {', '.join(others)}")
    if older_than_s is not None:
        if not is_number(older_than_s) or not 0 <= older_than_s <= now_s:
            raise InvalidRequest(f"older_than_s must be seconds from 0 up; got {older_than_s!r}")
        return Selection(Kind.AGE, tenant_id=tenant_id, before_s=now_s - older_than_s)
    if not given:
        return None if isinstance(tenant_id, Anyone) else Selection(Kind.ALL, tenant_id=tenant_id)
    (name,) = given
    value = check_name(named[name], name)
    kind = _BY_NAME[name]
    if kind is Kind.PROMPT:
        value = identity.prompt_version(value)
    return Selection(kind, value, tenant_id)


def tenant_of(
    tenant: str | Unset | None, config: CacheConfig, *, is_shared: bool = False
) -> str | Anyone | None:
    """Return what stands for *tenant* in Redis; not given, it stands for all of them.

    It has to be given where tenants are required, except for what they share.

    Raises:
        InvalidRequest: it is not text, empty, or has to be given and is not.
    """
    if isinstance(tenant, Unset):
        if config.require_tenant and not is_shared:
            raise InvalidRequest(
                "require_tenant=True: name the tenant= whose answers are meant; what is to reach"
                " all of them is done by a cache without require_tenant, or by clear()"
            )
        return ANYONE
    if tenant is not None:
        check_name(tenant, "tenant")
    return identity.tenant_id(tenant, config.tenant_secret)


def check_name(value: object, name: str) -> str:
    """Return *value*, which names something.

    Raises:
        InvalidRequest: *value* is not text, empty, too long for a name, or not Unicode.
    """
    if not isinstance(value, str) or not value or re.search("[\ud800-\udfff]", value):
        raise InvalidRequest(f"{name} must be text that is not empty")
    if len(value) > MOST_NAME_CHARS and name != "system":
        raise InvalidRequest(f"{name} must have at most {MOST_NAME_CHARS} characters")
    return value


def check_limit(limit: object, pattern: str | None) -> None:
    """Refuse a *limit* that is none, or that nothing would obey.

    Raises:
        InvalidRequest: it is no whole number above 0, or there is no *pattern*.
    """
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InvalidRequest(f"limit must be a whole number above 0; got {limit!r}")
    if pattern is None:
        raise InvalidRequest("limit= goes with pattern=: all else takes effect as a whole")


class Invalidator:
    """Invalidates within one namespace."""

    def __init__(
        self,
        keys: Keys,
        config: CacheConfig,
        *,
        epochs: Epochs,
        answers: Answers,
        sweeper: Sweeper,
    ) -> None:
        self._keys = keys
        self._epochs = epochs
        self._answers = answers
        self._sweeper = sweeper
        self._config = config

    async def by_target(self, selection: Selection, *, dry_run: bool) -> Invalidation:
        """Invalidate what is selected. Two round trips; *dry_run* counts, which reads it all."""
        if dry_run:
            as_if = selection.as_if()
            count = await self._sweeper.count(lambda s: not as_if.allow(s.entry, s.digest))
            return Invalidation(count, dry_run=True)
        await self._epochs.purge([selection.target], before_s=selection.before_s)
        self._sweeper.start(walk=self._config.sweep)
        return Invalidation(None)

    async def by_key(
        self, key: str, *, tenant_id: str | Anyone | None, dry_run: bool
    ) -> Invalidation:
        """Invalidate one answer, and what was made from it. Five to seven round trips.

        For the key of an alias, the answer that it is a copy of.

        Raises:
            InvalidRequest: *key* is not the key of an answer in this namespace.
        """
        named = self._digest(key)
        digest, entry = await self._origin(named)
        is_free = isinstance(tenant_id, Anyone)
        if not (is_free or entry is None or _is_of(entry, tenant_id)):
            # What belongs to another tenant is not there, for this one.
            return Invalidation(0, dry_run=dry_run)
        if not dry_run:
            # Where nothing can be read that tells whose it is, only this tenant's is meant.
            whose = tenant_id if entry is None else ANYONE
            digests = dict.fromkeys([named, digest])
            await self._epochs.purge(
                target(kind, value, tenant_id=whose)
                for d in digests
                for kind, value in ((Kind.KEY, d), (Kind.SOURCE, self._keys.answer(d)))
            )
            if is_free or entry is not None:
                await self._answers.remove(digests)
            self._sweeper.start(walk=False)
        return Invalidation(int(entry is not None), dry_run=dry_run)

    async def _origin(self, digest: str) -> tuple[str, Entry | None]:
        """Return the digest of the answer that *digest* leads to, and what is known of it."""
        entry = await self._answers.entry(digest)
        if entry is None or entry.origin is None:
            return digest, entry
        # The copy tells as much as what it was made of, which may have gone first.
        return entry.origin, await self._answers.entry(entry.origin) or entry

    def _digest(self, key: object) -> str:
        digest = self._keys.digest(check_name(key, "the key"))
        if digest is None:
            raise InvalidRequest(
                f"the key must be one of an answer in the namespace {self._keys.namespace!r}, as"
                " reply.key has it"
            )
        return digest

    async def by_pattern(
        self,
        pattern: str,
        *,
        tenant_id: str | Anyone | None,
        dry_run: bool,
        limit: int | None,
        allow_partial: bool,
    ) -> Invalidation:
        """Invalidate the answers to prompts that match: at once, then remove what the index finds.

        With a *limit*, those that the index finds first are named one by one instead. Reads every
        prompt in the index.

        Raises:
            InvalidRequest: the pattern matches everything, or is too long.
            PartialInvalidation: there are answers whose prompts are not in the index.
        """
        _check_pattern(pattern)
        matches = matcher(pattern)
        is_complete = not await self._answers.has_unindexed()
        if not is_complete and not allow_partial:
            raise PartialInvalidation(
                "there may be answers whose prompts are not in the index (stored with"
                " semantic=False, or for a request that does not end with a user's text):"
                " pass allow_partial=True to invalidate the others, or use tag="
            )
        if limit is None and not dry_run:
            line = target(Kind.PATTERN, fold(pattern), tenant_id=tenant_id)
            await self._epochs.purge([line])
            self._sweeper.start(walk=False)
        reached = 0
        async with aclosing(self._matching(matches, tenant_id)) as batches:
            async for digests in batches:
                some = digests if limit is None else digests[: limit - reached]
                is_complete = is_complete and len(some) == len(digests)
                reached += len(some)
                if some and not dry_run:
                    if limit is not None:
                        await self._epochs.purge(target(Kind.KEY, digest) for digest in some)
                    await self._answers.remove(some)
                if len(some) < len(digests):
                    break
        return Invalidation(reached, is_complete, dry_run)

    async def _matching(
        self, matches: Callable[[str], Any], tenant_id: str | Anyone | None
    ) -> AsyncGenerator[list[str], None]:
        """Yield the digests of living answers to prompts that match, in batches."""
        async with aclosing(self._answers.prompts()) as batches:
            async for rows in batches:
                digests = [digest for digest, prompt in rows if matches(fold(prompt))]
                entries = await self._answers.entries(digests) if digests else []
                yield [
                    digest
                    for digest, entry in zip(digests, entries, strict=True)
                    if entry and (isinstance(tenant_id, Anyone) or _is_of(entry, tenant_id))
                ]

    async def reject(self, key: str, requests: Sequence[str] = ()) -> Invalidation:
        """Remove an answer with all that led to it, and serve it to none of those again.

        Up to eleven round trips. *requests* are digests that it was served to besides. Raises as
        `by_key` does.
        """
        named = self._digest(key)
        digest, _ = await self._origin(named)
        served = {*requests, named, *await self._answers.aliases(digest)} - {digest}
        await self._answers.reject(digest, sorted(served))
        return await self.by_key(key, tenant_id=ANYONE, dry_run=False)

    async def reject_pair(self, origin: str, request: str) -> None:
        """Serve the answer *origin* to *request* no more. It stays: to its own prompt it is right.

        Both are digests. One round trip; five where *request* has, or may be about to get, a copy
        of that answer. What the model answered to it since stays too.
        """
        await self._answers.reject(origin, [request])
        entry = await self._answers.entry(request)
        if entry is not None and entry.origin != origin:
            return
        # A copy that is written just now is older than this, and dead when it arrives.
        await self._epochs.purge([target(Kind.KEY, request)])
        await self._answers.remove([request])

    async def approve(self, key: str, call: Call) -> bool:
        """Serve the answer under *key* to *call*; return whether it is there.

        What belongs to another tenant, or is shared in another scope, is not.
        """
        digest, entry = await self._origin(self._digest(key))
        terms = call.terms
        if entry is None or (entry.tenant, entry.shared_scope) != (
            terms.tenant_id,
            terms.shared_scope,
        ):
            return False
        await self._answers.pardon(digest, call.digest)
        return call.digest == digest or await self._answers.copy(digest, call.digest)


def _is_of(entry: Entry, tenant_id: str | Anyone | None) -> bool:
    return entry.shared_scope is None and entry.tenant == tenant_id


def _check_pattern(pattern: str) -> None:
    if not pattern.strip("*? \t\n"):
        raise InvalidRequest(f"pattern={pattern!r} matches every prompt: that is clear()")
    if len(pattern) > _MOST_PATTERN_CHARS:
        raise InvalidRequest(f"pattern has more than {_MOST_PATTERN_CHARS} characters")
