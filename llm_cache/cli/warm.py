"""`llm-cache warm`: ask a file of prompts before anybody else does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_cache import CacheConfig
from llm_cache.cli.caches import Models, cache_for
from llm_cache.cli.export import PATIENCE_S
from llm_cache.cli.failures import LastFailure
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
)
from llm_cache.cli.prices import dollars, known_cost_usd
from llm_cache.cli.progress import counting
from llm_cache.cli.screen import Screen, print_json
from llm_cache.warm import WarmEstimate, WarmFailure, WarmReport, estimate, read_prompts
from llm_cache.warm import warm as warm_up

_FAILURES_SHOWN = 20


def warm(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Prompts: .txt, .csv or .jsonl.")],
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
    concurrency: Annotated[
        int, typer.Option(min=1, max=1000, metavar="N", help="Calls at a time.")
    ] = 8,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what it would take; ask no model.")
    ] = False,
    answer_tokens: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Of --dry-run: how long an answer is taken to be."),
    ] = 300,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="What is done; digests, no texts.", show_default="FILE.warm"
        ),
    ] = None,
    namespace: Namespace = NAMESPACE,
    as_json: AsJson = False,
) -> None:
    """Ask every prompt in FILE through the cache, so that its answer is stored.

    A prompt is a line of .txt, or a row or object with prompt and, where they differ, model,
    system, tenant, tags (in .csv parted by |), ttl_s, and params, JSON of what else the model is
    sent. Interrupted, it goes on where it was: what is stored is not paid for again. Lines that
    failed are told with their numbers and tried again by the next run; then it exits with 1.
    """
    settings: dict[str, Any] = {"namespace": namespace, "semantic": semantic and not dry_run}
    if ttl is not None:
        settings["ttl_s"] = ttl
    models = Models(model, base_url, is_local=local)
    # Nobody waits for a single answer here.
    config = models.make_config(system=system, added_latency_budget_s=PATIENCE_S, **settings)
    # All of the file is read before the first call: a mistake in its last line is told now.
    total = sum(1 for _ in read_prompts(file))
    defaults: dict[str, Any] = {} if tenant is None else {"tenant": tenant}
    job = _Job(file, redis_url, config, models, defaults)
    if dry_run:
        found = asyncio.run(_estimate(job, answer_tokens))
        _tell_estimate(found, Screen(), as_json=as_json)
        return
    notes = file.with_name(f"{file.name}.warm") if checkpoint is None else checkpoint
    failures = LastFailure()
    with counting("warming", total=total, live=not as_json) as on_progress:
        running = _warm(job, failures, on_progress, concurrency=concurrency, checkpoint=notes)
        report = asyncio.run(running)
    _tell(report, total, failures.take(), Screen(), as_json=as_json)
    if report.failed or report.stopped is not None:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Job:
    """What is to be asked, and where."""

    file: Path
    url: str | None
    config: CacheConfig
    models: Models
    defaults: Mapping[str, Any]


async def _estimate(job: _Job, answer_tokens: int) -> WarmEstimate:
    async with cache_for(job.models, job.url, job.config, hooks=(), asks_chat=False) as opened:
        cache, options = opened
        return await estimate(
            cache,
            read_prompts(job.file),
            defaults={**options, **job.defaults},
            answer_tokens=answer_tokens,
        )


async def _warm(
    job: _Job, failures: LastFailure, on_progress: Callable[[int], None], **limits: Any
) -> WarmReport:
    done = count(1)
    async with cache_for(job.models, job.url, job.config, hooks=[failures]) as (cache, options):
        return await warm_up(
            cache,
            read_prompts(job.file),
            defaults={**options, **job.defaults},
            on_done=lambda _: on_progress(next(done)),
            **limits,
        )


def _cost_usd(model: str, prompt_tokens: int, completion_tokens: int) -> float | None:
    """Return what tokens cost at *model*; `None` where no price is known."""
    try:
        return known_cost_usd(prompt_tokens, completion_tokens, model=model)
    except typer.BadParameter:
        return None


def _tell_estimate(found: WarmEstimate, screen: Screen, *, as_json: bool) -> None:
    costs = {name: _cost_usd(name, p, a) for name, (_, p, a) in found.by_model.items()}
    known = [cost for cost in costs.values() if cost is not None]
    usd = sum(known) if len(known) == len(costs) else None
    if as_json:
        by_model = {
            name: {"calls": n, "prompt_tokens": p, "completion_tokens": a, "usd": costs[name]}
            for name, (n, p, a) in found.by_model.items()
        }
        print_json({**asdict(found), "by_model": by_model, "usd": usd})
        return
    screen.fact("lines", f"{found.lines:,}")
    screen.fact("there", f"{found.there:,}")
    screen.fact("repeated", f"{found.repeated:,}")
    for name, (calls, prompt, answer) in found.by_model.items():
        cost = costs[name]
        price = "no price is known" if cost is None else f"about {dollars(cost)}"
        screen.fact(
            "to ask",
            f"{calls:,} of {name}: about {prompt:,} tokens in, {answer:,} out; {price}",
        )
    if not found.by_model:
        screen.fact("to ask", "none")
    _tell_failures(found.invalid, screen)
    screen.line(("Tokens are estimated; embeddings are not in it.", "dim"))


def _tell(
    report: WarmReport, total: int, failure: str | None, screen: Screen, *, as_json: bool
) -> None:
    if as_json:
        print_json({**asdict(report), "lines": total})
        return
    tokens = f"{report.prompt_tokens:,} tokens in, {report.completion_tokens:,} out"
    screen.fact("asked", f"{report.asked:,}" + (f", {tokens}" if report.asked else ""))
    screen.fact("there", f"{report.there:,}")
    for label, number, why in (
        ("skipped", report.skipped, "done by an earlier run"),
        (
            "not stored",
            report.not_stored,
            "the answers must not be; asked again only without the checkpoint",
        ),
        ("failed", report.failed, "to be tried again by the next run"),
        ("left", total - report.done, "not come to"),
    ):
        if number:
            screen.fact(label, f"{number:,}: {why}")
    _tell_failures(report.failures, screen)
    if report.stopped is not None:
        because = "" if failure is None else f" ({failure})"
        screen.line((f"Stopped: {report.stopped}{because}", "red"))


def _tell_failures(failures: list[WarmFailure], screen: Screen) -> None:
    for told in failures[:_FAILURES_SHOWN]:
        screen.fact(f"  line {told.line}", told.reason)
    if len(failures) > _FAILURES_SHOWN:
        screen.fact("", f"and more; --json has the first {len(failures):,}")
