"""What the model is called with besides the messages: checked, and in its canonical form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_cache._core import canonical
from llm_cache._core.types import Json
from llm_cache.config import is_number
from llm_cache.errors import InvalidRequest

_TRANSPORT_PARAMS = frozenset({"stream", "stream_options", "timeout"})
"""How the answer travels, not what it is."""
_EXTRAS = ("extra_body", "extra_headers", "extra_query")
_TRANSPORT_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "api-key",
        "authorization",
        "cache-control",
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "idempotency-key",
        "proxy-authorization",
        "traceparent",
        "tracestate",
        "user-agent",
        "x-client-request-id",
        "x-request-id",
    }
)
# Credentials say who asks, not what is answered: a key that is rotated must not empty the cache.
_CREDENTIALS = ("-api-key", "-auth", "-authorization", "-token")
_NUMBERS = frozenset(
    {
        "frequency_penalty",
        "max_completion_tokens",
        "max_tokens",
        "n",
        "presence_penalty",
        "seed",
        "temperature",
        "top_logprobs",
        "top_p",
    }
)


def check_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of *params* is sent.

    Raises:
        InvalidRequest: a parameter cannot work; the message names it.
    """
    sent = {name: value for name, value in params.items() if not canonical.is_not_given(value)}
    if "messages" in sent or "model" in sent:
        raise InvalidRequest("messages and model are given once: pass the messages as the prompt")
    _check_numbers(sent)
    return sent


def frame_params(
    sent: Mapping[str, Any],
    *,
    model: str,
    base_url: str,
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> bytes:
    """Return the canonical bytes of all that the model could see beside the messages: a JSON list.

    Args:
        sent: What `check_params` returned.
        model: The model's name.
        base_url: Where the model is.
        defaults: `extra_headers` and `extra_query` that the client sends with every request.

    Raises:
        InvalidRequest: a parameter is not JSON; the message names it.
    """
    return canonical.dump([base_url, model, *_fold_params(sent, defaults or {})], "the request")


def _fold_params(sent: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> list[Json]:
    """Return the rest of the request body, the headers and the query that the model could see.

    The SDK lays `extra_body` over the body, so a parameter given there is the same parameter.
    """
    body = {
        name: value
        for name, value in sent.items()
        if name not in _TRANSPORT_PARAMS and name not in _EXTRAS
    }
    over_body = _mapping(sent.get("extra_body"), "extra_body")
    return [
        canonical.fold({**body, **over_body}, "the request"),
        *fold_headers_and_query(sent, defaults),
    ]


def fold_headers_and_query(
    sent: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]
) -> list[Json]:
    """Return the headers and the query that the model could see, of the call and the client."""
    extra = {name: _mapping(sent.get(name), name) for name in ("extra_headers", "extra_query")}
    given = [*defaults.get("extra_headers", {}).items(), *extra["extra_headers"].items()]
    headers = {name.lower(): value for name, value in given if not is_transport(name.lower())}
    query = {**defaults.get("extra_query", {}), **extra["extra_query"]}
    return [canonical.fold(headers, "extra_headers"), canonical.fold(query, "extra_query")]


def is_transport(header: str) -> bool:
    """Tell whether *header*, in lower case, says how an answer travels or who asks for it."""
    # The SDK tells its platform, retries and helpers in headers of one prefix.
    is_named = header in _TRANSPORT_HEADERS or header.startswith("x-stainless-")
    return is_named or header.endswith(_CREDENTIALS)


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidRequest(f"{name} must be a mapping of names to values")
    return value


def _check_numbers(sent: Mapping[str, Any]) -> None:
    for name in _NUMBERS & sent.keys():
        value = sent[name]
        if value is not None and not is_number(value):
            raise InvalidRequest(f"{name} must be a number; got {type(value).__name__}")
