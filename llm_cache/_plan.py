"""From the arguments of a call to a `Call`. Pure, but for what it remembers of earlier calls."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, Unpack

from llm_cache._call import (
    UNSET,
    Call,
    CallOptions,
    RequestOf,
    Terms,
    Unset,
    control_header,
)
from llm_cache._core import keys, policy
from llm_cache._core.control import ANY, CacheControl, parse_cache_control
from llm_cache._core.normalize import Prompt, fold_text, frame_value, is_plain, normalize
from llm_cache._core.targets import MOST_NAME_CHARS
from llm_cache._core.types import ChatRequest, Json
from llm_cache.config import CacheConfig, check_ttl, is_number, upstream_name
from llm_cache.errors import ConfigurationError, InvalidRequest


class Service(Protocol):
    """What a call needs to know of the model's service."""

    @property
    def base_url(self) -> str:
        """Where it is."""

    @property
    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """Headers and query that the client adds to every request."""

    @property
    def timeout(self) -> Any:
        """The client's time-out, in any form the SDK takes."""


class Planner:
    """Makes calls out of arguments. Remembers the terms of recent calls with a plain prompt.

    Most calls differ from earlier ones in nothing but the prompt; for them all the rest, which
    costs ten times as much as the prompt, has been checked and hashed before. A list of one user's
    turn, behind a system message or none, is a plain prompt as well.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        self._known: dict[Hashable, _Pattern] = {}

    def chat(
        self, prompt: Prompt, service: Service, options: dict[str, Any], params: dict[str, Any]
    ) -> tuple[Call, RequestOf]:
        """Return the call of these arguments of `chat`, and what makes the model's request.

        Raises:
            InvalidRequest: an argument cannot work; the message names it.
        """
        prompt, options = _as_plain(prompt, options)
        # A caller's own rule may look at anything, the prompt included.
        may_know = type(prompt) is str and self._config.bypass is None
        kind, pattern = None, None
        if may_know:
            try:
                kind = _kind(service, options, params)
                pattern = self._known.get(kind)
            except (TypeError, ValueError):
                # What can be changed has no hash, and an array is neither equal nor unequal.
                pattern = None
        planned = None if pattern is None else pattern.call(prompt)  # type: ignore[arg-type]
        if planned is not None:
            return planned
        call, request = plan_chat(prompt, service, config=self._config, params=params, **options)
        if may_know and _is_lasting(options, params):
            if len(self._known) >= _MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[kind] = _Pattern(call.terms, request, self._config)
        return call, lambda: request

    def value(
        self,
        request: Mapping[str, Any],
        *,
        producer: str,
        store_if: policy.StoreIf | None = None,
        **options: Unpack[CallOptions],
    ) -> Call:
        """Return the call for a request in anybody's own shape.

        Raises:
            InvalidRequest: an argument cannot work; the message names it.
        """
        frame, text, normalized = frame_value(
            request, producer=producer, normalization=self._config.normalization
        )
        model = request.get("model")
        return _call(
            frame,
            text,
            normalized,
            model=model if isinstance(model, str) else "",
            config=self._config,
            request=request,
            refuse=partial(policy.value_refusal, store_if=store_if),
            options=options,
            instructions=_instructions(request.get("messages"), request.get("system")),
        )


_MOST_KNOWN = 1024
_NOTHING_SAID = {
    "model": None,
    "system": UNSET,
    "ttl_s": None,
    "tags": (),
    "depends_on": (),
    "tenant": None,
    "shared_scope": None,
    "semantic": None,
    "cache_control": None,
}
"""The options of a call that is made with a prompt and nothing else."""
_PARAM_TYPES = frozenset({str, int, float, bool, type(None)})
_OPTION_TYPES = _PARAM_TYPES | {Unset, CacheControl, tuple}
_TEXT = frozenset({str})
_PLAIN = (["user"], ["system", "user"])
"""Roles of the messages that a plain prompt is sent as."""
_MOST_CHARS = 10_000
"""Of the texts that are remembered with one kind of call, which may be a long system prompt."""


def _as_plain(prompt: Prompt, options: dict[str, Any]) -> tuple[Prompt, dict[str, Any]]:
    """Return *prompt* and *options* as they would be of a plain prompt, if they say no more."""
    if type(prompt) is not list or not isinstance(options.get("system", UNSET), Unset):
        return prompt, options
    is_short = len(prompt) <= 2 and all(map(is_plain, prompt))
    if not is_short or [message["role"] for message in prompt] not in _PLAIN:
        return prompt, options
    *before, turn = [message["content"] for message in prompt]
    return turn, {**options, "system": before[0] if before else None}


def _kind(service: Service, options: dict[str, Any], params: dict[str, Any]) -> Hashable:
    """Return what calls have in common that differ in the prompt alone."""
    if not params and (not options or options == _NOTHING_SAID):
        return service, None
    given = (*options.values(), *params.values())
    # The types tell `1`, `1.0` and `True` apart, which are equal to each other.
    return (service, *options, None, *params, *given, *map(type, given))


def _is_lasting(options: dict[str, Any], params: dict[str, Any]) -> bool:
    """Tell whether the terms of equal arguments may be kept.

    They always mean the same: none can be changed or used up. And they are short.
    """
    lists = (options.get("tags", ()), options.get("depends_on", ()))
    texts = [value for value in (*options.values(), *params.values()) if type(value) is str]
    return (
        _OPTION_TYPES.issuperset(map(type, options.values()))
        and _PARAM_TYPES.issuperset(map(type, params.values()))
        and sum(map(len, texts)) <= _MOST_CHARS
        # An iterator would end by being looked into.
        and all(type(names) is tuple and _TEXT.issuperset(map(type, names)) for names in lists)
    )


class _Pattern:
    """Calls with a plain prompt that differ in the prompt alone."""

    __slots__ = ("_chars", "_normalization", "_request", "_terms")

    def __init__(self, terms: Terms, request: ChatRequest, config: CacheConfig) -> None:
        self._terms = terms
        # The caller has the request itself, and may change it.
        self._request = replace(request, messages=[dict(turn) for turn in request.messages])
        others = self._request.messages[:-1]
        self._normalization = config.normalization
        self._chars = config.max_prompt_chars - sum(len(turn["content"]) for turn in others)

    def call(self, prompt: str) -> tuple[Call, RequestOf] | None:
        """Return the call for *prompt*; `None` for one that can only be refused."""
        if len(prompt) > self._chars or not prompt or prompt.isspace():
            return None
        normalized = fold_text(prompt, self._normalization)
        try:
            digest = self._terms.scope.digest(normalized)
        except UnicodeEncodeError:
            return None
        return Call(digest, prompt, self._terms), partial(self._ask, prompt, normalized)

    def _ask(self, prompt: str, normalized: str) -> ChatRequest:
        messages = [dict(message) for message in self._request.messages]
        messages[-1]["content"] = prompt
        return replace(self._request, messages=messages, text=prompt, normalized=normalized)


def plan_chat(
    prompt: Prompt,
    service: Service,
    *,
    config: CacheConfig,
    params: Mapping[str, Any],
    model: str | None = None,
    system: str | Unset | None = UNSET,
    **options: Unpack[CallOptions],
) -> tuple[Call, ChatRequest]:
    """Return the call that these arguments make, and what the model is to be asked.

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
        defaults=service.defaults,
        base_url=upstream_name(config, service.base_url),
        normalization=config.normalization,
        max_chars=config.max_prompt_chars,
    )
    if options.get("cache_control") is None:
        options["cache_control"] = control_header(request.params)
    call = _call(
        request.frame,
        request.text,
        request.normalized,
        model=request.model,
        config=config,
        request={"model": request.model, "messages": request.messages, **request.params},
        refuse=policy.refusal,
        options=options,
        instructions=_instructions(request.messages),
        wait_s=_seconds(request.params.get("timeout"), service.timeout),
    )
    return call, request


def _call(
    frame: bytes,
    text: str | None,
    normalized: str,
    *,
    model: str,
    config: CacheConfig,
    request: Mapping[str, Any],
    refuse: Callable[[Json], str | None],
    options: CallOptions,
    instructions: str,
    wait_s: float | None = None,
) -> Call:
    tenant = _checked_tenant(options.get("tenant"), is_required=config.require_tenant)
    given = options.get("cache_control")
    control = ANY if given is None else parse_cache_control(given)
    bypass = _bypass_reason(control, config, request)
    is_free = bypass is None and not control.no_cache and not control.only_if_cached
    tenant_id = keys.tenant_id(tenant, config.tenant_secret)
    shared_scope = _checked_scope(options.get("shared_scope"))
    scope = keys.Scope(
        frame,
        tenant=tenant_id,
        shared_scope=shared_scope,
        cache_version=config.cache_version,
        normalization=config.normalization,
    )
    # Checked apart: the exception of a failed encoding holds the prompt.
    if not _is_unicode(normalized):
        raise InvalidRequest("the prompt holds a lone surrogate, which is not Unicode text")
    terms = Terms(
        scope=scope,
        model=model,
        tenant=tenant,
        tenant_id=None if shared_scope is not None else tenant_id,
        shared_scope=shared_scope,
        prompt_version=keys.prompt_version(instructions) if instructions else None,
        tags=_checked_names(options.get("tags", ()), "tags", "tag"),
        depends_on=_checked_names(options.get("depends_on", ()), "depends_on", "dependency"),
        ttl_s=_checked_ttl_s(options.get("ttl_s"), model, config),
        semantic=config.semantic and options.get("semantic") is not False and text is not None,
        control=control,
        bypass=bypass,
        is_shared=is_free and config.single_flight and not config.shadow,
        refuse=refuse,
        wait_s=wait_s,
    )
    return Call(scope.digest(normalized), text, terms)


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
    return _checked_name(tenant, "tenant", otherwise=", or None for the shared one")


def _checked_scope(name: object) -> str | None:
    return None if name is None else _checked_name(name, "shared_scope")


def _checked_name(name: object, what: str, *, otherwise: str = "") -> str:
    if not isinstance(name, str) or not name or not _is_unicode(name):
        raise InvalidRequest(f"{what} must be text that is not empty{otherwise}")
    if len(name) > MOST_NAME_CHARS:
        raise InvalidRequest(f"{what} must have at most {MOST_NAME_CHARS} characters")
    return name


def _instructions(messages: Any, system: Any = None) -> str:
    """Return the texts that tell the model how to answer, whatever the question."""
    turns = messages if isinstance(messages, list | tuple) else ()
    contents = [system] + [
        turn.get("content")
        for turn in turns
        if (type(turn) is dict or isinstance(turn, Mapping)) and turn.get("role") in _INSTRUCTING
    ]
    return "\n".join(text for content in contents for text in _texts(content))


_INSTRUCTING = frozenset({"system", "developer"})


def _texts(content: Any) -> Iterator[str]:
    """Yield the texts of *content*, which is one itself or a list of parts."""
    parts = [{"text": content}] if isinstance(content, str) else content
    for part in parts if isinstance(parts, list | tuple) else ():
        text = part.get("text") if isinstance(part, Mapping) else None
        if isinstance(text, str):
            yield text


def _checked_names(names: Iterable[object], what: str, one: str) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InvalidRequest(f"{what} must be a list of texts; got {type(names).__name__}")
    return tuple(dict.fromkeys(_checked_name(name, f"every {one}") for name in names))


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


def _checked_ttl_s(ttl_s: float | None, model: str, config: CacheConfig) -> float:
    configured_s = config.model_ttl_s.get(model, config.ttl_s)
    try:
        return check_ttl(configured_s if ttl_s is None else ttl_s, "ttl_s")
    except ConfigurationError as error:
        raise InvalidRequest(str(error)) from None
