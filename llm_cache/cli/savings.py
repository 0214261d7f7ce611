"""`llm-cache savings`: what a cache saves in a month, by figures or by what was counted."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from llm_cache import LLMCache, Price
from llm_cache._savings import Savings, in_a_month, savings
from llm_cache.cli.options import (
    NAMESPACE,
    AsJson,
    Namespace,
    Prices,
    RedisUrl,
    make_config,
    refuse_missing_directory,
)
from llm_cache.cli.prices import dollars, given_prices, price_of
from llm_cache.cli.screen import Screen, print_json
from llm_cache.config import redis_url_from_env
from llm_cache.errors import ConfigurationError

_HOUR_S, _DAY_S = 3_600, 86_400
_NEEDED = "--requests, --hit-rate, --prompt-tokens and --completion-tokens"


def saved(
    *,
    requests: Annotated[
        float | None, typer.Option(min=0, metavar="N", help="Calls in a day.")
    ] = None,
    hit_rate: Annotated[
        float | None, typer.Option(min=0, max=1, metavar="SHARE", help="Share of hits, 0 to 1.")
    ] = None,
    prompt_tokens: Annotated[
        float | None, typer.Option(min=0, metavar="N", help="Tokens of an average prompt.")
    ] = None,
    completion_tokens: Annotated[
        float | None, typer.Option(min=0, metavar="N", help="Tokens of an average answer.")
    ] = None,
    model: Annotated[
        str, typer.Option("--price-model", metavar="MODEL", help="Whose prices are reckoned with.")
    ] = "gpt-4o-mini",
    input_price: Annotated[
        float | None,
        typer.Option(min=0, metavar="USD", help="Per million tokens of prompts, instead."),
    ] = None,
    output_price: Annotated[
        float | None,
        typer.Option(min=0, metavar="USD", help="Per million tokens of answers, instead."),
    ] = None,
    redis_price: Annotated[
        float, typer.Option(min=0, metavar="USD", help="What Redis costs in a month.")
    ] = 0.0,
    redis_url: RedisUrl = None,
    namespace: Namespace = NAMESPACE,
    window: Annotated[
        str, typer.Option("--window", metavar="TIME", help="How far back counts are read.")
    ] = "72h",
    price: Prices = None,
    as_json: AsJson = False,
) -> None:
    """Tell what the cache saves in a month.

    With --requests, --hit-rate, --prompt-tokens and --completion-tokens, by these figures: 30
    days of requests x hit rate x cost of a call. Without them by what was counted in the last
    days, at each model's own price, less what embeddings cost.
    """
    given = (requests, hit_rate, prompt_tokens, completion_tokens)
    if any(figure is not None for figure in given):
        if None in given:
            raise typer.BadParameter(f"give all of {_NEEDED}, or none to read what was counted")
        result = savings(
            daily_requests=requests or 0,
            hit_rate=hit_rate or 0,
            prompt_tokens=prompt_tokens or 0,
            completion_tokens=completion_tokens or 0,
            price=_price(model, input_price, output_price),
            redis_usd=redis_price,
        )
        _tell(result, {"basis": "figures"}, as_json=as_json)
        return
    if input_price is not None or output_price is not None:
        raise typer.BadParameter("--input-price and --output-price go with figures; use --price")
    url = redis_url_from_env() if redis_url is None else redis_url
    refuse_missing_directory(url)
    config = make_config(
        namespace=namespace, semantic=False, prices=given_prices(() if price is None else price)
    )
    counted = asyncio.run(_read(LLMCache(url, config=config), window))
    # An hour that has just begun counts as a whole: rather too little than too much.
    days = max(_HOUR_S, time.time() - counted["from_s"]) / _DAY_S
    result = in_a_month(
        daily_usd=counted["usd_saved"] / days,
        embedding_usd=counted["embedding"]["usd"] / days,
        redis_usd=redis_price,
    )
    basis = {
        "basis": "counts",
        "days": round(days, 3),
        "hit_rate": counted["hit_rate"],
        "unpriced_models": sorted(
            {*counted["unpriced_models"], *counted["embedding"]["unpriced_models"]}
        ),
    }
    _tell(result, basis, as_json=as_json)


def _price(model: str, input_price: float | None, output_price: float | None) -> Price:
    if input_price is None and output_price is None:
        return price_of(model)
    if input_price is None or output_price is None:
        raise typer.BadParameter("give both of --input-price and --output-price")
    return Price(input_usd=input_price, output_usd=output_price)


async def _read(cache: LLMCache, window: str) -> dict[str, Any]:
    """Return what was counted, if there is anything to reckon with.

    Raises:
        ConfigurationError: nothing was counted, or nobody knows a price.
    """
    async with cache:
        counted = await cache.server_stats(window=window)
    if counted["from_s"] is None:
        raise ConfigurationError(f"nothing was counted in the last {window}: give {_NEEDED}")
    if counted["usd_saved"] is None or counted["embedding"]["usd"] is None:
        unpriced = [*counted["unpriced_models"], *counted["embedding"]["unpriced_models"]]
        raise ConfigurationError(
            f"no price is known for {', '.join(unpriced)}: give --price MODEL=IN,OUT, or"
            " pip install 'llm-cache[prices]'"
        )
    return counted


def _tell(result: Savings, basis: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json({**asdict(result), **basis})
        return
    screen = Screen()
    if basis["basis"] == "counts":
        days = basis["days"]
        time_counted = f"{days:.1f} days" if days >= 2 else f"{24 * days:.1f} hours"
        screen.fact("counted", f"{time_counted}, hit rate {basis['hit_rate']:.1%}")
        if basis["unpriced_models"]:
            screen.fact(
                "", f"not in it, for want of a price: {', '.join(basis['unpriced_models'])}"
            )
    screen.fact("a day", dollars(result.daily_usd))
    if result.embedding_usd:
        screen.fact("", f"less {dollars(result.embedding_usd)} for embeddings")
    screen.fact("a month", dollars(result.monthly_usd))
    if result.redis_usd:
        screen.fact("Redis", f"less {dollars(result.redis_usd)} a month")
        screen.fact("net", f"{dollars(result.net_usd)} a month")
