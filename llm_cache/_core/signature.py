"""What the guards look at in a prompt: its words, numbers, names and who does what to whom."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from llm_cache._core.lexicon import Kind, Lexicon, Phrase, load


@dataclass(frozen=True, slots=True)
class Signature:
    """What the guards need to know of a prompt, in place of its text.

    Bounded whatever the length of the prompt: of what stands behind the first words there is only a
    digest. Every field but `rest` could be kept as hashes of its words.
    """

    tokens: tuple[str, ...]
    """All words in order, canonical: function words in capitals, `#` before numbers, `@` and `~`
    before times."""
    words: tuple[str, ...]
    """Those of `tokens` that are no function words."""
    initials: str
    """First letter of each of `words` as it was written."""
    numbers: tuple[str, ...]
    """Sorted, with the operators between them; `~` marks number words that may be mere grammar."""
    names: frozenset[str]
    """Those of `words` that name something."""
    roles: frozenset[tuple[str, str]]
    """Prepositions with the words they govern."""
    linked: frozenset[str]
    """Words beside an "and", "or" or "versus"."""
    asks: frozenset[str]
    """Kinds of question: person, place, time, …"""
    negations: int
    rest: bytes
    """Digest of what was not read; empty when everything was."""


def analyse(text: str) -> Signature:
    """Reduce *text* to what the guards compare.

    Takes time linear in its length (about 20 µs for a one-line question) and never raises.
    """
    written, unread = _tokens(text)
    reader = _Reader(written, load())
    reader.read()
    return reader.signature(unread)


# No embedder compares longer prompts as a whole; what is behind must be equal to the letter.
_READ_CHARS: Final = 16_384
_READ_TOKENS: Final = 512
# A longer "word" is a key, a URL or base64: its digest stands for it.
_WORD_CHARS: Final = 40

_TOKEN: Final = re.compile(
    r"""
      (?<![^\W_])[cCfF](?:\+\+|\#)                          # C++, C#
    | (?<!\w)(?:[^\W\d_]\.)+[^\W\d_](?!\w)\.?               # U.S., p.m.
    | [^\W\d_]+(?:'[^\W\d_]+|\.(?:js|net)(?!\w))*           # words, isn't, Node.js
    | \d+(?:[.,:]\d+)*                                      # 1,000.5  19:30  3.11.4
    | [.!?;:\n"“(]                                          # what follows may be capitalised
    | [$€£¥₹%&]
    | [+*^=<>×÷](?=\s?\d) | (?<![^\W\d_])[-−/](?=\s?\d)     # operators
    """,
    re.VERBOSE,
)
_BREAKS: Final = frozenset('.!?;:\n"“(')
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
# Capitals make names of these function words.
_CAPITAL_NAMES: Final = {"US": "usa", "IT": "it", "WHO": "who"}
# "Isn't it legal?" asks whether it is.
_RHETORICAL: Final = frozenset(
    ("isn't", "aren't", "wasn't", "weren't", "doesn't", "didn't", "hasn't", "haven't", "wouldn't")
)


def _tokens(text: str) -> tuple[list[str], bytes]:
    """The tokens to read, as they are written, and a digest of the text behind them."""
    read = text[:_READ_CHARS]
    if not read.isascii():
        read = _composed(read)
    if read.isupper():
        read = read.lower()
    tokens: list[str] = _TOKEN.findall(read)
    if len(text) <= _READ_CHARS and len(tokens) <= _READ_TOKENS:
        return tokens, b""
    unread = " ".join([*tokens[_READ_TOKENS:], *text[_READ_CHARS:].split()]).casefold()
    return tokens[:_READ_TOKENS], _digest(unread)


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
        "_asks", "_at", "_capitalised", "_initial", "_initials", "_lexicon", "_link", "_linked",
        "_names", "_negations", "_numbers", "_phrase_open", "_raw", "_role", "_roles", "_title",
        "_tokens", "_words", "_written",
    )  # fmt: skip

    def __init__(self, written: list[str], lexicon: Lexicon) -> None:
        self._lexicon = lexicon
        # Padding, so that the words around any word can be looked at.
        self._written = ("", *written, "", "")
        self._raw = tuple([token.lower() for token in self._written])
        self._at = 1
        self._tokens: list[str] = []
        self._words: list[str] = []
        self._initials: list[str] = []
        self._numbers: list[str] = []
        self._names: set[str] = set()
        self._capitalised: set[str] = set()
        self._roles: set[tuple[str, str]] = set()
        self._linked: set[str] = set()
        self._asks: set[str] = set()
        self._negations = 0
        # Whether a capital is due to the place of the word, and whether the prompt is a title.
        self._initial = True
        self._title = False
        # The preposition that governs what comes, and whether it has begun to come.
        self._role = ""
        self._phrase_open = False
        self._link = False
