"""`llm-cache doctor`: what is wrong with a set-up, and how to mend it."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import aclosing
from dataclasses import asdict
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from rich.text import Text

from llm_cache import CacheConfig, Embedder, LLMCache, LocalEmbedder, OpenAIEmbedder
from llm_cache.cli.checks import (
    EXTRA_PACKAGES,
    Finding,
    State,
    judge_extras,
    judge_indexes,
    judge_server,
    judge_threshold,
)
from llm_cache.cli.failures import explain
from llm_cache.cli.options import (
    NAMESPACE,
    AsJson,
    Namespace,
    RedisUrl,
    Semantic,
    Threshold,
    make_config,
    refuse_missing_directory,
    without_secrets,
)
from llm_cache.cli.screen import Screen, print_json, seconds
from llm_cache.cli.server import Index, index_name, look_at
from llm_cache.config import openai_key_in_env, redis_url_from_env
from llm_cache.errors import ConfigurationError, LLMCacheError, StoreUnavailable

EXIT_CODES = (
    "Exit codes: 0 no problem (there may be warnings), 1 a problem, 2 wrong usage,"
    " 130 interrupted."
)
_STYLES = {State.OK: "green", State.WARNING: "yellow", State.PROBLEM: "bold red"}
_SAMPLE = "How do I reset my password?"
_EMBED_TIMEOUT_S = 15.0


def doctor(
    *,
    redis_url: RedisUrl = None,
    local: Annotated[
        bool,
        typer.Option("--local", help="Check the local embedder in place of OpenAI's."),
    ] = False,
    semantic: Semantic = True,
    threshold: Threshold = None,
    namespace: Namespace = NAMESPACE,
    as_json: AsJson = False,
) -> None:
    """Check Redis, embedder and index; each problem comes with its fix.

    Nothing is written. One short text is embedded, which with OpenAI costs a fraction of a cent.
    """
    config = make_config(namespace=namespace, semantic=semantic, similarity_threshold=threshold)
    url = redis_url_from_env() if redis_url is None else redis_url
    screen = Screen(live=not as_json)
    with screen.busy("checking"):
        findings = asyncio.run(_examine(url, config, is_local=local))
    if as_json:
        print_json(_as_json(findings))
    else:
        _show(findings, screen)
    raise typer.Exit(1 if any(finding.state is State.PROBLEM for finding in findings) else 0)


async def _examine(url: str, config: CacheConfig, *, is_local: bool) -> list[Finding]:
    findings, indexes = await _examine_redis(url, config)
    if config.semantic:
        about_embedder, embedder, dimensions = await _examine_embedder(is_local=is_local)
        findings.append(about_embedder)
        if indexes is not None and dimensions is not None:
            name = index_name(config.namespace, embedder.model_id, dimensions)
            findings += judge_indexes(indexes, name=name, dimensions=dimensions)
        findings.append(
            judge_threshold(
                config.similarity_threshold,
                default=embedder.similarity_threshold,
                model_id=embedder.model_id,
            )
        )
    else:
        findings.append(Finding("semantic", State.OK, "switched off: exact repeats only"))
    installed = [name for name in EXTRA_PACKAGES if find_spec(name) is not None]
    return [*findings, judge_extras(installed)]


async def _examine_redis(
    url: str, config: CacheConfig
) -> tuple[list[Finding], tuple[Index, ...] | None]:
    """Return what there is to say about Redis, and the indexes of the namespace if it answers."""
    if url.startswith("embedded:"):
        return await _examine_embedded(url, config)
    try:
        LLMCache(url, config=config)  # contacts nothing, and knows which URLs can work
    except ConfigurationError as error:
        return [
            Finding("redis", State.PROBLEM, str(error), "correct --redis-url or REDIS_URL")
        ], None
    try:
        server = await look_at(url, config.namespace)
    except StoreUnavailable as error:
        return [
            Finding(
                "redis",
                State.PROBLEM,
                f"nothing usable at {without_secrets(url)}: {error}",
                "check the URL and the password, or start one: `docker compose up -d redis`",
            )
        ], None
    reached = Finding("redis", State.OK, without_secrets(url))
    return [reached, *judge_server(server, semantic=config.semantic)], server.indexes


async def _examine_embedded(
    url: str, config: CacheConfig
) -> tuple[list[Finding], tuple[Index, ...] | None]:
    started_s = time.perf_counter()
    exact_only = CacheConfig(namespace=config.namespace, semantic=False)
    try:
        refuse_missing_directory(url)
        async with LLMCache(url, config=exact_only) as cache:
            took = seconds(time.perf_counter() - started_s)
            server = await look_at(cache.redis_url, config.namespace)
    except LLMCacheError as error:
        return [
            Finding("redis", State.PROBLEM, str(error), "follow what it says, or use a server")
        ], None
    started = Finding("redis", State.OK, f"{url} starts here, in {took}")
    # Its settings are this package's own, and nobody's to mend.
    judged = judge_server(server, semantic=config.semantic)
    return [started, *(f for f in judged if f.name in {"server", "search"})], server.indexes


async def _examine_embedder(*, is_local: bool) -> tuple[Finding, Embedder, int | None]:
    """Return what there is to say about the embedder, and how many dimensions it really has."""
    embedder = LocalEmbedder() if is_local else OpenAIEmbedder()
    async with aclosing(embedder):
        if not is_local and not openai_key_in_env():
            return _no_key(embedder), embedder, embedder.dimensions
        started_s = time.perf_counter()
        try:
            async with asyncio.timeout(_EMBED_TIMEOUT_S):
                vectors = await embedder.embed([_SAMPLE])
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what we are here to tell
            return _failed(embedder, error), embedder, embedder.dimensions
        took = seconds(time.perf_counter() - started_s)
        vector = [float(number) for number in vectors[0]]
        return _judge_vector(embedder, vector, took), embedder, len(vector)


def _no_key(embedder: Embedder) -> Finding:
    return Finding(
        "embedder",
        State.PROBLEM,
        f"{embedder.model_id} of OpenAI, the default, has no key",
        "set OPENAI_API_KEY; or embed on this machine with LLMCache(embedder=LocalEmbedder()),"
        " which `llm-cache doctor --local` checks",
    )


def _failed(embedder: Embedder, error: Exception) -> Finding:
    what = "did not answer" if isinstance(error, TimeoutError) else explain(error) or repr(error)
    fix = "check OPENAI_API_KEY, OPENAI_BASE_URL and the network"
    if isinstance(embedder, LocalEmbedder):
        fix = "pip install --upgrade 'llm-cache[local]'"
    return Finding("embedder", State.PROBLEM, f"{embedder.model_id}: {what}", fix)


def _judge_vector(embedder: Embedder, vector: list[float], took: str) -> Finding:
    detail = f"{embedder.model_id}, {len(vector)} dimensions, {took} the first time"
    if len(vector) != embedder.dimensions:
        return Finding(
            "embedder",
            State.PROBLEM,
            f"{detail}, but it says {embedder.dimensions}",
            f"name the model with its dimensions={len(vector)}",
        )
    if not all(map(math.isfinite, vector)) or not any(vector):
        return Finding(
            "embedder", State.PROBLEM, f"{detail}: no usable vector", "use another model"
        )
    return Finding("embedder", State.OK, detail)


def _show(findings: list[Finding], screen: Screen) -> None:
    for finding in findings:
        state = Text(f"{finding.state:<9}", style=_STYLES[finding.state])
        name = Text(f"{finding.name:<13}", style="bold")
        screen.hanging(state + name, Text(finding.detail))
        if finding.fix is not None and finding.state is not State.OK:
            screen.hanging(Text(" " * len(state + name)), Text(f"fix: {finding.fix}", style="dim"))
    screen.line()
    counts = {state: sum(f.state is state for f in findings) for state in State}
    screen.line(
        (_counted(counts[State.PROBLEM], "problem"), _style(counts, State.PROBLEM)),
        ", ",
        (_counted(counts[State.WARNING], "warning"), _style(counts, State.WARNING)),
    )


def _style(counts: dict[State, int], state: State) -> str:
    return _STYLES[state if counts[state] else State.OK]


def _counted(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"


def _as_json(findings: list[Finding]) -> dict[str, Any]:
    is_ok = all(finding.state is not State.PROBLEM for finding in findings)
    return {"ok": is_ok, "findings": [asdict(finding) for finding in findings]}
