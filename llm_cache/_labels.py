"""Labels as they are given: checked, freed of repeats, and embedded."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from llm_cache._core import guards
from llm_cache._core.certify import FIT_SHARE, Labels, Split
from llm_cache._core.hit_policy import Neighbourhood
from llm_cache._core.replay import Found, Outcome, Prompts, Stream
from llm_cache._core.vectors import check_vectors
from llm_cache.config import is_number
from llm_cache.embedders import Embedder
from llm_cache.errors import CalibrationRefused, InvalidRequest

MOST_REQUESTS: Final = 20_000
"""Of a longer log the latest are used: comparing all with all takes the square of their number."""
_MOST_CONTRADICTIONS: Final = 0.05
_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """A prompt, and which answer it needs."""

    prompt: str = field(repr=False)
    answer_id: str
    """Equal for prompts that one answer does for: an intent, a document, a canned answer."""
    timestamp_s: float | None = None
    """When it was asked; without any, the log is taken to be in order."""


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two prompts, and whether the answer to the second does for the first."""

    new: str = field(repr=False)
    cached: str = field(repr=False)
    same: bool
    similarity: float | None = None
    """Cosine similarity, where it is known; else both prompts are embedded."""
    timestamp_s: float | None = None


@dataclass(frozen=True, slots=True)
class LoggedAnswer:
    """A prompt, and what the model answered."""

    prompt: str = field(repr=False)
    answer: str = field(repr=False)
    timestamp_s: float | None = None


Row = LoggedRequest | LabelledPair | Mapping[str, Any] | tuple[Any, ...]


def read_row(number: int, row: Row) -> LoggedRequest | LabelledPair:
    if isinstance(row, Mapping):
        row = _from_mapping(number, row)
    elif isinstance(row, tuple):
        row = _from_tuple(number, row)
    texts: dict[str, Any]
    if isinstance(row, LoggedRequest):
        texts = {"prompt": row.prompt, "answer_id": row.answer_id}
    elif isinstance(row, LabelledPair):
        texts = {"new": row.new, "cached": row.cached}
        _check_pair(number, row)
    else:
        raise InvalidRequest(f"row {number} is a {type(row).__name__}, not a request or a pair")
    for name, text in texts.items():
        if not isinstance(text, str) or not text:
            raise InvalidRequest(f"row {number}: {name} must be a text that is not empty")
    if row.timestamp_s is not None and not (
        is_number(row.timestamp_s) and math.isfinite(row.timestamp_s)
    ):
        raise InvalidRequest(f"row {number}: timestamp_s must be seconds, or None")
    return row


def _check_pair(number: int, row: LabelledPair) -> None:
    if row.same not in (True, False):
        raise InvalidRequest(f"row {number}: same must be true or false; got {row.same!r}")
    similarity = row.similarity
    # A cosine of FLOAT16 vectors may be a little more than 1.
    if similarity is not None and not (is_number(similarity) and abs(similarity) <= 1.001):
        raise InvalidRequest(
            f"row {number}: similarity must be a cosine from -1 to 1; got {similarity!r}"
        )


def _from_mapping(number: int, row: Mapping[str, Any]) -> LoggedRequest | LabelledPair:
    known = {name: value for name, value in row.items() if name in _NAMES}
    known = {_NAMES[name]: value for name, value in known.items()}
    try:
        return LabelledPair(**known) if "same" in known else LoggedRequest(**known)
    except TypeError:
        raise InvalidRequest(
            f"row {number} has neither prompt and answer_id nor new, cached and same"
        ) from None


# Other names under which logs and review tables hold the same.
_NAMES: Final = {
    name: name
    for name in ("prompt", "answer_id", "new", "cached", "same", "similarity", "timestamp_s")
} | {"a": "new", "b": "cached", "timestamp": "timestamp_s"}


def _from_tuple(number: int, row: tuple[Any, ...]) -> LoggedRequest | LabelledPair:
    if len(row) in (3, 4) and isinstance(row[1], str) and isinstance(row[2], bool):
        return LabelledPair(*row)
    if len(row) in (2, 3):
        return LoggedRequest(*row)
    raise InvalidRequest(f"row {number}: a tuple of {len(row)} is neither a request nor a pair")


# -- the labels


class Labelled(Protocol):
    """Distinct labels in the order of time."""

    duplicates: int
    contradictions: int
    dimensions: int | None

    def __len__(self) -> int: ...

    def cut(self, split: Split, seed: int) -> Labels: ...


async def read_labels(
    rows: Sequence[LoggedRequest | LabelledPair],
    embedder: Embedder,
    vectors: npt.ArrayLike | None,
) -> Labelled:
    requests = [row for row in rows if isinstance(row, LoggedRequest)]
    pairs = [row for row in rows if isinstance(row, LabelledPair)]
    if requests and pairs:
        raise InvalidRequest("the log mixes requests and pairs: calibrate on one kind")
    if pairs:
        if vectors is not None:
            raise InvalidRequest("vectors= are of requests; give pairs their similarity")
        return await _pairs(in_order(pairs), embedder)
    return await _requests(requests, embedder, vectors)


_R = TypeVar("_R", LoggedRequest, LabelledPair, LoggedAnswer)


def in_order(rows: Sequence[_R]) -> list[_R]:
    """Return *rows* in the order of their time, if they have one, else as they are."""
    timed = sum([row.timestamp_s is not None for row in rows])
    if timed not in (0, len(rows)):
        raise InvalidRequest(f"{len(rows) - timed} rows have no timestamp_s and the others do")
    return sorted(rows, key=lambda row: row.timestamp_s or 0.0)


def _folded(prompt: str) -> str:
    """Return what prompts have in common that differ in white space and letter case only."""
    return " ".join(prompt.split()).casefold()


def _refuse_contradictions(contradictions: int, labels: int) -> None:
    if contradictions > _MOST_CONTRADICTIONS * labels:
        raise CalibrationRefused(
            f"{contradictions:,} of {labels:,} labels contradict another one of the same prompts",
            labels,
        )


# requests


@dataclass(slots=True)
class Requests:
    prompts: Prompts
    answers: list[str]
    duplicates: int
    contradictions: int
    dimensions: int | None

    def __len__(self) -> int:
        return len(self.answers)

    def cut(self, split: Split, seed: int) -> Labels:
        order = list(range(len(self)))
        if split == "random":
            order = np.random.default_rng(seed).permutation(len(self)).tolist()
        return _StreamLabels(Stream(self.prompts, self.answers, order))


@dataclass(slots=True)
class _StreamLabels:
    """A stream whose first third fits, and whose rest is replayed behind it."""

    stream: Stream

    def fitting(self) -> Sequence[Found]:
        return self.stream.found(until=self.fitting_requests())

    def fitting_requests(self) -> int:
        return round(FIT_SHARE * len(self.stream))

    def novel(self) -> Sequence[Found]:
        return self.stream.novel(since=self.fitting_requests())

    def test(self, accepts: Callable[[Found], bool]) -> Outcome:
        return self.stream.replay(accepts, count_from=self.fitting_requests())


async def _requests(
    rows: Sequence[LoggedRequest], embedder: Embedder, vectors: npt.ArrayLike | None
) -> Requests:
    given = None if vectors is None else _given(vectors, rows, embedder)
    order = sorted(range(len(rows)), key=lambda at: rows[at].timestamp_s or 0.0)
    in_order(rows)  # refuses a mixture
    first: dict[str, int] = {}
    needed: defaultdict[str, set[str]] = defaultdict(set)
    for at in order:
        folded = _folded(rows[at].prompt)
        first.setdefault(folded, at)
        needed[folded].add(rows[at].answer_id)
    contradictory = {folded for folded, answers in needed.items() if len(answers) > 1}
    _refuse_contradictions(len(contradictory), len(first))
    # Stored in the cache one by one, so in the order in which each was asked first.
    kept = list(first.items())[-MOST_REQUESTS:]
    kept = [(folded, at) for folded, at in kept if _blind_spots(embedder, rows[at].prompt) == ""]
    answers = [
        # No answer is right for a prompt that was labelled with two.
        f"contradictory {at}" if folded in contradictory else f"answer {rows[at].answer_id}"
        for folded, at in kept
    ]
    _refuse_one_class(len(set(answers)), len(answers))
    texts = [rows[at].prompt for _, at in kept]
    units = await embedded(texts, embedder) if given is None else given[[at for _, at in kept]]
    return Requests(
        prompts=Prompts(texts, units),
        answers=answers,
        duplicates=len(rows) - len(first),
        contradictions=len(contradictory),
        dimensions=units.shape[1],
    )


def _refuse_one_class(answers: int, labels: int) -> None:
    if answers == 1:
        raise CalibrationRefused(
            "all requests need the same answer, so no hit could be wrong: log other requests too",
            labels,
        )
    if answers == labels:
        raise CalibrationRefused(
            "no two requests need the same answer, so no hit could be right", labels
        )


# pairs


@dataclass(slots=True)
class Pairs:
    found: list[Found]
    """In the order of time; `entry` names the group of pairs that share a prompt."""
    duplicates: int
    contradictions: int
    dimensions: int | None

    def __len__(self) -> int:
        return len(self.found)

    def cut(self, split: Split, seed: int) -> Labels:
        groups = list(dict.fromkeys(found.entry for found in self.found))
        if split == "random":
            groups = np.random.default_rng(seed).permutation(groups).tolist()
        sizes = Counter(found.entry for found in self.found)
        fitting: set[int] = set()
        wanted = FIT_SHARE * len(self.found)
        for group in groups:
            if wanted <= 0:
                break
            fitting.add(group)
            wanted -= sizes[group]
        return _PairLabels(
            [found for found in self.found if found.entry in fitting],
            [found for found in self.found if found.entry not in fitting],
        )


@dataclass(slots=True)
class _PairLabels:
    """Pairs, each of which stands for a request and its nearest entry."""

    first: list[Found]
    rest: list[Found]

    def fitting(self) -> Sequence[Found]:
        return self.first

    def fitting_requests(self) -> int:
        return len(self.first)

    def novel(self) -> Sequence[Found]:
        return ()

    def test(self, accepts: Callable[[Found], bool]) -> Outcome:
        hits = [found for found in self.rest if accepts(found)]
        wrong = Counter(found.entry for found in hits if not found.is_right)
        return Outcome(requests=len(self.rest), hits=len(hits), wrong_by_entry=wrong)


async def _pairs(rows: Sequence[LabelledPair], embedder: Embedder) -> Pairs:
    distinct: dict[frozenset[str], LabelledPair] = {}
    contradictory: set[frozenset[str]] = set()
    for row in rows:
        both = frozenset((_folded(row.new), _folded(row.cached)))
        if len(both) == 1:
            continue  # equal prompts are exact hits
        earlier = distinct.setdefault(both, row)
        if earlier.same != row.same:
            contradictory.add(both)
            distinct[both] = replace(earlier, same=False)
    _refuse_contradictions(len(contradictory), len(distinct))
    kept = [row for row in distinct.values() if _may_be_compared(embedder, row)]
    right = sum([row.same for row in kept])
    if right in (0, len(kept)):
        kind = "the same" if right else "different"
        raise CalibrationRefused(
            f"all pairs are labelled {kind}: labels of both kinds are needed", len(kept)
        )
    similarities, dimensions = await _similarities(kept, embedder)
    signatures = {
        text: guards.analyse(text) for text in {t for row in kept for t in (row.new, row.cached)}
    }
    groups = _joined([(_folded(row.new), _folded(row.cached)) for row in kept])
    found = [
        Found(
            request=at,
            entry=groups[at],
            around=Neighbourhood((similarities[at],), ("cached",)),
            words=guards.compare(signatures[row.new], signatures[row.cached]),
            is_right=bool(row.same),
        )
        for at, row in enumerate(kept)
    ]
    return Pairs(found, len(rows) - len(distinct), len(contradictory), dimensions)


def _may_be_compared(embedder: Embedder, row: LabelledPair) -> bool:
    unseen = _blind_spots(embedder, row.new)
    return unseen is not None and unseen == _blind_spots(embedder, row.cached)


def _joined(pairs: Sequence[tuple[str, str]]) -> list[int]:
    """Return a number for each pair: equal for pairs that share a prompt, directly or not."""
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        while (above := parent.setdefault(text, text)) != text:
            parent[text] = text = parent[above]
        return text

    for a, b in pairs:
        parent[root(a)] = root(b)
    numbers: dict[str, int] = {}
    return [numbers.setdefault(root(a), len(numbers)) for a, _ in pairs]


async def _similarities(
    pairs: Sequence[LabelledPair], embedder: Embedder
) -> tuple[list[float], int | None]:
    unknown = [at for at, pair in enumerate(pairs) if pair.similarity is None]
    similarities = [1.0 if p.similarity is None else min(p.similarity, 1.0) for p in pairs]
    if not unknown:
        return similarities, None
    texts = list(dict.fromkeys(t for at in unknown for t in (pairs[at].new, pairs[at].cached)))
    units = await embedded(texts, embedder)
    row_of = {text: row for row, text in enumerate(texts)}
    for at in unknown:
        new, cached = units[row_of[pairs[at].new]], units[row_of[pairs[at].cached]]
        similarities[at] = float(new @ cached)
    return similarities, units.shape[1]


# vectors


def _blind_spots(embedder: Embedder, prompt: str) -> str | None:
    """Return what the embedder cannot see of *prompt*, `None` where it is not to be compared."""
    spots: str | None = getattr(embedder, "blind_spots", lambda _: "")(prompt)
    return spots


def _given(
    vectors: npt.ArrayLike, rows: Sequence[LoggedRequest], embedder: Embedder
) -> npt.NDArray[np.float32]:
    return _units(vectors, len(rows), embedder.dimensions, "vectors=")


async def embedded(texts: Sequence[str], embedder: Embedder) -> npt.NDArray[np.float32]:
    parts = []
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        vectors = await embedder.embed(batch)
        parts.append(_units(vectors, len(batch), embedder.dimensions, embedder.model_id))
    return np.concatenate(parts)


def _units(
    vectors: npt.ArrayLike, count: int, dimensions: int | None, source: str
) -> npt.NDArray[np.float32]:
    """Return *vectors* with unit length, checked as the cache checks them."""
    units = check_vectors(vectors, count=count, dimensions=dimensions, model_id=source)
    return np.asarray(units, np.float32)


async def probe_dimensions(embedder: Embedder) -> int:
    return len((await embedded(["probe"], embedder))[0])
