"""The same exact hits on asyncio's own event loop and on uvloop.

One caller at a time, beside a bare `GET`, and 100 callers on 2,000 keys. Each loop in a process of
its own, in turn.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from benchmarks.micro import concurrent, exact
from benchmarks.micro.settings import Micro, Row, Settings

_ROOT = Path(__file__).parents[2]
_LOOPS = ("asyncio", "uvloop")
_ROUNDS = 3
_CALLERS = 100


async def run(settings: Settings) -> list[Row]:
    """Measure on both, or say that there is no uvloop here."""
    loops = [name for name in _LOOPS if find_spec(name)]
    found: dict[str, list[Row]] = {name: [] for name in loops}
    for _ in range(1 if settings.quick else _ROUNDS):
        for name in loops:
            found[name].append(await _in_process(name, settings))
    rows = [_medians(name, found[name]) for name in loops]
    for row in rows:
        row["times"] = row["chats_per_s"] / rows[0]["chats_per_s"]
    return rows + [{"loop": f"{name}: not installed"} for name in _LOOPS if name not in loops]


def _medians(loop: str, figures: list[Row]) -> Row:
    return {
        "loop": loop,
        **{name: statistics.median(each[name] for each in figures) for name in figures[0]},
    }


async def _in_process(loop: str, settings: Settings) -> Row:
    size = "quick" if settings.quick else "full"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.micro.loops", loop, settings.url, size),
        cwd=_ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the measurement on {loop} ended with {process.returncode}")
    figures: Row = json.loads(output)
    return figures


async def _measure(settings: Settings) -> Row:
    alone = await exact.measure(settings.url, repeats=500 if settings.quick else 5_000)
    crowd = await concurrent.measure(settings, (_CALLERS,))
    chats = next(row for row in crowd if row["what"] == "chat")
    return {
        "chat_us": alone.chat_us,
        "get_us": alone.get_us,
        "chats_per_s": chats["per_s"],
        "gets_per_s": chats["get_per_s"],
    }


def _main() -> None:
    loop, url, size = sys.argv[1:]
    # Both have a `run`.
    work = _measure(Settings(url=url, quick=size == "quick"))
    print(json.dumps(import_module(loop).run(work)))


BENCHMARK = Micro(
    name="loops",
    run=run,
    about=__doc__,
    columns={
        "event loop": "loop",
        "chat() p50 µs": "chat_us:.0f",
        "bare GET p50 µs": "get_us:.0f",
        "chat()/s, 100 callers": "chats_per_s:,.0f",
        "bare GETs/s, 100 callers": "gets_per_s:,.0f",
        "times asyncio's": "times:.2f",
    },
)


if __name__ == "__main__":
    _main()
