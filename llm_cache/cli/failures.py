"""What went wrong, in words for the terminal."""

from __future__ import annotations

import sys

from llm_cache.errors import LLMCacheError
from llm_cache.events import DependencyFailed, Event


def explain(error: Exception) -> str | None:
    """Return what to tell of an *error* that is to be expected, `None` for one that is a bug."""
    if isinstance(error, LLMCacheError):
        return str(error)
    # Importing the SDK takes half a second; where nobody has, it has raised nothing.
    openai = sys.modules.get("openai")
    if openai is not None and isinstance(error, openai.OpenAIError):
        return f"the model's service failed: {type(error).__name__}: {error}"
    return None


class LastFailure:
    """An event hook that keeps the last failure until it is taken."""

    def __init__(self) -> None:
        self._message: str | None = None

    def __call__(self, event: Event, /) -> None:
        """Keep *event* if it tells of a failure."""
        if isinstance(event, DependencyFailed):
            self._message = f"{event.dependency}: {event.error}"

    def take(self) -> str | None:
        """Return what failed since the last time, if anything did."""
        message, self._message = self._message, None
        return message
