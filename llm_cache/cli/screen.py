"""Writing to the terminal: one look for all commands."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from rich.console import Console
from rich.text import Text

from llm_cache import CacheStatus

_T = TypeVar("_T")
# Logs, pipes and containers have no width of their own, and need not be folded to 80 columns.
_UNKNOWN_WIDTH = 120
_STYLES = {
    CacheStatus.EXACT: "green",
    CacheStatus.SEMANTIC: "cyan",
    CacheStatus.STALE: "magenta",
    CacheStatus.MISS: "yellow",
    CacheStatus.BYPASS: "red",
}
_LABEL_WIDTH = 14


class Screen:
    """Standard output. `NO_COLOR`, and output that is no terminal, switch colours off.

    Args:
        live: Whether something may move: a terminal that nobody has asked to be plain.
    """

    def __init__(self, *, live: bool = True) -> None:
        self._console = Console(highlight=False)
        if not self._console.is_terminal:
            self._console = Console(highlight=False, width=max(_UNKNOWN_WIDTH, _columns()))
        self._live = live and self._console.is_terminal

    @property
    def width(self) -> int:
        """Columns that fit on a line."""
        return self._console.width

    def line(self, *parts: str | tuple[str, str]) -> None:
        """Print texts, or pairs of text and style, as one line."""
        self._console.print(Text.assemble(*parts), soft_wrap=True)

    def print(self, what: str | Text) -> None:
        """Print *what* as it is, in a terminal folded between words."""
        self._console.print(what, markup=False, soft_wrap=not self._console.is_terminal)

    def fact(self, label: str, value: str | Text) -> None:
        """Print *value* beside its label."""
        prefix = Text.assemble((f"{label:<{_LABEL_WIDTH}}", "bold"))
        self.hanging(prefix, Text(value) if isinstance(value, str) else value)

    def hanging(self, prefix: Text, text: Text) -> None:
        """Print *prefix*, and *text* folded to its right."""
        width = max(20, self.width - len(prefix))
        for number, line in enumerate(text.wrap(self._console, width)):
            row = (Text(" " * len(prefix)) if number else prefix) + line
            row.rstrip()
            self._console.print(row, soft_wrap=True)

    def clear(self) -> None:
        """Begin anew at the top, where something may move."""
        if self._live:
            self._console.clear()

    def busy(self, what: str) -> AbstractContextManager[object]:
        """Show that *what* is under way, where something may move."""
        if not self._live:
            return nullcontext()
        return self._console.status(Text(f"{what} …", style="dim"), spinner_style="dim")

    async def loaded(self, label: str, what: str, opening: Awaitable[_T]) -> _T:
        """Await *opening* under a spinner, then print what was made ready and how long it took."""
        started_s = time.perf_counter()
        with self.busy(f"{label}: {what}"):
            opened = await opening
        took = seconds(time.perf_counter() - started_s)
        self.line((f"{label:<{_LABEL_WIDTH}}", "bold"), what, (f"  {took}", "dim"))
        return opened


def status_style(status: str) -> str:
    """Return the colour of a status."""
    return _STYLES[CacheStatus(status)]


def print_json(value: Any) -> None:
    """Print *value* as one line of JSON."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def complain(message: str) -> None:
    """Print *message* in red on stderr."""
    console = Console(stderr=True, highlight=False)
    console.print(Text(f"llm-cache: {message}", style="red"), soft_wrap=True)


def seconds(duration_s: float) -> str:
    """Return a duration of up to minutes with three digits: `0.85 ms`, `42.1 ms`, `1.24 s`."""
    if duration_s >= 0.9995:
        return f"{duration_s:.2f} s" if duration_s < 99.995 else f"{duration_s:.0f} s"
    milliseconds = 1000 * duration_s
    decimals = 2 if milliseconds < 9.995 else 1 if milliseconds < 99.95 else 0
    return f"{milliseconds:.{decimals}f} ms"


def age(duration_s: float) -> str:
    """Return how long ago something was, in the whole of its largest unit."""
    for unit, size_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if duration_s >= size_s:
            return f"{duration_s // size_s:.0f} {unit}"
    return f"{duration_s // 1:.0f} s"


def size(size_bytes: float) -> str:
    """Return a number of bytes as people write it."""
    for unit in ("B", "KB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} GB"


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size((0, 0)).columns
