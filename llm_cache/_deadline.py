"""Deadlines that a busy event loop does not miss for others.

When the loop has stood still, what was waited for may have arrived meanwhile, unread; a timer that
is due at the same moment would give it up all the same. So a deadline lets the loop go round a few
times more, which takes no time where it is idle, and only then gives up.
"""

from __future__ import annotations

import asyncio

_ROUNDS = 3
"""Of the loop: one in which a reply is read, one in which its reader runs, and one to spare."""


def arm(scope: asyncio.Timeout, when_s: float) -> asyncio.TimerHandle:
    """Let *scope*, which has no time of its own, end at *when_s* by the clock of the loop.

    The handle that is returned is to be cancelled when the scope has ended.
    """
    loop = asyncio.get_running_loop()
    return loop.call_at(when_s, _give_up, loop, scope, _ROUNDS)


def _give_up(loop: asyncio.AbstractEventLoop, scope: asyncio.Timeout, rounds: int) -> None:
    if rounds:
        loop.call_soon(_give_up, loop, scope, rounds - 1)
        return
    try:
        scope.reschedule(loop.time())
    except RuntimeError:
        # It has ended in one of these rounds.
        return
