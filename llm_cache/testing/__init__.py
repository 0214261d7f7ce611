"""Doubles that take the place of mocks, for our tests and for yours.

- `ScriptedUpstream` is a small OpenAI-compatible server on loopback: the real SDK talks to it over
  real sockets, and a test decides what it answers, when, and how it breaks.
- `FakeEmbedder` makes deterministic vectors without a model, with exact geometry where a test
  needs it.
- `FakeClock` is time that moves when told to; `RecordingHook` keeps the events it hears.

`python -m llm_cache.testing` serves a `ScriptedUpstream` from a process of its own, for load
tests.
"""

from __future__ import annotations

from llm_cache.testing._answers import Answer, Choice, Quirks, expected_answer, tool_call
from llm_cache.testing._embedder import FakeEmbedder
from llm_cache.testing._recorders import FakeClock, RecordingHook
from llm_cache.testing._upstream import RecordedRequest, ScriptedUpstream

__all__ = [
    "Answer",
    "Choice",
    "FakeClock",
    "FakeEmbedder",
    "Quirks",
    "RecordedRequest",
    "RecordingHook",
    "ScriptedUpstream",
    "expected_answer",
    "tool_call",
]
