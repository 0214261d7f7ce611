"""From the arguments of a call to a `Call`: everything that is known before any look-up. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypedDict, Unpack

from llm_cache._core import keys
from llm_cache._core.canonical import to_json
from llm_cache._core.normalize import Prompt, normalize
from llm_cache._core.types import ChatRequest, Completion
from llm_cache.config import CacheConfig, check_ttl
from llm_cache.errors import ConfigurationError, InvalidRequest


class Unset:
    """Says that an argument was not given, where `None` means something."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset()


class CallOptions(TypedDict, total=False):
    """The keyword arguments of `LLMCache.chat` that are the cache's own."""

    model: str | None
    system: str | Unset | None
    ttl_s: float | None
    tags: Iterable[str]
    tenant: str | None
    semantic: bool | None


OPTIONS = frozenset(CallOptions.__annotations__)


@dataclass(frozen=True, slots=True)
class Call:
    """One call, checked, with the places its answer may be in."""

    request: ChatRequest
    digest: str
    """Names the answer to this very request."""
    scope: str
    """Within it, answers may be shared between prompts that mean the same."""
    tenant: str | None
    tags: tuple[str, ...]
    ttl_ms: int
    semantic: bool
    """Whether the semantic layer takes part."""


def plan(
    prompt: Prompt,
    *,
    config: CacheConfig,
    base_url: str,
    params: Mapping[str, Any],
    **options: Unpack[CallOptions],
) -> Call:
    """Return the call that these arguments make.

    Raises:
        InvalidRequest: an argument cannot work; the message names it.
    """
    system = options.get("system", UNSET)
    if isinstance(system, Unset):
        # A list of messages brings its own system message, or means to have none.
        system = config.system if isinstance(prompt, str) else None
    model = options.get("model")
    request = normalize(
        prompt,
        model=config.model if model is None else model,
        system=system,
        params=params,
        base_url=base_url if config.upstream_id is None else config.upstream_id,
        normalization=config.normalization,
        max_chars=config.max_prompt_chars,
    )
    tenant = _checked_tenant(options.get("tenant"), is_required=config.require_tenant)
    digest, scope = keys.identify(
        request,
        tenant=tenant,
        cache_version=config.cache_version,
        normalization=config.normalization,
    )
    return Call(
        request=request,
        digest=digest,
        scope=scope,
        tenant=tenant,
        tags=_checked_tags(options.get("tags", ())),
        ttl_ms=_checked_ttl_ms(options.get("ttl_s"), config),
        semantic=config.semantic
        and options.get("semantic") is not False
        and request.text is not None,
    )


def as_completion(answer: Any, model: str) -> Completion:
    """Return *answer*, a text or a chat completion in any form, as a completion.

    Raises:
        InvalidRequest: it is neither.
    """
    if isinstance(answer, str):
        message = {"role": "assistant", "content": answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"object": "chat.completion", "model": model, "choices": [choice]}
    as_json = answer if isinstance(answer, Mapping) else to_json(answer)
    if not isinstance(as_json, Mapping):
        raise InvalidRequest("the answer must be text or a chat completion")
    return dict(as_json)


def _checked_tenant(tenant: object, *, is_required: bool) -> str | None:
    if tenant is None:
        if is_required:
            raise InvalidRequest("require_tenant=True: every call must name its tenant=")
        return None
    if not isinstance(tenant, str) or not tenant:
        raise InvalidRequest("tenant must be text that is not empty, or None for the shared one")
    return tenant


def _checked_tags(tags: Iterable[object]) -> tuple[str, ...]:
    if isinstance(tags, str):
        raise InvalidRequest("tags must be a list of tags, not one text")
    checked = []
    for tag in dict.fromkeys(tags):
        if not isinstance(tag, str) or not tag:
            raise InvalidRequest("every tag must be text that is not empty")
        checked.append(tag)
    return tuple(checked)


def _checked_ttl_ms(ttl_s: float | None, config: CacheConfig) -> int:
    try:
        return round(1000 * check_ttl(config.ttl_s if ttl_s is None else ttl_s, "ttl_s"))
    except ConfigurationError as error:
        raise InvalidRequest(str(error)) from None
