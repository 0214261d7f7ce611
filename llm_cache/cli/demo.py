"""`llm-cache demo`: a real model being cached by a real Redis, row by row."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.text import Text

from llm_cache import CacheConfig, CacheStatus, ChatReply, Embedder, LLMCache, OpenAIEmbedder
from llm_cache.cli.failures import LastFailure
from llm_cache.cli.models import (
    BRIEF,
    BRIEF_SYSTEM,
    ChatModel,
    local_chat,
    local_embedder,
    remote_chat,
)
from llm_cache.cli.options import (
    PRICE_MODEL,
    Namespace,
    PriceModel,
    make_config,
    without_secrets,
)
from llm_cache.cli.prices import dollars, known_cost_usd
from llm_cache.cli.questions import faq, script
from llm_cache.cli.screen import Screen, seconds, status_style
from llm_cache.config import openai_key_in_env
from llm_cache.errors import ConfigurationError

# With this one the first six questions already end in each of the statuses; about half of the
# rephrased questions are served, and one answer is not stored.
_SEED = 130
_OPENAI_MODEL = "gpt-4o-mini"
_HITS = (CacheStatus.EXACT, CacheStatus.SEMANTIC, CacheStatus.STALE)
_WIDE = 110
_NOT_STORED = {
    "length": "not stored: the answer ran into max_tokens and is cut",
    "content_filter": "not stored: the answer was filtered",
    "empty": "not stored: the model answered nothing",
}


def demo(
    *,
    redis_url: Annotated[
        str | None,
        typer.Option(
            "--redis-url",
            metavar="URL",
            help="Use this Redis, which needs search.",
            show_default="a private one, gone afterwards",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            metavar="DIR",
            help="Keep the private Redis in DIR: a second run starts with hits.",
        ),
    ] = None,
    openai: Annotated[
        bool, typer.Option("--openai", help="Use OpenAI's models; needs OPENAI_API_KEY.")
    ] = False,
    questions: Annotated[
        int, typer.Option(min=1, max=1000, metavar="N", help="How many to ask.")
    ] = 20,
    seed: Annotated[int, typer.Option(metavar="N", help="Which ones, in which order.")] = _SEED,
    namespace: Namespace = "llm_cache_demo",
    price_model: PriceModel = PRICE_MODEL,
    plain: Annotated[
        bool, typer.Option("--plain", help="No moving parts; so it is outside a terminal.")
    ] = False,
) -> None:
    """Watch a real model being cached by a real Redis.

    Asks questions people ask a help desk: new ones, other wordings of old ones, and repeats. A
    private Redis with search, a small embedding model and a small chat model run on this machine
    for as long as it takes. No key, no Docker and no network are needed.

    The status of each question is "miss" when the model was asked, "semantic" when an earlier
    question meant the same, and "exact" for one that was answered before word for word.
    """
    if data is not None and redis_url is not None:
        raise typer.BadParameter("--data is for the private Redis: leave out --redis-url")
    if openai and not openai_key_in_env():
        raise ConfigurationError("--openai needs a key: set OPENAI_API_KEY")
    known_cost_usd(0, 0, model=price_model)  # a wrong name is told now, not after all questions
    config = make_config(namespace=namespace, system=BRIEF_SYSTEM)
    url = _private_url(data) if redis_url is None else redis_url
    screen = Screen(live=not plain)
    prompts = script(faq(), count=questions, seed=seed)
    run = asyncio.run(_run(screen, url, config, prompts, openai=openai))
    _summarize(screen, run, price_model)
    if redis_url is None:
        _say_how_to_go_on(screen, data)


def _private_url(directory: Path | None) -> str:
    return "embedded://" + ("" if directory is None else quote(str(directory.absolute())))


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question and how it was answered."""

    prompt: str
    reply: ChatReply
    latency_s: float
    saved_s: float | None
    """What the model took for this answer, less what it took now; `None` where it was asked, or
    where nobody knows."""
    note: str | None


@dataclass(slots=True)
class _Run:
    """What has been asked so far."""

    rows: list[_Asked] = field(default_factory=list)
    hit_rate: float = 0.0
    _first: dict[str | None, tuple[str, float]] = field(default_factory=dict)
    """Prompt and latency of each stored answer, by its key."""

    def add(self, prompt: str, reply: ChatReply, latency_s: float, failure: str | None) -> _Asked:
        """Note an answer, and return what there is to say about it."""
        saved_s, origin = None, None
        if reply.status in _HITS:
            origin, model_s = self._first.get(reply.key, (None, _model_time_s(reply)))
            saved_s = None if model_s is None else max(0.0, model_s - latency_s)
        elif reply.key is not None:
            self._first[reply.key] = prompt, latency_s
        asked = _Asked(prompt, reply, latency_s, saved_s, _note(reply, origin, failure))
        self.rows.append(asked)
        return asked


def _model_time_s(reply: ChatReply) -> float | None:
    """Return how long the model took for an answer of an earlier run, if its server says so."""
    timings = reply.data.get("timings") or {}
    try:
        return float(timings["prompt_ms"] + timings["predicted_ms"]) / 1000
    except (KeyError, TypeError):
        return None


def _note(reply: ChatReply, origin: str | None, failure: str | None) -> str | None:
    if reply.status == CacheStatus.BYPASS:
        return f"the cache was not used: {failure or reply.reason}"
    if reply.reason is not None:
        return _NOT_STORED.get(reply.reason, f"not stored: {failure or reply.reason}")
    if reply.status == CacheStatus.SEMANTIC and origin is not None:
        return f"as: {origin}"
    return None


async def _run(
    screen: Screen, url: str, config: CacheConfig, prompts: list[str], *, openai: bool
) -> _Run:
    failures = LastFailure()
    async with AsyncExitStack() as stack:
        embedder, chat_model = await _load_models(screen, stack, openai=openai)
        cache = LLMCache(
            url,
            client=chat_model.client,
            embedder=embedder,
            config=replace(config, upstream_id=chat_model.upstream_id),
            hooks=[failures],
        )
        what = "private, with search" if url.startswith("embedded:") else without_secrets(url)
        await screen.loaded("Redis", what, stack.enter_async_context(cache))
        run, table = _Run(), _Rows(screen, len(prompts))
        table.header()
        for prompt in prompts:
            with screen.busy(prompt):
                started_s = time.perf_counter()
                reply = await cache.chat(prompt, model=chat_model.name, **BRIEF)
                latency_s = time.perf_counter() - started_s
            table.row(run.add(prompt, reply, latency_s, failures.take()))
        run.hit_rate = cache.stats()["hit_rate"]
        return run


async def _load_models(
    screen: Screen, stack: AsyncExitStack, *, openai: bool
) -> tuple[Embedder, ChatModel]:
    if openai:
        remote = await stack.enter_async_context(remote_chat(_OPENAI_MODEL))
        screen.fact("Models", f"{remote.name} and text-embedding-3-small, of OpenAI")
        return OpenAIEmbedder(remote.client), remote
    embedder = await screen.loaded(
        "Embedder",
        "all-MiniLM-L6-v2 on this machine",
        stack.enter_async_context(local_embedder()),
    )
    chat_model = await screen.loaded(
        "Chat model",
        "SmolLM2-135M on this machine: quick, not wise",
        stack.enter_async_context(local_chat()),
    )
    return embedder, chat_model


class _Rows:
    """A table that is printed row by row, so that it may be longer than the terminal."""

    def __init__(self, screen: Screen, count: int) -> None:
        self._screen = screen
        self._number = len(str(count))
        self._shown = 0
        # Two spaces between columns; the question and the answer share what is left.
        rest = screen.width - self._number - 8 - 4 - 7 - 7 - 5 * 2
        is_wide = screen.width >= _WIDE
        self._question = min(rest, 44) if is_wide else rest
        self._answer = rest - self._question - 2 if is_wide else 0

    def header(self) -> None:
        """Print what the columns are."""
        self._screen.line()
        names = ("#", "question", "status", "sim.", "latency", "saved", "answer")
        self._print(names, status="", style="bold")

    def row(self, asked: _Asked) -> None:
        """Print a row, and its note below."""
        self._shown += 1
        reply = asked.reply
        cells = (
            str(self._shown),
            asked.prompt,
            str(reply.status),
            "–" if reply.similarity is None else f"{reply.similarity:.2f}",
            seconds(asked.latency_s),
            "–" if asked.saved_s is None else seconds(asked.saved_s),
            " ".join(reply.text.split()),
        )
        self._print(cells, status=status_style(reply.status))
        if asked.note is not None:
            note = Text(f"{' ' * self._number}  └ {asked.note}", style="dim")
            note.truncate(self._screen.width, overflow="ellipsis")
            self._screen.print(note)

    def _print(self, cells: tuple[str, ...], *, status: str, style: str = "") -> None:
        number, question, name, similarity, latency, saved, answer = cells
        parts = [
            _cell(number, self._number, "right", "dim"),
            _cell(question, self._question),
            _cell(name, 8, style=status),
            _cell(similarity, 4, "right"),
            _cell(latency, 7, "right"),
            _cell(saved, 7, "right"),
        ]
        if self._answer:
            parts.append(_cell(answer, self._answer, style="dim"))
        row = Text("  ").join(parts)
        row.stylize(style)
        row.rstrip()
        self._screen.print(row)


def _cell(text: str, width: int, align: Any = "left", style: str = "") -> Text:
    cell = Text(text, style=style)
    cell.truncate(width, overflow="ellipsis")
    cell.align(align, width)
    return cell


def _summarize(screen: Screen, run: _Run, price_model: str) -> None:
    hits = [row for row in run.rows if row.reply.status in _HITS]
    prompt_tokens, completion_tokens = (
        sum(int((row.reply.usage or {}).get(kind) or 0) for row in hits)
        for kind in ("prompt_tokens", "completion_tokens")
    )
    screen.line()
    tokens = prompt_tokens + completion_tokens
    screen.fact(
        "Hit rate", f"{run.hit_rate:.0%}: {len(hits)} of {len(run.rows)} without the model"
    )
    screen.fact("Median", _medians(run.rows))
    screen.fact("Saved", f"{seconds(sum(row.saved_s or 0.0 for row in hits))} of waiting")
    screen.fact(
        "", f"{tokens} tokens ({prompt_tokens} of prompts, {completion_tokens} of answers)"
    )
    screen.fact("", _price(prompt_tokens, completion_tokens, price_model))


def _medians(rows: list[_Asked]) -> Text:
    line = Text()
    for status in CacheStatus:
        latencies = [row.latency_s for row in rows if row.reply.status == status]
        if latencies:
            line.append(", " if line else "")
            line.append(str(status), status_style(status)).append(f" {seconds(median(latencies))}")
    return line


def _price(prompt_tokens: int, completion_tokens: int, model: str) -> str:
    cost = known_cost_usd(prompt_tokens, completion_tokens, model=model)
    if cost is None:
        return "in money: pip install 'llm-cache[prices]'"
    return f"{dollars(cost)}, which is what these tokens would have cost at {model}"


def _say_how_to_go_on(screen: Screen, data: Path | None) -> None:
    screen.line()
    if data is None:
        screen.line(("Keep the answers with --data DIR: a second run starts with hits.", "dim"))
    else:
        screen.line((f"The answers are kept in {data}: run it again, it starts with hits.", "dim"))
