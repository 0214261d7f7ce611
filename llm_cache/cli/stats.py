"""`llm-cache stats`: what the cache has done, of all processes together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from llm_cache import CacheConfig, CacheStatus, LLMCache, Price
from llm_cache.cli.options import (
    NAMESPACE,
    AsJson,
    Namespace,
    Prices,
    RedisUrl,
    Tenant,
    Window,
    make_config,
    refuse_missing_directory,
    without_secrets,
)
from llm_cache.cli.prices import dollars, given_prices, price_of
from llm_cache.cli.screen import Screen, complain, print_json, size, status_style
from llm_cache.cli.server import Index, indexes_of
from llm_cache.config import redis_url_from_env
from llm_cache.errors import StoreError

_MOST_ROWS = 10
_ID_CHARS = 10


def stats(
    *,
    redis_url: RedisUrl = None,
    namespace: Namespace = NAMESPACE,
    window: Window = None,
    tenant: Tenant = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until Ctrl-C.")] = False,
    interval: Annotated[
        float,
        typer.Option("--interval", min=0.1, metavar="SECONDS", help="How often with --watch."),
    ] = 2.0,
    price: Prices = None,
    price_model: Annotated[
        str | None,
        typer.Option(
            "--price-model",
            metavar="MODEL",
            help="Tell the savings in the prices of one model.",
            show_default="each model's own",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show calls by status, hit rate, entries, memory and savings.

    Counts are those of all processes, less what each has counted in its last seconds. No index
    is made. With --watch, --json prints one line each time.
    """
    url = redis_url_from_env() if redis_url is None else redis_url
    refuse_missing_directory(url)
    # Without the semantic layer, because opening that would make an index.
    config = make_config(
        namespace=namespace, semantic=False, prices=given_prices(() if price is None else price)
    )
    shown_at = None if price_model is None else (price_model, price_of(price_model))
    shown = _Shown(
        url,
        config,
        screen=Screen(live=not as_json),
        window=window,
        tenant=tenant,
        shown_at=shown_at,
        as_json=as_json,
    )
    asyncio.run(shown.watch(interval) if watch else shown.once())


class _Shown:
    """What is shown of a cache, once or again and again."""

    def __init__(
        self,
        url: str,
        config: CacheConfig,
        *,
        screen: Screen,
        window: str | None,
        tenant: str | None,
        shown_at: tuple[str, Price] | None,
        as_json: bool,
    ) -> None:
        self._screen = screen
        self._url = url
        self._config = config
        self._options: dict[str, Any] = {"window": window}
        if tenant is not None:
            self._options["tenant"] = tenant
        self._shown_at = shown_at
        self._as_json = as_json

    async def once(self) -> None:
        """Show it."""
        async with LLMCache(self._url, config=self._config) as cache:
            self._show(*await self._read(cache))

    async def watch(self, interval_s: float) -> None:
        """Show it for ever; a Redis that fails for a while is told, and asked again."""
        async with LLMCache(self._url, config=self._config) as cache:
            while True:
                try:
                    read = await self._read(cache)
                except StoreError as error:
                    complain(str(error))
                else:
                    self._screen.clear()
                    self._show(*read)
                await asyncio.sleep(interval_s)

    async def _read(self, cache: LLMCache) -> tuple[dict[str, Any], tuple[Index, ...] | None]:
        numbers = await cache.server_stats(**self._options)
        # What decides is known to the workers, which have an embedder.
        del numbers["policy"]
        if self._shown_at is not None:
            _tell_in_prices_of(self._shown_at[1], numbers)
        return numbers, await indexes_of(cache.redis_url, self._config.namespace)

    def _show(self, numbers: dict[str, Any], indexes: tuple[Index, ...] | None) -> None:
        price_model = None if self._shown_at is None else self._shown_at[0]
        if self._as_json:
            print_json(
                {
                    **numbers,
                    **self._options,
                    "entries": None if indexes is None else sum(each.entries for each in indexes),
                    "indexes": None if indexes is None else [asdict(each) for each in indexes],
                    "price_model": price_model,
                }
            )
            return
        self._screen.line((self._headline(numbers), "dim"))
        for label, value in _facts(numbers, price_model):
            self._screen.fact(label, value)
        for index in indexes or ():
            self._screen.fact("index", _described(index))
        for space, policies in numbers["policies"].items():
            for whose, said in policies.items():
                self._screen.fact("policy", f"{whose} in {space}: {said}")
        self._screen.fact("Redis memory", size(numbers["redis_memory_bytes"]))

    def _headline(self, numbers: dict[str, Any]) -> str:
        said = [f"{self._config.namespace} at {without_secrets(self._url)}"]
        if "tenant" in self._options:
            said.append(f"tenant {self._options['tenant']}")
        if self._options["window"] is not None:
            said.append(f"the last {self._options['window']}")
        if numbers["from_s"] is not None:
            since = datetime.fromtimestamp(numbers["from_s"], UTC)
            said.append(f"since {since:%Y-%m-%d %H:%M} UTC")
        return ", ".join(said)


def _tell_in_prices_of(price: Price, numbers: dict[str, Any]) -> None:
    """Put what is saved at *price* in place of what it is at each model's own, everywhere."""
    parts = [*numbers["models"].values(), *numbers.get("tenants", {}).values()]
    for told in (numbers, *parts):
        told["usd_saved"] = float(
            price.cost_usd(
                told["prompt_tokens_saved"],
                told["completion_tokens_saved"],
                cached_prompt_tokens=told["cached_prompt_tokens_saved"],
            )
        )
        told["unpriced_models"] = []
    embedding = numbers.get("embedding")
    if embedding is not None and not embedding["unpriced_models"]:
        numbers["usd_saved_net"] = numbers["usd_saved"] - embedding["usd"]


def _facts(
    numbers: Mapping[str, Any], price_model: str | None
) -> Iterator[tuple[str, str | Text]]:
    for status in map(str, CacheStatus):
        yield status, Text(f"{numbers[status]:,}", status_style(status))
    yield "hit rate", f"{numbers['hit_rate']:.1%}"
    if numbers["shared"]:
        yield "", f"{numbers['shared']:,} misses were answered by another caller's call"
    prompt, completion = numbers["prompt_tokens_saved"], numbers["completion_tokens_saved"]
    yield "saved", f"{prompt + completion:,} tokens, {prompt:,} of them of prompts"
    yield "", _in_usd(numbers, price_model)
    if numbers["unpriced_models"]:
        yield "", f"no price is known for {', '.join(numbers['unpriced_models'])}"
    if numbers["calls_without_usage"]:
        yield "", f"{numbers['calls_without_usage']:,} answers do not say what they took"
    if not numbers.get("is_complete", True):
        yield "", "this tenant may be counted among the others: more than stats_tenants came"
    yield from _table("models", numbers["models"])
    yield from _table("tenants", numbers.get("tenants", {}))
    for label, name in (
        ("bypassed", "bypass_reasons"),
        ("not stored", "not_stored"),
        ("failures", "failures"),
        ("verified", "verified"),
        ("in shadow", "shadow"),
    ):
        if numbers.get(name):
            yield label, ", ".join(f"{count:,} {why}" for why, count in numbers[name].items())


def _in_usd(numbers: Mapping[str, Any], price_model: str | None) -> str:
    if numbers["usd_saved"] is None:
        return "in money: pip install 'llm-cache[prices]', or --price MODEL=IN,OUT"
    said = dollars(numbers["usd_saved"])
    embedding = numbers.get("embedding")
    if embedding and embedding["unpriced_models"]:
        said += f", not counting what {', '.join(embedding['unpriced_models'])} costs"
    elif embedding and embedding["usd"]:
        said += f", less {dollars(embedding['usd'])} for embeddings"
    return said if price_model is None else f"{said}, at the prices of {price_model}"


def _table(label: str, groups: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the largest of *groups*, a line each, where there is more than one to tell apart."""

    def calls(told: Mapping[str, Any]) -> int:
        return sum(told[status] for status in map(str, CacheStatus))

    ranked = sorted(groups.items(), key=lambda item: -calls(item[1]))
    if len(ranked) < 2 and label == "models":
        return
    for number, (name, told) in enumerate(ranked[:_MOST_ROWS]):
        shown = name[:_ID_CHARS] if label == "tenants" else name or "(none)"
        usd = told["usd_saved"]
        money = "no price" if usd is None else dollars(usd)
        line = f"{shown:<24} {calls(told):>9,} calls {told['hit_rate']:>7.1%} {money:>14}"
        yield "" if number else label, line
    if len(ranked) > _MOST_ROWS:
        yield "", f"and {len(ranked) - _MOST_ROWS} more"


def _described(index: Index) -> str:
    return f"{index.entries:,} entries of {index.dimensions} dimensions in {index.name}"
