"""What a call returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llm_cache._core.types import CacheStatus, Completion

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReply:
    """An answer and how it was come by. Unpacks into `(text, status)`."""

    status: CacheStatus
    """How the call ended."""
    key: str | None
    """Redis key of the entry the answer is stored under; `None` when it is not stored. For an
    answer that was promoted from a semantic hit, the key of the original."""
    data: Completion = field(repr=False)
    """The completion as JSON, as the provider sent it."""
    similarity: float | None = None
    """Cosine similarity between this prompt and the one that was answered; `None` unless the
    answer came, now or when it was promoted, through the semantic layer."""
    age_s: float = 0.0
    """Seconds since the answer was stored; 0 for a fresh one."""
    origin: str | None = None
    """Key of the entry that this answer is a promoted copy of."""
    shared: bool = False
    """Whether another call, under way at the same time, asked the model for this one too."""
    reason: str | None = None
    """Why the call was bypassed (`redis`, `embedder`, …), or why its answer was not stored."""

    @property
    def text(self) -> str:
        """Text of the first choice; empty where it has none (tool calls, say)."""
        choices = self.data.get("choices") or [{}]
        return (choices[0].get("message") or {}).get("content") or ""

    @property
    def usage(self) -> dict[str, Any] | None:
        """Token counts of the original answer, as the provider reported them."""
        return self.data.get("usage")

    @property
    def completion(self) -> ChatCompletion:
        """The SDK's object, built anew at each access."""
        from openai.types.chat import ChatCompletion

        return ChatCompletion.construct(**self.data)

    def __iter__(self) -> Iterator[Any]:
        """Yield text and status."""
        yield self.text
        yield self.status
