"""`llm-cache review`: look at near misses and semantic hits, and say which pairs are the same."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_cache import CacheConfig, LLMCache
from llm_cache._core.keys import Keys
from llm_cache._core.types import answer_text
from llm_cache._redis.review import MOST_CHARS, SERVED, Review, ReviewItem
from llm_cache.cli.explain import shown
from llm_cache.cli.options import (
    NAMESPACE,
    AsJson,
    Namespace,
    RedisUrl,
    make_config,
    refuse_missing_directory,
)
from llm_cache.cli.screen import Screen, age, print_json, status_style
from llm_cache.config import redis_url_from_env
from llm_cache.errors import InvalidRequest
from llm_cache.inspection import inspect_stored
from llm_cache.labels import Label, Verdict, append_labels, read_labels

OnVerdict = Callable[[LLMCache, ReviewItem, Verdict], Awaitable[None]]
"""Acts on the cache what was said of an item: removes an answer that was served wrongly, say."""

_ANSWERS = {"y": Verdict.SAME, "n": Verdict.DIFFERENT, "s": None, "q": None}
_PORTION = 100


class Kind(StrEnum):
    """Which items are looked at."""

    ALL = "all"
    HITS = "hits"
    MISSES = "misses"


def review(
    *,
    redis_url: RedisUrl = None,
    labels: Annotated[
        Path, typer.Option("--labels", metavar="FILE", help="Where what you say is added to.")
    ] = Path("labels.jsonl"),
    only: Annotated[
        Kind, typer.Option("--only", help="Semantic hits, near misses, or both.")
    ] = Kind.ALL,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Most to look at.", show_default="all there are"),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            metavar="FILE",
            help="Write them to a new FILE instead, with labels to fill in.",
        ),
    ] = None,
    namespace: Namespace = NAMESPACE,
    as_json: AsJson = False,
) -> None:
    """Walk through recorded pairs of prompts, and say for which one answer may serve both.

    The cache records them where review_sample_rate is above 0. Keys: y the same, n different,
    s skip, q quit. What you say is added to the file of labels, from which a threshold can be
    calibrated, and the pair is forgotten; what you skip comes again. --json and --export change
    nothing. Prompts are those of users: the files are made readable by you alone.
    """
    url = redis_url_from_env() if redis_url is None else redis_url
    refuse_missing_directory(url)
    config = make_config(namespace=namespace, semantic=False)
    if export is not None and export.exists():
        raise InvalidRequest(f"{export} is there: choose another name")
    with asyncio.Runner() as runner, ExitStack() as stack:
        desk = runner.run(_open(url, config))
        stack.callback(lambda: runner.run(desk.cache.aclose()))
        items = _items(runner, desk, only, limit)
        if as_json:
            for item in items:
                print_json({**asdict(item), "at": item.at_s})
        elif export is not None:
            _export(items, export)
        else:
            _walk(runner, desk, items, labels)


@dataclass(slots=True)
class _Desk:
    """What somebody who looks at items works with."""

    cache: LLMCache
    review: Review
    on_verdict: OnVerdict | None = None
    said: dict[tuple[str, str], Verdict] = field(default_factory=dict)
    """What is in the file of labels already."""

    async def answer(self, item: ReviewItem) -> Any | None:
        """Return the stored answer, if it is still there."""
        key = Keys(self.cache.config.namespace).answer(item.digest)
        found = await inspect_stored(self.cache, key)
        return None if found is None else found.answer

    async def forget(self, item: ReviewItem, verdict: Verdict) -> None:
        """Act on what was said of *item*, and take it off the stream."""
        if self.on_verdict is not None:
            await self.on_verdict(self.cache, item, verdict)
        await self.review.done([item.id])


async def _open(url: str, config: CacheConfig) -> _Desk:
    cache = await LLMCache(url, config=config).open()
    review = Review(cache._connection, Keys(config.namespace), cipher=cache._cipher)  # noqa: SLF001
    return _Desk(cache, review, _act)


async def _act(cache: LLMCache, item: ReviewItem, verdict: Verdict) -> None:
    """See to it that what was served wrongly is not served so again.

    The answer stays, since it is right for the prompt it was made for. What was refused although
    it is the same changes nothing here: it is for `llm-cache tune` to learn from.
    """
    is_wrong_hit = verdict is Verdict.DIFFERENT and item.verdict == SERVED
    if is_wrong_hit and item.asked is not None:
        await cache._invalidator.reject_pair(item.digest, item.asked)  # noqa: SLF001


def _items(
    runner: asyncio.Runner, desk: _Desk, only: Kind, limit: int | None
) -> Iterator[ReviewItem]:
    """Yield the items, oldest first."""
    after, count = "", 0
    while portion := runner.run(desk.review.read(after=after, limit=_PORTION)):
        after = portion[-1].id
        for item in portion:
            is_hit = item.verdict == SERVED
            if only is Kind.ALL or is_hit == (only is Kind.HITS):
                yield item
                count += 1
                if count == limit:
                    return


def _export(items: Iterator[ReviewItem], path: Path) -> None:
    count = 0
    while portion := [item for item, _ in zip(items, range(_PORTION), strict=False)]:
        append_labels(path, [_label(item, _said(item), item.at_s) for item in portion])
        count += len(portion)
    Screen().line(f"{count:,} pairs in {path}: fill in their labels, same or different")


def _walk(runner: asyncio.Runner, desk: _Desk, items: Iterator[ReviewItem], labels: Path) -> None:
    screen = Screen()
    if labels.exists():
        desk.said = {(at.new, at.cached): at.label for at in read_labels(labels) if at.label}
    counts = dict.fromkeys(Verdict, 0)
    number, waiting = 0, runner.run(desk.review.count())
    for item in items:
        number += 1
        before = desk.said.get((item.new, item.cached))
        if before is not None:
            runner.run(desk.forget(item, before))
            continue
        _show(item, runner.run(desk.answer(item)), screen, f"{number:,} of {waiting:,}")
        key = _ask()
        verdict = _ANSWERS.get(key)
        if key == "q":
            break
        if verdict is not None:
            # On the disk before it is forgotten: stopped in between, it is not asked again.
            append_labels(labels, [_label(item, verdict, time.time())])
            desk.said[item.new, item.cached] = verdict
            runner.run(desk.forget(item, verdict))
            counts[verdict] += 1
    if not number:
        screen.line("Nothing waits to be reviewed. CacheConfig(review_sample_rate=0.1) records.")
    elif any(counts.values()):
        said = ", ".join(f"{count:,} {verdict}" for verdict, count in counts.items())
        screen.line(f"{said}, added to {labels}")


def _show(item: ReviewItem, answer: Any | None, screen: Screen, place: str) -> None:
    is_hit = item.verdict == SERVED
    screen.line()
    screen.line(
        (place, "bold"),
        f"   similarity {item.similarity:.3f}   ",
        (item.verdict, status_style("semantic" if is_hit else "miss")),
        (f"   {age(max(0.0, time.time() - item.at_s))} ago", "dim"),
        *([] if item.tenant is None else [(f"   tenant {shown(item.tenant)}", "dim")]),
    )
    screen.fact("asked", shown(item.new, most_chars=MOST_CHARS))
    screen.fact("stored", shown(item.cached, most_chars=MOST_CHARS))
    if item.label is not None:
        screen.fact("compared", f"with the model's own answer: {item.label}")
    screen.fact("answer", shown("gone" if answer is None else answer_text(answer)))


def _ask() -> str:
    """Return the key that was pressed, or the first letter of a line of input."""
    sys.stdout.write("May one answer serve both? [y]es [n]o [s]kip [q]uit ")
    sys.stdout.flush()
    while True:
        # Where nobody sits at a terminal, a line is an answer, and the end of the input the end.
        key = typer.getchar() if sys.stdin.isatty() else sys.stdin.readline()[:1] or "q"
        key = key.lower()
        if key in {"\x03", "\x04"}:
            key = "q"
        if key in _ANSWERS:
            sys.stdout.write(f"{key}\n")
            return key


def _said(item: ReviewItem) -> Verdict | None:
    """Return what the model's own answer said of *item* in shadow mode."""
    return Verdict(item.label) if item.label in set(Verdict) else None


def _label(item: ReviewItem, verdict: Verdict | None, at_s: float) -> Label:
    return Label(item.new, item.cached, item.similarity, verdict, at_s, space=item.space)
