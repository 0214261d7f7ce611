"""`llm-cache invalidate`: see to it that stored answers are served no more."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

import typer

from llm_cache import CacheConfig, Invalidation, LLMCache
from llm_cache.cli.options import (
    NAMESPACE,
    AsJson,
    Namespace,
    RedisUrl,
    make_config,
    refuse_missing_directory,
)
from llm_cache.cli.screen import Screen, print_json
from llm_cache.config import redis_url_from_env


def _option(name: str, metavar: str, text: str) -> Any:
    return typer.Option(name, metavar=metavar, help=text, show_default=False)


def invalidate(
    *,
    redis_url: RedisUrl = None,
    key: Annotated[
        str | None, _option("--key", "KEY", "One answer, and what was made from it.")
    ] = None,
    tag: Annotated[str | None, _option("--tag", "TAG", "Those with this tag.")] = None,
    dependency: Annotated[
        str | None, _option("--dependency", "NAME", "Those made from it, of any version.")
    ] = None,
    model: Annotated[str | None, _option("--model", "NAME", "Those of this model.")] = None,
    system: Annotated[
        str | None, _option("--system", "TEXT", "Those made under this system prompt.")
    ] = None,
    shared_scope: Annotated[
        str | None, _option("--shared-scope", "NAME", "Those that tenants share under it.")
    ] = None,
    older_than: Annotated[
        float | None, _option("--older-than", "SECONDS", "Those stored longer ago.")
    ] = None,
    pattern: Annotated[
        str | None, _option("--pattern", "GLOB", "Those to prompts like it, with * and ?.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All answers of the namespace.")
    ] = False,
    tenant: Annotated[
        str | None, _option("--tenant", "NAME", "Of one tenant; alone, all of its answers.")
    ] = None,
    no_tenant: Annotated[
        bool, typer.Option("--no-tenant", help="Of calls that name no tenant.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most that a pattern may reach.")
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Let a pattern pass over what has no index.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do it; else only --key does, and others count.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count, with --key too.")
    ] = False,
    namespace: Namespace = NAMESPACE,
    as_json: AsJson = False,
) -> None:
    """Invalidate stored answers: at once, for all workers.

    Say which; only --tenant goes with another. What may reach many is counted and not done, which
    reads them all, until you add --yes. With a tenant_secret, put it into the variable
    LLM_CACHE_TENANT_SECRET. Nothing outside the namespace is touched.
    """
    if tenant is not None and no_tenant:
        raise typer.BadParameter("--tenant and --no-tenant exclude each other")
    whose: dict[str, Any] = {"tenant": None} if no_tenant else {}
    if tenant is not None:
        whose["tenant"] = tenant
    selected = {
        "key": key,
        "tag": tag,
        "dependency": dependency,
        "model": model,
        "system": system,
        "shared_scope": shared_scope,
        "older_than_s": older_than,
        "pattern": pattern,
    }
    if everything and (whose or any(value is not None for value in selected.values())):
        raise typer.BadParameter("--all goes with nothing else")
    is_trial = dry_run or not (yes or key is not None)
    url = redis_url_from_env() if redis_url is None else redis_url
    refuse_missing_directory(url)
    config = make_config(namespace=namespace, semantic=False)
    done = asyncio.run(
        _clear(url, config, dry_run=is_trial)
        if everything
        else _invalidate(
            url,
            config,
            **selected,
            **whose,
            limit=limit,
            allow_partial=allow_partial,
            dry_run=is_trial,
        )
    )
    if as_json:
        print_json(asdict(done))
    else:
        _tell(done, Screen(), needs_yes=is_trial and not dry_run)


async def _invalidate(url: str, config: CacheConfig, **selected: Any) -> Invalidation:
    async with LLMCache(url, config=config) as cache:
        return await _swept(cache, await cache.invalidate(**selected))


async def _clear(url: str, config: CacheConfig, *, dry_run: bool) -> Invalidation:
    async with LLMCache(url, config=config) as cache:
        return await _swept(cache, await cache.clear(dry_run=dry_run))


async def _swept(cache: LLMCache, done: Invalidation) -> Invalidation:
    # In a service this goes on in the background; here nobody else stays to do it.
    await cache._sweeper.settle()  # noqa: SLF001
    return done


def _tell(done: Invalidation, screen: Screen, *, needs_yes: bool) -> None:
    if done.reached is None:
        screen.line("invalidated: none of them is served any more")
        return
    answers = "1 answer" if done.reached == 1 else f"{done.reached:,} answers"
    verb = "would be invalidated" if done.dry_run else "invalidated"
    screen.line(f"{answers} {verb}", "" if done.complete else "; there may be more")
    if needs_yes:
        screen.line("nothing was done; add --yes to do it")
