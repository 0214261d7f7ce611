"""Who asks what under load: popular questions, other spellings of them, and new ones.

The upstream echoes the question, so that every answer tells whose it is: it must be the question
itself, but for the case of its letters. The id of an answer tells which call of the model made it;
one that turns up with two tenants has crossed between them.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.workloads.zipf import popular, popularity, respelled
from llm_cache import LLMCache
from llm_cache.reply import ChatReply

MODEL = "gpt-4o-mini"
_IDS = 1 << 20
_DRAWN_AT_A_TIME = 512


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of what is asked, once everything popular was asked before."""

    exact: float = 0.9
    semantic: float = 0.08
    """Another spelling of a popular question, which is never asked again."""
    miss: float = 0.02
    """A question nobody asked before, like many in all but its number."""
    questions: int = 1_000
    exponent: float = 1.0
    tenants: int = 1

    def __post_init__(self) -> None:
        """Check the shares.

        Raises:
            ValueError: one is negative, or all are 0.
        """
        shares = (self.exact, self.semantic, self.miss)
        if min(shares) < 0 or sum(shares) <= 0:
            raise ValueError("the shares of a mix are 0 or more, and not all 0")


class Population:
    """Draws requests, sends them through a cache, and judges the answers."""

    def __init__(self, cache: LLMCache, mix: Mix, *, seed: int, worker: int, model: str) -> None:
        self.cache = cache
        self.wrong = 0
        """Answers to another question."""
        self.foreign = 0
        """Answers made for another tenant."""
        self.judges = True
        """Whether the upstream echoes; a real model does not."""
        self._model = model
        self._mix = mix
        self._worker = worker
        self._prompts = [question.wordings[0] for question in popular(mix.questions, seed)]
        self._chances = popularity(mix.questions, mix.exponent)
        self._random = np.random.default_rng([seed, worker, 3])
        self._draws: list[tuple[float, float, int]] = []
        self._new = 0
        self._run = int(self._random.integers(1 << 30))
        # Of a fixed size, so that a soak test finds the cache's growth and not its own.
        self._tenant_of_id = np.full(_IDS, -1, np.int16)

    @property
    def prompts(self) -> list[str]:
        """The popular questions, the most popular first."""
        return self._prompts

    async def ask(self) -> str:
        """Ask something; return how it was answered."""
        prompt, tenant = self._next()
        return await self.send(prompt, tenant)

    async def send(self, prompt: str, tenant: int) -> str:
        """Ask *prompt* for *tenant*."""
        name = None if self._mix.tenants == 1 else f"tenant-{tenant}"
        reply = await self.cache.chat(prompt, model=self._model, system=None, tenant=name)
        if self.judges:
            self._judge(reply, prompt, tenant)
        return str(reply.status)

    def _next(self) -> tuple[str, int]:
        if not self._draws:
            drawn = self._random.random((_DRAWN_AT_A_TIME, 2))
            tenants = self._random.integers(self._mix.tenants, size=_DRAWN_AT_A_TIME)
            self._draws = [(a, b, t) for (a, b), t in zip(drawn.tolist(), tenants, strict=True)]
        kind, rank, tenant = self._draws.pop()
        mix = self._mix
        kind *= mix.exact + mix.semantic + mix.miss
        if kind < mix.miss:
            self._new += 1
            return f"What is the status of ticket {self._run}{self._worker}{self._new:07}?", tenant
        prompt = self._prompts[int(np.searchsorted(self._chances, rank))]
        is_respelled = kind < mix.miss + mix.semantic
        return (respelled(prompt, self._random) if is_respelled else prompt), int(tenant)

    def _judge(self, reply: ChatReply, prompt: str, tenant: int) -> None:
        if reply.text.rstrip().casefold() != prompt.casefold():
            self.wrong += 1
        number = int(str(reply.data.get("id", "-0")).rpartition("-")[2] or 0) % _IDS
        known = self._tenant_of_id[number]
        if known == -1:
            self._tenant_of_id[number] = tenant
        elif known != tenant:
            self.foreign += 1

    def tenants_of_ids(self) -> str | None:
        """Return which tenant was given which answer, for `crossings`."""
        if self._mix.tenants == 1:
            return None
        return base64.b64encode(zlib.compress(self._tenant_of_id.tobytes(), 1)).decode()


def crossings(tables: list[str]) -> int:
    """Return how many answers different workers gave to different tenants."""
    if not tables:
        return 0
    rows = np.array([_unpacked(table) for table in tables])
    highest = rows.max(axis=0)
    lowest = np.where(rows == -1, np.iinfo(np.int16).max, rows).min(axis=0)
    return int(((highest != -1) & (highest != lowest)).sum())


def _unpacked(table: str) -> Any:
    return np.frombuffer(zlib.decompress(base64.b64decode(table)), np.int16)
