"""The same work on many seeds, over several processes: every seed has a result of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""Yields what a function returns for each of many values, in their order; `map` is one."""


@contextmanager
def in_processes(workers: int) -> Iterator[Each]:
    """Lend an `Each` that works in so many processes; in this one where that is one."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        yield partial(pool.map, chunksize=4)
