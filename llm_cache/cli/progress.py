"""How far a long command has come, on stderr, where that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextmanager
def counting(
    what: str, *, total: int | None = None, live: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show how many of *total* are done; yields what is to be told the number."""
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}", style="dim"), MofNCompleteColumn()]
    if total is None:
        columns = [SpinnerColumn(style="dim"), *columns, TimeElapsedColumn()]
    else:
        columns = [*columns, BarColumn(), TimeRemainingColumn(elapsed_when_finished=True)]
    shown = live and console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.update(task, completed=count)
