"""What importing the cache costs, beside what it cannot do without: numpy and redis.asyncio.

Fresh interpreters in turn; the time is that of the import statement alone, inside them. The
package imports a name when it is asked for, so that `import llm_cache` alone is nearly nothing;
whoever makes a cache pays for `LLMCache`. The modules are those that must not be there yet, and
are.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Sequence

from benchmarks.micro.settings import Micro, Row, Settings

_REPEATS = 40
_LATER = ("openai", "tiktoken", "onnxruntime", "tokenizers", "pydantic")
_TIMED = """
import sys, time
start = time.perf_counter()
{statement}
print(time.perf_counter() - start, *[name for name in {later!r} if name in sys.modules])
"""


_FLOOR = "import numpy, redis.asyncio"
_OURS = ("import llm_cache", "from llm_cache import LLMCache")


async def run(settings: Settings) -> list[Row]:
    """Import all, in turn."""
    times: dict[str, list[float]] = {statement: [] for statement in (_FLOOR, *_OURS)}
    loaded: dict[str, Sequence[str]] = {}
    for _ in range(4 if settings.quick else _REPEATS):
        for statement, seconds in times.items():
            took, *loaded[statement] = await _import(statement)
            seconds.append(float(took))
    floor = times[_FLOOR]
    return [
        {
            "what": statement,
            "floor_ms": statistics.median(floor) * 1e3,
            "ours_ms": statistics.median(times[statement]) * 1e3,
            "ratio": statistics.median(times[statement]) / statistics.median(floor),
            "best_ratio": min(times[statement]) / min(floor),
            "loaded": ", ".join(loaded[statement]) or "none",
        }
        for statement in _OURS
    ]


async def _import(statement: str) -> list[str]:
    code = _TIMED.format(statement=statement, later=_LATER)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return output.decode().split()


BENCHMARK = Micro(
    name="imports",
    run=run,
    about=__doc__,
    columns={
        "": "what",
        "ms": "ours_ms:.0f",
        "import numpy, redis.asyncio, ms": "floor_ms:.0f",
        "ratio of medians": "ratio:.2f",
        "ratio of the fastest": "best_ratio:.2f",
        "loaded too early": "loaded",
    },
)
