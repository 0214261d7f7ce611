"""What the guards look at in a prompt: its words, numbers, names and who does what to whom."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import blake2b
from typing import Final

from llm_cache._core.lexicon import (
    CONTENT,
    FRAME,
    GLUE,
    NAME,
    NEGATOR,
    NUMBER,
    PREPOSITION,
    QUESTION,
    TIME,
    WEAK,
    Kind,
    Lexicon,
    Phrase,
    languages,
    load,
)

LISTED_LANGUAGE: Final = "en"
"""The one that has all the lists; others have some of them."""

# No embedder compares longer prompts as a whole; what is behind must be equal to the letter.
_READ_CHARS: Final = 16_384
_READ_TOKENS: Final = 512


# Neither frozen nor, where each µs counts, made by keyword: that takes 0.3 to 1 µs longer.
@dataclass(slots=True)
class Signature:
    """What the guards need to know of a prompt, in place of its text.

    Never changed: all that look at the same prompt share it. Bounded whatever the length of the
    prompt: of what stands behind the first words there is only a digest. Words are compared and
    looked up, never shown, so hashes could stand for them.
    """

    tokens: tuple[str, ...]
    """All words in order, canonical: function words in capitals, `#` before numbers, `@` and `~`
    before times."""
    words: frozenset[str]
    """The same without their order."""
    numbers: tuple[str, ...]
    """Sorted, with the operators between them; `~` marks number words that may be mere grammar."""
    names: frozenset[str]
    """Those of `tokens` that name something."""
    roles: frozenset[tuple[str, str]]
    """Prepositions with the words they govern."""
    asks: frozenset[str]
    """Kinds of question: person, place, time, …"""
    negations: int
    rest: bytes
    """Digest of what was not read; empty when everything was."""
    code: bytes = b""
    """Digest of all that stands between back-quotes: in code every sign counts."""
    symbols: str = ""
    """Signs beyond ASCII that are no words, each once: emoji, arrows, mathematics."""
    language: str = LISTED_LANGUAGE
    """The language as far as its commonest words tell, or the script if it is not Latin."""
    is_veiled: bool = False
    """Whether hashes stand for the words that are in no list; each begins with `?`."""

    @property
    def is_listed(self) -> bool:
        """Whether there are all word lists for the language."""
        return self.language == LISTED_LANGUAGE

    @property
    def lists(self) -> Lexicon:
        """The word lists that it was read with."""
        return lists_of(self.language)

    @property
    def unread(self) -> tuple[bytes, bytes, str]:
        """What the tokens do not show."""
        return self.rest, self.code, self.symbols


@cache
def lists_of(language: str) -> Lexicon:
    """Return the lists to read *language* with: English ones where it has none."""
    return load(language if language in languages() else LISTED_LANGUAGE)


def analyse(text: str, *, most_tokens: int = _READ_TOKENS) -> Signature:
    """Reduce *text* to what the guards compare; of what is behind *most_tokens* only a digest.

    Takes time linear in its length (about 20 µs for a one-line question) and never raises.
    """
    written, unread = _tokens(text, most_tokens)
    reader = _Reader(written)
    is_ascii = text.isascii()
    language = _language(reader.lower, load(), is_ascii=is_ascii)
    reader.read(lists_of(language))
    spans = _CODE.findall(text) if "`" in text else ()
    return reader.signature(
        unread,
        code=_digest("\x1f".join(spans)) if spans else b"",
        symbols="" if is_ascii else _symbols(text),
        language=language,
    )


# -- the stored form

SIGNATURE_BYTES: Final = 256
"""Most bytes of a stored signature."""
_PACKED_VERSION: Final = b"\x01"
_LEVEL: Final = 6


def pack(text: str) -> bytes:
    """Return the signature of *text* in at most 256 bytes.

    Short prompts keep all that the guards look at. Of a prompt too long for that only the first
    words are kept, and a digest of the rest: no other prompt with another rest passes the guards.

    Hashes stand for numbers above 99 and for words that the packaged lists do not have: names of
    people, identifiers, addresses, most nouns. Whoever reads the signature sees the others, and
    can try words of his own on the hashes: it is no secret, and is encrypted where it must be one.
    """
    most = _READ_TOKENS
    while True:
        packed = _PACKED_VERSION + _squeezed(_veiled(analyse(text, most_tokens=most)))
        if len(packed) <= SIGNATURE_BYTES:
            return packed
        most = most * 3 // 4


def unpack(packed: bytes) -> Signature:
    """Return the signature that `pack` made.

    Raises:
        ValueError: it is not one of this release.
    """
    if packed[:1] != _PACKED_VERSION or len(packed) > SIGNATURE_BYTES:
        raise ValueError("not a signature of this release")
    try:
        fields = _expanded(packed[1:]).split("\n")
        tokens, numbers, names, roles, asks, negations, rest, code, symbols, language = fields
        governed = roles.split(" ") if roles else []
        words = tokens.split(" ") if tokens else []
        return Signature(
            tokens=tuple(words),
            words=frozenset(words),
            numbers=tuple(numbers.split(" ")) if numbers else (),
            names=frozenset(names.split(" ") if names else ()),
            roles=frozenset(zip(governed[::2], governed[1::2], strict=True)),
            asks=frozenset(asks.split(" ") if asks else ()),
            negations=int(negations),
            rest=bytes.fromhex(rest),
            code=bytes.fromhex(code),
            symbols=symbols,
            language=language,
            is_veiled=_VEIL in tokens or _VEIL in numbers,
        )
    except (zlib.error, UnicodeError, ValueError) as exc:
        raise ValueError("not a signature of this release") from exc


def _squeezed(signature: Signature) -> bytes:
    lines = (
        " ".join(signature.tokens),
        " ".join(signature.numbers),
        " ".join(sorted(signature.names)),
        " ".join([word for role in sorted(signature.roles) for word in role]),
        " ".join(sorted(signature.asks)),
        str(signature.negations),
        signature.rest.hex(),
        signature.code.hex(),
        signature.symbols,
        signature.language,
    )
    deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, -15, zdict=_common_words())
    return deflater.compress("\n".join(lines).encode()) + deflater.flush()


def _expanded(packed: bytes) -> str:
    inflater = zlib.decompressobj(-15, zdict=_common_words())
    # Bounded, so that a forged one cannot expand into megabytes.
    text = inflater.decompress(packed, 64 * 1024)
    if not inflater.eof:
        raise ValueError("not a signature of this release")
    return text.decode()


@cache
def _common_words() -> bytes:
    """Return what the stored form need not spell out, the most common last."""
    lexicon = load()
    words = sorted({entry[1] for entry in lexicon.entries.values()})
    content = [word for word in words if word.islower()]
    function = [word for word in words if word.isupper()]
    return "\n".join((" ".join(content), " ".join(function), "", "en")).encode()[-32_000:]


# -- hashes in the place of words

_VEIL: Final = "?"
_VEIL_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_SHOWN_DIGITS: Final = 2


@lru_cache(maxsize=4_096)
def veil(token: str) -> str:
    """Return what stands for *token* in a stored signature: itself, or 5 letters of its hash.

    Two words out of twelve million share them by chance; then the guards take one for the other.
    """
    sign = token[0] if token[0] == "#" else ""
    word = token.removeprefix("#")
    if word[:1] in ("@", "~") or word.isupper() or not word[-1:].isalnum():
        return token  # a time, mere grammar, a function word, an operator
    if len(word) <= _SHOWN_DIGITS if word[:1].isdecimal() else word in _listed():
        return token
    number = int.from_bytes(blake2b(word.encode(), digest_size=8, person=b"signature").digest())
    letters = []
    for _ in range(5):
        number, at = divmod(number, len(_VEIL_LETTERS))
        letters.append(_VEIL_LETTERS[at])
    return f"{sign}{_VEIL}{''.join(letters)}"


@cache
def _listed() -> frozenset[str]:
    found: set[str] = set()
    for lexicon in map(load, languages()):
        found.update([entry[1] for entry in lexicon.entries.values()], lexicon.weak, lexicon.names)
        found.update(lexicon.antonyms, lexicon.classes.values(), lexicon.restrictions)
    return frozenset(found)


def _veiled(signature: Signature) -> Signature:
    return translated(
        signature, {word: veil(word) for word in signature.tokens + signature.numbers}
    )


def translated(signature: Signature, words: Mapping[str, str]) -> Signature:
    """Return *signature* with other *words* in the place of those that have one."""
    say = words.get
    tokens = [say(word, word) for word in signature.tokens]
    return Signature(
        tuple(tokens),
        frozenset(tokens),
        tuple(sorted([say(word, word) for word in signature.numbers])),
        frozenset([say(word, word) for word in signature.names]),
        frozenset([(role, say(word, word)) for role, word in signature.roles]),
        signature.asks,
        signature.negations,
        signature.rest,
        signature.code,
        signature.symbols,
        signature.language,
        signature.is_veiled,
    )


# -- what the words do not show

_CODE: Final = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_SYMBOLS_CHARS: Final = 64


def _symbols(text: str) -> str:
    """Return the signs of *text* beyond ASCII that stand for something and are no words."""
    found = {
        sign
        for sign in text[:_READ_CHARS]
        if sign > "\x7f" and unicodedata.category(sign) in _SYMBOL_CATEGORIES
    } - _READ_SYMBOLS
    symbols = "".join(sorted(found))
    return symbols if len(symbols) <= _SYMBOLS_CHARS else _digest(symbols).hex()


_SYMBOL_CATEGORIES: Final = frozenset(("So", "Sm"))


def _language(lower: Sequence[str], lexicon: Lexicon, *, is_ascii: bool) -> str:
    """Return the language that most of the telling words belong to; English where none tells."""
    if is_ascii and lexicon.foreign.keys().isdisjoint(lower):
        return LISTED_LANGUAGE
    counts: Counter[str] = Counter()
    words = [word for word in lower if word]
    for word in words:
        if word[0] > "\u024f":
            # One word of another script may be a name or a sign; a whole sentence may be one word.
            counts[_script(word[0])] += min(len(word), 2)
        else:
            counts.update(lexicon.foreign.get(word, ()))
    del counts[""]
    if not counts:
        return LISTED_LANGUAGE
    language, most = max(counts.items(), key=lambda item: (item[1], item[0]))
    listed = sum([lexicon.entry(word)[0] <= NEGATOR for word in words])
    return language if most > max(listed, 1) else LISTED_LANGUAGE


def _script(letter: str) -> str:
    """Return the script of *letter*; those that one language mixes count as one."""
    script = unicodedata.name(letter, "").partition(" ")[0].lower()
    if not letter.isalpha() or script in _READ_SCRIPTS:
        return ""
    return "cjk" if script in ("hiragana", "katakana", "hangul", "fullwidth") else script


# Single letters of these are signs of mathematics in an English prompt.
_READ_SCRIPTS: Final = frozenset(("latin", "mathematical", "micro", "ohm", ""))


# A longer "word" is a key, a URL or base64: its digest stands for it.
_WORD_CHARS: Final = 40

# All begin with something else than a space: seen at once, that need not be tried way by way.
_PATTERN: Final = r"""(?!\ )(?:
      {letter}{letter}+(?:'{letter}+|\.(?:js|net)(?!\w))*    # words, isn't, Node.js
    | [cCfF](?:\+\+|\#)                                      # C++, C#
    | (?:{letter}\.)+{letter}(?!\w)\.?                       # U.S., p.m.
    | {letter}(?:'{letter}+)*                                # a, I'm
    | \d+(?:[.,:]\d+)*                                      # 1,000.5  19:30  3.11.4
    | [.!?;:\n"“(]                                          # what follows may be capitalised
    | [$€£¥₹%&]
    | [+*^=<>×÷](?=\s?\d) | (?<!{letter})[-−/](?=\s?\d)    # operators
)"""
_TOKEN: Final = re.compile(_PATTERN.format(letter=r"[^\W\d_]"), re.VERBOSE)
# The same, at half the cost, for the many prompts that are ASCII.
_ASCII_TOKEN: Final = re.compile(_PATTERN.format(letter="[a-zA-Z]"), re.VERBOSE | re.ASCII)
_BREAKS: Final = frozenset('.!?;:\n"“(')
_OPERATORS: Final = {"×": "*", "÷": "/", "−": "-"} | {sign: sign for sign in "+-*/^=<>"}
# Read as operators, or no part of what is asked.
_READ_SYMBOLS: Final = frozenset("×÷−°©®™")
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
# Letters that mean a unit right behind a number only.
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
_HALVES_OF_A_DAY: Final = frozenset(("am", "pm", "a.m", "p.m", "a.m.", "p.m."))
_TENS: Final = frozenset(("20", "30", "40", "50", "60", "70", "80", "90"))
_DIGITS: Final = frozenset("123456789")
_ORDINAL_ENDINGS: Final = frozenset(("st", "nd", "rd", "th"))
# "1,000" groups digits, "1,5" is a decimal fraction.
_GROUPED: Final = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_YEAR: Final = re.compile(r"[12]\d{3}")
_YEAR_BOUNDS: Final = {"before": "<", "until": "<", "till": "<", "after": ">", "since": ">"}
# Months that are also everyday words count when they are written or placed like a month.
_AMBIGUOUS_MONTHS: Final = frozenset(("may", "march"))
_BEFORE_A_MONTH: Final = frozenset(("in", "of", "since", "until", "by", "last", "next", "on"))
_BEFORE_A_SECOND: Final = frozenset(("a", "per", "each", "every"))
_BEFORE_AN_INFINITIVE: Final = frozenset(
    ("how", "want", "need", "like", "able", "way", "going", "have", "used", "try", "best", "what")
)
_ELISIONS: Final = frozenset(("s", "m", "re", "ve", "d", "ll"))
# How many words may stand between a negator and what it negates.
_BETWEEN: Final = 4
_CONTRACTED: Final = dict.fromkeys(("can't", "cant", "cannot"), "can") | dict.fromkeys(
    ("won't", "wont"), "will"
)
# These negators do not belong to a verb.
_INDEPENDENT: Final = frozenset(("without", "except", "excluding", "unless", "none", "nothing"))
# What they stand for behind a function word; behind a noun "'s" means "of".
_ELIDED: Final = {"s": "IS", "m": "IS", "re": "IS", "ve": "HAVE", "ll": "WILL"}
# Capitals make names of these function words.
_CAPITAL_NAMES: Final = {"US": "usa", "IT": "it", "WHO": "who"}
# "Isn't it legal?" asks whether it is.
_RHETORICAL: Final = frozenset(
    ("isn't", "aren't", "wasn't", "weren't", "doesn't", "didn't", "hasn't", "haven't", "wouldn't")
)


def _tokens(text: str, most: int) -> tuple[list[str], bytes]:
    """The tokens to read, as they are written, and a digest of the text behind them."""
    read = text[:_READ_CHARS]
    pattern = _ASCII_TOKEN
    if not read.isascii():
        read, pattern = _composed(read), _TOKEN
    if read.isupper():
        read = read.lower()
    tokens: list[str] = pattern.findall(read)
    if len(text) <= _READ_CHARS and len(tokens) <= most:
        return tokens, b""
    unread = " ".join([*tokens[most:], *text[_READ_CHARS:].split()]).casefold()
    return tokens[:most], _digest(unread)


def _composed(text: str) -> str:
    """*text* with one code point for each letter and digit that can be written in several ways."""
    # By the piece, because sorting a long run of combining marks takes quadratic time.
    pieces = (text[at : at + 1024] for at in range(0, len(text), 1024))
    return "".join([unicodedata.normalize("NFKC", p) for p in pieces]).replace("’", "'")


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


class _Reader:
    """Walks over the tokens of one prompt and collects its signature."""

    __slots__ = (
        "_asks", "_at", "_capitalised", "_governing", "_initial", "_lexicon", "_names",
        "_negations", "_numbers", "_role", "_roles", "_title", "_tokens", "_written",
        "lower",
    )  # fmt: skip

    _lexicon: Lexicon

    def __init__(self, written: list[str]) -> None:
        # Padded, so that the neighbours of any word can be looked at; `_at` is the next to read.
        self._written = ["", *written, "", ""]
        self.lower = list(map(str.lower, self._written))
        self._at = 1
        self._tokens: list[str] = []
        self._numbers: list[str] = []
        self._names: list[str] = []
        self._capitalised: list[str] = []
        self._roles: list[tuple[str, str]] = []
        self._asks: list[str] = []
        self._negations = 0
        # Whether a capital may be due to the place of the word, or to the prompt being a title.
        self._initial = True
        self._title = False
        # The preposition that governs the next words, and whether they have begun.
        self._role = ""
        self._governing = False

    def read(self, lexicon: Lexicon) -> None:
        self._lexicon = lexicon
        entries = lexicon.entries
        lower, written = self.lower, self._written
        at, end = 1, len(lower) - 2
        while at < end:
            word = lower[at]
            entry = entries.get(word)
            at += 1
            self._at = at
            if entry is None:
                self._unlisted(word, written[at - 1])
                at = self._at
                continue
            kind, canonical, phrases = entry
            if lower[at] in phrases and self._phrase(phrases[lower[at]]):
                at = self._at
            elif kind >= WEAK:
                self._content(kind, canonical, word, written[at - 1])
            elif kind <= NEGATOR:
                self._function(kind, canonical, word, written[at - 1])
            elif kind == TIME:
                self._place(canonical)
            else:
                self._number()
                at = self._at
            self._initial = False

    def signature(self, unread: bytes, *, code: bytes, symbols: str, language: str) -> Signature:
        # Where even function words are capitalised, capitals name nothing.
        names = self._names if self._title else self._names + self._capitalised
        return Signature(
            tuple(self._tokens),
            frozenset(self._tokens),
            tuple(sorted(self._numbers)),
            frozenset(names),
            frozenset(self._roles),
            frozenset(self._asks),
            self._negations,
            unread,
            code,
            symbols,
            language,
        )

    def _phrase(self, ways: tuple[Phrase, ...]) -> bool:
        """Take in the first of *ways* to go on that the text takes, if any."""
        lower, at = self.lower, self._at
        for tail, instead in ways:
            if tuple(lower[at : at + len(tail)]) == tail:
                self._at += len(tail)
                for word in instead:
                    self._plain(word, word)
                return True
        return False

    def _plain(self, word: str, written: str) -> None:
        """Take in *word* without looking at what follows."""
        kind, canonical, _ = self._lexicon.entry(word)
        if kind >= WEAK:
            self._content(kind, canonical, word, written)
        elif kind <= NEGATOR:
            self._function(kind, canonical, word, written)
        else:
            self._place(canonical)
            if kind == NUMBER:
                self._numbers.append(self._lexicon.numbers[word])

    def _unlisted(self, word: str, written: str) -> None:
        first = word[0]
        if first in _BREAKS:
            self._initial = True
            self._role = ""
            return
        if first.isalpha():  # as most begin
            self._open(word, written)
        elif first.isdecimal():
            self._number()
        elif first in _OPERATORS:
            self._operator(_OPERATORS[first])
        elif first in _CURRENCIES:
            self._place(_CURRENCIES[first])
        elif first in _SIGNS:
            self._plain(_SIGNS[first], written)
        else:
            self._open(word, written)
        self._initial = False

    # function words

    def _function(self, kind: Kind, canonical: str, word: str, written: str) -> None:
        if self._governing:
            self._role = ""
            self._governing = False
        if written != word:
            if written in _CAPITAL_NAMES:
                self._content(NAME, _CAPITAL_NAMES[written], word, written)
                return
            if not self._initial and len(word) > 1:
                self._title = True
        if kind == GLUE:
            return
        if kind == NEGATOR:
            self._auxiliary(word)
            if self._negates_nothing(word):
                return
        self._tokens.append(canonical)
        if kind == FRAME:
            return
        if kind == PREPOSITION:
            infinitive = word == "to" and self.lower[self._at - 2] in _BEFORE_AN_INFINITIVE
            self._role = "" if infinitive else canonical
        elif kind == QUESTION:
            self._question(word)
        elif kind == NEGATOR:
            self._negations += 1

    def _auxiliary(self, word: str) -> None:
        """Take in the "do" of a "don't"."""
        base = _CONTRACTED.get(word) or word.removesuffix("n't").removesuffix("nt")
        kind, canonical, _ = self._lexicon.entry(base)
        if kind == FRAME and base != word:
            self._tokens.append(canonical)

    def _negates_nothing(self, word: str) -> bool:
        """Whether the negator just read is rhetorical, or makes another word of what it negates.

        In that case the other word stands in its place from here on.
        """
        if self._initial and word in _RHETORICAL:
            return True
        if word in _INDEPENDENT:
            return False
        lexicon, lower, at = self._lexicon, self.lower, self._at
        canonical = ""
        for _ in range(_BETWEEN):
            kind, canonical, _ = lexicon.entry(lower[at])
            if kind > FRAME and canonical != "TO":
                break
            at += 1
        following = lexicon.entry(lower[at + 1])
        if canonical in lexicon.unknowing:
            return following[0] == QUESTION or following[1] == "IF"
        other = lexicon.negated.get("through" if following[1] == "THROUGH" else canonical)
        if other is not None:
            lower[at] = self._written[at] = other
        return other is not None

    def _question(self, word: str) -> None:
        questions = self._lexicon.questions
        kind = questions.get((word, self.lower[self._at])) or questions.get((word, ""), "-")
        if kind != "-":
            self._asks.append(kind)

    # words with a meaning

    def _content(self, kind: Kind, canonical: str, word: str, written: str) -> None:
        self._tokens.append(canonical)
        if self._role:
            self._roles.append((self._role, canonical))
            self._governing = True
        if kind == NAME:
            self._names.append(canonical)
        elif written != word:
            if len(written) > 1 and not written[1:].islower():
                self._names.append(canonical)
            elif not self._initial:
                self._capitalised.append(canonical)

    def _place(self, canonical: str) -> None:
        self._tokens.append(canonical)
        if self._role:
            self._roles.append((self._role, canonical))
            self._governing = True

    def _open(self, word: str, written: str) -> None:
        """Take in a word that stands in no list: inflected, elided, a name, or unknown."""
        if "'" in word:
            self._elided(word, written)
        elif "." in word and not word.endswith((".js", ".net")):
            self._plain(word.replace(".", ""), written.replace(".", ""))
        elif word in _AMBIGUOUS_MONTHS:
            self._perhaps_month(word, written)
        elif len(word) > _WORD_CHARS:
            self._place(_digest(word).hex())
        else:
            kind, canonical, _ = self._lexicon.entry(word)
            self._content(kind, canonical, word, written)

    def _elided(self, word: str, written: str) -> None:
        if word.endswith("n't"):
            self._plain("not", "not")
            return
        base, _, suffix = word.rpartition("'")
        if suffix not in _ELISIONS:
            base, suffix = word, ""
        base = base.replace("'", "")
        self._plain(base, written[: len(base)])
        if self._tokens and not self._tokens[-1].isupper():
            if suffix == "s":
                self._roles.append(("OF", self._tokens[-1]))
        elif suffix in _ELIDED:
            self._tokens.append(_ELIDED[suffix])

    def _perhaps_month(self, word: str, written: str) -> None:
        before, after = self.lower[self._at - 2], self.lower[self._at]
        if (
            before in _BEFORE_A_MONTH
            or before in _ORDINAL_ENDINGS
            or before[:1].isdecimal()
            or after[:1].isdecimal()
            or (written != word and not self._initial)
        ):
            self._place(f"@{word}")
        elif word == "may":
            self._function(FRAME, "CAN", word, written)
        else:
            self._content(CONTENT, word, word, written)

    # numbers

    def _operator(self, sign: str) -> None:
        self._numbers.append(sign)
        self._tokens.append(sign)

    def _number(self) -> None:
        """Take in the number that ends or begins with the word just read."""
        at, lower = self._at - 1, self.lower
        before = lower[at - 1]
        if lower[at] == "second" and before in _BEFORE_A_SECOND:
            self._place("sec")
            return
        value, self._at = _number(lower, at, self._lexicon.numbers)
        bound = _YEAR_BOUNDS.get(before, "") if _YEAR.fullmatch(value) else ""
        self._numbers.append(bound + value)
        self._place("#" + value.removeprefix("~"))
        after = lower[self._at]
        if after in _SHORT_UNITS:
            self._place(self._lexicon.entry(_SHORT_UNITS[after])[1])
            self._at += 1
        elif after in _OPERATOR_WORDS and self._is_number(lower[self._at + 1]):
            self._operator(_OPERATOR_WORDS[after])
            self._at += 1

    def _is_number(self, word: str) -> bool:
        return word[:1].isdecimal() or word in self._lexicon.numbers or word == "by"


def _number(words: Sequence[str], at: int, named: Mapping[str, str]) -> tuple[str, int]:
    """The number that begins at *at*, in one spelling, and the place behind it."""
    value = named.get(words[at])
    if value is None:
        return _written_number(words, at)
    at += 1
    unit = named.get(words[at], "").lstrip("~")
    if value in _TENS and unit in _DIGITS:
        value = value[0] + unit
        at += 1
    while words[at] in _MULTIPLIERS and value.lstrip("~").isdecimal():
        value = _scaled(value.lstrip("~"), _MULTIPLIERS[words[at]])
        at += 1
    return value, at


def _written_number(words: Sequence[str], at: int) -> tuple[str, int]:
    digits, after = _plain_digits(words[at]), words[at + 1]
    if after in _HALVES_OF_A_DAY:
        return _clock(digits, after[0]), at + 2
    if after in _MULTIPLIERS:
        return _scaled(digits, _MULTIPLIERS[after]), at + 2
    if after in _MONEY_MULTIPLIERS and words[at - 1] in _CURRENCIES:
        return _scaled(digits, _MONEY_MULTIPLIERS[after]), at + 2
    if after in _ORDINAL_ENDINGS:
        return digits, at + 2
    if after == "s":
        # "1980s" and "80s"
        return f"{digits[-2:] if _YEAR.fullmatch(digits) else digits}s", at + 2
    return digits, at + 1


def _plain_digits(token: str) -> str:
    """*token* without what can be written in several ways: "1,000", "2.0", "07", "1,5"."""
    if not token.isascii():
        token = "".join([str(unicodedata.decimal(sign, sign)) for sign in token])
    if len(token) > _WORD_CHARS:
        return _digest(token).hex()
    if ":" in token:
        return f"t{token.removeprefix('0')}"
    token = token.replace(",", "") if _GROUPED.fullmatch(token) else token.replace(",", ".")
    whole, _, fraction = token.partition(".")
    if not fraction.strip("0"):
        token = whole
    return token[1:] if len(token) == 2 and token[0] == "0" else token


def _clock(digits: str, half: str) -> str:
    hour, _, minute = digits.removeprefix("t").partition(":")
    if not hour.isdecimal():
        return digits + half
    return f"t{int(hour) % 12 + (12 if half == 'p' else 0)}:{minute or '00'}"


def _scaled(digits: str, zeros: int) -> str:
    """*digits* times ten to the *zeros* in plain digits: "1.5" and 6 make "1500000"."""
    whole, _, fraction = digits.partition(".")
    if not whole.isdecimal() or "." in fraction:
        return f"{digits}e{zeros}"
    scaled = whole + fraction[:zeros].ljust(zeros, "0")
    left = fraction[zeros:].rstrip("0")
    return (scaled.lstrip("0") or "0") + (f".{left}" if left else "")
