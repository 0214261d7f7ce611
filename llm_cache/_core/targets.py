"""What an invalidation reaches, as names: an entry is dead when one of its targets was purged.

A target is a kind, whose entries are meant, and a value. Those of one tenant are purged apart from
those of all: every entry has each of its targets in both forms.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llm_cache._core.types import Entry


class Kind(StrEnum):
    """By what entries are invalidated."""

    ALL = "all"
    KEY = "key"
    """The digest of one answer."""
    MODEL = "model"
    PROMPT = "prompt"
    """The version of the system prompt."""
    SHARED = "shared"
    """A scope that tenants share."""
    SOURCE = "source"
    """Something that answers were made from."""
    TAG = "tag"
    PATTERN = "pattern"
    """What prompts look like. Never in the purge table: the answers are named by their keys."""
    AGE = "age"
    """Its token is no moment of an invalidation but the time before which answers are dead."""


class Anyone:
    """Stands for all tenants, where `None` is one of them."""

    def __repr__(self) -> str:
        return "ANYONE"


ANYONE: Final = Anyone()


def target(kind: Kind, value: str = "", *, tenant_id: str | Anyone | None = ANYONE) -> str:
    """Return the name of a target. No two targets share one, whatever tenant and value hold."""
    if isinstance(tenant_id, Anyone):
        whose = "*"
    else:
        # A tenant of any name is told from what follows it by its length.
        whose = "-" if tenant_id is None else f"{len(tenant_id)}:{tenant_id}"
    return f"{kind} {whose} {value}"


def targets_of(entry: Entry) -> Iterator[str]:
    """Yield the targets that reach *entry*, without those of its own key and of its age."""
    for kind, value in _values(entry):
        yield target(kind, value)
        yield target(kind, value, tenant_id=entry.tenant)


def _values(entry: Entry) -> Iterator[tuple[Kind, str]]:
    yield Kind.ALL, ""
    yield Kind.MODEL, entry.model
    if entry.prompt_version:
        yield Kind.PROMPT, entry.prompt_version
    if entry.shared_scope:
        yield Kind.SHARED, entry.shared_scope
    if entry.origin:
        yield Kind.KEY, entry.origin
    for tag in entry.tags:
        yield Kind.TAG, tag
    for source in entry.depends_on:
        yield Kind.SOURCE, source
        name, at, _ = source.rpartition("@")
        if at and name:
            # Whoever invalidates a document means all versions of it.
            yield Kind.SOURCE, name
