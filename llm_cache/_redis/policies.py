"""Calibrated policies, shared by all workers: one hash for each vector space, a field a tenant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_cache._core.keys import Keys
from llm_cache._core.policy_file import StoredPolicy, decode, encode
from llm_cache._redis.connection import Connection
from llm_cache._redis.replies import text
from llm_cache.errors import UnusablePolicy

_EVERYBODY = "*"
_TENANT = "tenant:"


@dataclass(frozen=True, slots=True)
class Policies:
    """The policies of one namespace and vector space."""

    by_field: Mapping[str, StoredPolicy | UnusablePolicy]

    def of(self, tenant: str | None) -> StoredPolicy | None:
        """Return the policy for *tenant*: its own, else that of the namespace, else `None`.

        Raises:
            UnusablePolicy: there is one, and it must not be followed. Whoever wrote it wanted
                something stricter than a rule of thumb, so the rule must not take its place.
        """
        own = None if tenant is None else self.by_field.get(f"{_TENANT}{tenant}")
        found = own or self.by_field.get(_EVERYBODY)
        if isinstance(found, UnusablePolicy):
            raise found
        return found

    def described(self) -> dict[str, str]:
        """Return what is to be said of each: by `tenant:<name>`, and `*` for all other tenants."""
        return {
            whose: f"unusable: {policy}"
            if isinstance(policy, UnusablePolicy)
            else f"certified: {policy.certificate}"
            for whose, policy in sorted(self.by_field.items())
        }


class PolicyStore:
    """Loads and saves the policies of one namespace and vector space."""

    def __init__(self, connection: Connection, keys: Keys, *, space: str) -> None:
        self._connection = connection
        self._key = keys.policy(space)
        self._space = space

    async def load(self) -> Policies:
        """Return all policies, those that cannot be followed as the reason why. One round trip.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        found = await self._connection.execute("HGETALL", self._key)
        return Policies({text(name): self._read(data) for name, data in found.items()})

    async def save(self, stored: StoredPolicy, *, tenants: Sequence[str] = ()) -> None:
        """Save *stored* for these *tenants*, or for the whole namespace. One round trip.

        It replaces the one before. Workers follow it when they next load.

        Raises:
            UnusablePolicy: it is for another vector space.
            StoreUnavailable: Redis did not answer.
        """
        stored.check(self._space)
        data = encode(stored)
        pairs = [part for name in _fields(tenants) for part in (name, data)]
        await self._connection.execute("HSET", self._key, *pairs)

    async def remove(self, *, tenants: Sequence[str] = ()) -> int:
        """Remove the policy of these *tenants*, or of the namespace; return how many there were.

        One round trip.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        return int(await self._connection.execute("HDEL", self._key, *_fields(tenants)))

    def _read(self, data: bytes | str) -> StoredPolicy | UnusablePolicy:
        try:
            stored = decode(data if isinstance(data, bytes) else data.encode())
            stored.check(self._space)
        except UnusablePolicy as unusable:
            return unusable
        return stored


def _fields(tenants: Sequence[str]) -> list[str]:
    return [f"{_TENANT}{tenant}" for tenant in tenants] or [_EVERYBODY]
