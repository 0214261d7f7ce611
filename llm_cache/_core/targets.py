"""What an invalidation reaches, as names: an entry is dead when one of its targets was purged.

A target is a kind, whose entries are meant, and a value. Those of one tenant are purged apart from
those of all: every entry has each of its targets in both forms. What tenants share is nobody's: it
has the form for all alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from enum import StrEnum
from fnmatch import translate
from typing import TYPE_CHECKING, Any, Final

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
    """What prompts look like. No entry holds its prompt: who reads it knows what was asked."""
    AGE = "age"
    """Its token is no moment of an invalidation but the time before which answers are dead."""


class Anyone:
    """Stands for all tenants, where `None` is one of them."""

    def __repr__(self) -> str:
        return "ANYONE"


ANYONE: Final = Anyone()
MOST_NAME_CHARS = 4_000
"""Of a tenant, a tag, a dependency: every answer holds them, and every client what was purged."""


def target(kind: Kind, value: str = "", *, tenant_id: str | Anyone | None = ANYONE) -> str:
    """Return the name of a target. No two targets share one, whatever tenant and value hold."""
    return f"{kind} {owner(tenant_id)} {value}"


def owner(tenant_id: str | Anyone | None) -> str:
    """Return what stands in the name of a target for whose entries are meant."""
    if isinstance(tenant_id, Anyone):
        return "*"
    # A tenant of any name is told from what follows it by its length.
    return "-" if tenant_id is None else f"{len(tenant_id)}:{tenant_id}"


def parts(name: str) -> tuple[str, str, str]:
    """Return the kind, the owner and the value in the *name* of a target."""
    kind, _, rest = name.partition(" ")
    length, colon, tail = rest.partition(":")
    if not (colon and length.isdigit()):
        whose, _, value = rest.partition(" ")
        return kind, whose, value
    end = int(length)
    return kind, f"{length}:{tail[:end]}", tail[end + 1 :]


def owners(entry: Entry) -> tuple[str, ...]:
    """Return as whose *entry* is reached."""
    return ("*",) if entry.shared_scope is not None else ("*", owner(entry.tenant))


def targets_of(entry: Entry, digest: str) -> Iterator[str]:
    """Yield the targets that reach *entry*, stored under *digest*.

    But for those of its age, and of its prompt, which is not in it.
    """
    for whose in owners(entry):
        for kind, value in _values(entry, digest):
            yield f"{kind} {whose} {value}"


def _values(entry: Entry, digest: str) -> Iterator[tuple[Kind, str]]:
    yield Kind.ALL, ""
    yield Kind.KEY, digest
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


def fold(text: str) -> str:
    """Return *text* as patterns see it: in one line, blanks as one space, letters of one case.

    What the prompts of one exact key may differ in makes no difference to a pattern.
    """
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def matcher(pattern: str) -> Callable[[str], Any]:
    """Return what tells of a folded prompt whether it looks like *pattern*.

    `*` stands for any text and `?` for any sign; all others stand for themselves. Takes time in
    proportion to the length of the prompt for each `*`.
    """
    # A bracket would begin a set of signs.
    return re.compile(translate(fold(pattern).replace("[", "[[]")), re.DOTALL).match
