"""What the reader allows, in the words of `Cache-Control` (RFC 9111)."""

from __future__ import annotations

from dataclasses import dataclass

from llm_cache.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheControl:
    """How one call may use the cache.

    `str(control)` is the header's value.
    """

    no_cache: bool = False
    """Ask the model whatever is stored, and store its answer. The status is `miss`."""
    no_store: bool = False
    """Neither look nor store. The status is `bypass`."""
    only_if_cached: bool = False
    """Never ask the model; without an entry the call raises `OnlyIfCachedMiss`."""
    max_age_s: float | None = None
    """Take no entry that was stored longer ago than this."""

    def accepts(self, age_s: float) -> bool:
        """Tell whether an entry of this age may be served."""
        return not self.no_cache and (self.max_age_s is None or age_s <= self.max_age_s)

    def __str__(self) -> str:
        words = [
            "no-cache" if self.no_cache else "",
            "no-store" if self.no_store else "",
            "only-if-cached" if self.only_if_cached else "",
            "" if self.max_age_s is None else f"max-age={self.max_age_s:g}",
        ]
        return ", ".join(word for word in words if word)


ANY = CacheControl()
"""What a call that says nothing allows."""


def parse_cache_control(value: object) -> CacheControl:
    """Return what the header's *value* says. Directives of other caches are passed over.

    Raises:
        InvalidRequest: it is not text, or `max-age` has no number of seconds.
    """
    if isinstance(value, CacheControl):
        return value
    if not isinstance(value, str):
        raise InvalidRequest(f"cache_control must be text; got {type(value).__name__}")
    directives = dict(_directive(part) for part in value.split(",") if part.strip())
    return CacheControl(
        no_cache="no-cache" in directives,
        no_store="no-store" in directives,
        only_if_cached="only-if-cached" in directives,
        max_age_s=_seconds(directives["max-age"]) if "max-age" in directives else None,
    )


def _directive(part: str) -> tuple[str, str]:
    name, _, value = part.partition("=")
    return name.strip().lower(), value.strip().strip('"')


def _seconds(text: str) -> float:
    # RFC 9111 allows whole seconds from 0 up, and nothing else.
    if not (text.isascii() and text.isdigit()):
        raise InvalidRequest(f"Cache-Control: max-age must be whole seconds; got {text!r:.40}")
    return float(text)
