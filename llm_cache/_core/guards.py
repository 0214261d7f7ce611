"""Lexical vetoes: reasons why the answer to one prompt must not be given to a similar one.

Embeddings put "from London to Paris" beside "from Paris to London". What differs between two such
prompts is a few words, so these guards look at the words. A guard objects or has nothing to say:
that none objects does not mean that two prompts ask the same.

`analyse` each prompt once, then `compare` it with each candidate. The words are those of the lists
in `llm_cache/_data/guards`. Only English has all of them, which `Comparison.is_listed` says;
German, French and Spanish have negations, numbers, times and the commonest opposites. In others,
numbers in digits, names and words that stand in the place of another still count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Final, NamedTuple

from llm_cache._core.lexicon import Lexicon, languages, load
from llm_cache._core.signature import Signature, analyse, pack, translated, unpack, veil

__all__ = [
    "REASONS",
    "Comparison",
    "Signature",
    "analyse",
    "compare",
    "objection",
    "objection_between",
    "pack",
    "prepare",
    "unpack",
]


def prepare() -> None:
    """Read the word lists, which the first call would do otherwise. Takes 20 ms or more."""
    for language in languages():
        load(language)


def objection(new: str, cached: str) -> str | None:
    """Name of the first guard that objects to answering *new* with the answer to *cached*.

    None when none does, and always for equal prompts. The order of the two does not matter to
    whether there is an objection. Never raises.
    """
    return objection_between(analyse(new), analyse(cached))


def objection_between(new: Signature, cached: Signature) -> str | None:
    """`objection` for prompts that are analysed already; takes about 10 µs."""
    return compare(new, cached).objection


class Comparison(NamedTuple):
    """What the words of two prompts say of whether one answer does for both."""

    objection: str | None
    """Name of the first guard that objects, one of `REASONS`."""
    unmatched_new: int
    """Words of the new prompt that say what is asked, and that the cached one has not."""
    unmatched_cached: int
    length_ratio: float
    """Words of the shorter prompt by those of the longer, up to 1."""
    is_listed: bool
    """Whether there are all word lists for their language. Where not, opposites go unseen."""


def compare(new: Signature, cached: Signature) -> Comparison:
    """Return what the words of two prompts say; takes about 10 µs."""
    if cached.is_veiled:
        cached = _unveiled(cached, new)
    difference = _difference(new, cached)
    shorter, longer = len(new.tokens), len(cached.tokens)
    if shorter > longer:
        shorter, longer = longer, shorter
    return Comparison(
        _first_objection(new, cached, difference),
        len(difference.new_content),
        len(difference.cached_content),
        shorter / longer if longer else 1.0,
        new.is_listed and cached.is_listed,
    )


def _unveiled(veiled: Signature, new: Signature) -> Signature:
    """Return *veiled* with the words of *new*, and those opposed to them, for their hashes."""
    known = {veil(word): word for word in (*new.tokens, *new.numbers)}
    there = veiled.words
    hidden = {token for token in there - known.keys() if "?" in token}
    if hidden:
        own = [known[token] for token in known.keys() - there if known[token].islower()]
        opposed = {veil(word): word for other in own for word in _relatives(other) if word}
        known.update((token, word) for token, word in opposed.items() if token in hidden)
    return translated(veiled, known)


def _relatives(word: str) -> Iterator[str]:
    """Yield the words that the guard of antonyms would find opposed to *word* by their letters."""
    yield from _opposites(word)
    yield from [prefix + word for prefix in _PREFIXES]


def _first_objection(new: Signature, cached: Signature, difference: _Difference) -> str | None:
    if new.tokens == cached.tokens and new.unread == cached.unread:
        return None
    if (unread := _unread_apart(new, cached)) is not None:
        return unread
    for objects in _GUARDS:
        if objects(new, cached, difference):
            return _GUARDS[objects]
    if _substituted(new, cached, difference):
        return _CONSTRAINT if _governed(new, cached, difference) else _RELATION
    return None


@dataclass(slots=True)
class _Difference:
    """The tokens that only one of two prompts has."""

    new: frozenset[str]
    cached: frozenset[str]
    new_content: frozenset[str]
    """Those that say what is asked."""
    cached_content: frozenset[str]
    new_times: frozenset[str]
    cached_times: frozenset[str]
    lists: Lexicon
    """The word lists that the new prompt was read with."""


def _difference(new: Signature, cached: Signature) -> _Difference:
    in_new, in_cached = new.words, cached.words
    only_new, only_cached = in_new - in_cached, in_cached - in_new
    if only_new and only_cached:
        only_new, only_cached = _spelled_out(only_new, only_cached, new.names, cached)
        only_cached, only_new = _spelled_out(only_cached, only_new, cached.names, new)
    lists = new.lists
    new_content, new_times = _sorted_out(only_new, lists)
    cached_content, cached_times = _sorted_out(only_cached, lists)
    return _Difference(
        only_new, only_cached, new_content, cached_content, new_times, cached_times, lists
    )


def _sorted_out(only: frozenset[str], lists: Lexicon) -> tuple[frozenset[str], frozenset[str]]:
    """Those of *only* that say what is asked, and the times."""
    content, times = [], []
    for token in only:
        if token[0] in "@~":
            times.append(token)
        elif token.islower() and token[0] != "#" and token not in lists.weak:
            content.append(token)
    return frozenset(content), frozenset(times)


def _spelled_out(
    short: frozenset[str], long: frozenset[str], names: frozenset[str], text: Signature
) -> tuple[frozenset[str], frozenset[str]]:
    """The difference without an acronym in *short* and the words of *text* that it stands for."""
    for acronym in short & names:
        if 2 < len(acronym) < 7:
            words = _meaningful(text)
            at = "".join([word[0] for word in words]).find(acronym)
            if at >= 0:
                return short - {acronym}, long - frozenset(words[at : at + len(acronym)])
    return short, long


# -- what was not read


_UNREAD: Final = ("length", "language", "code", "symbols")


def _unread_apart(new: Signature, cached: Signature) -> str | None:
    """Return the first of `_UNREAD` in which they differ."""
    if new.rest != cached.rest:
        return "length"
    if new.language != cached.language:
        return "language"
    if new.code != cached.code:
        return "code"
    if new.symbols != cached.symbols:
        return "symbols"
    return None


# -- numbers, times, units


def _numbers(new: Signature, cached: Signature, difference: _Difference) -> bool:
    if new.numbers != cached.numbers and _count_apart(new.numbers, cached.numbers):
        return True
    return _times_apart(difference) or _units_apart(difference)


def _count_apart(new: Sequence[str], cached: Sequence[str]) -> bool:
    """Whether the numbers differ in more than a "one" or a "two" that may be mere grammar."""
    only_new, only_cached = Counter(new), Counter(cached)
    only_new, only_cached = only_new - only_cached, only_cached - only_new
    only_new, only_cached = _paired(only_new, only_cached)
    only_cached, only_new = _paired(only_cached, only_new)
    if only_new and only_cached:
        return True
    return any(number[0] != "~" for number in (*only_new, *only_cached))


def _paired(written: Counter[str], spelled: Counter[str]) -> tuple[Counter[str], Counter[str]]:
    """Both without each "2" of *written* that is a "two" in *spelled*."""
    pairs = {number: min(count, spelled[f"~{number}"]) for number, count in written.items()}
    return written - Counter(pairs), spelled - Counter({f"~{n}": k for n, k in pairs.items()})


def _times_apart(difference: _Difference) -> bool:
    """Whether the times differ in more than a "today" or a "now" that only one prompt has."""
    new, cached = difference.new_times, difference.cached_times
    if not new and not cached:
        return False
    return bool(new and cached) or any(time[0] == "@" for time in (*new, *cached))


def _units_apart(difference: _Difference) -> bool:
    units = difference.lists.units
    return not units.isdisjoint(difference.new) and not units.isdisjoint(difference.cached)


# -- opposites


def _negation(new: Signature, cached: Signature, difference: _Difference) -> bool:
    if new.negations == cached.negations:
        return False
    if new.negations and cached.negations:
        return (new.negations - cached.negations) % 2 == 1
    affirmative = difference.cached if new.negations else difference.new
    return difference.lists.failures.isdisjoint(affirmative)


# With one of these a word turns into its opposite; the stem of "-less" ends in a single s.
_PREFIXES: Final = ("un", "non", "dis", "de", "in", "im", "ir", "il", "mis", "anti")
_OPPOSITE_PREFIXES: Final = (
    ("up", "down"),
    ("over", "under"),
    ("in", "out"),
    ("in", "ex"),
    ("im", "ex"),
    ("en", "de"),
    ("as", "de"),
    ("pre", "post"),
    ("fore", "back"),
    ("hyper", "hypo"),
    ("macro", "micro"),
    ("maxi", "mini"),
    ("endo", "exo"),
    ("homo", "hetero"),
    ("mono", "poly"),
    ("super", "sub"),
    ("inter", "intra"),
    ("pro", "anti"),
    ("step", "grand"),
)
# What may stand in the place of each of them; the first prefixes fall away.
_INSTEAD: Final[Mapping[str, Sequence[str]]] = {
    prefix: [
        *([""] if prefix in _PREFIXES else []),
        *[b for a, b in _OPPOSITE_PREFIXES if a == prefix],
        *[a for a, b in _OPPOSITE_PREFIXES if b == prefix],
    ]
    for prefix in (*_PREFIXES, *[prefix for pair in _OPPOSITE_PREFIXES for prefix in pair])
}
_PREFIX_SIZES: Final = tuple(sorted({len(prefix) for prefix in _INSTEAD}))
_SUFFIXES: Final = ("ful", "les")


def _antonyms(_new: Signature, _cached: Signature, difference: _Difference) -> bool:
    new, cached, lists = difference.new, difference.cached, difference.lists
    if not new or not cached:
        return False
    if _opposed(lists.antonyms, new, cached):
        return True
    if _turned_round(new, cached) or _turned_round(cached, new):
        return True
    # Particles are too common to mean anything unless nothing else differs.
    if difference.new_content or difference.cached_content:
        return False
    only_function_words = all(token.isupper() for token in (*new, *cached))
    return only_function_words and _opposed(lists.particles, new, cached)


def _opposed(
    opposites: Mapping[str, frozenset[str]], new: frozenset[str], cached: frozenset[str]
) -> bool:
    for word in new:
        if word in opposites:
            for opposite in opposites[word] & cached:
                # A prompt that names both poles says neither: "speed up a slow query".
                if new.isdisjoint(opposites[word]) and cached.isdisjoint(opposites[opposite]):
                    return True
    return False


def _turned_round(words: Iterable[str], others: frozenset[str]) -> bool:
    """Whether a word is another without its "un-", or with "up-" for its "down-"."""
    return not others.isdisjoint(chain.from_iterable(map(_opposites, words)))


@lru_cache(maxsize=4_096)
def _opposites(word: str) -> tuple[str, ...]:
    """Return what *word* becomes when its first or last letters are turned round.

    The latest words are remembered: those of one service recur.
    """
    found = [
        instead + word[size:]
        for size in _PREFIX_SIZES
        for instead in _INSTEAD.get(word[:size], ())
    ]
    if word.endswith(_SUFFIXES):
        found.append(word[:-3] + _SUFFIXES[word.endswith(_SUFFIXES[0])])
    return tuple(found)


# -- names


def _names(new: Signature, cached: Signature, difference: _Difference) -> bool:
    if new.names.isdisjoint(difference.new):
        return False
    return not cached.names.isdisjoint(difference.cached)


# -- order

_CONNECTORS: Final = frozenset(("AND", "VS"))
# How many words may stand for each of two things that change places.
_GROUPS: Final = tuple((k, m) for k in (1, 2, 3) for m in (1, 2, 3))
_PASSIVE: Final = frozenset(("IS", "WAS"))
_ACTIVE: Final = frozenset(("DO", "DID"))


def _order(new: Signature, cached: Signature, difference: _Difference) -> bool:
    lexicon = difference.lists
    exchanged = False
    if new.roles != cached.roles:
        if _turned(new.roles ^ cached.roles, new, cached):
            return True
        exchanged = _objects_exchanged(new, cached, lexicon)
    if _only_auxiliaries_differ(difference):
        # Only then can the same words stand in another order.
        exchanged = exchanged or _exchanged(new, cached)
        exchanged = exchanged or _passive(new, cached) or _passive(cached, new)
    return (
        exchanged
        and lexicon.symmetric.isdisjoint(new.words)
        and lexicon.symmetric.isdisjoint(cached.words)
    )


def _only_auxiliaries_differ(difference: _Difference) -> bool:
    """Whether nothing differs but auxiliaries, and a "by"."""
    # Seen sooner than by the sets: no word that says what is asked is one of them.
    if difference.new_content or difference.cached_content:
        return False
    return difference.lists.auxiliaries.issuperset((difference.new | difference.cached) - {"BY"})


def _turned(apart: frozenset[tuple[str, str]], new: Signature, cached: Signature) -> bool:
    """Whether one prompt goes *to* what the other comes *from*."""
    for role, word in apart:
        if (
            role == "TO"
            and ("FROM", word) in apart
            and (("TO", word) in new.roles) == (("FROM", word) in cached.roles)
        ):
            return True
    return False


def _objects_exchanged(new: Signature, cached: Signature, lists: Lexicon) -> bool:
    """Whether a preposition governs two words of both prompts the other way round."""
    directed = lists.directed
    for role, word in new.roles - cached.roles:
        if role in directed and word in cached.words:
            for other, object_ in cached.roles - new.roles:
                if other == role and object_ in new.words:
                    return True
    return False


def _exchanged(new: Signature, cached: Signature) -> bool:
    """Whether the prompts are equal but for words or groups that have changed places.

    What has moved alone does not count, nor neighbours ("saved messages", "messages saved"), nor
    words around a connector, nor those that the same preposition still governs.
    """
    if len(new.tokens) == len(cached.tokens):
        a, b = _middles(new.tokens, cached.tokens)
    else:
        a, b = _middles(_bones(new), _bones(cached))
    if not a or sorted(a) != sorted(b) or not _CONNECTORS.isdisjoint(a):
        return False
    if len(_meaningful(new)) == len(new.tokens) or len(_meaningful(cached)) == len(cached.tokens):
        return False  # a list of keywords has no order
    held = {word for _, word in new.roles & cached.roles}
    free = {token for token in a if not token.isupper() and token not in held}
    return _permuted(a, b, free) or _crossed(a, b, free)


def _permuted(a: Sequence[str], b: Sequence[str], free: set[str]) -> bool:
    moved = [at for at, (left, right) in enumerate(zip(a, b, strict=True)) if left != right]
    apart = len(moved) <= moved[-1] - moved[0]
    return apart and free.issuperset(a[at] for at in moved)


def _crossed(a: list[str], b: list[str], free: set[str]) -> bool:
    """Whether the first words of *a* are the last of *b* and the other way round."""
    for k, m in _GROUPS:
        if k + m >= len(a):
            continue
        first, last = a[:k], a[-m:]
        if b == [*last, *a[k:-m], *first]:
            return not free.isdisjoint(first) and not free.isdisjoint(last)
    return False


def _passive(new: Signature, cached: Signature) -> bool:
    """Whether *new* says in the passive what *cached* says in the active, in the same order."""
    return (
        "BY" in new.words
        and "BY" not in cached.words
        and not _PASSIVE.isdisjoint(new.words)
        and not _ACTIVE.isdisjoint(cached.words)
        and _meaningful(new) == _meaningful(cached)
    )


def _meaningful(text: Signature) -> list[str]:
    return [token for token in text.tokens if not token.isupper()]


def _bones(text: Signature) -> list[str]:
    auxiliaries = text.lists.auxiliaries
    return [token for token in text.tokens if token not in auxiliaries]


def _middles(a: Sequence[str], b: Sequence[str]) -> tuple[list[str], list[str]]:
    """*a* and *b* without their common beginning and end."""
    shorter = min(len(a), len(b))
    start = 0
    while start < shorter and a[start] == b[start]:
        start += 1
    end = 0
    while end < shorter - start and a[-1 - end] == b[-1 - end]:
        end += 1
    return list(a[start : len(a) - end]), list(b[start : len(b) - end])


# -- what narrows the question down


def _constraint(new: Signature, cached: Signature, difference: _Difference) -> bool:
    restrictions = difference.lists.restrictions
    if not restrictions.isdisjoint(difference.new):
        return True
    if not restrictions.isdisjoint(difference.cached):
        return True
    if difference.new_content and difference.cached_content:
        return False
    return _placed(new, cached, difference.new) or _placed(cached, new, difference.cached)


def _placed(text: Signature, other: Signature, only: frozenset[str]) -> bool:
    """Whether *text* asks about some country, language or tool, and *other* in general."""
    names = only & text.names
    if not names or any(role == "IN" and word in other.names for role, word in other.roles):
        return False
    return any(role == "IN" and word in names for role, word in text.roles)


# -- what is asked

# Kinds of question that cannot have one answer; marked True: only when they ask about the same.
_EXCLUSIVE: Final = {
    frozenset(("person", "place")): False,
    frozenset(("person", "time")): False,
    frozenset(("person", "reason")): False,
    frozenset(("person", "thing")): False,
    frozenset(("place", "time")): False,
    frozenset(("place", "reason")): False,
    frozenset(("time", "reason")): False,
    frozenset(("time", "frequency")): False,
    frozenset(("manner", "reason")): True,
    frozenset(("manner", "time")): True,
    frozenset(("manner", "person")): True,
    frozenset(("thing", "reason")): True,
}


def _asks(new: Signature, cached: Signature, difference: _Difference) -> bool:
    if new.asks == cached.asks or len(new.asks) != 1 or len(cached.asks) != 1:
        return False
    if_equal = _EXCLUSIVE.get(new.asks | cached.asks)
    if if_equal is None:
        return False
    return not (if_equal and (difference.new_content or difference.cached_content))


# -- one word in the place of another


def _governed(new: Signature, cached: Signature, difference: _Difference) -> bool:
    """Whether what differs is the object of an "in", "for" or "with"."""
    roles = {role for role, word in new.roles if word in difference.new} - {"OF"}
    return any(role in roles and word in difference.cached for role, word in cached.roles)


# How many words may stand together in the place of others: "desktop computer" for "laptop".
_PHRASE: Final = 2


def _substituted(new: Signature, cached: Signature, difference: _Difference) -> bool:
    """Whether the prompts are equal but for a word or two that say what is asked.

    Of more words only when each stands exactly in the place of another.
    """
    content, other = difference.new_content, difference.cached_content
    auxiliaries = difference.lists.auxiliaries
    if (
        0 < len(content) <= _PHRASE
        and 0 < len(other) <= _PHRASE
        # Any other word would stand between the common ends. Seen sooner than where those are.
        and auxiliaries.issuperset(difference.new - content)
        and auxiliaries.issuperset(difference.cached - other)
    ):
        a, b = _middles(_bones(new), _bones(cached))
        if content.issuperset(a) and other.issuperset(b):
            return True
    if len(new.tokens) != len(cached.tokens) or not (content or other):
        return False
    pairs = zip(new.tokens, cached.tokens, strict=True)
    apart = [(a, b) for a, b in pairs if a != b]
    if all(a in content and b in other for a, b in apart):
        return True
    verbs = difference.lists.verbs
    return len(apart) == 1 and verbs.union(content, other).issuperset(apart[0])


_CONSTRAINT: Final = "constraint"
_RELATION: Final = "relation"
_Guard = Callable[[Signature, Signature, _Difference], bool]
# In the order in which they are asked, the most telling reason first: behind what was not read,
# and before `_substituted`.
_GUARDS: Final[dict[_Guard, str]] = {
    _numbers: "numbers",
    _negation: "negation",
    _antonyms: "antonyms",
    _names: "names",
    _order: "order",
    _constraint: _CONSTRAINT,
    _asks: _RELATION,
}
VERSION: Final = 2
"""Grows when guards object to other pairs than before: policies that weigh them are then void."""

REASONS: Final = (*_UNREAD, *_GUARDS.values())
"""The names of all guards."""
