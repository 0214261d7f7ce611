"""`llm-cache tune`: find from labels how alike prompts must be, and save what was shown."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_cache import CacheConfig
from llm_cache._core.keys import Keys, tenant_id
from llm_cache._redis.connection import Connection
from llm_cache._redis.policies import PolicyStore
from llm_cache.calibrate import Calibration, LoggedAnswer, calibrate, label_log
from llm_cache.cli.models import local_embedder, remote_chat
from llm_cache.cli.options import (
    NAMESPACE,
    AsJson,
    BaseUrl,
    Namespace,
    RedisUrl,
    make_config,
    refuse_missing_directory,
)
from llm_cache.cli.screen import Screen, print_json
from llm_cache.config import redis_url_from_env
from llm_cache.embedders import Embedder, OpenAIEmbedder
from llm_cache.errors import InvalidRequest
from llm_cache.verify import LLMVerifier, same_text

_LABELLED = ("answer_id", "same")


def tune(
    log: Annotated[
        Path,
        typer.Argument(
            metavar="LOG",
            exists=True,
            dir_okay=False,
            help="JSON lines or CSV: prompt and answer_id; or new, cached and same, or what review"
            " wrote; or prompt and answer, to be judged. Optionally timestamp_s.",
        ),
    ],
    *,
    max_wrong: Annotated[
        float, typer.Option("--max-wrong", metavar="RATE", help="Most wrong hits.")
    ] = 0.01,
    basis: Annotated[
        str, typer.Option("--basis", metavar="hits|requests", help="Of what that is the rate.")
    ] = "hits",
    confidence: Annotated[
        float, typer.Option("--confidence", metavar="SHARE", help="How sure it is to be.")
    ] = 0.95,
    local: Annotated[
        bool, typer.Option("--local", help="Use the embedder of this machine.")
    ] = False,
    base_url: BaseUrl = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="MODEL",
            help="The chat model that judges a log without labels; else equal answers are.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", help="Write the policy here.", show_default=False
        ),
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Store the policy in Redis, for all workers.")
    ] = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = NAMESPACE,
    tenant: Annotated[
        list[str] | None,
        typer.Option(
            "--tenant",
            metavar="NAME",
            help="Store it for this tenant only; may be repeated.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Calibrate on LOG, and tell what was shown: or refuse, and say how many labels are missing.

    Nothing is written without --output or --save.
    """
    rows = list(read_log(log))
    url = redis_url_from_env() if redis_url is None else redis_url
    config = make_config(namespace=namespace)
    if save:
        refuse_missing_directory(url)
    screen = Screen(live=not as_json)
    with screen.busy("calibrating"):
        calibration = asyncio.run(
            _calibrate(
                rows,
                judge,
                base_url,
                is_local=local,
                max_wrong=max_wrong,
                basis=basis,
                confidence=confidence,
            )
        )
    if output is not None:
        output.write_bytes(calibration.to_json())
    if save:
        asyncio.run(_save(calibration, url, config, tenant or ()))
    if as_json:
        print_json(_told(calibration))
    else:
        _tell(calibration, screen, output, namespace if save else None)


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a log: JSON lines, or CSV with a line of names.

    Raises:
        InvalidRequest: a line is not one of these.
    """
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".csv":
        for row in csv.DictReader(text.splitlines()):
            yield {name: _csv_value(name, value) for name, value in row.items() if value}
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise InvalidRequest(f"{path.name}: line {number} is not JSON") from None
        if not isinstance(row, dict):
            raise InvalidRequest(f"{path.name}: line {number} is not a JSON object")
        if "label" in row and "same" not in row:
            if row["label"] is None:
                continue
            row = _reviewed(row)
        yield _with_booleans(row)


def _csv_value(name: str, value: str) -> Any:
    try:
        if name in ("similarity", "timestamp_s", "timestamp"):
            return float(value)
        return _TRUTH.get(value.lower(), value) if name == "same" else value
    except ValueError:
        raise InvalidRequest(f"the column {name} must hold numbers") from None


_LABELS = {"same": True, "different": False}
_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _reviewed(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the file that `llm-cache review` writes.

    Its similarity may be another embedder's, so it is measured anew.
    """
    same = _LABELS.get(row["label"], row["label"])
    return {"new": row.get("new"), "cached": row.get("cached"), "same": same}


def _with_booleans(row: dict[str, Any]) -> dict[str, Any]:
    """Return *row*, where 1 and 0 are also labels."""
    same = row.get("same")
    return {**row, "same": bool(same)} if same in (0, 1) and "same" in row else row


async def _calibrate(
    rows: Sequence[dict[str, Any]],
    judge: str | None,
    base_url: str | None,
    *,
    is_local: bool,
    **asked: Any,
) -> Calibration:
    async with _embedder(base_url, is_local=is_local) as embedder:
        if not rows or any(name in rows[0] for name in _LABELLED):
            return await calibrate(rows, embedder=embedder, **asked)
        answers = [_answer(number, row) for number, row in enumerate(rows, 1)]
        if judge is None:
            labelled = await label_log(answers, same_text, embedder=embedder)
        else:
            async with remote_chat(judge, base_url=base_url) as model:
                verifier = LLMVerifier(model.client, model=judge)
                labelled = await label_log(answers, verifier, embedder=embedder)
        return await calibrate(labelled, embedder=embedder, **asked)


def _answer(number: int, row: dict[str, Any]) -> LoggedAnswer:
    try:
        time_s = row.get("timestamp_s", row.get("timestamp"))
        return LoggedAnswer(row["prompt"], row["answer"], time_s)
    except KeyError as missing:
        raise InvalidRequest(
            f"row {number} has no {missing.args[0]}: give prompt and answer_id, new, cached and"
            " same, or prompt and answer"
        ) from None


@asynccontextmanager
async def _embedder(base_url: str | None, *, is_local: bool) -> AsyncIterator[Embedder]:
    if is_local:
        async with local_embedder() as embedder:
            yield embedder
        return
    async with remote_chat("", base_url=base_url) as model:
        yield OpenAIEmbedder(client=model.client)


async def _save(
    calibration: Calibration, url: str, config: CacheConfig, tenants: Sequence[str]
) -> None:
    connection = Connection(url, max_connections=1, timeout_s=config.redis_timeout_s)
    await connection.open()
    ids = [str(tenant_id(tenant, config.tenant_secret)) for tenant in tenants]
    try:
        store = PolicyStore(connection, Keys(config.namespace), space=calibration.stored.space)
        await store.save(calibration.stored, tenants=ids)
    finally:
        await connection.aclose()


def _told(calibration: Calibration) -> dict[str, Any]:
    return {
        "certificate": asdict(calibration.certificate),
        "policy": json.loads(calibration.to_json()),
        "duplicates": calibration.duplicates,
        "contradictions": calibration.contradictions,
        "splits": {
            result.split: asdict(result.point) for result in calibration.results if result.point
        },
    }


def _tell(
    calibration: Calibration, screen: Screen, output: Path | None, saved_in: str | None
) -> None:
    screen.fact("shown", str(calibration.certificate))
    for result in calibration.results:
        if result.point is not None:
            point = result.point
            screen.fact(
                result.split,
                f"{point.hit_rate:.1%} hits, wrong {point.wrong_per_request:.2%} of requests and"
                f" {point.wrong_per_hit:.2%} of hits, bound {point.bound:.2%}",
            )
    screen.fact("labels", f"{calibration.certificate.labels:,} distinct")
    screen.fact("left out", f"{calibration.duplicates:,} repeats")
    screen.fact("contradicting", f"{calibration.contradictions:,}, counted as wrong")
    screen.fact("written", "nowhere" if output is None else str(output))
    screen.fact("saved", "no" if saved_in is None else f"in the namespace {saved_in}")
