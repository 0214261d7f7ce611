"""Lexical vetoes: reasons why the answer to one prompt must not be given to a similar one.

Embeddings put "from London to Paris" beside "from Paris to London". What differs between two such
prompts is a few words, so these guards look at the words: `analyse` a prompt once, then ask
`objection_between` about each candidate. English; word lists in `llm_cache/_data/guards`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from llm_cache._core.lexicon import Kind, Lexicon, Phrase, load


@dataclass(frozen=True, slots=True)
class Signature:
    """What the guards need to know of a prompt, in place of its text.

    Bounded whatever the length of the prompt: beyond the first words there is only a digest.
    """

    words: tuple[str, ...]
    """Canonical words in order, without function words; `#` marks numbers and `@` times."""
    initials: str
    """First letter of each of `words` as it was written."""
    numbers: tuple[str, ...]
    """Sorted; `~` marks number words that may be mere grammar."""
    names: frozenset[str]
    """Those of `words` that name something."""
    frame: tuple[str, ...]
    """Function words, sorted."""
    roles: frozenset[tuple[str, str]]
    """Prepositions with the word they govern."""
    linked: frozenset[str]
    """Words beside an "and", "or" or "versus"."""
    asks: frozenset[str]
    """Kinds of question: person, place, time, …"""
    negations: int
    rest: bytes
    """Digest of what was not read; empty when everything was."""


# Read no further than this. The longest prompt that an embedder compares as a whole is shorter.
_READ_CHARS: Final = 16_384
_READ_WORDS: Final = 512
# A "word" longer than this is a key, a URL or base64: its digest stands for it.
_WORD_CHARS: Final = 40

_TOKEN: Final = re.compile(
    r"""
      (?<![^\W_])[cCfF](?:\+\+|\#)                          # C++, C#
    | (?<!\w)(?:[^\W\d_]\.)+[^\W\d_](?!\w)\.?               # U.S., p.m.
    | [^\W\d_]+(?:'[^\W\d_]+|\.(?:js|net)(?!\w))*           # words, isn't, Node.js
    | \d+(?:[.,:]\d+)*                                      # 1,000.5  19:30  3.11.4
    | [.!?;:\n]                                             # ends a sentence
    | [$€£¥₹%&]
    | [+*^=<>×÷](?=\s?\d) | (?<![^\W\d_])[-−/](?=\s?\d)     # operators
    """,
    re.VERBOSE,
)
_SENTENCE_ENDS: Final = frozenset(".!?;:\n")
_OPERATORS: Final = {"×": "*", "÷": "/", "−": "-"} | {sign: sign for sign in "+-*/^=<>"}
_OPERATOR_WORDS: Final = {"plus": "+", "minus": "-", "times": "*", "divided": "/"}
_CURRENCIES: Final = {"$": "dollar", "€": "euro", "£": "sterling", "¥": "yen", "₹": "rupee"}
_SIGNS: Final = {"&": "and", "%": "percent"}
_MULTIPLIERS: Final = {
    "k": 3,
    "hundred": 2,
    "thousand": 3,
    "lakh": 5,
    "mn": 6,
    "million": 6,
    "crore": 7,
    "bn": 9,
    "billion": 9,
    "trillion": 12,
}
_MONEY_MULTIPLIERS: Final = {"m": 6, "b": 9}
_ORDINAL_ENDINGS: Final = frozenset(("st", "nd", "rd", "th"))
# Months that are also everyday words count when written like a month or placed like one.
_AMBIGUOUS_MONTHS: Final = frozenset(("may", "march"))
_BEFORE_A_MONTH: Final = frozenset(("in", "of", "since", "until", "by", "last", "next", "on"))
_POSSIBLY_NAMES: Final = {"US": "usa", "IT": "it·", "WHO": "who·"}
_BEFORE_A_SECOND: Final = frozenset(("a", "per", "each", "every"))
_ELISIONS: Final = frozenset(("s", "m", "re", "ve", "d", "ll"))
_TENS: Final = frozenset(("20", "30", "40", "50", "60", "70", "80", "90"))
_DIGITS: Final = frozenset("123456789")
_TURNING_PREFIXES: Final = ("un", "non", "dis", "de", "in", "im", "ir", "il", "mis", "anti")
_NONE: Final[frozenset[str]] = frozenset()
_AFTER_HOW: Final = frozenset(
    ("how", "want", "need", "like", "able", "way", "going", "have", "used", "try", "best")
)
# "1,000" groups digits, "1,5" is a decimal fraction.
_GROUPED: Final = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
# Letters that mean a unit right after a number only.
_SHORT_UNITS: Final = {
    "m": "metre",
    "g": "gram",
    "l": "litre",
    "h": "hour",
    "w": "watt",
    "v": "volt",
    "c": "celsius",
    "f": "fahrenheit",
}
_YEAR: Final = re.compile(r"[12]\d{3}")
_YEAR_BOUNDS: Final = {"before": "<", "until": "<", "till": "<", "after": ">", "since": ">"}


def analyse(text: str) -> Signature:
    """Reduce *text* to what the guards compare. Linear in its length, never raises."""
    written, unread = _tokens(text)
    reader = _Reader(load())
    reader.read(written)
    return reader.signature(unread)


def objection(new: str, cached: str) -> str | None:
    """Name of the first guard that objects to answering *new* with the answer to *cached*.

    None when none does. For several candidates `analyse` each prompt once and use
    `objection_between`.
    """
    return objection_between(analyse(new), analyse(cached))


def objection_between(new: Signature, cached: Signature) -> str | None:
    """`objection` for prompts that are analysed already."""
    difference = _difference(new, cached)
    for name, objects in _GUARDS:
        if objects(new, cached, difference):
            return name
    return None


def _tokens(text: str) -> tuple[list[str], bytes]:
    """The tokens to read as they are written, and a digest of the text behind them."""
    read = text[:_READ_CHARS]
    if not read.isascii():
        read = unicodedata.normalize("NFKC", read).replace("’", "'")
    if read.isupper():
        read = read.lower()
    tokens: list[str] = _TOKEN.findall(read)
    if len(text) <= _READ_CHARS and len(tokens) <= _READ_WORDS:
        return tokens, b""
    unread = " ".join([*tokens[_READ_WORDS:], *text[_READ_CHARS:].split()]).casefold()
    return tokens[:_READ_WORDS], _digest(unread)


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


class _Reader:
    """Walks over the tokens of one prompt and collects its signature."""

    __slots__ = (
        "_asks", "_capitalised", "_frame", "_initial", "_initials", "_lexicon", "_link", "_linked",
        "_names", "_negations", "_numbers", "_role", "_roles", "_title", "_words",
    )  # fmt: skip

    def __init__(self, lexicon: Lexicon) -> None:
        self._lexicon = lexicon
        self._words: list[str] = []
        self._initials: list[str] = []
        self._numbers: list[str] = []
        self._names: set[str] = set()
        self._capitalised: set[str] = set()
        self._frame: list[str] = []
        self._roles: set[tuple[str, str]] = set()
        self._linked: set[str] = set()
        self._asks: set[str] = set()
        self._negations = 0
        self._initial = True
        self._title = False
        self._role: str | None = None
        self._link = False

    def signature(self, unread: bytes) -> Signature:
        # Where even function words are capitalised, capitals name nothing.
        names = self._names if self._title else self._names | self._capitalised
        return Signature(
            words=tuple(self._words),
            initials="".join(self._initials),
            numbers=tuple(sorted(self._numbers)),
            names=frozenset(names),
            frame=tuple(sorted(self._frame)),
            roles=frozenset(self._roles),
            linked=frozenset(self._linked),
            asks=frozenset(self._asks),
            negations=self._negations,
            rest=unread,
        )

    def read(self, written: list[str]) -> None:
        words = tuple([token.lower() for token in written])
        phrases = self._lexicon.phrases
        at, end = 0, len(words)
        while at < end:
            word = words[at]
            if word in phrases:
                found = _phrase(phrases[word], words, at)
                if found is not None:
                    tail, instead = found
                    for replacement in instead:
                        self._word(replacement, replacement, words, at)
                    self._initial = False
                    at += len(tail) + 1
                    continue
            at = self._word(word, written[at], words, at)

    def _word(self, word: str, raw: str, words: tuple[str, ...], at: int) -> int:
        """Take in *word*, which stands at *at* of *words*; the place to go on from."""
        entry = self._lexicon.entries.get(word)
        if entry is None:
            return self._unlisted(word, raw, words, at)
        kind, canonical = entry
        if kind >= Kind.WEAK:
            self._content(kind, canonical, raw)
        elif kind is Kind.NUMBER:
            return self._number(words, at)
        elif kind is Kind.TIME:
            self._place(("~" + canonical[1:]) if canonical[0] == "-" else "@" + canonical, word)
        else:
            self._function(kind, canonical, word, raw, words, at)
        self._initial = False
        return at + 1

    def _function(
        self, kind: Kind, canonical: str, word: str, raw: str, words: tuple[str, ...], at: int
    ) -> None:
        if raw is not word and raw != word:
            if raw in _POSSIBLY_NAMES:
                self._content(Kind.NAME, _POSSIBLY_NAMES[raw], raw)
                return
            if not self._initial and len(raw) > 1 and raw[0] != word[0]:
                self._title = True
        if kind is Kind.GLUE:
            return
        self._frame.append(canonical)
        if kind is Kind.PREPOSITION:
            if not (canonical == "to" and at and words[at - 1] in _AFTER_HOW):
                self._role = canonical
        elif kind is Kind.QUESTION:
            self._question(word, words, at)
        elif kind is Kind.NEGATOR:
            self._negations += 1
            self._role = "not"
        elif kind is Kind.CONNECTOR:
            self._link = True
            if self._words:
                self._linked.add(self._words[-1])

    def _question(self, word: str, words: tuple[str, ...], at: int) -> None:
        questions = self._lexicon.questions
        after = words[at + 1] if at + 1 < len(words) else ""
        kind = questions.get((word, after)) or questions.get((word, ""), "-")
        if kind != "-":
            self._asks.add(kind)

    def _content(self, kind: Kind, canonical: str, raw: str) -> None:
        self._place(canonical, raw)
        if kind is Kind.NAME:
            self._names.add(canonical)
        elif not raw.islower() and raw != "I":
            if not raw[1:].islower() and len(raw) > 1:
                self._names.add(canonical)
            elif not self._initial:
                self._capitalised.add(canonical)

    def _place(self, canonical: str, word: str) -> None:
        self._words.append(canonical)
        self._initials.append(word[0].lower())
        if self._role is not None:
            self._roles.add((self._role, canonical))
            self._role = None
        if self._link:
            self._linked.add(canonical)
            self._link = False

    def _unlisted(self, word: str, raw: str, words: tuple[str, ...], at: int) -> int:
        first = word[0]
        if first.isdecimal():
            return self._number(words, at)
        if first.isalpha():
            self._open(word, raw, words, at)
            self._initial = False
        elif first in _SENTENCE_ENDS:
            self._initial = True
            self._role = None
            self._link = False
        elif first in _OPERATORS:
            self._operator(_OPERATORS[first])
        elif first in _CURRENCIES:
            self._place(_CURRENCIES[first], word)
        else:
            self._word(_SIGNS[first], raw, words, at)
        return at + 1

    def _operator(self, sign: str) -> None:
        self._numbers.append(sign)
        self._frame.append(sign)

    def _open(self, word: str, raw: str, words: tuple[str, ...], at: int) -> None:
        """Take in a word that stands in no list: one that is inflected, elided or unknown."""
        if "'" in word:
            self._elided(word, raw, words, at)
        elif "." in word and word[-3:] != ".js" and word[-4:] != ".net":
            spelled = word.replace(".", "")
            self._word(spelled, raw.replace(".", ""), words, at)
        elif word in _AMBIGUOUS_MONTHS:
            self._perhaps_month(word, raw, words, at)
        elif len(word) > _WORD_CHARS:
            self._place(_digest(word).hex(), word)
        else:
            self._content(*self._lexicon.entry(word), raw)

    def _elided(self, word: str, raw: str, words: tuple[str, ...], at: int) -> None:
        if word.endswith("n't"):
            self._negations += 1
            self._role = "not"
            return
        base, _, suffix = word.rpartition("'")
        if suffix not in _ELISIONS:
            base = word
        base = base.replace("'", "")
        before = len(self._words)
        self._word(base, raw[: len(base)], words, at)
        if suffix == "s" and len(self._words) > before:
            self._roles.add(("of", self._words[-1]))

    def _perhaps_month(self, word: str, raw: str, words: tuple[str, ...], at: int) -> None:
        before = words[at - 1] if at else ""
        after = words[at + 1] if at + 1 < len(words) else ""
        if (
            before in _BEFORE_A_MONTH
            or before[:1].isdecimal()
            or before in _ORDINAL_ENDINGS
            or after[:1].isdecimal()
            or (raw != word and not self._initial)
        ):
            self._place("@" + word, word)
        elif word == "may":
            self._frame.append(word)
        else:
            self._content(Kind.CONTENT, word, raw)

    def _number(self, words: tuple[str, ...], at: int) -> int:
        if words[at] == "second" and at and words[at - 1] in _BEFORE_A_SECOND:
            self._place("sec", "s")
            return at + 1
        value, after = _number(words, at, self._lexicon.numbers)
        bound = _YEAR_BOUNDS.get(words[at - 1], "") if at and _YEAR.fullmatch(value) else ""
        self._numbers.append(bound + value)
        self._place("#" + value.removeprefix("~"), "#")
        self._initial = False
        following = words[after] if after < len(words) else ""
        if following in _SHORT_UNITS:
            self._place(self._lexicon.entry(_SHORT_UNITS[following])[1], following)
            return after + 1
        if following in _OPERATOR_WORDS:
            self._operator(_OPERATOR_WORDS[following])
            return after + 1
        return after


def _phrase(ways: tuple[Phrase, ...], words: tuple[str, ...], at: int) -> Phrase | None:
    """The longest of *ways* to go on that *words* take behind *at*."""
    for way in ways:
        tail = way[0]
        if words[at + 1 : at + 1 + len(tail)] == tail:
            return way
    return None


def _number(words: tuple[str, ...], at: int, named: Mapping[str, str]) -> tuple[str, int]:
    """The number that begins at *at*, in one spelling, and the place behind it."""
    if words[at][0].isdecimal():
        return _written_number(words, at)
    value = named[words[at]]
    at += 1
    following = named.get(words[at], "") if at < len(words) else ""
    if value in _TENS and following.lstrip("~") in _DIGITS:
        value = value[0] + following.lstrip("~")
        at += 1
    while at < len(words) and words[at] in _MULTIPLIERS and value.lstrip("~").isdecimal():
        value = _scaled(value.lstrip("~"), _MULTIPLIERS[words[at]])
        at += 1
    return value, at


def _written_number(words: tuple[str, ...], at: int) -> tuple[str, int]:
    digits = _plain_digits(words[at])
    following = words[at + 1] if at + 1 < len(words) else ""
    if following in ("am", "pm"):
        return _clock(digits, following), at + 2
    if following in _MULTIPLIERS:
        return _scaled(digits, _MULTIPLIERS[following]), at + 2
    if following in _MONEY_MULTIPLIERS and at and words[at - 1] in _CURRENCIES:
        return _scaled(digits, _MONEY_MULTIPLIERS[following]), at + 2
    if following in _ORDINAL_ENDINGS:
        return digits, at + 2
    if following == "s":
        return f"{digits[-2:]}s" if _YEAR.fullmatch(digits) else f"{digits}s", at + 2
    return digits, at + 1


def _plain_digits(token: str) -> str:
    """*token* without what can be written in several ways: "1,000" "2.0" "07" "1,5"."""
    if not token.isascii():
        token = "".join([str(unicodedata.decimal(c, c)) for c in token])
    if len(token) > _WORD_CHARS:
        return _digest(token).hex()
    if ":" in token:
        return "t" + token.removeprefix("0")
    token = token.replace(",", "") if _GROUPED.fullmatch(token) else token.replace(",", ".")
    whole, point, fraction = token.partition(".")
    if point and not fraction.strip("0"):
        token = whole
    return token[1:] if len(token) == 2 and token[0] == "0" else token


def _clock(digits: str, half: str) -> str:
    hour, _, minute = digits.removeprefix("t").partition(":")
    if not hour.isdecimal():
        return digits + half
    return f"t{int(hour) % 12 + (12 if half == 'pm' else 0)}:{minute or '00'}"


def _scaled(digits: str, zeros: int) -> str:
    """*digits* times ten to the *zeros*, as plain digits; "1.5" and 6 make "1500000"."""
    whole, _, fraction = digits.partition(".")
    if not whole.isdecimal() or "." in fraction:
        return f"{digits}e{zeros}"
    scaled = whole + fraction[:zeros].ljust(zeros, "0")
    left = fraction[zeros:].rstrip("0")
    return (scaled.lstrip("0") or "0") + (f".{left}" if left else "")


# -- comparing


@dataclass(frozen=True, slots=True)
class _Difference:
    """The words that only one of two prompts has: all, and those that say what is asked."""

    new: frozenset[str]
    cached: frozenset[str]
    new_content: frozenset[str]
    cached_content: frozenset[str]


def _difference(new: Signature, cached: Signature) -> _Difference:
    in_new, in_cached = frozenset(new.words), frozenset(cached.words)
    only_new, only_cached = in_new - in_cached, in_cached - in_new
    if only_new and only_cached:
        only_new, only_cached = _spell_out(only_new, only_cached, cached)
        only_cached, only_new = _spell_out(only_cached, only_new, new)
    return _Difference(only_new, only_cached, _content(only_new), _content(only_cached))


def _content(words: frozenset[str]) -> frozenset[str]:
    weak = load().weak
    return frozenset([w for w in words if w not in weak and w[0] not in "#@~"])


def _spell_out(
    short: frozenset[str], long: frozenset[str], text: Signature
) -> tuple[frozenset[str], frozenset[str]]:
    """Take an acronym and the words of *text* that it stands for out of the difference."""
    for word in short:
        if 2 < len(word) < 7:
            at = text.initials.find(word)
            if at >= 0:
                return short - {word}, long - frozenset(text.words[at : at + len(word)])
    return short, long


def _read_apart(new: Signature, cached: Signature, _: _Difference) -> bool:
    return new.rest != cached.rest


def _numbers(new: Signature, cached: Signature, difference: _Difference) -> bool:
    if new.numbers != cached.numbers and _count_apart(new.numbers, cached.numbers):
        return True
    if not difference.new and not difference.cached:
        return False
    return _times_apart(difference) or _units_apart(difference)


def _count_apart(new: Sequence[str], cached: Sequence[str]) -> bool:
    """Whether the numbers differ in more than a "one" or "two" that is mere grammar."""
    left, right = list(new), list(cached)
    for number in new:
        for same in (number, "~" + number, number.removeprefix("~")):
            if same in right:
                left.remove(number)
                right.remove(same)
                break
    firm = any(number[0] != "~" for number in (*left, *right))
    return firm or bool(left and right)


def _times_apart(difference: _Difference) -> bool:
    new = [w for w in difference.new if w[0] in "@~"]
    cached = [w for w in difference.cached if w[0] in "@~"]
    return bool(new and cached) or any(w[0] == "@" for w in (*new, *cached))


def _units_apart(difference: _Difference) -> bool:
    units = load().units
    return not units.isdisjoint(difference.new) and not units.isdisjoint(difference.cached)


def _negation(new: Signature, cached: Signature, _: _Difference) -> bool:
    if new.negations == cached.negations:
        return False
    return not new.negations or not cached.negations or (new.negations - cached.negations) % 2 == 1


def _antonyms(new: Signature, cached: Signature, difference: _Difference) -> bool:
    if difference.new and difference.cached:
        antonyms = load().antonyms
        for word in difference.new:
            opposite = antonyms.get(word)
            if opposite is not None and not opposite.isdisjoint(difference.cached):
                return True
        if _prefixed(difference.new, difference.cached) or _prefixed(
            difference.cached, difference.new
        ):
            return True
    return (
        new.frame != cached.frame
        and not difference.new_content
        and not difference.cached_content
        and _opposed(new.frame, cached.frame)
    )


def _prefixed(words: Iterable[str], others: frozenset[str]) -> bool:
    """Whether one of *words* is one of *others* with a prefix that turns it round."""
    for word in words:
        if word.startswith(_TURNING_PREFIXES):
            for prefix in _TURNING_PREFIXES:
                if word.startswith(prefix) and word[len(prefix) :] in others:
                    return True
    return False


def _opposed(new: tuple[str, ...], cached: tuple[str, ...]) -> bool:
    particles = load().particles
    only_new, only_cached = frozenset(new) - frozenset(cached), frozenset(cached) - frozenset(new)
    return any(not particles.get(word, _NONE).isdisjoint(only_cached) for word in only_new)


def _names(new: Signature, cached: Signature, difference: _Difference) -> bool:
    return not new.names.isdisjoint(difference.new) and not cached.names.isdisjoint(
        difference.cached
    )


def _order(new: Signature, cached: Signature, difference: _Difference) -> bool:
    if _turned(new.roles, cached.roles):
        return True
    symmetric = load().symmetric
    if not symmetric.isdisjoint((*new.words, *new.frame)) or not symmetric.isdisjoint(
        (*cached.words, *cached.frame)
    ):
        return False
    return _objects_exchanged(new, cached) or (
        not difference.new
        and not difference.cached
        and bool(new.frame)
        and new.frame == cached.frame
        and _swapped(new, cached)
    )


def _turned(new: frozenset[tuple[str, str]], cached: frozenset[tuple[str, str]]) -> bool:
    """Whether something is gone *to* in one prompt and come *from* in the other."""
    for role, word in new:
        if role == "from" and ("to", word) in cached:
            if ("to", word) not in new and ("from", word) not in cached:
                return True
        elif role == "to" and ("from", word) in cached:
            if ("from", word) not in new and ("to", word) not in cached:
                return True
    return False


def _objects_exchanged(new: Signature, cached: Signature) -> bool:
    directed = load().directed
    for role, word in new.roles - cached.roles:
        if role in directed and word in cached.words:
            for other_role, other in cached.roles - new.roles:
                if other_role == role and other in new.words and other != word:
                    return True
    return False


def _swapped(new: Signature, cached: Signature) -> bool:
    """Whether two words that no common preposition holds have changed places."""
    units = load().units
    held = {word for _, word in new.roles & cached.roles} | (new.linked & cached.linked) | units
    return [w for w in new.words if w not in held] != [w for w in cached.words if w not in held]


def _constraint(new: Signature, cached: Signature, difference: _Difference) -> bool:
    restrictions = load().restrictions
    if not restrictions.isdisjoint(difference.new) or not restrictions.isdisjoint(
        difference.cached
    ):
        return True
    return _substituted(difference) and _governed(new, difference.new) == _governed(
        cached, difference.cached
    ) != frozenset()


def _governed(text: Signature, words: frozenset[str]) -> frozenset[str]:
    return frozenset([role for role, word in text.roles if word in words])


def _relation(new: Signature, cached: Signature, difference: _Difference) -> bool:
    if len(new.asks) == len(cached.asks) == 1 and new.asks != cached.asks:
        return True
    return _substituted(difference)


def _substituted(difference: _Difference) -> bool:
    """Whether one word stands in the place of another."""
    if len(difference.new_content) == len(difference.cached_content) == 1:
        return True
    return len(difference.new) == len(difference.cached) == 1 and bool(
        difference.new_content or difference.cached_content
    )


_Guard = Callable[[Signature, Signature, _Difference], bool]
_GUARDS: Final[tuple[tuple[str, _Guard], ...]] = (
    ("length", _read_apart),
    ("numbers", _numbers),
    ("negation", _negation),
    ("antonyms", _antonyms),
    ("names", _names),
    ("order", _order),
    ("constraint", _constraint),
    ("relation", _relation),
)
