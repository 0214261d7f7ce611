"""What a call costs in this process alone, without Redis, the embedder or the model.

Digest and scope of a conversation of 20 messages, as `chat()` plans it: where the model, the
options and the parameters were seen before, as they mostly were, and where they are new; of the
messages nothing is remembered. A stored answer of 2 KB, from its bytes to the whole entry. What
decides on four candidates, all similar enough, guards included: with prompts that were not seen
before, all of them and up to the one that is served, where a hit ends; with candidates that were;
and with entries that keep signatures in place of prompts.
Medians, in µs. Beside them stands what the standard library takes, on the same machine, for the
least that anybody has to do: SHA-256 over the messages as sorted JSON, and `json.loads` of the
answer. The bounds are those that the product was built to, on a machine where a bare `GET` takes
70 µs.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from itertools import count
from typing import Any

from openai import AsyncOpenAI

from benchmarks.correctness import speed
from benchmarks.micro.settings import Micro, Row, Settings
from llm_cache import CacheConfig, LocalEmbedder
from llm_cache._core.codec import decode_entry, encode_entry
from llm_cache._core.hit_policy import ThresholdPolicy
from llm_cache._core.types import Entry
from llm_cache._http.upstream import Upstream
from llm_cache._plan import Planner

_TURNS = 20
_ANSWER_BYTES = 2_000
_DIGEST = "A" * 28


async def run(settings: Settings) -> list[Row]:
    """Measure all of it."""
    repeats = 200 if settings.quick else 5_000
    policy = ThresholdPolicy(LocalEmbedder.similarity_threshold)
    decided = speed.measure(speed.SIMILAR, policy)
    messages, answer = _messages(), _answer()
    return [
        _row(
            f"digest and scope of {_TURNS} messages",
            _median_us(_planned(messages), repeats),
            60,
            _median_us(lambda: _hashed(messages), repeats),
        ),
        _row("the same, of a kind not seen before", _median_us(_planned_anew(messages), repeats)),
        _row(
            "a stored answer of 2 KB, decoded",
            _median_us(_decoded(answer), repeats),
            10,
            _median_us(partial(json.loads, json.dumps(answer)), repeats),
        ),
        _row("decision over 4 candidates, guards included", decided.from_prompts_us, 150),
        _row("the same, up to the first that may be served", decided.to_first_us),
        _row("the same, all four known", decided.from_known_us),
        _row("the same, all four from stored signatures", decided.from_signatures_us),
    ]


def _messages() -> list[dict[str, str]]:
    messages = [{"role": "system", "content": "You are a helpful assistant. " * 4}]
    for turn in range(1, _TURNS):
        role = "user" if turn % 2 else "assistant"
        messages.append({"role": role, "content": f"What is to be said in turn {turn}? " * 6})
    return messages


def _hashed(messages: list[dict[str, str]]) -> bytes:
    return sha256(json.dumps(messages, sort_keys=True).encode()).digest()


def _planned(messages: list[dict[str, str]]) -> Callable[[], object]:
    planner, model = Planner(CacheConfig()), Upstream(AsyncOpenAI(api_key="none"))
    options = {"model": "gpt-4o-mini", "tenant": "acme"}
    return lambda: planner.chat(messages, model, options, {"temperature": 0})


def _planned_anew(messages: list[dict[str, str]]) -> Callable[[], object]:
    planner, model = Planner(CacheConfig()), Upstream(AsyncOpenAI(api_key="none"))
    tenants = map(str, count())
    return lambda: planner.chat(
        messages, model, {"model": "gpt-4o-mini", "tenant": next(tenants)}, {"temperature": 0}
    )


def _answer() -> dict[str, Any]:
    message = {"role": "assistant", "content": "All in good time. " * (_ANSWER_BYTES // 18)}
    return {
        "id": "chatcmpl-9zX8",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 21, "completion_tokens": 400, "total_tokens": 421},
    }


def _decoded(answer: dict[str, Any]) -> Callable[[], object]:
    entry = Entry(
        answer=answer,
        created_s=1_760_000_000.0,
        fresh_until_s=1_760_086_400.0,
        stamp="0" * 32,
        model="gpt-4o-mini",
        tenant="acme",
        tags=("greetings",),
    )
    blob = encode_entry(entry, _DIGEST, compress=False)
    return lambda: decode_entry(blob, _DIGEST)


def _median_us(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def _row(
    what: str, took_us: float, bound_us: float | None = None, library_us: float | None = None
) -> Row:
    library_us = None if library_us is None else round(library_us, 1)
    return {
        "what": what,
        "took_us": round(took_us, 1),
        "library_us": library_us,
        "bound_us": bound_us,
    }


BENCHMARK = Micro(
    name="client",
    run=run,
    about=__doc__,
    columns={
        "": "what",
        "µs": "took_us:.1f",
        "standard library, µs": "library_us:.1f",
        "bound": "bound_us:,",
    },
)
