"""`python -m benchmarks micro`: run micro benchmarks by name, print and keep the results."""

from __future__ import annotations

import argparse
import asyncio
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.micro import (
    client,
    concurrent,
    encryption,
    exact,
    growth,
    hooks,
    imports,
    lag,
    line,
    loops,
    memory,
    peers,
    plans,
    recall,
    salting,
    semantic,
    store,
    stream,
    variants,
)
from benchmarks.micro.settings import (
    Micro,
    MissingData,
    Row,
    Settings,
    record,
    server_versions,
    table,
    write,
)
from llm_cache import CacheConfig, LLMCache, LocalEmbedder

REGISTRY: dict[str, Micro] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (
        *(
            exact,
            client,
            hooks,
            encryption,
            concurrent,
            semantic,
            store,
            memory,
            imports,
            recall,
            stream,
            lag,
        ),
        *(line, loops, peers, plans, variants, salting, growth),
    )
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    defaults = Settings()
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(REGISTRY)}; default: the short")
    parser.add_argument("--redis-url", default=defaults.url, help="default: an embedded server")
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--cache", type=Path, default=defaults.cache, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--deadline-s", type=float, default=defaults.deadline_s)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--uvloop", action="store_true", help="on uvloop, if it is installed")
    parser.add_argument("--write", type=Path, metavar="DIR", help="keep results as DIR/NAME.json")


def run(arguments: argparse.Namespace) -> int:
    """Run what was asked for; return the exit status."""
    unknown = set(arguments.names) - set(REGISTRY)
    if unknown:
        print(f"no such micro benchmark: {', '.join(sorted(unknown))}")
        print(f"there are {', '.join(REGISTRY)}")
        return 2
    names = arguments.names or [name for name, micro in REGISTRY.items() if not micro.is_long]
    settings = Settings(
        url=arguments.redis_url,
        data=arguments.data,
        cache=arguments.cache,
        seed=arguments.seed,
        quick=arguments.quick,
        deadline_s=arguments.deadline_s,
    )
    work = _run(names, settings, arguments.write)
    if not arguments.uvloop:
        return asyncio.run(work)
    import uvloop

    status: int = uvloop.run(work)
    return status


async def _run(names: Sequence[str], settings: Settings, folder: Path | None) -> int:
    print(f"Python {platform.python_version()} on {platform.system()}, {settings.url}")
    server = await _server(settings.url)
    for name in names:
        micro = REGISTRY[name]

        def keep(rows: Sequence[Row], name: str = name) -> None:
            if folder is not None:
                write(folder / f"{name}.json", record(name, rows, settings, server))

        print(f"\n{name}", flush=True)
        try:
            rows = await micro.run(replace(settings, keep=keep))
        except MissingData as missing:
            print(f"skipped: {missing}")
            continue
        keep(rows)
        print(table(micro.columns, rows), flush=True)
    return 0


async def _server(url: str) -> Row:
    # The cache is what can start an embedded server.
    async with LLMCache(
        url, embedder=LocalEmbedder(), config=CacheConfig(semantic=False)
    ) as cache:
        return await server_versions(cache.redis_url)
