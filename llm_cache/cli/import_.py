"""`llm-cache import`: stored answers, out of a file of `llm-cache export`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llm_cache import CacheConfig, LLMCache
from llm_cache.cli.caches import Models, cache_for
from llm_cache.cli.export import PATIENCE_S
from llm_cache.cli.options import (
    NAMESPACE,
    AsJson,
    BaseUrl,
    Local,
    Namespace,
    RedisUrl,
    make_config,
    without_secrets,
)
from llm_cache.cli.progress import counting
from llm_cache.cli.screen import Screen, print_json
from llm_cache.config import redis_url_from_env
from llm_cache.transfer import ExportInfo, Imported, import_entries, inspect_export


class VectorsFrom(StrEnum):
    """Where the vectors of semantic entries come from."""

    FILE = "file"
    EMBED = "embed"
    NONE = "none"


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What an export has written.")],
    *,
    redis_url: RedisUrl = None,
    vectors: Annotated[
        VectorsFrom,
        typer.Option(
            "--vectors",
            help="Take them from FILE, embed the prompts anew, or leave rephrased questions out.",
        ),
    ] = VectorsFrom.FILE,
    base_url: BaseUrl = None,
    local: Local = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace newer answers that are there, too.")
    ] = False,
    revive: Annotated[
        bool,
        typer.Option(
            "--revive", help="Bring back what was invalidated in this Redis since the export."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check FILE and tell what it holds, no more.")
    ] = False,
    namespace: Namespace = NAMESPACE,
    as_json: AsJson = False,
) -> None:
    """Store the answers in FILE, each until it would have expired.

    All of FILE is checked before the first answer is written. Newer answers that are there stay;
    an import may be repeated, and goes on where it was interrupted.
    """
    with counting("checking", live=not as_json) as on_progress:
        info = inspect_export(file, on_progress=on_progress)
    screen = Screen(live=not as_json)
    if not as_json:
        _tell_file(info, screen)
    if dry_run:
        if as_json:
            print_json({**asdict(info), "path": str(file)})
        return
    url = redis_url_from_env() if redis_url is None else redis_url
    embeds = vectors is VectorsFrom.EMBED
    config = make_config(
        namespace=namespace,
        semantic=embeds,
        redis_timeout_s=PATIENCE_S,
        added_latency_budget_s=PATIENCE_S,
    )
    models = Models(None, base_url, is_local=local) if embeds else None
    with counting("importing", total=info.lines, live=not as_json) as on_progress:
        imported = asyncio.run(
            _import(
                _cache(url, config, models),
                info,
                vectors,
                on_progress,
                replace_newer=replace,
                revive=revive,
            )
        )
    if as_json:
        print_json(asdict(imported))
    else:
        _tell(imported, screen, namespace, url)


async def _import(
    opening: AbstractAsyncContextManager[LLMCache],
    info: ExportInfo,
    vectors: VectorsFrom,
    on_progress: Callable[[int], None],
    **options: bool,
) -> Imported:
    async with opening as cache:
        return await import_entries(
            cache,
            info.path,
            info=info,
            vectors=vectors.value,
            on_progress=on_progress,
            **options,
        )


@asynccontextmanager
async def _cache(url: str, config: CacheConfig, models: Models | None) -> AsyncIterator[LLMCache]:
    """Make a cache; without models, neither a key nor a service is needed."""
    if models is None:
        async with LLMCache(url, config=config) as cache:
            yield cache
        return
    async with cache_for(models, url, config, hooks=(), asks_chat=False) as (cache, _):
        yield cache


def _tell_file(info: ExportInfo, screen: Screen) -> None:
    limit = "" if info.tenant is None else f", of the tenant {info.tenant} alone"
    screen.fact("file", f"{info.path}, from the namespace {info.namespace}{limit}")
    screen.fact("answers", f"{info.answers:,}")
    screen.fact("aliases", f"{info.aliases:,}")
    for space, count in info.spaces.items():
        name = info.embedders.get(space)
        screen.fact("vectors", f"{count:,} of {name or 'the embedder'} ({space})")
    if info.without_vectors:
        screen.fact("no vectors", f"{info.without_vectors:,} semantic entries")


def _tell(imported: Imported, screen: Screen, namespace: str, url: str) -> None:
    screen.line((f"into {namespace} at {without_secrets(url)}", "dim"))
    if imported.resumed_after:
        screen.fact("went on", f"after {imported.resumed_after:,} answers")
    screen.fact("written", f"{imported.written:,}, with {imported.semantic:,} semantic entries")
    if imported.embedded:
        screen.fact("embedded", f"{imported.embedded:,} prompts")
    if imported.unplaced:
        screen.fact("left out", f"{imported.unplaced:,} semantic entries that cannot be embedded")
    for label, count, why in (
        ("present", imported.present, "the same or a newer answer is there"),
        ("expired", imported.expired, "their time is over"),
        ("invalidated", imported.invalidated, "since the export; --revive brings them back"),
    ):
        if count:
            screen.fact(label, f"{count:,}: {why}")
