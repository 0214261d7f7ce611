"""Made-up questions, as many as one likes, asked as often as people ask: a few of them a lot.

Every question is a frame with slots (`What does {service} cost in {country}?`), so that most have
neighbours that differ in one slot and need another answer. Those are the near misses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from benchmarks.errors import BadInput
from benchmarks.workloads import Ask, Workload

Random = np.random.Generator

_SERVICES = [
    "express delivery",
    "standard delivery",
    "a money transfer",
    "a replacement card",
    "gift wrapping",
    "home installation",
    "extra luggage",
    "a second driver",
    "travel insurance",
    "seat selection",
    "early check-in",
    "priority boarding",
    "a parking permit",
    "a phone contract",
    "a library card",
    "customs clearance",
    "document translation",
    "a fishing licence",
    "equipment rental",
    "airport pickup",
]
_COUNTRIES = [
    "Norway",
    "Portugal",
    "Japan",
    "Kenya",
    "Brazil",
    "Canada",
    "Poland",
    "Vietnam",
    "Egypt",
    "Ireland",
    "Chile",
    "Finland",
    "Turkey",
    "Mexico",
    "Austria",
    "India",
    "Greece",
    "Morocco",
    "Iceland",
    "Peru",
]
_ACTIONS = [
    "change the language",
    "turn off notifications",
    "take a screenshot",
    "reset the alarm",
    "connect headphones",
    "update the software",
    "free up storage",
    "share my location",
    "block a caller",
    "scan a document",
    "lower the brightness",
    "record a video",
    "print a label",
    "pair a keyboard",
    "restore a backup",
]
_DEVICES = [
    "laptop",
    "phone",
    "tablet",
    "smart watch",
    "television",
    "game console",
    "e-reader",
    "car display",
    "desktop computer",
    "smart speaker",
    "camera",
    "projector",
]
_ITEMS = [
    "a parcel",
    "a refund",
    "a wire transfer",
    "a passport",
    "a visa",
    "a prescription",
    "a job offer",
    "a new card",
    "a tax statement",
    "a replacement part",
]
_CITIES = [
    "Lisbon",
    "Oslo",
    "Nairobi",
    "Toronto",
    "Lima",
    "Kyoto",
    "Cairo",
    "Dublin",
    "Warsaw",
    "Athens",
    "Hanoi",
    "Bogota",
    "Vienna",
    "Helsinki",
    "Santiago",
]
_ACCOUNTS = [
    "savings",
    "family",
    "business",
    "student",
    "holiday",
    "pension",
    "joint",
    "travel",
    "gold",
    "youth",
]
_THINGS = ["points", "money", "vouchers", "shares", "credits"]


@dataclass(frozen=True, slots=True)
class _Family:
    frames: Sequence[str]
    """Wordings of one question, the usual one first."""
    slots: Sequence[Sequence[str]]


_FAMILIES = (
    _Family(
        (
            "What does {0} cost in {1}?",
            "How much do I pay for {0} in {1}?",
            "What is the price of {0} in {1}?",
            "Tell me the cost of {0} in {1}.",
        ),
        (_SERVICES, _COUNTRIES),
    ),
    _Family(
        (
            "How do I {0} on my {1}?",
            "What are the steps to {0} on a {1}?",
            "Explain how I can {0} with my {1}.",
            "Show me how to {0} on my {1}.",
        ),
        (_ACTIONS, _DEVICES),
    ),
    _Family(
        (
            "How long does {0} take to arrive in {1}?",
            "How many days until {0} arrives in {1}?",
            "What is the waiting time for {0} in {1}?",
            "When will {0} get to {1}?",
        ),
        (_ITEMS, _CITIES),
    ),
    _Family(
        (
            "How do I move {0} from the {1} account to the {2} account?",
            "What is the way to transfer {0} out of the {1} account into the {2} account?",
            "Can {0} be sent from the {1} account to the {2} account?",
        ),
        (_THINGS, _ACCOUNTS, _ACCOUNTS),
    ),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its wordings; all of them have one answer."""

    answer_id: str
    wordings: Sequence[str]
    slots: tuple[int, ...]
    """Family, and a filler for each slot; one difference makes a near miss."""


def questions() -> list[Question]:
    """Return every question there is, always in the same order."""
    found = []
    for family_number, family in enumerate(_FAMILIES):
        for fillers in product(*(range(len(slot)) for slot in family.slots)):
            words = [slot[i] for slot, i in zip(family.slots, fillers, strict=True)]
            if len(set(words)) < len(words):  # from an account to itself
                continue
            place = (family_number, *fillers)
            wordings = [frame.format(*words) for frame in family.frames]
            found.append(Question("-".join(map(str, place)), wordings, place))
    return found


def popular(count: int, seed: int) -> list[Question]:
    """Return *count* questions, the most popular one first.

    Raises:
        BadInput: there are not so many.
    """
    every = questions()
    if not 1 <= count <= len(every):
        raise BadInput(f"the generator knows {len(every):,} questions: ask for 1 to so many")
    return [every[i] for i in np.random.default_rng(seed).permutation(len(every))[:count]]


def popularity(count: int, exponent: float) -> np.ndarray:
    """Return the cumulated chances: the k-th question is asked 1 / k^exponent as often."""
    weights = np.arange(1, count + 1, dtype=float) ** -exponent
    cumulated: np.ndarray = np.cumsum(weights) / weights.sum()
    return cumulated


def respelled(text: str, random: Random) -> str:
    """Return *text* with the case of some letters changed: another text of the same meaning.

    What a thumb on a shift key does. There are enough of them never to run out.
    """
    upper = random.random(len(text)) < 0.3
    return "".join(c.upper() if up else c for c, up in zip(text, upper, strict=True))


def surface(text: str, random: Random) -> str:
    """Return *text* as people also type it: without capitals or the end mark, with a greeting."""
    ways = (
        lambda: text.rstrip("?.") or text,
        text.lower,
        lambda: f"{text.rstrip('?.')} ?",
        lambda: f"Hi, {text[:1].lower()}{text[1:]}",
        lambda: f"{text} Thanks!",
    )
    return ways[int(random.integers(len(ways)))]()


def zipf(
    *,
    requests: int,
    seed: int,
    clusters: int = 600,
    exponent: float = 1.0,
    near_share: float = 0.1,
) -> Workload:
    """Return a stream that begins with nothing known.

    Args:
        requests: How many.
        seed: The same seed gives the same stream, on every machine.
        clusters: Different questions.
        exponent: Of the popularity; 0 asks all questions equally often.
        near_share: Share of requests that ask for a neighbour of something asked before.
    """
    return Workload(
        name="zipf",
        asks=lambda: _stream(requests, seed, clusters, exponent, near_share),
        source=f"own generator, seed {seed}, {clusters} questions, exponent {exponent:g}",
        count=requests,
    )


def _stream(
    requests: int, seed: int, clusters: int, exponent: float, near_share: float
) -> Iterator[Ask]:
    ranked = popular(clusters, seed)
    chances = popularity(clusters, exponent)
    random = np.random.default_rng([seed, 1])
    asking = _Asking({question.slots: question for question in questions()})
    for _ in range(requests):
        neighbour = asking.neighbour(random) if random.random() < near_share else None
        if neighbour is None:
            neighbour = ranked[int(np.searchsorted(chances, random.random()))]
        yield asking.ask(neighbour, random)


class _Asking:
    """Who asks, and what they have asked so far."""

    def __init__(self, every: dict[tuple[int, ...], Question]) -> None:
        self._every = every
        self._asked: list[Question] = []
        self._known: set[tuple[int, ...]] = set()
        self._texts: set[str] = set()

    def ask(self, question: Question, random: Random) -> Ask:
        """Return the next request for *question*, in one of the ways it can be put."""
        is_known = question.slots in self._known
        text = question.wordings[0]
        kind = "new"
        if is_known:
            draw = random.random()
            if draw < 0.4:
                text = question.wordings[int(random.integers(len(question.wordings)))]
                kind = "paraphrase"
            elif draw < 0.6:
                text, kind = surface(text, random), "surface"
        elif self._has_neighbour(question):
            kind = "near_miss"
        if text in self._texts:
            kind = "exact"
        if not is_known:
            self._known.add(question.slots)
            self._asked.append(question)
        self._texts.add(text)
        return Ask(text, question.answer_id, kind)

    def neighbour(self, random: Random) -> Question | None:
        """Return a question that differs in one slot from one that was asked."""
        if not self._asked:
            return None
        place = self._asked[int(random.integers(len(self._asked)))].slots
        slot = int(random.integers(1, len(place)))
        count = len(_FAMILIES[place[0]].slots[slot - 1])
        other = (*place[:slot], int(random.integers(count)), *place[slot + 1 :])
        return self._every.get(other)

    def _has_neighbour(self, question: Question) -> bool:
        place = question.slots
        fillers = _FAMILIES[place[0]].slots
        return any(
            (*place[:slot], i, *place[slot + 1 :]) in self._known
            for slot in range(1, len(place))
            for i in range(len(fillers[slot - 1]))
        )
