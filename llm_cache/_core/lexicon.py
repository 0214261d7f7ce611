"""The word lists behind the guards, loaded once per language when first asked for.

The lists are data (`llm_cache/_data/guards/<language>/*.txt`): one entry a line, `#` and a blank
start a comment. Another language is another folder, with as many of the lists as there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final

# What a word does in a prompt, and so how a difference in it is judged. Plain numbers, because
# members of an enumeration take twice as long to look up and compare. Up to `NEGATOR` they are
# function words; from `WEAK` on words with a meaning of their own.
Kind = int
GLUE: Final = 0  # nothing: dropped
FRAME: Final = 1  # auxiliaries and pronouns: one is as good as another
PREPOSITION: Final = 2  # says what part the next noun plays
CONNECTOR: Final = 3  # stands between two things that may change places
QUESTION: Final = 4
NEGATOR: Final = 5
NUMBER: Final = 6
TIME: Final = 7
WEAK: Final = 8  # how something is asked
CONTENT: Final = 9  # what is asked
NAME: Final = 10  # content that names one thing

# How an expression goes on behind its first word, and the words that stand for it.
Phrase = tuple[tuple[str, ...], tuple[str, ...]]
# The expressions that begin with a word, by their second word, longest first.
Phrases = Mapping[str, tuple[Phrase, ...]]
# Kind and canonical form of a word, and what begins with it.
Entry = tuple[Kind, str, Phrases]
NO_PHRASES: Final[Phrases] = MappingProxyType({})
_FOLDER: Final = files("llm_cache") / "_data" / "guards"


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The lists of one language.

    Values and sets hold canonical words: function words in capitals, times behind `@` or, when
    they only say "now", `~`; all others are stems in small letters.
    """

    entries: Mapping[str, Entry]
    classes: Mapping[str, str]
    weak: frozenset[str]
    verbs: frozenset[str]
    names: frozenset[str]
    units: frozenset[str]
    antonyms: Mapping[str, frozenset[str]]
    particles: Mapping[str, frozenset[str]]
    restrictions: frozenset[str]
    symmetric: frozenset[str]
    directed: frozenset[str]
    auxiliaries: frozenset[str]
    questions: Mapping[tuple[str, str], str]
    numbers: Mapping[str, str]
    negated: Mapping[str, str]
    unknowing: frozenset[str]
    failures: frozenset[str]
    foreign: Mapping[str, tuple[str, ...]]
    """The commonest words of other languages, and which languages these are."""

    def entry(self, word: str) -> Entry:
        """Kind and canonical form of a lower-case word, known or not."""
        found = self.entries.get(word)
        if found is not None:
            return found
        stemmed = stem(word)
        canonical = self.classes.get(stemmed, stemmed)
        if canonical in self.weak:
            return WEAK, canonical, NO_PHRASES
        return (NAME if canonical in self.names else CONTENT), canonical, NO_PHRASES


@cache
def languages() -> frozenset[str]:
    """Return the languages that have lists, as ISO 639-1 codes."""
    return frozenset(folder.name for folder in _FOLDER.iterdir() if folder.is_dir())


@cache
def load(language: str = "en") -> Lexicon:
    """Lists of *language*; the first call reads the packaged files, later calls are free.

    Raises:
        FileNotFoundError: the package has no lists for *language*.
    """
    return _Loader(language).lexicon()


# -- stems

_VOWELS: Final = frozenset("aeiouy")
# Longer than this is no word; stemming it would only cost time.
_LONGEST_WORD: Final = 40
# Not the plurals that they look like.
_UNINFLECTED: Final = frozenset(("news", "windows"))
# Longest first: an ending, what takes its place, and how many letters must stand before it.
_ENDINGS: Final = (
    ("ization", "is", 3),
    ("isation", "is", 3),
    ("ation", "", 6),
    ("ally", "al", 3),
    ("ment", "", 4),
    ("ness", "", 4),
    ("ily", "y", 3),
    ("ogue", "og", 3),
    ("our", "or", 3),
    ("ize", "is", 3),
    ("ise", "is", 3),
    ("yze", "ys", 3),
    ("iz", "is", 3),
    ("yz", "ys", 3),
    ("ion", "", 5),
    ("ate", "", 6),
    ("tre", "ter", 2),
    ("tr", "ter", 3),
    ("at", "", 6),
    ("ly", "", 4),
)
_LAST_LETTERS: Final = frozenset(ending[-1] for ending, _, _ in _ENDINGS)


@lru_cache(maxsize=16_384)
def stem(word: str) -> str:
    """Fold the regular inflections and the British spellings of an English word into one key.

    The key is for comparing, not for showing. Endings that change the meaning (-er, -able, -less)
    stay. The latest words are remembered: those of one service recur.
    """
    if not 3 < len(word) <= _LONGEST_WORD or word in _UNINFLECTED:
        return word
    if word[-1] == "s":
        word = _singular(word)
    word = _without_tense(word)
    if word.endswith("ie"):
        word = word[:-2] + "y"
    word = _without_ending(word)
    if len(word) > 3 and word[-1] == "e":
        word = word[:-1]
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return word


def _singular(word: str) -> str:
    if word.endswith(("ches", "shes", "sses", "xes", "zzes")):
        return word[:-2]
    if word.endswith("ies"):
        return word[:-1]
    if word[-2] in "sui" or _VOWELS.isdisjoint(word):
        return word
    return word[:-1]


def _without_tense(word: str) -> str:
    if word.endswith("ing"):
        rest = word[:-3]
    elif word.endswith("ied"):
        return word[:-1]
    elif word.endswith("ed") and not word.endswith("eed"):
        rest = word[:-2]
    else:
        return word
    return rest if len(rest) > 2 and not _VOWELS.isdisjoint(rest) else word


def _without_ending(word: str) -> str:
    if word[-1] not in _LAST_LETTERS:
        return word
    for ending, instead, left in _ENDINGS:
        if word.endswith(ending) and len(word) >= len(ending) + left:
            return word[: -len(ending)] + instead
    return word


# -- reading the files


class _Loader:
    """Reads the files of one language, in the order in which they build on one another."""

    def __init__(self, language: str) -> None:
        self._folder = _FOLDER / language
        self._has = frozenset(file.name for file in self._folder.iterdir())
        self._lemmas = {word: row[0] for row in self._rows("forms") for word in row}
        self._classes: dict[str, str] = {}
        for name in ("names", "places", "units", "synonyms"):
            for row in self._rows(name):
                self._join(row)
        # Behind the classes, so that no inflection ("news") hides a word ("new"); short irregular
        # forms ("rang") are too much like other words ("range") to be inflected once more.
        for form in self._lemmas:
            if len(form) > 6:
                self._classes.setdefault(stem(form), self._canonical(form))
        names = (*self._words("names"), *self._words("places"))
        light = (*self._words("weak"), *self._words("verbs"), *self._words("units"))
        self._weak, self._names = self._canonicals(light), self._canonicals(names)
        self._entries: dict[str, tuple[Kind, str]] = {}
        for word in (*self._lemmas, *self._words("synonyms"), *light):
            canonical = self._canonical(word)
            self._entries[word] = WEAK if canonical in self._weak else CONTENT, canonical
        self._entries.update((name, (NAME, self._canonical(name))) for name in names)
        self._enter_closed_classes()

    def lexicon(self) -> Lexicon:
        phrases = self._phrases()
        listed: dict[str, Entry] = {
            word: (*entry, phrases.pop(word, NO_PHRASES)) for word, entry in self._entries.items()
        }
        lexicon = Lexicon(
            entries=listed,
            classes=self._classes,
            weak=self._weak,
            verbs=self._canonicals(self._words("verbs")),
            names=self._names,
            units=self._canonicals(self._words("units")),
            antonyms=self._opposites("antonyms"),
            particles=self._opposites("particles"),
            restrictions=self._canonicals(self._words("restrictions")),
            symmetric=self._canonical_tokens(self._words("symmetric")),
            directed=self._directed(),
            auxiliaries=frozenset(row[0].upper() for row in self._rows("frame")),
            questions=self._questions(),
            numbers=dict(self._assigned("numbers")),
            negated={self._canonical(w): other for w, other in self._assigned("negated")},
            unknowing=self._canonicals(self._words("unknowing")),
            failures=self._canonicals(self._words("failures")),
            foreign=self._foreign(),
        )
        others: dict[str, Entry] = {
            word: (NUMBER, word, ways) if word.isdecimal() else (*lexicon.entry(word)[:2], ways)
            for word, ways in phrases.items()
        }
        same = {
            word: lexicon.entry(other)
            for word, other in self._definitions("phrases")
            if " " not in word
        }
        return replace(lexicon, entries=listed | others | same)

    # what stands in a file

    def _lines(self, name: str) -> Iterator[str]:
        if f"{name}.txt" not in self._has:
            return iter(())
        text = (self._folder / f"{name}.txt").read_text(encoding="utf-8")
        return (line for line in text.splitlines() if line and not line.startswith("# "))

    def _rows(self, name: str) -> list[list[str]]:
        return [line.split() for line in self._lines(name)]

    def _words(self, name: str) -> list[str]:
        return [word for row in self._rows(name) for word in row]

    def _definitions(self, name: str) -> Iterator[tuple[str, str]]:
        for line in self._lines(name):
            left, _, right = line.partition("=")
            yield left.strip(), right.strip()

    def _assigned(self, name: str) -> Iterator[tuple[str, str]]:
        return ((w, value) for words, value in self._definitions(name) for w in words.split())

    # canonical words

    def _join(self, row: Iterable[str]) -> None:
        """Make one class of the words of *row*; a word in an earlier class stays there."""
        keys = [stem(self._lemmas.get(word, word)) for word in row]
        head = self._classes.get(keys[0], keys[0])
        for key in keys:
            self._classes.setdefault(key, head)

    def _canonical(self, word: str) -> str:
        key = stem(self._lemmas.get(word, word))
        return self._classes.get(key, key)

    def _canonicals(self, words: Iterable[str]) -> frozenset[str]:
        return frozenset(map(self._canonical, words))

    def _canonical_tokens(self, words: Iterable[str]) -> frozenset[str]:
        """As `_canonicals`, for words that may be function words, numbers or times."""
        entries = ((word, self._entries.get(word, (CONTENT, ""))) for word in words)
        return frozenset(
            [name if kind < WEAK else self._canonical(w) for w, (kind, name) in entries]
        )

    # words that are taken as they stand

    def _enter_closed_classes(self) -> None:
        """Enter the function words, numbers and times; a later list has precedence."""
        for word, name in self._assigned("times"):
            self._entries[word] = TIME, _time(name)
        for word, value in self._assigned("numbers"):
            self._entries[word] = NUMBER, f"#{value.lstrip('~')}"
        self._enter(FRAME, "frame")
        self._enter(PREPOSITION, "prepositions")
        self._enter(CONNECTOR, "connectors")
        for words, _ in self._definitions("questions"):
            asking = words.partition(" ")[0]
            # "Which" and "what" ask the same.
            asked = "WHAT" if asking in ("which", "whats") else asking.upper()
            self._entries[asking] = QUESTION, asked
        self._enter(NEGATOR, "negators")
        self._enter(GLUE, "glue")

    def _enter(self, kind: Kind, name: str) -> None:
        for row in self._rows(name):
            words = [word.removeprefix("+") for word in row]
            # All negators do the same; of the other lists each line is a class.
            canonical = "NOT" if kind == NEGATOR else words[0].upper()
            self._entries.update((word, (kind, canonical)) for word in words)

    # what the guards look up

    def _opposites(self, name: str) -> dict[str, frozenset[str]]:
        pairs: dict[str, set[str]] = {}
        for line in self._lines(name):
            left, _, right = line.partition("|")
            for a in self._canonical_tokens(left.split()):
                for b in self._canonical_tokens(right.split()):
                    pairs.setdefault(a, set()).add(b)
                    pairs.setdefault(b, set()).add(a)
        return {word: frozenset(others - {word}) for word, others in pairs.items()}

    def _directed(self) -> frozenset[str]:
        heads = [row[0] for row in self._rows("prepositions")]
        return frozenset(head[1:].upper() for head in heads if head[0] == "+")

    def _foreign(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for language, words in self._definitions("foreign"):
            for word in words.split():
                if word not in self._entries:
                    found[word] = (*found.get(word, ()), language)
        return found

    def _questions(self) -> dict[tuple[str, str], str]:
        return {
            (first, second): kind
            for words, kind in self._definitions("questions")
            for first, _, second in [words.partition(" ")]
        }

    def _phrases(self) -> dict[str, Phrases]:
        found: dict[str, dict[str, tuple[Phrase, ...]]] = {}
        for left, right in (*self._definitions("phrases"), *self._periods()):
            first, *tail = left.split()
            if tail:
                ways = found.setdefault(first, {})
                way = tuple(tail), tuple(right.split())
                longest_first = sorted((*ways.get(tail[0], ()), way), key=lambda w: -len(w[0]))
                ways[tail[0]] = tuple(longest_first)
        return dict(found)

    def _periods(self) -> Iterator[tuple[str, str]]:
        """Every "last week" and "next monday", as a phrase that stands for one time."""
        rows = list(self._assigned("periods"))
        for modifier, name in rows:
            for period in (word for word, value in rows if name and not value):
                when = _time(f"{name}-{period}")
                self._entries[when] = TIME, when
                yield f"{modifier} {period}", when
                yield f"{modifier} {period}'s", when


def _time(name: str) -> str:
    return f"~{name[1:]}" if name[0] == "-" else f"@{name}"
