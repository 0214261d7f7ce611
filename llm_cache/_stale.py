"""Answers past their lifetime: served where that is allowed, and asked anew in the background."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from llm_cache._background import Background
from llm_cache._budget import Budget
from llm_cache._call import Call
from llm_cache._core.policy import is_outage
from llm_cache._core.types import CacheStatus
from llm_cache._ends import Answered, Bypassed, Fresh, Turn, exact_end
from llm_cache._health import REDIS
from llm_cache._redis.exact import ExactStore, Lookup
from llm_cache._redis.lease import Leases
from llm_cache._steps import Steps
from llm_cache.config import CacheConfig
from llm_cache.errors import StoreError
from llm_cache.events import DependencyFailed, Event

Produce = Callable[[], Awaitable[Fresh]]
"""Asks the model."""


class StaleAnswers:
    """What may be served of answers past their lifetime, and what replaces them."""

    def __init__(
        self,
        exact: ExactStore,
        leases: Leases,
        steps: Steps,
        background: Background,
        *,
        config: CacheConfig,
        tell: Callable[[Event], None],
        clock: Callable[[], float],
    ) -> None:
        self._exact = exact
        self._leases = leases
        self._steps = steps
        self._background = background
        self._config = config
        self._tell = tell
        self._clock = clock
        self._revalidating: set[str] = set()

    def while_revalidating(
        self, call: Call, found: Lookup | Bypassed, produce: Produce
    ) -> Answered | None:
        """Return the stale answer to serve, if there is one, and ask the model in the background.

        Not if somebody does already, or the caller forbids it.
        """
        stale = self._stale(call, found, self._config.stale_while_revalidate_s)
        if stale is None:
            return None
        if not call.terms.control.only_if_cached and call.digest not in self._revalidating:
            self._revalidating.add(call.digest)
            task = self._background.spawn(self._ask_anew(call, produce), name="revalidate")
            task.add_done_callback(lambda _: self._revalidating.discard(call.digest))
        return stale

    async def instead_of(
        self, error: Exception, call: Call, found: Lookup | Bypassed
    ) -> Answered | None:
        """Return the stale answer to serve where the model failed, if there is one to serve."""
        for_s = self._config.stale_if_error_s if is_outage(error) else 0.0
        if self._stale(call, found, for_s) is None:
            return None
        try:
            # It may have been invalidated while the model was being asked.
            stale = self._stale(call, await self._exact.lookup(call.digest, call.text), for_s)
        except StoreError as failure:
            self._tell(DependencyFailed(REDIS, "lookup_exact", failure))
            return None
        if stale is None:
            return None
        self._tell(DependencyFailed("upstream", "ask", error))
        return replace(stale, reason="upstream")

    def _stale(self, call: Call, found: Lookup | Bypassed, for_s: float) -> Answered | None:
        """Return the end of *call* with what was found, if it turned stale *for_s* ago at most."""
        if isinstance(found, Bypassed) or not for_s or self._config.shadow:
            return None
        entry = found.entry
        if entry is None or not call.accepts_stale(entry, self._clock(), for_s=for_s):
            return None
        return replace(exact_end(call.digest, entry), status=CacheStatus.STALE)

    async def _ask_anew(self, call: Call, produce: Produce) -> None:
        try:
            lease = await self._leases.acquire(call.digest)
            if lease is None:
                return
            with Turn(None, self._leases, lease) as turn:
                found = await self._exact.lookup(call.digest, call.text)
                if found.entry is not None and self._steps.accepts(call, found.entry):
                    # Another process was faster.
                    return
                turn.epoch = found.epoch
                self._steps.begin_placing(call, turn)
                budget = Budget(self._config.redis_timeout_s)
                await self._steps.after_model(call, await produce(), turn, budget)
        except StoreError as error:
            self._tell(DependencyFailed(REDIS, "revalidate", error))
        except Exception as error:  # noqa: BLE001 - the model's, which the caller does not wait for
            self._tell(DependencyFailed("upstream", "revalidate", error))
