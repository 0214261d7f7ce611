"""What is known of a call before any look-up, and what a caller may say to the cache."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypedDict, cast

from llm_cache._core.canonical import to_json
from llm_cache._core.codec import Sealed
from llm_cache._core.control import CacheControl
from llm_cache._core.keys import Scope, prompt_version
from llm_cache._core.types import ChatRequest, Completion, Json
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
    depends_on: Iterable[str]
    tenant: str | None
    shared_scope: str | None
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
class Terms:
    """What holds for a call whatever its messages: who asks, for what, and on which conditions."""

    model: str
    tenant: str | None
    """The caller's name for whose call this is."""
    tenant_id: str | None
    """What stands in Redis for the tenant that the answer belongs to; a shared one has none."""
    shared_scope: str | None
    """Within it tenants share answers, because the caller said so."""
    tags: tuple[str, ...]
    depends_on: tuple[str, ...]
    ttl_s: float
    semantic: bool
    """Whether the semantic layer takes part, where there is a text to compare."""
    control: CacheControl
    bypass: str | None
    """Why the cache takes no part at all; `None` where it does."""
    is_shared: bool
    """Whether a call may be answered by what another one makes."""
    refuse: Callable[[Json], str | None]
    """Why an answer must not be stored."""
    wait_s: float | None = None
    """How long another caller's answer is waited for: as long as the model would be."""


@dataclass(slots=True)
class Call:
    """One call, checked, with the place its answer may be in."""

    digest: str
    """Names the answer to this very request."""
    text: str | None = field(repr=False)
    """What can be compared; `None` where nothing can."""
    instructions: Callable[[], str] = field(repr=False)
    """Returns the texts that tell the model how to answer, whatever the question."""
    scope: Scope
    """Within it, answers may be shared between prompts that mean the same."""
    terms: Terms

    @property
    def compared(self) -> str | None:
        """What the semantic layer compares; `None` where it takes no part."""
        return self.text if self.terms.semantic else None

    @property
    def prompt_version(self) -> str | None:
        """Names the system prompt; `None` where there is none. Worked out when it is asked for."""
        instructions = self.instructions()
        return prompt_version(instructions) if instructions else None

    @property
    def flight(self) -> tuple[Hashable, ...]:
        """Names those calls that one answer serves, whatever the layer it comes from."""
        return self.digest, self.compared is not None, self.terms.control.max_age_s

    def accepts_stale(self, entry: Sealed, now_s: float, *, for_s: float) -> bool:
        """Tell whether *entry* may be served although it turned stale, up to *for_s* ago."""
        return (
            entry.fresh_until_s <= now_s < entry.fresh_until_s + for_s
            and (self.terms.semantic or not entry.is_alias)
            and self.terms.control.accepts(max(0.0, now_s - entry.created_s))
        )

    def accepts(self, entry: Sealed, now_s: float) -> bool:
        """Tell whether *entry*, which was found for this call, may be served as fresh."""
        return (
            now_s < entry.fresh_until_s
            and (self.terms.semantic or not entry.is_alias)
            and self.terms.control.accepts(max(0.0, now_s - entry.created_s))
        )


RequestOf = Callable[[], ChatRequest]
"""Makes what the model is asked: an exact hit needs none."""


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


def lasting_options(options: Mapping[str, Any]) -> CallOptions:
    """Return *options* as they hold for many calls: names that could be iterated once are kept.

    Raises:
        ConfigurationError: there are some that the cache does not have.
    """
    check_options(options)
    kept = dict(options)
    for name in ("tags", "depends_on"):
        names = options.get(name)
        if isinstance(names, Iterable) and not isinstance(names, str):
            kept[name] = tuple(names)
    return cast("CallOptions", kept)


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
