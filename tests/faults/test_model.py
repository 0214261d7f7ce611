"""Random walks over chat, invalidation, expiry and restarts, beside a model of what must be true.

The model knows every answer that is alive, the requests that lead to it and what kills it. The
upstream never says the same twice, so that an answer that should be dead is told from a new one.
"""

import asyncio
import itertools
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from benchmarks.faults.servers import ON_DISK
from llm_cache import CacheConfig, LLMCache
from llm_cache.testing import FakeClock, FakeEmbedder, RecordingHook, ScriptedUpstream
from tests.topologies.servers import Standalone

QUESTIONS = [
    ("How do I return an order?", "In what way can an order be returned?"),
    ("Where is the nearest shop?", "Tell me where to find the closest shop."),
    ("When are parcels delivered?", "At what time do parcels arrive?"),
]
WORDINGS = [wording for question in QUESTIONS for wording in question]
TTL_S = 1_000.0
WORDING = st.sampled_from(WORDINGS)
TENANT = st.sampled_from([None, "acme", "globex"])
TAG = st.sampled_from(["orders", "shops"])
WORKER = st.integers(0, 1)


@dataclass(eq=False)
class Living:
    """An answer that is alive."""

    text: str
    tenant: str | None
    tags: frozenset[str]
    asked: str


def other_wording(wording: str) -> str:
    question = next(question for question in QUESTIONS if wording in question)
    return question[1 - question.index(wording)]


class Walk(RuleBasedStateMachine):
    """Two workers over one server that is really restarted."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock(time.time())
        self.events = RecordingHook()
        self.answers = itertools.count()
        self.alive: dict[tuple[str | None, str], Living] = {}
        self.server = Standalone(ON_DISK)
        self.run(self.open())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    async def open(self) -> None:
        self.upstream = ScriptedUpstream()
        await self.upstream.open()
        self.upstream.default = lambda _body: f"answer {next(self.answers)}"
        embedder = FakeEmbedder()
        for one, other in QUESTIONS:
            embedder.similar(one, other, 0.95)
        config = CacheConfig(
            namespace=f"t.{uuid.uuid4().hex}",
            ttl_s=TTL_S,
            # Nothing is bypassed because this machine is busy.
            redis_timeout_s=20.0,
            added_latency_budget_s=20.0,
        )
        self.caches = [
            LLMCache(
                self.server.url,
                client=self.upstream.client(),
                embedder=embedder,
                config=config,
                hooks=[self.events],
                clock=self.clock,
            )
            for _ in range(2)
        ]
        for cache in self.caches:
            await cache.open()

    def teardown(self) -> None:
        async def close() -> None:
            for cache in self.caches:
                await cache.aclose()
            await self.upstream.aclose()

        self.run(close())
        self.server.close()
        self.runner.close()

    def kill(self, dies: Callable[[Living], bool]) -> None:
        self.alive = {key: answer for key, answer in self.alive.items() if not dies(answer)}

    # ------------------------------------------------------------------ what is asked

    @rule(wording=WORDING, tenant=TENANT, tags=st.frozensets(TAG), worker=WORKER)
    def chat(self, wording: str, tenant: str | None, tags: frozenset[str], worker: int) -> None:
        expected, status = self.alive.get((tenant, wording)), "exact"
        if expected is None:
            expected, status = self.alive.get((tenant, other_wording(wording))), "semantic"
            # What was promoted has no entry of its own, and leads nowhere.
            if expected is not None and expected.asked != other_wording(wording):
                expected = None

        made = self.upstream.calls
        reply = self.run(self.caches[worker].chat(wording, tenant=tenant, tags=sorted(tags)))

        if expected is None:
            assert (reply.status, self.upstream.calls) == ("miss", made + 1)
            expected = Living(reply.text, tenant, tags, wording)
        else:
            assert (reply.status, reply.text) == (status, expected.text)
            assert self.upstream.calls == made
        self.alive[tenant, wording] = expected

    # ------------------------------------------------------------------ what dies

    @rule(tag=TAG, worker=WORKER)
    def invalidate_tag(self, tag: str, worker: int) -> None:
        self.run(self.caches[worker].invalidate(tag=tag))
        self.kill(lambda answer: tag in answer.tags)

    @rule(tenant=TENANT, worker=WORKER)
    def invalidate_tenant(self, tenant: str | None, worker: int) -> None:
        self.run(self.caches[worker].invalidate(tenant=tenant))
        self.kill(lambda answer: answer.tenant == tenant)

    @rule(wording=WORDING, tenant=TENANT, worker=WORKER)
    def invalidate_request(self, wording: str, tenant: str | None, worker: int) -> None:
        self.run(self.caches[worker].invalidate_request(wording, tenant=tenant))
        dead = self.alive.get((tenant, wording))
        self.kill(lambda answer: answer is dead)

    @rule(worker=WORKER)
    def clear(self, worker: int) -> None:
        self.run(self.caches[worker].clear())
        self.alive.clear()

    @rule()
    def expire(self) -> None:
        self.clock.advance(TTL_S + 1)
        self.alive.clear()

    @rule()
    def flush(self) -> None:
        self.server.server.command("FLUSHALL")
        self.alive.clear()

    # ------------------------------------------------------------------ what changes nothing

    @precondition(lambda self: self.alive)
    @rule()
    def restart(self) -> None:
        self.server.server.kill()
        self.server.server.start()
        self.run(self.settle())

    async def settle(self) -> None:
        """Let each worker find out that its connections are gone."""
        async with asyncio.timeout(10):
            for cache in self.caches:
                probe = f"Is anybody there? {uuid.uuid4()}"
                while (await cache.chat(probe, tenant="probe")).status == "bypass":  # noqa: ASYNC110
                    await asyncio.sleep(0.05)


TestWalk = Walk.TestCase
# A tenth of what the profile asks for: 10 walks, and with `--hypothesis-profile thorough` 200.
TestWalk.settings = settings(
    max_examples=settings().max_examples // 10,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
