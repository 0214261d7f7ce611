"""A clock that moves when told to, and a hook that remembers what it heard."""

from __future__ import annotations

from typing import Any, TypeVar

EventT = TypeVar("EventT")


class FakeClock:
    """A clock for injected time: calling it returns seconds, `advance` moves it.

    It stands in for `time.time` as well as for `time.monotonic`. A negative duration is allowed,
    since wall clocks are set back in real life.
    """

    def __init__(self, start: float = 1_750_000_000.0) -> None:
        self._now_s = float(start)

    def __call__(self) -> float:
        """Return the present, in seconds."""
        return self._now_s

    def advance(self, duration_s: float) -> None:
        """Let *duration_s* pass."""
        self._now_s += duration_s


class RecordingHook:
    """An event hook that keeps every event, in the order of their arrival."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def __call__(self, event: object) -> None:
        """Keep *event*."""
        self.events.append(event)

    def of(self, event_type: type[EventT]) -> list[EventT]:
        """Return the events of one type, subclasses included."""
        return [event for event in self.events if isinstance(event, event_type)]

    @property
    def last(self) -> Any:
        """The event heard most recently.

        Raises:
            LookupError: none was heard.
        """
        if not self.events:
            raise LookupError("no event was heard")
        return self.events[-1]
