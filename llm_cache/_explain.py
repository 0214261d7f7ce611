"""Why a request is answered as it is."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from llm_cache._call import Call
from llm_cache._core.keys import Keys
from llm_cache._core.normalize import without_compared
from llm_cache._core.types import CacheStatus, ChatRequest
from llm_cache._redis.exact import ExactStore
from llm_cache._semantic import SemanticLayer
from llm_cache.config import CacheConfig


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A stored prompt near the one that is explained."""

    prompt: str = field(repr=False)
    similarity: float
    key: str
    """Redis key of its answer."""
    verdict: str
    """`served`, or why not: `similarity below …`, `guard: numbers`, `answer gone`, …"""


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a request would be answered, and why. Holds prompts; its `repr` shows none."""

    status: CacheStatus
    """What a call would end with now."""
    reason: str
    """Why, in a sentence."""
    key: str
    """Redis key that an answer to this very request has."""
    scope: str
    """Digest of everything that must be equal before answers are shared."""
    parts: dict[str, Any] = field(repr=False)
    """What key and scope are made of. Of headers and query, which may hold credentials, each value
    is shown as a digest: enough to see which one differs."""
    compared: str | None = field(repr=False)
    """The text that the semantic layer compares; `None` where it takes no part."""
    similarity_threshold: float | None
    """Least similarity of a hit; `None` where something else decides, or nothing."""
    policy: str | None
    """What decides: `certified: …`, `uncertified: …`, or why it cannot be followed."""
    neighbours: tuple[Neighbour, ...]
    """The nearest entries of the scope, nearest first."""


async def explain(
    call: Call,
    request: ChatRequest,
    *,
    config: CacheConfig,
    keys: Keys,
    exact: ExactStore,
    semantic: SemanticLayer,
    now_s: float,
) -> Explanation:
    """Return how *call* would be answered at *now_s*."""
    found = await exact.lookup(call.digest, call.text)
    neighbours = await _neighbours(call, keys, exact, semantic, now_s)
    terms = call.terms
    in_force = None if call.compared is None else semantic.decisions.in_force(terms.tenant_id)
    status, reason = CacheStatus.MISS, "no stored answer may be served"
    if any(neighbour.verdict == _SERVED for neighbour in neighbours):
        status, reason = CacheStatus.SEMANTIC, "a stored prompt means the same"
    if found.entry is not None and call.accepts_stale(
        found.entry, now_s, for_s=config.stale_while_revalidate_s
    ):
        status, reason = CacheStatus.STALE, "the answer to the same request is past its lifetime"
    if found.entry is not None and call.accepts(found.entry, now_s):
        status, reason = CacheStatus.EXACT, "the same request was answered before"
    if config.shadow:
        status, reason = CacheStatus.MISS, "in shadow mode, the model is always asked"
    if call.terms.bypass is not None:
        status, reason = CacheStatus.BYPASS, f"the cache takes no part: {call.terms.bypass}"
    return Explanation(
        status=status,
        reason=reason,
        key=keys.answer(call.digest),
        scope=call.scope.name,
        parts=_parts(call, request, config),
        compared=call.compared,
        similarity_threshold=None if in_force is None else in_force.similarity_threshold,
        policy=None if in_force is None else in_force.description,
        neighbours=neighbours,
    )


_SERVED = "served"


def _parts(call: Call, request: ChatRequest, config: CacheConfig) -> dict[str, Any]:
    # Behind the list stand the messages, which are not JSON.
    beside, _ = json.JSONDecoder().raw_decode(request.frame.decode())
    base_url, model, body, headers, query = beside
    return {
        "tenant": call.terms.tenant,
        "cache_version": config.cache_version,
        "base_url": base_url,
        "model": model,
        "messages": without_compared(request.messages),
        "body": body,
        "headers": _digests(headers),
        "query": _digests(query),
        "normalization": str(config.normalization),
        "normalized": request.normalized,
    }


def _digests(values: dict[str, Any]) -> dict[str, str]:
    return {
        name: f"sha256:{sha256(json.dumps(value).encode()).hexdigest()[:12]}"
        for name, value in values.items()
    }


async def _neighbours(
    call: Call, keys: Keys, exact: ExactStore, semantic: SemanticLayer, now_s: float
) -> tuple[Neighbour, ...]:
    if call.compared is None:
        return ()
    place = await semantic.locate(call.compared, call.scope.name)
    if place is None:
        return ()
    neighbours: list[Neighbour] = []
    candidates = await semantic.nearest(place)
    decision = semantic.decisions.decide(place.prompt, candidates, call.terms.tenant_id)
    to_verify = decision.to_verify
    for judged in decision:
        candidate, verdict = judged.candidate, judged.reason
        if candidate == to_verify:
            verdict = f"to be verified: {verdict}"
        if judged.is_served:
            found, left_ms = await exact.lookup_for(
                call.digest, candidate.digest, candidate.prompt or None, semantic.vectors.line
            )
            if found.entry is None or found.entry.is_alias:
                verdict = "answer gone"
            elif left_ms <= 0:
                verdict = "rejected for this request"
            elif not call.accepts(found.entry, now_s):
                verdict = "older than the call allows"
            elif any(neighbour.verdict == _SERVED for neighbour in neighbours):
                verdict = "a nearer one is served"
        neighbours.append(
            Neighbour(
                prompt=candidate.prompt,
                similarity=candidate.similarity,
                key=keys.answer(candidate.digest),
                verdict=verdict or _SERVED,
            )
        )
    return tuple(neighbours)
