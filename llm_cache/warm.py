"""Filling a cache from a file of prompts, before anybody asks.

    calls = read_prompts(Path("prompts.csv"))
    report = await warm(cache, calls, checkpoint=Path("prompts.csv.warm"))

One prompt is one line of a `.txt`, one row of a `.csv`, or one object of a `.jsonl` file. Columns
and members are `prompt` (in JSON lines also `messages`), `model`, `system`, `tenant`, `tags`,
`ttl_s` and `params`, an object of what else the model is sent. An empty cell is not given.
"""

# ruff: noqa: SLF001 - plans calls as the cache itself does, without making them

from __future__ import annotations

import asyncio
import csv
import json
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

from llm_cache._call import Call, RequestOf
from llm_cache._core.normalize import Prompt
from llm_cache._core.policy import Refusal
from llm_cache._core.types import ChatRequest
from llm_cache._storing import LATE
from llm_cache.cache import LLMCache
from llm_cache.errors import (
    CorruptEntry,
    FileUnwritable,
    InvalidFile,
    InvalidRequest,
    LLMCacheError,
)
from llm_cache.reply import ChatReply
from llm_cache.tokens import estimate_tokens

CountTokens = Callable[[str, str], int]
"""Counts the tokens of a text, as the named model does."""

_MEMBERS = frozenset(
    {"prompt", "messages", "model", "system", "tenant", "tags", "ttl_s", "params"}
)
_COLUMNS = _MEMBERS - {"messages"}
_TAG_SEPARATOR = "|"
_FORMAT = "llm-cache warm 1"
_NEVER = "never"
_MENDED = frozenset({"corrupt", LATE})
_OF_THE_ANSWER = frozenset(Refusal) - {Refusal.SHED, Refusal.BREAKER}
_MODE = 0o600
_MOST_FAILURES_TOLD = 1_000
_LOOKUPS_TOGETHER = 64
_ASSUMED_ANSWER_TOKENS = 300
_TOKENS_PER_MESSAGE = 4


@dataclass(frozen=True, slots=True)
class WarmCall:
    """A call to be made, and where it stands."""

    line: int
    prompt: Prompt = field(repr=False)
    options: Mapping[str, Any] = field(repr=False)
    """The other arguments of `LLMCache.chat`."""


class WarmStatus(StrEnum):
    """What became of a line."""

    ASKED = "asked"
    """The model was asked, and its answer stored."""
    THERE = "there"
    """An answer was there already."""
    NOT_STORED = "not_stored"
    """The model was asked, and its answer must not be stored: it is cut, say."""
    FAILED = "failed"
    """To be tried again with the next run."""
    SKIPPED = "skipped"
    """An earlier run has seen to it."""


@dataclass(frozen=True, slots=True)
class WarmFailure:
    """A line that failed, or whose answer is not stored."""

    line: int
    reason: str


@dataclass(slots=True)
class WarmReport:
    """What became of the lines of a file."""

    asked: int = 0
    there: int = 0
    not_stored: int = 0
    failed: int = 0
    skipped: int = 0
    prompt_tokens: int = 0
    """Of the calls that were made, as the model reported them."""
    completion_tokens: int = 0
    failures: list[WarmFailure] = field(default_factory=list)
    """The first 1,000 lines that failed or whose answers are not stored."""
    stopped: str | None = None
    """Why it ended before the last line; `None` where it did not."""

    @property
    def done(self) -> int:
        """How many lines were dealt with."""
        return self.asked + self.there + self.not_stored + self.failed + self.skipped


@dataclass(slots=True)
class WarmEstimate:
    """What warming up would take. Tokens are estimates, the embeddings' are not in it."""

    lines: int = 0
    there: int = 0
    """Lines with a stored answer to the very request."""
    repeated: int = 0
    """Lines with the same request as one before."""
    invalid: list[WarmFailure] = field(default_factory=list)
    by_model: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Calls, tokens of prompts and tokens of answers, by the name of the model."""


# ------------------------------------------------------------------ files of prompts


def read_prompts(path: Path | str) -> Iterator[WarmCall]:
    """Yield the calls in the file at *path*, by its suffix: `.jsonl`, `.csv`, else plain lines.

    Raises:
        InvalidFile: a line cannot be read; the message names it.
    """
    path = Path(path)
    readers = {".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _rows}
    try:
        # `newline=""` is how the csv module wants it, and does no harm to the others.
        with path.open(encoding="utf-8-sig", newline="") as source:
            for line, values in readers.get(path.suffix.lower(), _plain)(source, str(path)):
                yield _call(line, values, f"{path}, line {line}")
    except UnicodeDecodeError as error:
        raise InvalidFile(f"{path}: not UTF-8: {error}") from error
    except OSError as error:
        raise InvalidFile(f"{path}: {error.strerror or error}") from error


def _plain(source: TextIO, _name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(source, start=1):
        if line.strip():
            yield number, {"prompt": line.strip()}


def _json_lines(source: TextIO, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(source, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            raise InvalidFile(f"{name}, line {number}: not JSON") from None
        if not isinstance(values, dict):
            raise InvalidFile(f'{name}, line {number}: not an object, as {{"prompt": "…"}}')
        _refuse_unknown(values, _MEMBERS, f"{name}, line {number}")
        yield number, {key: value for key, value in values.items() if value is not None}


def _rows(source: TextIO, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    rows = csv.DictReader(source, strict=True)
    try:
        _refuse_unknown(rows.fieldnames or (), _COLUMNS, f"{name}, line 1")
        if "prompt" not in (rows.fieldnames or ()):
            raise InvalidFile(
                f"{name}, line 1: the first row names the columns, one of them prompt"
            )
        for row in rows:
            number = rows.line_num
            if None in row or None in row.values():
                raise InvalidFile(f"{name}, line {number}: not as many cells as columns")
            yield number, _cells(row, f"{name}, line {number}")
    except csv.Error as error:
        raise InvalidFile(f"{name}, line {rows.line_num}: {error}") from error


def _cells(row: Mapping[str, str], where: str) -> dict[str, Any]:
    values: dict[str, Any] = {name: cell for name, cell in row.items() if cell}
    if "tags" in values:
        values["tags"] = values["tags"].split(_TAG_SEPARATOR)
    for name in values.keys() & {"ttl_s", "params"}:
        try:
            values[name] = json.loads(values[name])
        except ValueError:
            raise InvalidFile(f"{where}: {name} is not JSON") from None
    return values


def _refuse_unknown(names: Iterable[str], known: Iterable[str], where: str) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InvalidFile(
            f"{where}: unknown {', '.join(map(repr, unknown))}; known are"
            f" {', '.join(sorted(known))}. What else the model is sent stands in params"
        )


def _call(line: int, values: Mapping[str, Any], where: str) -> WarmCall:
    options = dict(values)
    if ("prompt" in options) == ("messages" in options):
        raise InvalidFile(f"{where}: one of prompt and messages must be given")
    prompt = options.pop("prompt", None) or options.pop("messages", None)
    params = options.pop("params", {})
    if not isinstance(params, dict):
        raise InvalidFile(f"{where}: params is not an object")
    if "stream" in params or params.keys() & (_MEMBERS | {"cache_control", "semantic"}):
        raise InvalidFile(f"{where}: params holds what is not the model's")
    return WarmCall(line, prompt, {**params, **options})


# ------------------------------------------------------------------ what it would take


async def estimate(
    cache: LLMCache,
    calls: Iterable[WarmCall],
    *,
    defaults: Mapping[str, Any] | None = None,
    answer_tokens: int = _ASSUMED_ANSWER_TOKENS,
    count_tokens: CountTokens | None = None,
) -> WarmEstimate:
    """Return what warming up with *calls* would take. Asks no model and stores nothing.

    A look-up for every line, many in a round trip. What a semantic hit would save is not in it.

    Args:
        cache: What would be filled; it is opened.
        calls: What would be asked.
        defaults: Arguments of every call, where it does not say otherwise.
        answer_tokens: How long an answer is taken to be; `max_tokens` of a call goes before it.
        count_tokens: Counts the tokens of prompts; default is a quarter of their characters.

    Raises:
        StoreError: Redis failed.
    """
    await cache.open()
    found, seen = WarmEstimate(), set[str]()
    count = _count_roughly if count_tokens is None else count_tokens
    for portion in _portions(calls, _LOOKUPS_TOGETHER):
        fresh = []
        for call in portion:
            found.lines += 1
            try:
                plan, request_of = _planned(cache, call, defaults)
            except (LLMCacheError, TypeError) as error:
                found.invalid.append(WarmFailure(call.line, str(error)))
                continue
            if plan.digest in seen:
                found.repeated += 1
                continue
            seen.add(plan.digest)
            fresh.append((call, request_of()))
        stored = await asyncio.gather(*(_is_stored(cache, call, defaults) for call, _ in fresh))
        for (_, request), is_stored in zip(fresh, stored, strict=True):
            if is_stored:
                found.there += 1
                continue
            asked, prompt, answer = found.by_model.get(request.model, (0, 0, 0))
            limit = request.params.get("max_completion_tokens", request.params.get("max_tokens"))
            found.by_model[request.model] = (
                asked + 1,
                prompt + _prompt_tokens(request, count),
                answer + min(answer_tokens, limit if isinstance(limit, int) else answer_tokens),
            )
    return found


async def _is_stored(cache: LLMCache, call: WarmCall, defaults: Mapping[str, Any] | None) -> bool:
    try:
        return await cache.lookup_exact(call.prompt, **_options(call, defaults)) is not None
    except CorruptEntry:
        return False


def _prompt_tokens(request: ChatRequest, count: CountTokens) -> int:
    contents = [message.get("content") for message in request.messages]
    texts = [
        content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        for content in contents
        if content
    ]
    return sum(count(text, request.model) + _TOKENS_PER_MESSAGE for text in texts)


def _count_roughly(text: str, _model: str) -> int:
    return estimate_tokens(text)


def _portions(calls: Iterable[WarmCall], size: int) -> Iterator[list[WarmCall]]:
    portion: list[WarmCall] = []
    for call in calls:
        portion.append(call)
        if len(portion) == size:
            yield portion
            portion = []
    if portion:
        yield portion


# ------------------------------------------------------------------ warming up


async def warm(
    cache: LLMCache,
    calls: Iterable[WarmCall],
    *,
    defaults: Mapping[str, Any] | None = None,
    concurrency: int = 8,
    checkpoint: Path | str | None = None,
    most_failures_in_a_row: int = 20,
    on_done: Callable[[WarmStatus], None] = lambda _: None,
) -> WarmReport:
    """Make every one of *calls* through the cache, so that its answer is stored.

    Can be stopped at any moment, and called again: what is stored is found, and the *checkpoint*
    spares even looking for it. What was under way at a `SIGKILL`, at most *concurrency* calls, may
    be asked again. A line that failed is tried again with the next run; an answer that must not be
    stored (cut, filtered) is not paid for again as long as there is the checkpoint.

    It stops by itself when calls fail in a row, and at the first answer that could not be stored
    because Redis or the embedder failed.

    Args:
        cache: What to fill; it is opened.
        calls: What to ask.
        defaults: Arguments of every call, where it does not say otherwise.
        concurrency: Calls at a time.
        checkpoint: File of what is done; removed when every line has its answer. It holds
            digests, no texts.
        most_failures_in_a_row: So many end it.
        on_done: Told of every line.

    Raises:
        InvalidRequest: *concurrency* is below 1.
        InvalidFile: the checkpoint is none of ours.
        FileUnwritable: it cannot be written.
        StoreError: Redis failed at the beginning.
    """
    if concurrency < 1:
        raise InvalidRequest(f"concurrency must be 1 or more; got {concurrency!r}")
    await cache.open()
    epoch = (await cache._epochs.current(None)).epoch
    async with _checkpointed(checkpoint, epoch, cache._clock) as notes:
        run = _Run(cache, defaults, notes, most_failures_in_a_row, on_done)
        # One iterator for all: each takes the next line when it has done its last.
        waiting = iter(calls)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(run.work(waiting))
        except BaseExceptionGroup as failed:
            # The others were cancelled for it.
            raise failed.exceptions[0] from None
        if run.report.stopped is None and not run.report.failures:
            notes.end()
    run.report.failures.sort(key=lambda failure: failure.line)
    return run.report


class _Run:
    """One run over the lines."""

    def __init__(
        self,
        cache: LLMCache,
        defaults: Mapping[str, Any] | None,
        notes: _Checkpoint,
        most_failures_in_a_row: int,
        on_done: Callable[[WarmStatus], None],
    ) -> None:
        self._cache = cache
        self._defaults = defaults
        self._notes = notes
        self._most_failures = most_failures_in_a_row
        self._on_done = on_done
        self._failures_in_a_row = 0
        self.report = WarmReport()

    async def work(self, waiting: Iterator[WarmCall]) -> None:
        for call in waiting:
            status = await self._do(call)
            setattr(self.report, status, getattr(self.report, status) + 1)
            self._on_done(status)
            if self.report.stopped is not None:
                return

    async def _do(self, call: WarmCall) -> WarmStatus:
        try:
            plan, _ = _planned(self._cache, call, self._defaults)
            if plan.terms.bypass is not None:
                # The answer would be paid for and thrown away.
                return self._failed(call, f"the cache takes no part: {plan.terms.bypass}")
            if self._notes.has(plan.digest):
                return WarmStatus.SKIPPED
            reply = await self._cache.chat(call.prompt, **_options(call, self._defaults))
            is_stored = await self._is_stored(call, plan, reply)
        except Exception as error:  # noqa: BLE001 - one line's trouble, whatever it is, is told
            return self._failed(call, f"{type(error).__name__}: {error}")
        return self._judge(call, plan, reply, is_stored=is_stored)

    async def _is_stored(self, call: WarmCall, plan: Call, reply: ChatReply) -> bool:
        if reply.reason != LATE and not self._cache.config.store_in_background:
            return reply.key is not None
        # Nobody but this function has waited for it.
        await self._cache._engine.settle(plan.digest)
        return await _is_stored(self._cache, call, self._defaults)

    def _judge(
        self, call: WarmCall, plan: Call, reply: ChatReply, *, is_stored: bool
    ) -> WarmStatus:
        was_asked = reply.status in {"miss", "bypass"}
        if was_asked and not reply.shared:
            usage = reply.usage or {}
            self.report.prompt_tokens += usage.get("prompt_tokens") or 0
            self.report.completion_tokens += usage.get("completion_tokens") or 0
        # Where there were no readable bytes, there are now; where it took long, it has ended.
        reason = None if reply.reason in _MENDED and is_stored else reply.reason
        if reason is not None and reason not in _OF_THE_ANSWER:
            self.report.stopped = f"{reason} failed"
            return self._failed(call, f"answered, but not stored as it should be: {reason}")
        self._failures_in_a_row = 0
        if reason is not None:
            self._notes.add_unstorable(plan.digest)
            self._tell(call, f"answered, but not stored: {reason}")
            return WarmStatus.NOT_STORED
        until_s = self._cache._clock() + plan.terms.ttl_s - reply.age_s
        self._notes.add(plan.digest, until_s=until_s)
        return WarmStatus.ASKED if was_asked and not reply.shared else WarmStatus.THERE

    def _failed(self, call: WarmCall, reason: str) -> WarmStatus:
        self._tell(call, reason)
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self._most_failures and self.report.stopped is None:
            self.report.stopped = f"{self._failures_in_a_row} lines in a row have failed"
        return WarmStatus.FAILED

    def _tell(self, call: WarmCall, reason: str) -> None:
        if len(self.report.failures) < _MOST_FAILURES_TOLD:
            self.report.failures.append(WarmFailure(call.line, reason))


def _planned(
    cache: LLMCache, call: WarmCall, defaults: Mapping[str, Any] | None
) -> tuple[Call, RequestOf]:
    return cache._plan_given(call.prompt, _options(call, defaults))


def _options(call: WarmCall, defaults: Mapping[str, Any] | None) -> dict[str, Any]:
    options = {**(defaults or {}), **call.options}
    if not isinstance(call.prompt, str) and "system" not in call.options:
        # A list of messages brings its own.
        options.pop("system", None)
    return options


# ------------------------------------------------------------------ the checkpoint


class _Checkpoint:
    """A file of digests: those of lines that are done, one a line, written as they are done.

    A stored answer counts until it expires or anything is invalidated; then it is looked up again.
    One that must not be stored counts for as long as the file is there.
    """

    def __init__(self, path: Path | None, epoch: str, clock: Callable[[], float]) -> None:
        self._path = path
        self._epoch = epoch
        self._clock = clock
        self._done: set[str] = set()
        self._unstorable: set[str] = set()
        self._output: TextIO | None = None

    def open(self) -> None:
        if self._path is None:
            return
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, _MODE)
            self._output = os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace")
            self._load(self._output)
        except OSError as error:
            raise FileUnwritable(
                f"cannot write the checkpoint {self._path}: {error.strerror or error}"
            ) from error

    def _load(self, output: TextIO) -> None:
        first = output.readline()
        if not first:
            self._write(_FORMAT)
            return
        if first.strip() != _FORMAT:
            raise InvalidFile(
                f"{self._path} is there and no checkpoint: name another with checkpoint="
                " (--checkpoint)"
            )
        now_s, line = self._clock(), first
        for line in output:
            # Half a line is what a `SIGKILL` may leave.
            with suppress(ValueError):
                digest, until, epoch = line.removesuffix("\n").split(" ")
                if until == _NEVER:
                    self._unstorable.add(digest)
                elif line.endswith("\n") and epoch == self._epoch and float(until) > now_s:
                    self._done.add(digest)
        if not line.endswith("\n"):
            self._write("")

    def has(self, digest: str) -> bool:
        return digest in self._done or digest in self._unstorable

    def add(self, digest: str, *, until_s: float) -> None:
        self._done.add(digest)
        self._write(f"{digest} {until_s:.3f} {self._epoch}")

    def add_unstorable(self, digest: str) -> None:
        self._unstorable.add(digest)
        self._write(f"{digest} {_NEVER} {self._epoch}")

    def end(self) -> None:
        """Remove the file, unless it keeps somebody from paying for what cannot be stored."""
        if self._path is not None and not self._unstorable:
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._output is not None:
            self._output.close()

    def _write(self, line: str) -> None:
        if self._output is None:
            return
        try:
            self._output.write(f"{line}\n")
            # Out of this process, which may be killed, and into the system's hands.
            self._output.flush()
        except OSError as error:
            raise FileUnwritable(
                f"cannot write the checkpoint {self._path}: {error.strerror or error}"
            ) from error


@asynccontextmanager
async def _checkpointed(
    path: Path | str | None, epoch: str, clock: Callable[[], float]
) -> AsyncIterator[_Checkpoint]:
    notes = _Checkpoint(None if path is None else Path(path), epoch, clock)
    try:
        await asyncio.to_thread(notes.open)
        yield notes
    finally:
        notes.close()
