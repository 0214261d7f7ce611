"""What `import llm_cache` costs, beside `import numpy, redis.asyncio`, which it cannot do without.

Fresh interpreters in turn; the time is that of the import statement alone, inside them. The
modules are those that must not be there yet, and are.
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
import {what}
print(time.perf_counter() - start, *[name for name in {later!r} if name in sys.modules])
"""


async def run(settings: Settings) -> list[Row]:
    """Import both, in turn."""
    times: dict[str, list[float]] = {"numpy, redis.asyncio": [], "llm_cache": []}
    loaded: Sequence[str] = ()
    for _ in range(4 if settings.quick else _REPEATS):
        for what, seconds in times.items():
            took, *loaded = await _import(what)
            seconds.append(float(took))
    floor, ours = (statistics.median(seconds) for seconds in times.values())
    best_floor, best_ours = (min(seconds) for seconds in times.values())
    return [
        {
            "floor_ms": floor * 1e3,
            "ours_ms": ours * 1e3,
            "ratio": ours / floor,
            "best_ratio": best_ours / best_floor,
            "loaded": ", ".join(loaded) or "none",
        }
    ]


async def _import(what: str) -> list[str]:
    code = _TIMED.format(what=what, later=_LATER)
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
        "import numpy, redis.asyncio, ms": "floor_ms:.0f",
        "import llm_cache, ms": "ours_ms:.0f",
        "ratio of medians": "ratio:.2f",
        "ratio of the fastest": "best_ratio:.2f",
        "loaded too early": "loaded",
    },
)
