"""`llm-cache chat`: ask through the cache from the shell."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from llm_cache import CacheConfig, CacheStatus, ChatReply, LLMCache
from llm_cache.cli.caches import Models, cache_for
from llm_cache.cli.failures import LastFailure, explain
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
)
from llm_cache.cli.screen import Screen, age, complain, print_json, seconds, status_style


def chat(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to ask. Without it, each line of input is asked.",
            show_default=False,
        ),
    ] = None,
    *,
    redis_url: RedisUrl = None,
    model: Model = None,
    system: System = None,
    base_url: BaseUrl = None,
    local: Local = False,
    tenant: Tenant = None,
    ttl: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="How long an answer may live.", show_default="86400, a day"
        ),
    ] = None,
    semantic: Semantic = True,
    threshold: Threshold = None,
    namespace: Namespace = NAMESPACE,
    as_json: AsJson = False,
) -> None:
    """Ask through the cache: prints the answer and how it was come by.

    Without PROMPT, each line is asked on its own, without the ones before it; Ctrl-D ends. A
    Redis or an embedder that fails is told in the status, and the model answers all the same.
    """
    settings: dict[str, Any] = {
        "namespace": namespace,
        "semantic": semantic,
        "similarity_threshold": threshold,
    }
    if ttl is not None:
        settings["ttl_s"] = ttl
    models = Models(model, base_url, is_local=local)
    config = models.make_config(system=system, **settings)
    is_interactive = prompt is None and sys.stdin.isatty()
    screen = Screen(live=not as_json)
    with asyncio.Runner() as runner, ExitStack() as stack:
        opening = _open(redis_url, config, models)
        with screen.busy("loading"):
            asker = runner.run(opening)
        stack.callback(lambda: runner.run(asker.aclose()))
        for line in _lines(prompt, screen, is_interactive=is_interactive):
            try:
                with screen.busy("asking"):
                    answer = runner.run(asker.ask(line, tenant=tenant))
            except Exception as error:
                # A conversation goes on; a single question, or one of a file, ends in an error.
                message = explain(error)
                if not is_interactive or message is None:
                    raise
                complain(message)
            else:
                _tell(answer, screen, as_json=as_json)


def _lines(prompt: str | None, screen: Screen, *, is_interactive: bool) -> Iterator[str]:
    """Yield what is to be asked. Waits for the terminal outside of the event loop, for Ctrl-C."""
    if prompt is not None:
        yield prompt
        return
    if not is_interactive:
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() editing and a history
    screen.line(("Each line is asked on its own. Ctrl-D ends.", "dim"))
    while True:
        try:
            line = input("› ").strip()
        except EOFError:
            screen.line()
            return
        if line:
            yield line


@dataclass(frozen=True, slots=True)
class _Answer:
    reply: ChatReply
    latency_s: float
    failure: str | None
    """What failed on the way, if the cache was not used or the answer not stored for it."""


@dataclass(frozen=True, slots=True)
class _Asker:
    """A cache with its models, for one question after another."""

    cache: LLMCache
    options: Mapping[str, Any]
    failures: LastFailure
    opened: AsyncExitStack

    async def ask(self, prompt: str, *, tenant: str | None) -> _Answer:
        started_s = time.perf_counter()
        reply = await self.cache.chat(prompt, tenant=tenant, **self.options)
        return _Answer(reply, time.perf_counter() - started_s, self.failures.take())

    async def aclose(self) -> None:
        await self.opened.aclose()


async def _open(url: str | None, config: CacheConfig, models: Models) -> _Asker:
    failures = LastFailure()
    async with AsyncExitStack() as stack:
        # The first question opens the cache, and is answered without it if that fails.
        cache, options = await stack.enter_async_context(
            cache_for(models, url, config, hooks=[failures])
        )
        return _Asker(cache, options, failures, stack.pop_all())


def _tell(answer: _Answer, screen: Screen, *, as_json: bool) -> None:
    if as_json:
        print_json(_as_json(answer))
        return
    screen.print(answer.reply.text)
    screen.line(*_status_line(answer))


def _status_line(answer: _Answer) -> list[str | tuple[str, str]]:
    reply = answer.reply
    said = []
    if reply.similarity is not None:
        said.append(f"similarity {reply.similarity:.3f}")
    if reply.age_s:
        said.append(f"stored {age(reply.age_s)} ago")
    said.append(seconds(answer.latency_s))
    if reply.status == CacheStatus.BYPASS:
        said.append(f"the cache was not used: {answer.failure or reply.reason}")
    elif reply.reason is not None:
        said.append(f"not stored: {answer.failure or reply.reason}")
    return [(str(reply.status), status_style(reply.status)), (f", {', '.join(said)}", "dim")]


def _as_json(answer: _Answer) -> dict[str, Any]:
    reply = answer.reply
    return {
        "text": reply.text,
        "status": str(reply.status),
        "similarity": reply.similarity,
        "age_s": reply.age_s,
        "latency_ms": round(1000 * answer.latency_s, 3),
        "key": reply.key,
        "origin": reply.origin,
        "usage": reply.usage,
        "reason": reply.reason,
        "failure": answer.failure,
    }
