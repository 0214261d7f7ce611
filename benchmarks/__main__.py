"""`python -m benchmarks`: run the benchmarks and print what they measured.

`python -m benchmarks correctness --help` tells of another one: how often hits are right.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import sys
from pathlib import Path

from benchmarks.micro import concurrent, exact, lag, recall, stream


def main() -> None:
    """Parse the arguments and run."""
    if sys.argv[1:2] == ["correctness"]:
        from benchmarks import correctness

        correctness.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--redis-url", default="embedded://", help="default: an embedded server")
    parser.add_argument("--data", type=Path, help="folder with banking77_{train,test}.csv.gz")
    arguments = parser.parse_args()
    if arguments.data is not None and not (arguments.data / "banking77_train.csv.gz").is_file():
        parser.error(f"--data: there is no banking77_train.csv.gz in {arguments.data}")
    sys.exit(asyncio.run(_run(arguments.redis_url, arguments.data)))


async def _run(url: str, data: Path | None) -> int:
    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {url}")
    hit = await exact.measure(url)
    print(
        f"exact hit      chat() p50 {hit.chat_us:.0f} µs, bare GET {hit.get_us:.0f} µs,"
        f" ratio {hit.ratio:.2f}"
    )
    for callers in (100, 1_000):
        many = await concurrent.measure(url, callers=callers)
        print(
            f"exact hits     {callers:,} callers: chat() {many.chat_per_s:,.0f}/s, bare GETs"
            f" {many.get_per_s:,.0f}/s, ratio {many.ratio:.1f}"
        )
    first = await stream.measure(url)
    print(
        f"first token    direct {first.direct_ms:.2f} ms; p50 of what is added: by a whole miss"
        f" {first.miss_added_ms:.2f} ms, by the tee alone {first.tee_added_ms:.2f} ms"
    )
    late = await lag.measure(url)
    print(
        f"loop lag       p50 {late.p50_ms:.2f} ms, p99 {late.p99_ms:.2f} ms, worst"
        f" {late.worst_ms:.1f} ms at {late.lookups_per_s:.0f} look-ups/s with LocalEmbedder"
    )
    layouts = [recall.shared_prompts(url)]
    if data is None:
        print("one scope      skipped: it needs --data with Banking77")
    else:
        layouts.append(recall.one_scope(url, data))
    for layout in layouts:
        result = await layout
        print(
            f"recall         {result.recall:.4f} ({result.found} of {result.queries}) with"
            f" {result.entries:,} entries: {result.layout};"
            f" look-up p50 {result.lookup_ms:.2f} ms, {result.inserts_per_s:,.0f} inserts/s"
        )
    return 0


if __name__ == "__main__":
    main()
