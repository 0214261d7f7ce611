"""Lexical vetoes: reasons why the answer to one prompt must not be given to a similar one.

Embeddings put "from London to Paris" beside "from Paris to London". What differs between two such
prompts is a few words, so these guards look at the words. A guard objects or has nothing to say; that
none objects does not mean that two prompts ask the same.

`analyse` each prompt once, then ask `objection_between` about each candidate. English; the word lists
are in `llm_cache/_data/guards`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llm_cache._core.lexicon import load
from llm_cache._core.signature import Signature, analyse

__all__ = ["Signature", "analyse", "objection", "objection_between"]


def objection(new: str, cached: str) -> str | None:
    """Name of the first guard that objects to answering *new* with the answer to *cached*.

    None when none does, and always for equal prompts. The order of the two does not matter to
    whether there is an objection. Never raises.
    """
    return objection_between(analyse(new), analyse(cached))


def objection_between(new: Signature, cached: Signature) -> str | None:
    """`objection` for prompts that are analysed already; about 5 µs."""
    if new == cached:
        return None
    difference = _difference(new, cached)
    for name, objects in _GUARDS:
        if objects(new, cached, difference):
            return name
    return None


@dataclass(frozen=True, slots=True)
class _Difference:
    """The tokens that only one of two prompts has: all of them, and those that say what is asked."""

    new: frozenset[str]
    cached: frozenset[str]
    new_content: frozenset[str]
    cached_content: frozenset[str]


def _difference(new: Signature, cached: Signature) -> _Difference:
    in_new, in_cached = frozenset(new.tokens), frozenset(cached.tokens)
    only_new, only_cached = in_new - in_cached, in_cached - in_new
    if only_new and only_cached:
        only_new, only_cached = _spelled_out(only_new, only_cached, cached)
        only_cached, only_new = _spelled_out(only_cached, only_new, new)
    return _Difference(only_new, only_cached, _content(only_new), _content(only_cached))


def _content(tokens: frozenset[str]) -> frozenset[str]:
    weak = load().weak
    return frozenset([t for t in tokens if t not in weak and t.islower() and t[0] not in "#@~"])


def _spelled_out(
    short: frozenset[str], long: frozenset[str], text: Signature
) -> tuple[frozenset[str], frozenset[str]]:
    """The difference without an acronym in *short* and the words of *text* that it stands for."""
    for word in short:
        if 2 < len(word) < 7 and (at := text.initials.find(word)) >= 0:
            return short - {word}, long - frozenset(text.words[at : at + len(word)])
    return short, long


# -- what was not read


def _length(new: Signature, cached: Signature, _: _Difference) -> bool:
    return new.rest != cached.rest


# -- numbers, times, units


def _numbers(new: Signature, cached: Signature, difference: _Difference) -> bool:
    if new.numbers != cached.numbers and _count_apart(new.numbers, cached.numbers):
        return True
    return _times_apart(difference.new, difference.cached) or _units_apart(difference)


def _count_apart(new: Sequence[str], cached: Sequence[str]) -> bool:
    """Whether the numbers differ in more than a "one" or a "two" that may be mere grammar."""
    only_new, only_cached = list(new), list(cached)
    for number in new:
        for same in (number, f"~{number}", number.removeprefix("~")):
            if same in only_cached:
                only_new.remove(number)
                only_cached.remove(same)
                break
    if only_new and only_cached:
        return True
    return any(number[0] != "~" for number in (*only_new, *only_cached))


def _times_apart(new: frozenset[str], cached: frozenset[str]) -> bool:
    times_new = [token for token in new if token[0] in "@~"]
    times_cached = [token for token in cached if token[0] in "@~"]
    if times_new and times_cached:
        return True
    return any(token[0] == "@" for token in (*times_new, *times_cached))


def _units_apart(difference: _Difference) -> bool:
    units = load().units
    return not units.isdisjoint(difference.new) and not units.isdisjoint(difference.cached)


# -- opposites


def _negation(new: Signature, cached: Signature, _: _Difference) -> bool:
    if bool(new.negations) != bool(cached.negations):
        return True
    return (new.negations - cached.negations) % 2 == 1


# With these a word turns into its opposite.
_PREFIXES: Final = ("un", "non", "dis", "de", "in", "im", "ir", "il", "mis", "anti")


def _antonyms(_: Signature, __: Signature, difference: _Difference) -> bool:
    new, cached = difference.new, difference.cached
    if not new or not cached:
        return False
    if _opposed(load().antonyms, new, cached) or _prefixed(new, cached) or _prefixed(cached, new):
        return True
    # Particles are too common to mean anything unless nothing else differs.
    only_function_words = all(token.isupper() for token in (*new, *cached))
    return only_function_words and _opposed(load().particles, new, cached)


def _opposed(
    opposites: Mapping[str, frozenset[str]], new: frozenset[str], cached: frozenset[str]
) -> bool:
    return any(not opposites[w].isdisjoint(cached) for w in new if w in opposites)


def _prefixed(words: Iterable[str], others: frozenset[str]) -> bool:
    for word in words:
        if word.startswith(_PREFIXES):
            if any(word.startswith(p) and word[len(p) :] in others for p in _PREFIXES):
                return True
    return False


# -- names


def _names(new: Signature, cached: Signature, difference: _Difference) -> bool:
    if new.names.isdisjoint(difference.new):
        return False
    return not cached.names.isdisjoint(difference.cached)


# -- order

_CONNECTORS: Final = frozenset(("AND", "VS"))
_PASSIVE: Final = frozenset(("IS", "WAS"))
_ACTIVE: Final = frozenset(("DO", "DID"))


def _order(new: Signature, cached: Signature, difference: _Difference) -> bool:
    if _turned(new.roles, cached.roles) or _turned(cached.roles, new.roles):
        return True
    symmetric = load().symmetric
    if not symmetric.isdisjoint(new.tokens) or not symmetric.isdisjoint(cached.tokens):
        return False
    if _objects_exchanged(new, cached):
        return True
    return _exchanged(new, cached) or _passive(new, cached) or _passive(cached, new)


def _turned(new: frozenset[tuple[str, str]], cached: frozenset[tuple[str, str]]) -> bool:
    """Whether one prompt goes *to* what the other comes *from*."""
    return any(
        role == "TO"
        and ("FROM", word) in cached
        and ("TO", word) not in cached
        and ("FROM", word) not in new
        for role, word in new
    )


def _objects_exchanged(new: Signature, cached: Signature) -> bool:
    """Whether a preposition governs two words of both prompts the other way round."""
    directed = load().directed
    only_cached = cached.roles - new.roles
    return any(
        role in directed
        and word in cached.words
        and any(other == role and object_ in new.words for other, object_ in only_cached)
        for role, word in new.roles - cached.roles
    )


def _exchanged(new: Signature, cached: Signature) -> bool:
    """Whether the prompts are equal but for words or groups that have changed places.

    Neighbours do not count ("saved messages", "messages saved"), nor what has moved alone.
    """
    if new.words == cached.words or sorted(new.words) != sorted(cached.words):
        return False
    a, b = _middles(_bones(new), _bones(cached))
    if len(a) != len(b) or not _CONNECTORS.isdisjoint(a):
        return False
    held = {word for _, word in new.roles & cached.roles}
    moved = [at for at, (left, right) in enumerate(zip(a, b, strict=True)) if left != right]
    if held.issuperset(a[at] for at in moved):
        return False
    if len(moved) <= moved[-1] - moved[0] and not any(a[at].isupper() for at in moved):
        return True
    return any(
        b == a[len(a) - m :] + a[k : len(a) - m] + a[:k]
        for k in (1, 2, 3)
        for m in (1, 2, 3)
        if k + m < len(a)
    )


def _passive(new: Signature, cached: Signature) -> bool:
    """Whether *new* says in the passive what *cached* says in the active, in the same order."""
    return (
        new.words == cached.words
        and "BY" in new.tokens
        and "BY" not in cached.tokens
        and not _PASSIVE.isdisjoint(new.tokens)
        and not _ACTIVE.isdisjoint(cached.tokens)
    )


def _bones(text: Signature) -> list[str]:
    auxiliaries = load().auxiliaries
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


# -- one word in the place of another


def _constraint(new: Signature, cached: Signature, difference: _Difference) -> bool:
    restrictions = load().restrictions
    if not restrictions.isdisjoint(difference.new):
        return True
    if not restrictions.isdisjoint(difference.cached):
        return True
    if not _substituted(new, cached, difference):
        return False
    return bool(_governing(new, difference.new) & _governing(cached, difference.cached))


def _governing(text: Signature, words: frozenset[str]) -> set[str]:
    return {role for role, word in text.roles if word in words}


# Kinds of question that cannot have one answer; the pairs marked True only when all else is equal.
_EXCLUSIVE: Final = {
    frozenset(pair): strict
    for *pair, strict in (
        ("person", "place", False),
        ("person", "time", False),
        ("person", "reason", False),
        ("person", "thing", False),
        ("place", "time", False),
        ("place", "reason", False),
        ("time", "reason", False),
        ("time", "frequency", False),
        ("manner", "reason", True),
    )
}


def _relation(new: Signature, cached: Signature, difference: _Difference) -> bool:
    return _asks_apart(new, cached, difference) or _substituted(new, cached, difference)


def _asks_apart(new: Signature, cached: Signature, difference: _Difference) -> bool:
    if len(new.asks) != 1 or len(cached.asks) != 1:
        return False
    strict = _EXCLUSIVE.get(new.asks | cached.asks)
    if strict is None:
        return False
    return not (strict and (difference.new_content or difference.cached_content))


def _substituted(new: Signature, cached: Signature, difference: _Difference) -> bool:
    """Whether the prompts are equal but for one word that says what is asked."""
    if not difference.new or not difference.cached:
        return False
    if not difference.new_content and not difference.cached_content:
        return False
    verbs = load().verbs
    a, b = _middles(_bones(new), _bones(cached))
    if len(a) == len(b) == 1 and a[0] in difference.new_content and b[0] in difference.cached_content:
        return True
    a, b = _middles(new.tokens, cached.tokens)
    if len(a) == len(b) == 1:
        content = difference.new_content | difference.cached_content
        return all(word in content or word in verbs for word in (*a, *b))
    return len(a) == len(b) <= 3 and (
        difference.new_content.issuperset(a) and difference.cached_content.issuperset(b)
    )


_Guard = Callable[[Signature, Signature, _Difference], bool]
# In the order in which they are asked: the most telling reason first.
_GUARDS: Final[tuple[tuple[str, _Guard], ...]] = (
    ("length", _length),
    ("numbers", _numbers),
    ("negation", _negation),
    ("antonyms", _antonyms),
    ("names", _names),
    ("order", _order),
    ("constraint", _constraint),
    ("relation", _relation),
)
