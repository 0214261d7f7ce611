"""From the options of a call to its `Terms`: every one checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Unpack

from llm_cache._call import CallOptions, Terms
from llm_cache._core import keys
from llm_cache._core.canonical import is_unicode
from llm_cache._core.control import ANY, parse_cache_control
from llm_cache._core.targets import MOST_NAME_CHARS
from llm_cache._core.types import Json
from llm_cache.config import CacheConfig, check_ttl
from llm_cache.errors import ConfigurationError, InvalidRequest


def terms_of(
    config: CacheConfig,
    *,
    model: str,
    refuse: Callable[[Json], str | None],
    wait_s: float | None = None,
    **options: Unpack[CallOptions],
) -> Terms:
    """Return what holds for a call with these *options*.

    Raises:
        InvalidRequest: an option cannot work; the message names it.
    """
    tenant = _checked_tenant(options.get("tenant"), is_required=config.require_tenant)
    shared_scope = _checked_scope(options.get("shared_scope"))
    given = options.get("cache_control")
    control = ANY if given is None else parse_cache_control(given)
    is_free = not (control.no_store or control.no_cache or control.only_if_cached)
    return Terms(
        model=model,
        tenant=tenant,
        tenant_id=None if shared_scope else keys.tenant_id(tenant, config.tenant_secret),
        shared_scope=shared_scope,
        tags=_checked_names(options.get("tags", ()), "tags", "tag"),
        depends_on=_checked_names(options.get("depends_on", ()), "depends_on", "dependency"),
        ttl_s=_checked_ttl_s(options.get("ttl_s"), model, config),
        semantic=config.semantic and options.get("semantic") is not False,
        control=control,
        bypass="no-store" if control.no_store else None,
        is_shared=is_free and config.single_flight and not config.shadow,
        refuse=refuse,
        wait_s=wait_s,
    )


def under_rule(terms: Terms, config: CacheConfig, request: Mapping[str, Any]) -> Terms:
    """Return *terms* as they are by the caller's own rule, if there is one."""
    if terms.bypass is not None or config.bypass is None or not config.bypass(request):
        return terms
    return replace(terms, bypass="policy", is_shared=False)


def _checked_tenant(tenant: object, *, is_required: bool) -> str | None:
    if tenant is None:
        if is_required:
            raise InvalidRequest("require_tenant=True: every call must name its tenant=")
        return None
    return _checked_name(tenant, "tenant", otherwise=", or None for the shared one")


def _checked_scope(name: object) -> str | None:
    return None if name is None else _checked_name(name, "shared_scope")


def _checked_name(name: object, what: str, *, otherwise: str = "") -> str:
    if not isinstance(name, str) or not name or not is_unicode(name):
        raise InvalidRequest(f"{what} must be text that is not empty{otherwise}")
    if len(name) > MOST_NAME_CHARS:
        raise InvalidRequest(f"{what} must have at most {MOST_NAME_CHARS} characters")
    return name


def _checked_names(names: Iterable[object], what: str, one: str) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InvalidRequest(f"{what} must be a list of texts; got {type(names).__name__}")
    return tuple(dict.fromkeys(_checked_name(name, f"every {one}") for name in names))


def _checked_ttl_s(ttl_s: float | None, model: str, config: CacheConfig) -> float:
    configured_s = config.model_ttl_s.get(model, config.ttl_s)
    try:
        return check_ttl(configured_s if ttl_s is None else ttl_s, "ttl_s")
    except ConfigurationError as error:
        raise InvalidRequest(str(error)) from None
