"""What is counted, in rows: whose call, how it ended, with which model. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from typing import NamedTuple

from llm_cache._core.types import CacheStatus, Json

NOBODY = "-"
"""In place of a tenant's id: none was named, or none is concerned."""
OTHER = "(other)"
"""In place of the names beyond those that are counted one by one."""
HITS = (CacheStatus.EXACT, CacheStatus.SEMANTIC, CacheStatus.STALE)
SHARED = f"{CacheStatus.MISS}:shared"
"""A miss that was answered by another caller's call of the model."""
SAVING = (*HITS, SHARED)
"""What spares a call of the model."""
NOT_STORED, FAILED = "not_stored", "failed"
SHADOW, VERIFIED = "shadow", "verified"
EMBEDDED, EMBEDDED_FREE, EMBEDDED_ROUGHLY = "embedded", "embedded:free", "embedded:roughly"
Tokens = tuple[int | None, int | None, int | None]
"""Of a prompt, those of them that the provider had in its cache, and of the answer; `None` where
nobody says."""
NO_TOKENS: Tokens = (None, None, None)
_MAX_TOKENS = 1_000_000_000
"""Of one call; a `usage` that says more says nothing."""
_STATUSES = frozenset(map(str, CacheStatus))
_MAX_NAME_CHARS = 128


class Row(NamedTuple):
    """What one set of counts is about."""

    tenant: str
    """Its id, `NOBODY` or `OTHER`."""
    label: str
    """A status; a status, a colon and its reason; or one of the words above. Without blanks."""
    model: str


@dataclass(slots=True)
class Counts:
    """What was counted of one row."""

    calls: int = 0
    prompt: int = 0
    """Tokens of prompts, those included that the provider's own cache made cheaper."""
    cached: int = 0
    """Tokens of prompts that the provider's own cache made cheaper."""
    completion: int = 0
    unknown: int = 0
    """Calls whose answer does not say how many tokens it took."""

    def add(self, other: Counts) -> None:
        """Add *other*."""
        self.calls += other.calls
        self.prompt += other.prompt
        self.cached += other.cached
        self.completion += other.completion
        self.unknown += other.unknown


METRICS = tuple(field.name for field in fields(Counts))


class Table:
    """Counts by row.

    Args:
        max_tenants: So many tenants have rows of their own, and
        max_models: so many models; all others share rows with the name `OTHER`.
    """

    def __init__(self, *, max_tenants: int | None = None, max_models: int | None = None) -> None:
        self._rows: dict[Row, Counts] = {}
        self._tenant = bounded(max_tenants)
        self._model = bounded(max_models)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[Row, Counts]]:
        return iter(self._rows.items())

    def add(self, row: Row, counts: Counts) -> None:
        """Add *counts* to *row*."""
        known = Row(self._tenant(row.tenant), row.label, self._model(row.model))
        self._rows.setdefault(known, Counts()).add(counts)

    def update(self, other: Iterable[tuple[Row, Counts]]) -> None:
        """Add all of *other*."""
        for row, counts in other:
            self.add(row, counts)

    def of(self, tenant: str | None) -> Table:
        """Return the rows of *tenant*, an id; `None` for all."""
        if tenant is None:
            return self
        chosen = Table()
        chosen.update(item for item in self if item[0].tenant == tenant)
        return chosen

    def by(self, key: Callable[[Row], str | None]) -> dict[str, Table]:
        """Return the rows in groups of equal *key*, without those that have none."""
        groups: dict[str, Table] = {}
        for row, counts in self:
            name = key(row)
            if name is not None:
                groups.setdefault(name, Table()).add(row, counts)
        return groups

    def where(self, *labels: str) -> Table:
        """Return the rows with one of *labels*."""
        chosen = Table()
        chosen.update(item for item in self if item[0].label in labels)
        return chosen

    def total(self) -> Counts:
        """Return the sum of all rows."""
        total = Counts()
        for _, counts in self:
            total.add(counts)
        return total


def status_of(row: Row) -> str | None:
    """Return the status that *row* counts calls of; `None` where it counts something else."""
    status = row.label.partition(":")[0]
    return status if status in _STATUSES else None


def by_status(table: Table) -> dict[str, int | float]:
    """Return calls by status, and the hit rate.

    That is (exact + semantic + stale) / (those + miss), rounded to three places, 0.0 before the
    first call.
    """
    groups = table.by(status_of)
    counts = {str(status): groups.get(status, Table()).total().calls for status in CacheStatus}
    hits = sum(counts[status] for status in HITS)
    looked = hits + counts[CacheStatus.MISS]
    return {**counts, "hit_rate": round(hits / looked, 3) if looked else 0.0}


def by_reason(table: Table, label: str) -> dict[str, int]:
    """Return counts of the rows with *label* by their reasons, most frequent first."""

    def reason(row: Row) -> str | None:
        found, _, rest = row.label.partition(":")
        return rest if found == label and rest else None

    counts = {name: rows.total().calls for name, rows in table.by(reason).items()}
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def tokens_of(answer: Json) -> Tokens:
    """Return what the `usage` of *answer* says, in OpenAI's words or in Anthropic's.

    What cannot be meant is not said.
    """
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return NO_TOKENS
    if "input_tokens" in usage and "prompt_tokens" not in usage:
        return _in_other_words(usage)
    return (
        _number(usage.get("prompt_tokens")),
        _cached(usage.get("prompt_tokens_details")),
        _number(usage.get("completion_tokens")),
    )


def _in_other_words(usage: dict[str, Json]) -> Tokens:
    """Read a `usage` that speaks of input and output, as Anthropic and the Responses API do."""
    prompt = _number(usage["input_tokens"])
    completion = _number(usage.get("output_tokens"))
    # Anthropic does not count among the input what its cache had, or was given to keep.
    cached = _number(usage.get("cache_read_input_tokens"))
    kept = _number(usage.get("cache_creation_input_tokens"))
    if prompt is not None:
        prompt += (cached or 0) + (kept or 0)
    return prompt, cached or _cached(usage.get("input_tokens_details")), completion


def _cached(details: Json) -> int | None:
    return _number(details.get("cached_tokens")) if isinstance(details, dict) else None


def _number(value: Json) -> int | None:
    return value if type(value) is int and 0 <= value <= _MAX_TOKENS else None


def read(numbers: Mapping[str, int]) -> Table:
    """Return the table that *numbers* hold, named `<metric> <tenant> <label> <model>`.

    What is not of this release is left out.
    """
    table = Table()
    for name, number in numbers.items():
        metric, *rest = name.split(" ", 3)
        if metric in METRICS and len(rest) == 3:
            table.add(Row(*rest), Counts(**{metric: number}))
    return table


def as_numbers(counts: Counts) -> tuple[int, ...]:
    """Return *counts* in the order of `METRICS`."""
    return astuple(counts)


def bounded(limit: int | None) -> Callable[[str], str]:
    """Return what lets the first *limit* names pass and makes `OTHER` of all further ones."""
    known = {NOBODY, OTHER, ""}

    def name(given: str) -> str:
        if given in known:
            return given
        if len(given) > _MAX_NAME_CHARS or (limit is not None and len(known) >= limit + 3):
            return OTHER
        known.add(given)
        return given

    return name
