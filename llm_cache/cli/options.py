"""Options that several commands share, and what they are made into."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import typer

from llm_cache import CacheConfig
from llm_cache._redis.connection import mask
from llm_cache.config import encryption_keys_from_env, tenant_secret_from_env
from llm_cache.errors import ConfigurationError

RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis-url",
        metavar="URL",
        show_default="REDIS_URL, else redis://localhost:6379",
        help="Redis with search; embedded:///DIR runs one here.",
    ),
]
Namespace = Annotated[
    str, typer.Option("--namespace", metavar="NAME", help="Prefix of every Redis key.")
]
Semantic = Annotated[
    bool,
    typer.Option("--semantic/--no-semantic", help="Whether rephrased questions are looked up."),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        metavar="SIMILARITY",
        min=0.0,
        max=1.0,
        show_default="the embedding model's",
        help="Least similarity of a semantic hit; higher is stricter.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help="The chat model.", show_default=CacheConfig().model
    ),
]
System = Annotated[
    str | None,
    typer.Option(
        "--system",
        metavar="TEXT",
        help='System message; "" for none.',
        show_default="that of LLMCache; with --local a briefer one",
    ),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        metavar="URL",
        help="Another service that speaks OpenAI's protocol.",
        show_default="OPENAI_BASE_URL, else OpenAI",
    ),
]
Local = Annotated[
    bool,
    typer.Option(
        "--local",
        help="Use the small models of this machine; with --base-url the embedder alone.",
    ),
]
Tenant = Annotated[
    str | None,
    typer.Option(
        "--tenant", metavar="NAME", help="Whose answers these are.", show_default="the shared"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
PriceModel = Annotated[
    str,
    typer.Option("--price-model", metavar="MODEL", help="Whose prices the savings are told in."),
]
Prices = Annotated[
    list[str] | None,
    typer.Option(
        "--price",
        metavar="MODEL=IN,OUT",
        help="USD per million tokens of a model; may be given again.",
        show_default="the price list",
    ),
]
Window = Annotated[
    str | None,
    typer.Option(
        "--window", metavar="TIME", help="24h, 7d and so on, up to 400d.", show_default="all time"
    ),
]

NAMESPACE = CacheConfig().namespace
PRICE_MODEL = "gpt-4o-mini"


def make_config(**settings: Any) -> CacheConfig:
    """Return the settings; what cannot be is wrong usage."""
    settings.setdefault("tenant_secret", tenant_secret_from_env())
    settings.setdefault("encryption_keys", encryption_keys_from_env())
    try:
        return CacheConfig(**settings)
    except ConfigurationError as error:
        raise typer.BadParameter(str(error)) from None


def refuse_missing_directory(url: str) -> None:
    """Refuse an `embedded:///DIR` that is not there, for a command that is to look and not make.

    Raises:
        ConfigurationError: there is no such directory.
    """
    path = unquote(urlsplit(url).path) if url.lower().startswith("embedded:///") else ""
    if path and not Path(path).exists():
        raise ConfigurationError(
            f"there is no directory {path}: correct --redis-url or REDIS_URL;"
            " `chat` and `demo` make a new one"
        )


def without_secrets(url: str) -> str:
    """Return *url* as it may be shown: without its user, its password and its query."""
    return mask(url)
