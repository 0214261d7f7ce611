"""From the arguments of a call to a `Call`: everything that is known before any look-up. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypedDict, Unpack

from llm_cache._core import keys, policy
from llm_cache._core.canonical import to_json
from llm_cache._core.control import ANY, CacheControl, parse_cache_control
from llm_cache._core.normalize import Prompt, frame_value, normalize
from llm_cache._core.types import ChatRequest, Completion, Entry, Json
from llm_cache.config import CacheConfig, check_ttl, is_number, upstream_name
from llm_cache.errors import ConfigurationError, InvalidRequest


class Unset:
    """Says that an argument was not given, where `None` means something."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset()


class CallOptions(TypedDict, total=False):
    """What every call may say to the cache."""

    ttl_s: float | None
    tags: Iterable[str]
    tenant: str | None
    semantic: bool | None
    cache_control: str | CacheControl | None


class ChatOptions(CallOptions, total=False):
    """What a chat call may say besides."""

    model: str | None
    system: str | Unset | None


CALL_OPTIONS = frozenset(CallOptions.__annotations__)
CHAT_OPTIONS = frozenset(ChatOptions.__annotations__) | CALL_OPTIONS
_RAW_RESPONSE_HEADER = "x-stainless-raw-response"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call, checked, with the places its answer may be in."""

    digest: str
    """Names the answer to this very request."""
    scope: str
    """Within it, answers may be shared between prompts that mean the same."""
    text: str | None
    """What is compared; `None` where nothing is."""
    model: str
    tenant: str | None
    tags: tuple[str, ...]
    ttl_ms: int
    semantic: bool
    """Whether the semantic layer takes part."""
    control: CacheControl
    bypass: str | None
    """Why the cache takes no part at all; `None` where it does."""
    refuse: Callable[[Json], str | None]
    """Why an answer must not be stored."""
    wait_s: float | None = None
    """How long another caller's answer is waited for: as long as the model would be."""

    @property
    def flight(self) -> str:
        """Names those calls that one answer serves, whatever the layer it comes from."""
        return f"{self.digest} {self.semantic} {self.control.max_age_s}"

    def accepts(self, entry: Entry, now_s: float) -> bool:
        """Tell whether *entry*, which was found for this call, may be served."""
        is_allowed = self.semantic or entry.origin is None
        return is_allowed and self.control.accepts(max(0.0, now_s - entry.created_s))


def plan_chat(
    prompt: Prompt,
    *,
    config: CacheConfig,
    base_url: str,
    defaults: Mapping[str, Mapping[str, Any]],
    timeout_s: Any = None,
    params: Mapping[str, Any],
    model: str | None = None,
    system: str | Unset | None = UNSET,
    **options: Unpack[CallOptions],
) -> tuple[Call, ChatRequest]:
    """Return the call that these arguments make, and what the model is to be asked.

    *defaults* are the headers and the query that the client adds to every request, *timeout_s* is
    its time-out in any form the SDK takes.

    Raises:
        InvalidRequest: an argument cannot work; the message names it.
    """
    if isinstance(system, Unset):
        # A list of messages brings its own system message, or means to have none.
        system = config.system if isinstance(prompt, str) else None
    request = normalize(
        prompt,
        model=config.model if model is None else model,
        system=system,
        params=params,
        defaults=defaults,
        base_url=upstream_name(config, base_url),
        normalization=config.normalization,
        max_chars=config.max_prompt_chars,
    )
    if options.get("cache_control") is None:
        options["cache_control"] = control_header(request.params)
    call = _plan(
        request.frame,
        request.text,
        request.normalized,
        model=request.model,
        config=config,
        request={"model": request.model, "messages": request.messages, **request.params},
        refuse=policy.refusal,
        options=options,
        wait_s=_seconds(request.params.get("timeout"), timeout_s),
    )
    return call, request


def plan_value(
    request: Mapping[str, Any],
    *,
    config: CacheConfig,
    producer: str,
    store_if: policy.StoreIf | None = None,
    **options: Unpack[CallOptions],
) -> Call:
    """Return the call for a request in anybody's own shape.

    Raises:
        InvalidRequest: an argument cannot work; the message names it.
    """
    frame, text, normalized = frame_value(
        request, producer=producer, normalization=config.normalization
    )
    model = request.get("model")
    return _plan(
        frame,
        text,
        normalized,
        model=model if isinstance(model, str) else "",
        config=config,
        request=request,
        refuse=lambda value: policy.value_refusal(value, store_if),
        options=options,
    )


def _plan(
    frame: bytes,
    text: str | None,
    normalized: str,
    *,
    model: str,
    config: CacheConfig,
    request: Mapping[str, Any],
    refuse: Callable[[Json], str | None],
    options: CallOptions,
    wait_s: float | None = None,
) -> Call:
    tenant = _checked_tenant(options.get("tenant"), is_required=config.require_tenant)
    if not _is_unicode(normalized):
        raise InvalidRequest("the prompt holds a lone surrogate, which is not Unicode text")
    digest, scope = keys.identify(
        frame,
        normalized,
        tenant=tenant,
        cache_version=config.cache_version,
        normalization=config.normalization,
    )
    given = options.get("cache_control")
    control = ANY if given is None else parse_cache_control(given)
    return Call(
        digest=digest,
        scope=scope,
        text=text,
        model=model,
        tenant=tenant,
        tags=_checked_tags(options.get("tags", ())),
        ttl_ms=_checked_ttl_ms(options.get("ttl_s"), config),
        semantic=config.semantic and options.get("semantic") is not False and text is not None,
        control=control,
        bypass=_bypass_reason(control, config, request),
        refuse=refuse,
        wait_s=wait_s,
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


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that are none of the cache's.

    Raises:
        ConfigurationError: naming them.
    """
    unknown = sorted(options.keys() - CALL_OPTIONS)
    if unknown:
        raise ConfigurationError(
            f"the cache has no option {', '.join(unknown)}: it has"
            f" {', '.join(sorted(CALL_OPTIONS))}"
        )


def take_options(params: dict[str, Any], standing: CallOptions) -> CallOptions | None:
    """Take the cache's own options out of *params*, and lay them over the *standing* ones.

    `None` where *params* ask the SDK for a raw response: then the cache has no part in the call.
    """
    given: Any = {name: params.pop(name) for name in CALL_OPTIONS & params.keys()}
    is_raw = _header(params, _RAW_RESPONSE_HEADER) is not None
    return None if is_raw else {**standing, **given}


def control_header(params: Mapping[str, Any]) -> str | None:
    """Return the `Cache-Control` among the `extra_headers` of *params*."""
    value: str | None = _header(params, "cache-control")
    return value


def _header(params: Mapping[str, Any], wanted: str) -> Any:
    headers = params.get("extra_headers")
    given = headers.items() if isinstance(headers, Mapping) else ()
    return next((value for name, value in given if str(name).lower() == wanted), None)


def _bypass_reason(
    control: CacheControl, config: CacheConfig, request: Mapping[str, Any]
) -> str | None:
    if control.no_store:
        return "no-store"
    return "policy" if config.bypass is not None and config.bypass(request) else None


def _checked_tenant(tenant: object, *, is_required: bool) -> str | None:
    if tenant is None:
        if is_required:
            raise InvalidRequest("require_tenant=True: every call must name its tenant=")
        return None
    if not isinstance(tenant, str) or not tenant or not _is_unicode(tenant):
        raise InvalidRequest("tenant must be text that is not empty, or None for the shared one")
    return tenant


def _checked_tags(tags: Iterable[object]) -> tuple[str, ...]:
    if isinstance(tags, str):
        raise InvalidRequest("tags must be a list of tags, not one text")
    checked = []
    for tag in dict.fromkeys(tags):
        if not isinstance(tag, str) or not tag or not _is_unicode(tag):
            raise InvalidRequest("every tag must be text that is not empty")
        checked.append(tag)
    return tuple(checked)


def _seconds(given: Any, default: Any) -> float | None:
    """Return a time-out of the SDK, a number or an object with several, in seconds."""
    timeout = default if given is None else given
    seconds = getattr(timeout, "read", timeout)
    return float(seconds) if is_number(seconds) else None


def _is_unicode(text: str) -> bool:
    """Tell whether *text* can be written down: a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked_ttl_ms(ttl_s: float | None, config: CacheConfig) -> int:
    try:
        return round(1000 * check_ttl(config.ttl_s if ttl_s is None else ttl_s, "ttl_s"))
    except ConfigurationError as error:
        raise InvalidRequest(str(error)) from None
