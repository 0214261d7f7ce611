"""`llm-cache export`: the stored answers, into a file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llm_cache import CacheConfig, LLMCache
from llm_cache.cli.options import (
    NAMESPACE,
    AsJson,
    Namespace,
    RedisUrl,
    make_config,
    refuse_missing_directory,
    without_secrets,
)
from llm_cache.cli.progress import counting
from llm_cache.cli.screen import Screen, print_json, size
from llm_cache.config import redis_url_from_env
from llm_cache.transfer import Exported, export_entries

PATIENCE_S = 30.0
"""Most seconds for one round trip of a command that moves many answers at once."""


def export(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What to write; packed if it ends in .gz.")
    ],
    *,
    redis_url: RedisUrl = None,
    tenant: Annotated[
        str | None,
        typer.Option("--tenant", metavar="NAME", help="This one's answers alone."),
    ] = None,
    vectors: Annotated[
        bool,
        typer.Option("--vectors/--no-vectors", help="Whether vectors are written, too."),
    ] = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with FILE.part, where an export stopped.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace FILE, and begin FILE.part anew.")
    ] = False,
    namespace: Namespace = NAMESPACE,
    as_json: AsJson = False,
) -> None:
    """Write all stored answers to FILE, with their prompts, vectors and expiry.

    Prompts and answers are in FILE in clear; it is made readable by you alone. It appears when it
    is complete: until then it is FILE.part. Neither models nor a key are needed.
    """
    if tenant == "":
        raise typer.BadParameter("--tenant must be a name")
    url = redis_url_from_env() if redis_url is None else redis_url
    refuse_missing_directory(url)
    config = make_config(
        namespace=namespace,
        semantic=False,
        redis_timeout_s=PATIENCE_S,
        added_latency_budget_s=PATIENCE_S,
    )
    with counting("exporting", live=not as_json) as on_progress:
        exported = asyncio.run(
            _export(
                url,
                config,
                file,
                {} if tenant is None else {"tenant": tenant},
                on_progress,
                vectors=vectors,
                resume=resume,
                overwrite=force,
            )
        )
    if as_json:
        size_bytes = file.stat().st_size
        print_json({**asdict(exported), "path": str(file), "size_bytes": size_bytes})
        return
    _tell(exported, Screen(), namespace, url)


async def _export(
    url: str,
    config: CacheConfig,
    file: Path,
    limits: dict[str, str],
    on_progress: Callable[[int], None],
    **options: bool,
) -> Exported:
    async with LLMCache(url, config=config) as cache:
        return await export_entries(cache, file, on_progress=on_progress, **limits, **options)  # type: ignore[arg-type]


def _tell(exported: Exported, screen: Screen, namespace: str, url: str) -> None:
    screen.line((f"{namespace} at {without_secrets(url)}", "dim"))
    screen.fact("answers", f"{exported.answers:,}")
    screen.fact("aliases", f"{exported.aliases:,}")
    screen.fact("semantic", f"{exported.semantic:,} entries")
    if exported.unreadable:
        screen.fact("left out", f"{exported.unreadable:,} that this release cannot read")
    screen.fact("file", f"{exported.path}, {size(exported.path.stat().st_size)}")
    screen.line(("Prompts and answers are in it in clear. Only you may read it.", "yellow"))
