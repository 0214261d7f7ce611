"""`llm-cache explain`: how a prompt would be answered now, and why."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from llm_cache import CacheConfig, Explanation, LLMCache, Neighbour
from llm_cache.cli.caches import Models, cache_for
from llm_cache.cli.options import (
    NAMESPACE,
    AsJson,
    BaseUrl,
    Local,
    Model,
    Namespace,
    RedisUrl,
    Semantic,
    System,
    Tenant,
    Threshold,
    refuse_missing_directory,
)
from llm_cache.cli.screen import Screen, print_json, status_style
from llm_cache.config import redis_url_from_env

_SHOWN_CHARS = 400
"""Longer texts are cut for the terminal; JSON has the whole."""

Param = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        metavar="NAME=JSON",
        help="A parameter of the request, as temperature=0; may be repeated.",
        show_default=False,
    ),
]


def explain(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What would be asked.")],
    *,
    redis_url: RedisUrl = None,
    model: Model = None,
    system: System = None,
    base_url: BaseUrl = None,
    local: Local = False,
    param: Param = None,
    tenant: Tenant = None,
    semantic: Semantic = True,
    threshold: Threshold = None,
    namespace: Namespace = NAMESPACE,
    as_json: AsJson = False,
) -> None:
    """Tell how PROMPT would be answered now, and why: hit or miss, key, scope, candidates.

    No chat model is asked and no answer is stored; with the semantic layer PROMPT is embedded.
    Two requests share answers only where their scopes are equal: compare what these are made of.
    """
    models = Models(model, base_url, is_local=local)
    config = models.make_config(
        system=system, namespace=namespace, semantic=semantic, similarity_threshold=threshold
    )
    params = params_of(param or ())
    refuse_missing_directory(redis_url_from_env() if redis_url is None else redis_url)
    screen = Screen(live=not as_json)
    with screen.busy("looking"):
        told = asyncio.run(
            _explain(prompt, {"tenant": tenant, **params}, models, redis_url, config)
        )
    if as_json:
        print_json(asdict(told))
    else:
        _tell(told, screen)


async def _explain(
    prompt: str, options: Mapping[str, Any], models: Models, url: str | None, config: CacheConfig
) -> Explanation:
    async with cache_for(models, url, config, hooks=(), asks_chat=False) as (cache, defaults):
        return await cache.explain(prompt, **{**defaults, **options})


def params_of(given: Iterable[str]) -> dict[str, Any]:
    """Return what the model is called with, of texts like `temperature=0`."""
    ours = inspect.signature(LLMCache.chat).parameters
    params = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"--param takes NAME=JSON; got {text!r}")
        if name in ours:
            raise typer.BadParameter(f"--param: {name} is no parameter that the model is sent")
        try:
            params[name] = json.loads(value)
        except ValueError:
            raise typer.BadParameter(
                f"--param {name}: {value!r} is not JSON, where text stands in double quotes"
            ) from None
    return params


def _tell(told: Explanation, screen: Screen) -> None:
    status = Text(told.status, status_style(told.status))
    screen.fact("status", Text.assemble(status, f": {told.reason}"))
    parts = told.parts
    screen.line()
    screen.fact("scope", told.scope)
    screen.fact("tenant", _named(parts["tenant"]))
    screen.fact("cache_version", _named(parts["cache_version"]))
    screen.fact("base URL", shown(parts["base_url"]))
    screen.fact("model", shown(parts["model"]))
    screen.fact("messages", Text("\n").join(map(_message, parts["messages"])))
    for name in ("body", "headers", "query"):
        screen.fact(name, _named(parts[name] and json.dumps(parts[name], ensure_ascii=False)))
    screen.line()
    screen.fact("key", told.key)
    screen.fact("prompt", shown(parts["normalized"]))
    screen.fact("normalization", parts["normalization"])
    screen.line()
    if told.compared is None:
        screen.fact("compared", _dim("nothing: the semantic layer takes no part"))
        return
    screen.fact("compared", shown(told.compared))
    screen.fact("policy", shown(told.policy or "none"))
    if told.neighbours:
        screen.line()
        _tell_candidates(told.neighbours, screen)
    else:
        screen.fact("candidates", _dim("none: nothing comparable is stored in this scope"))


def _tell_candidates(candidates: Sequence[Neighbour], screen: Screen) -> None:
    width = max(len(candidate.verdict) for candidate in candidates)
    screen.line((f"similarity  {'verdict':<{width}}  prompt", "bold"))
    for candidate in candidates:
        style = status_style("semantic") if candidate.verdict == "served" else ""
        row = Text(f"{candidate.similarity:>10.3f}  {candidate.verdict:<{width}}  ", style)
        screen.hanging(row, _named(candidate.prompt, otherwise="not kept"))


def _message(message: Mapping[str, Any]) -> Text:
    """Return a message of the scope; in that of the prompt a number stands for its text."""
    content = message["content"]
    said = shown(content) if isinstance(content, str) else _dim("any prompt")
    return Text.assemble(f"{message['role']}: ", said)


def _named(value: str | None, *, otherwise: str = "none") -> Text:
    return shown(value) if value else _dim(otherwise)


def shown(text: str, *, most_chars: int = _SHOWN_CHARS) -> Text:
    """Return *text*, anybody's, without what a terminal might obey, and not too long."""
    cut = text if len(text) <= most_chars else f"{text[: most_chars - 1]}…"
    return Text("".join([c if c.isprintable() or c == "\n" else "\ufffd" for c in cut]))


def _dim(text: str) -> Text:
    return Text(text, "dim")
