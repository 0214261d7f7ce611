"""An embedding beside the call that needs it: it may come in time for the search, or later."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from llm_cache._background import Background, done_within
from llm_cache._budget import Budget
from llm_cache._core.breaker import State
from llm_cache._deadline import now_s
from llm_cache._embedding import blames_text
from llm_cache._flight import UNDER_WAY
from llm_cache._health import Guard
from llm_cache._semantic import Place
from llm_cache.errors import CacheClosed, EmbedderError, LLMCacheError


class Placing:
    """Finds out where a prompt stands, while its call goes on.

    Raises:
        DependencySkipped: the embedder is not to be asked now; nothing was begun.
    """

    def __init__(
        self, locate: Coroutine[Any, Any, Place | None], guard: Guard, background: Background
    ) -> None:
        self._guard = guard
        try:
            self._ticket = guard.admit()
        except BaseException:
            locate.close()
            raise
        self._began_s = now_s()
        self._task = background.spawn(locate, name="embed")
        self._task.add_done_callback(self._ended)

    @property
    def is_under_way(self) -> bool:
        """Whether it is not known yet."""
        return not self._task.done()

    @property
    def place(self) -> Place | None:
        """Where the prompt stands, if that is known by now."""
        task = self._task
        is_known = task.done() and not task.cancelled() and task.exception() is None
        return task.result() if is_known else None

    @property
    def error(self) -> EmbedderError | None:
        """Why that will not be known, if the embedder has failed by now."""
        task = self._task
        error = task.exception() if task.done() and not task.cancelled() else None
        return error if isinstance(error, EmbedderError) else None

    async def arrived(self, budget: Budget | None = None) -> Place | None:
        """Return where the prompt stands, when that is known. One who is cancelled only leaves.

        Raises:
            EmbedderError: the embedder failed.
            CacheClosed: the cache was closed.
        """
        try:
            await asyncio.wait([self._task])
        except asyncio.CancelledError:
            # A probe is not given up with its call: it says by itself how it ends.
            if budget is not None and budget.is_spent and self._guard.state == State.CLOSED:
                self._guard.used_up(self._ticket, now_s() - self._began_s)
            raise
        if self._task.cancelled():
            raise CacheClosed(UNDER_WAY)
        error = self._task.exception()
        if isinstance(error, Exception) and not isinstance(error, LLMCacheError):
            raise self._guard.broken(error) from error
        return self._task.result()

    async def ended(self, wait_s: float) -> None:
        """Wait until it is known, or known that it will not be; at most *wait_s* seconds."""
        await done_within(self._task, wait_s)

    def cancel(self) -> None:
        """Give it up, if it is still under way."""
        self._task.cancel()

    def _ended(self, task: asyncio.Task[Place | None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, EmbedderError) and not blames_text(error):
            self._guard.failed(self._ticket, error)
        elif task.cancelled() or error is not None or task.result() is None:
            # It was not asked, or nobody knows what it would have said.
            self._guard.left(self._ticket)
        else:
            self._guard.worked(self._ticket)
