"""From the arguments of a call to a `Call`. Pure, but for what it remembers of earlier calls."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator, Mapping
from functools import lru_cache, partial
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
from llm_cache._core import canonical, keys, policy
from llm_cache._core.control import CacheControl
from llm_cache._core.normalize import (
    Prompt,
    Turns,
    fold_text,
    frame_value,
    is_plain,
    read_messages,
)
from llm_cache._core.parameters import check_params, frame_params
from llm_cache._core.types import ChatRequest
from llm_cache._terms import terms_of, under_rule
from llm_cache.config import CacheConfig, is_number, upstream_name
from llm_cache.errors import InvalidRequest


class Service(Protocol):
    """What a call needs to know of the model's service."""

    @property
    def identity(self) -> Hashable:
        """What it has in common with services that every call means the same to."""

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
    """Makes calls out of arguments. Remembers what it found out for earlier calls of their kind.

    Most calls differ from earlier ones in nothing but the messages; for them all the rest, which
    costs as much as a long conversation, has been checked before. And where all that comes before
    the prompt is a system message or nothing, their scope is known too.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        self._known: dict[Hashable, _Kind] = {}
        self._opening = lru_cache(_MOST_KNOWN)(_Opening)

    def chat(
        self, prompt: Prompt, service: Service, options: dict[str, Any], params: dict[str, Any]
    ) -> tuple[Call, RequestOf]:
        """Return the call of these arguments of `chat`, and what makes the model's request.

        Raises:
            InvalidRequest: an argument cannot work; the message names it.
        """
        kind, is_kept = self._kind(service, options, params)
        plain = _as_plain(prompt, kind) if is_kept else None
        if plain is not None:
            turn, system = plain
            planned = self._opening(kind, system).call(turn)
            if planned is not None:
                return planned
        return kind.call(prompt)

    def _kind(
        self, service: Service, options: dict[str, Any], params: dict[str, Any]
    ) -> tuple[_Kind, bool]:
        """Return the kind of a call, and whether it is remembered."""
        key = None
        # A caller's own rule may look at anything, the messages included.
        if self._config.bypass is None:
            try:
                key = _key(service, options, params)
                known = self._known.get(key)
            except (TypeError, ValueError):
                # What can be changed has no hash, and an array is neither equal nor unequal.
                key = known = None
            if known is not None:
                return known, True
        kind = _Kind(service, self._config, params, **options)
        is_kept = key is not None and _is_lasting(options, params)
        if is_kept:
            if len(self._known) >= _MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[key] = kind
        return kind, is_kept

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
        terms = terms_of(
            self._config,
            model=model if isinstance(model, str) else "",
            refuse=partial(policy.value_refusal, store_if=store_if),
            **options,
        )
        terms = under_rule(terms, self._config, request)
        # Read now: what they are in is the caller's own, who may change it.
        instructions = _instructions(request.get("messages"), request.get("system"))
        scope = _scope(frame, terms, self._config)
        return Call(_digest(scope, normalized), text, lambda: instructions, scope, terms)


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


def _as_plain(prompt: Prompt, kind: _Kind) -> tuple[str, str | None] | None:
    """Return the turn and the system message before it, if *prompt* says no more than those."""
    if type(prompt) is str:
        return prompt, kind.system
    if type(prompt) is not list or len(prompt) > 2 or kind.has_system:
        return None
    if not all(map(is_plain, prompt)) or [message["role"] for message in prompt] not in _PLAIN:
        return None
    *before, turn = [message["content"] for message in prompt]
    system = before[0] if before else None
    return None if before and len(before[0]) > _MOST_CHARS else (turn, system)


def _key(service: Service, options: dict[str, Any], params: dict[str, Any]) -> Hashable:
    """Return what calls have in common that differ in the messages alone."""
    if not params and (not options or options == _NOTHING_SAID):
        return service.identity, None
    given = (*options.values(), *params.values())
    # The types tell `1`, `1.0` and `True` apart, which are equal to each other.
    return (service.identity, *options, None, *params, *given, *map(type, given))


def _is_lasting(options: dict[str, Any], params: dict[str, Any]) -> bool:
    """Tell whether the terms of equal arguments may be kept.

    They always mean the same: none can be changed or used up. And they are short.
    """
    lists = (options.get("tags", ()), options.get("depends_on", ()))
    if not (
        _OPTION_TYPES.issuperset(map(type, options.values()))
        and _PARAM_TYPES.issuperset(map(type, params.values()))
        # An iterator would end by being looked into.
        and all(type(names) is tuple and _TEXT.issuperset(map(type, names)) for names in lists)
    ):
        return False
    given = (*options.values(), *params.values(), *lists[0], *lists[1])
    return sum([len(value) for value in given if type(value) is str]) <= _MOST_CHARS


class _Kind:
    """Calls that differ in their messages alone: all that is known of them, checked once.

    Raises:
        InvalidRequest: an argument cannot work; the message names it.
    """

    def __init__(
        self,
        service: Service,
        config: CacheConfig,
        params: Mapping[str, Any],
        *,
        model: str | None = None,
        system: str | Unset | None = UNSET,
        **options: Unpack[CallOptions],
    ) -> None:
        name: Any = config.model if model is None else model
        if not isinstance(name, str) or not name:
            raise InvalidRequest("model must be the name of a model")
        self.has_system = not isinstance(system, Unset)
        """Whether the caller gave the system message of a plain prompt."""
        self.system: Any = system if self.has_system else config.system
        """The one of a plain prompt; a list brings its own, or means to have none."""
        self.config = config
        self._params = check_params(params)
        self._frame = frame_params(
            self._params,
            model=name,
            base_url=upstream_name(config, service.base_url),
            defaults=service.defaults,
        )
        if options.get("cache_control") is None:
            options["cache_control"] = control_header(self._params)
        # Last, when all that is in them is known to be JSON.
        self._params = canonical.copied(self._params)
        wait_s = _seconds(self._params.get("timeout"), service.timeout)
        self.terms = terms_of(config, model=name, refuse=policy.refusal, wait_s=wait_s, **options)

    def call(self, prompt: Prompt) -> tuple[Call, RequestOf]:
        """Return the call for *prompt*, and what makes the model's request.

        Raises:
            InvalidRequest: the messages cannot work; the message names the part to change.
        """
        is_plain_prompt = isinstance(prompt, str)
        turns = self.read(prompt, self.system if is_plain_prompt or self.has_system else None)
        terms, scope = self.terms, self.scope(turns)
        if self.config.bypass is not None:
            as_sent = {"model": terms.model, "messages": turns.messages, **self._params}
            terms = under_rule(terms, self.config, as_sent)
        digest = _digest(scope, turns.normalized)
        instructions = partial(_instructions, turns.messages)
        call = Call(digest, turns.text, instructions, scope, terms)
        return call, partial(self.request, turns)

    def read(self, prompt: Prompt, system: str | None) -> Turns:
        """Return the messages that the model is to be sent."""
        return read_messages(
            prompt,
            system=system,
            normalization=self.config.normalization,
            max_chars=self.config.max_prompt_chars,
        )

    def scope(self, turns: Turns) -> keys.Scope:
        """Return the scope of a call with these messages."""
        return _scope(self._frame + turns.frame, self.terms, self.config)

    def request(self, turns: Turns) -> ChatRequest:
        """Return what the model is asked."""
        return ChatRequest(
            model=self.terms.model,
            messages=turns.messages,
            params=dict(self._params),
            frame=self._frame + turns.frame,
            text=turns.text,
            normalized=turns.normalized,
        )


class _Opening:
    """Calls of a kind with a plain prompt, behind the same *system* message or none."""

    __slots__ = ("_instructions", "_kind", "_most_chars", "_normalization", "_scope", "_system")

    def __init__(self, kind: _Kind, system: str | None) -> None:
        self._kind = kind
        self._system = system
        # Whatever the prompt is, it is no part of the scope.
        turns = read_messages("?", system=system, max_chars=sys.maxsize)
        self._scope = kind.scope(turns)
        self._instructions = partial(_instructions, turns.messages)
        self._normalization = kind.config.normalization
        self._most_chars = kind.config.max_prompt_chars - len(system or "")

    def call(self, prompt: str) -> tuple[Call, RequestOf] | None:
        """Return the call for *prompt*; `None` for one that can only be refused."""
        if len(prompt) > self._most_chars or not prompt or prompt.isspace():
            return None
        normalized = fold_text(prompt, self._normalization)
        try:
            digest = self._scope.digest(normalized)
        except UnicodeEncodeError:
            return None
        call = Call(digest, prompt, self._instructions, self._scope, self._kind.terms)
        return call, partial(self._request, prompt)

    def _request(self, prompt: str) -> ChatRequest:
        return self._kind.request(self._kind.read(prompt, self._system))


def _scope(frame: bytes, terms: Terms, config: CacheConfig) -> keys.Scope:
    return keys.Scope(
        frame,
        tenant=terms.tenant_id,
        shared_scope=terms.shared_scope,
        cache_version=config.cache_version,
        normalization=config.normalization,
    )


def _digest(scope: keys.Scope, normalized: str) -> str:
    try:
        return scope.digest(normalized)
    except UnicodeEncodeError:
        pass  # Its own exception is raised outside, without a context: this one holds the prompt.
    raise InvalidRequest("the prompt holds a lone surrogate, which is not Unicode text")


def _instructions(messages: Any, system: Any = None) -> str:
    """Return the texts that tell the model how to answer, whatever the question."""
    turns = messages if isinstance(messages, list | tuple) else ()
    contents = [system] + [
        turn.get("content")
        for turn in turns
        if isinstance(turn, Mapping) and _is_instructing(turn.get("role"))
    ]
    return "\n".join(text for content in contents for text in _texts(content))


def _is_instructing(role: Any) -> bool:
    return isinstance(role, str) and role in _INSTRUCTING


_INSTRUCTING = frozenset({"system", "developer"})


def _texts(content: Any) -> Iterator[str]:
    """Yield the texts of *content*, which is one itself or a list of parts."""
    parts = [{"text": content}] if isinstance(content, str) else content
    for part in parts if isinstance(parts, list | tuple) else ():
        text = part.get("text") if isinstance(part, Mapping) else None
        if isinstance(text, str):
            yield text


def _seconds(given: Any, default: Any) -> float | None:
    """Return a time-out of the SDK, a number or an object with several, in seconds."""
    timeout = default if given is None else given
    seconds = getattr(timeout, "read", timeout)
    return float(seconds) if is_number(seconds) else None
