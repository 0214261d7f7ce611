"""Which policy decides for whom, and what it decides.

Calibrated policies are kept in Redis for all workers. They are loaded when the cache opens, again
now and then in the background, and at once by whoever changes one; a decision itself asks nobody.

This module brings the word lists of the guards with it: import it where they are needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llm_cache._core import guards
from llm_cache._core.hit_policy import Decision, Judgement, Policy, ThresholdPolicy, Verdict
from llm_cache._core.hit_policy import decide as decide_by
from llm_cache._core.policy_file import StoredPolicy, decode
from llm_cache._core.types import Candidate
from llm_cache._redis.policies import Policies, PolicyStore
from llm_cache.errors import ConfigurationError, StoreError, UnusablePolicy
from llm_cache.events import DependencyFailed, Event

RELOAD_S = 60.0
"""Seconds after which a worker follows what another one has changed."""


@dataclass(frozen=True, slots=True)
class InForce:
    """The policy that decides, and what is to be said of it."""

    policy: Policy
    description: str
    similarity_threshold: float | None = None
    """Least similarity of a hit, where that is what decides."""


@dataclass(frozen=True, slots=True)
class _ServesNothing:
    """Stands for a policy that must not be followed: a looser rule must not take its place."""

    is_certified: bool = False

    def judge(self, *_: object) -> Judgement:
        return Judgement(Verdict.REFUSE, "the policy cannot be followed")


class Decisions:
    """Decides with the calibrated policy of a tenant, else with a rule of thumb.

    Args:
        store: Where the policies of this namespace and vector space are.
        rule: What decides where there is none.
        tell: Hears of failures, and of policies that cannot be followed.
    """

    def __init__(
        self,
        store: PolicyStore,
        rule: ThresholdPolicy,
        *,
        tell: Callable[[Event], None],
    ) -> None:
        self._store = store
        self._verify_from = rule.verify_from
        self._rule = _described(rule)
        self._tell = tell
        self._policies = Policies({})
        self._told: set[str] = set()
        self._reloading: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Load them again from now on, in the background."""
        self._reloading = asyncio.create_task(self._reload_forever(), name="llm_cache.policies")

    async def aclose(self) -> None:
        """Stop loading."""
        if self._reloading is not None:
            self._reloading.cancel()
            await asyncio.gather(self._reloading, return_exceptions=True)

    # ------------------------------------------------------------------ deciding

    def decide(
        self, prompt: str, candidates: Sequence[Candidate], tenant_id: str | None
    ) -> Decision:
        """Return what the policy of this tenant says of *candidates*. Never raises."""
        return decide_by(prompt, candidates, self.in_force(tenant_id).policy)

    def in_force(self, tenant_id: str | None) -> InForce:
        """Return the policy that decides for this tenant; *tenant_id* stands for it in Redis."""
        try:
            stored = self._policies.of(tenant_id)
            if stored is None:
                return self._rule
        except UnusablePolicy as error:
            return InForce(_ServesNothing(), f"unusable, so nothing is served: {error}")
        policy = replace(stored.policy, verify_from=self._verify_from)
        return InForce(policy, f"certified: {stored.certificate}")

    # ------------------------------------------------------------------ changing

    async def save(self, policy: StoredPolicy | bytes, tenant_ids: Sequence[str]) -> None:
        """Store *policy* for these tenants, or for all that have none, and follow it at once.

        Two round trips.

        Raises:
            UnusablePolicy: it must not be followed here. Nothing was written.
            StoreUnavailable: Redis did not answer.
        """
        stored = _read(policy)
        await self._store.save(stored, tenants=tenant_ids)
        await self.reload()

    async def remove(self, tenant_ids: Sequence[str]) -> int:
        """Remove the policies of these tenants, or that of all others; return how many there were.

        Two round trips. Raises as `reload`.
        """
        removed = await self._store.remove(tenants=tenant_ids)
        await self.reload()
        return removed

    async def reload(self) -> None:
        """Load what all workers follow. One round trip.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        self._policies = await self._store.load()
        unusable = [p for p in self._policies.by_field.values() if isinstance(p, UnusablePolicy)]
        # Told once, and again only if it went away in between.
        new = {str(error): error for error in unusable}
        for message in new.keys() - self._told:
            self._tell(DependencyFailed("policy", "load", new[message]))
        self._told = set(new)

    async def _reload_forever(self) -> None:
        while True:
            await asyncio.sleep(RELOAD_S)
            try:
                await self.reload()
            except StoreError as error:
                # What was loaded last is followed until Redis is back.
                self._tell(DependencyFailed("redis", "policies", error))


def prepare() -> None:
    """Read the word lists: 20 ms or more, for which the first decision shall not wait."""
    guards.prepare()


def _read(policy: object) -> StoredPolicy:
    if isinstance(policy, bytes):
        return decode(policy)
    if not isinstance(policy, StoredPolicy):
        raise ConfigurationError(
            "the policy must be `calibration.stored`, or the bytes of `calibration.to_json()`;"
            f" got {type(policy).__name__}"
        )
    return policy


def _described(rule: ThresholdPolicy) -> InForce:
    said = f"uncertified: similarity at least {rule.similarity_threshold:g}"
    if rule.isolated_threshold is not None:
        said += f", {rule.isolated_threshold:g} where no other entry is near"
    if rule.verify_from is not None:
        said += f", {rule.verify_from:g} where the verifier agrees"
    said += ", guards" if rule.is_guarded else ", no guards"
    return InForce(rule, said, rule.similarity_threshold)
