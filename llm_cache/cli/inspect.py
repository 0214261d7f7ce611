"""`llm-cache inspect`: one stored answer, with all that belongs to it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from llm_cache import CacheConfig, LLMCache
from llm_cache._core.types import answer_text
from llm_cache.cli.caches import Models, cache_for
from llm_cache.cli.explain import Param, params_of, shown
from llm_cache.cli.options import (
    NAMESPACE,
    AsJson,
    BaseUrl,
    Local,
    Model,
    Namespace,
    RedisUrl,
    System,
    Tenant,
    refuse_missing_directory,
)
from llm_cache.cli.screen import Screen, age, complain, print_json, size
from llm_cache.config import redis_url_from_env
from llm_cache.inspection import Inspection, StoredStatus, inspect_stored, is_key

_STYLES = {StoredStatus.ALIVE: "green", StoredStatus.FOREIGN: "yellow"}


def inspect(
    what: Annotated[
        str,
        typer.Argument(
            metavar="KEY|PROMPT", help="A Redis key, or what was asked, word for word."
        ),
    ],
    *,
    redis_url: RedisUrl = None,
    model: Model = None,
    system: System = None,
    base_url: BaseUrl = None,
    local: Local = False,
    param: Param = None,
    tenant: Tenant = None,
    answer: Annotated[
        bool, typer.Option("--answer", help="Show the answer and the prompts, too.")
    ] = False,
    namespace: Namespace = NAMESPACE,
    as_json: AsJson = False,
) -> None:
    """Show what is stored under a key, or as the answer to PROMPT.

    KEY is what `chat --json` and `explain` tell, or the key of a semantic entry. A PROMPT needs
    the options it was asked with. Prompts and answers are shown with --answer alone. No model is
    asked, and no TTL changed. Exits with 1 where nothing is stored.
    """
    models = Models(model, base_url, is_local=local)
    config = models.make_config(system=system, namespace=namespace, semantic=False)
    options = {"tenant": tenant, **params_of(param or ())}
    url = redis_url_from_env() if redis_url is None else redis_url
    refuse_missing_directory(url)
    found, key = asyncio.run(_find(what, options, models, url, config))
    if found is None:
        complain(
            f"nothing is stored under {key}; `llm-cache explain` tells what a prompt would get"
        )
        raise typer.Exit(1)
    if as_json:
        print_json(_as_json(found, answer=answer))
    else:
        _tell(found, Screen(), answer=answer)


async def _find(
    what: str, options: Mapping[str, Any], models: Models, url: str, config: CacheConfig
) -> tuple[Inspection | None, str]:
    if is_key(what):
        async with LLMCache(url, config=config) as cache:
            return await inspect_stored(cache, what), what
    async with cache_for(models, url, config, hooks=(), asks_chat=False) as (cache, defaults):
        key = (await cache.explain(what, **{**defaults, **options})).key
        return await inspect_stored(cache, key), key


def _as_json(found: Inspection, *, answer: bool) -> dict[str, Any]:
    told = {**asdict(found), "usage": found.usage}
    if not answer:
        del told["answer"]
        for part in told["semantic"]:
            del part["prompt"]
    return told


def _tell(found: Inspection, screen: Screen, *, answer: bool) -> None:
    style = _STYLES.get(found.status, "red")
    screen.fact("key", found.key)
    screen.fact("status", Text(found.status, style))
    left = f"expires in {age(found.ttl_left_s)}"
    stored = "" if found.age_s is None else f"stored {age(found.age_s)} ago, "
    screen.fact("age", f"{stored}{left}")
    screen.fact("size", size(found.size_bytes))
    if found.age_s is not None:
        screen.fact("model", shown(found.model or "none"))
        screen.fact("tenant", shown(found.tenant or "none"))
        screen.fact("tags", shown(", ".join(found.tags) or "none"))
        for name, value in found.details.items():
            screen.fact(name, shown(_text(value)))
        if found.usage:
            counts = {k: v for k, v in found.usage.items() if isinstance(v, int)}
            screen.fact("usage", ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    if found.origin is not None:
        screen.fact("alias of", f"{found.origin}, similarity {found.similarity or 0:.3f}")
    for part in found.semantic:
        screen.fact("semantic", f"{part.key}, scope {part.scope}")
        if answer:
            screen.fact("", shown(part.prompt or "the prompt is not kept"))
    for key in found.aliases:
        screen.fact("alias", key)
    if answer and found.age_s is not None:
        screen.fact("answer", shown(answer_text(found.answer)))


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
