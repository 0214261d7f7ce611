"""A user's own log, JSONL or CSV, read line by line whatever its size and its state.

Columns: `prompt`, and optionally `answer_id`, `timestamp`, `tenant`, `prompt_tokens`,
`completion_tokens`. Lines that cannot be used are counted with their reasons and skipped; nothing
of their content is ever shown.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from benchmarks.errors import BadInput
from benchmarks.workloads import Ask, Workload
from llm_cache._core.canonical import is_unicode

COLUMNS = ("prompt", "answer_id", "timestamp", "tenant", "prompt_tokens", "completion_tokens")
_SHOWN = 5
_MAX_CHARS = 1_000_000
_MILLISECONDS_FROM = 1e11
"""A Unix time above this is in milliseconds: in seconds it would be in the year 5138."""


@dataclass(slots=True)
class Reading:
    """What was met in the file when it was last read."""

    rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Lines by the reason for which they were left out."""
    first_lines: dict[str, list[int]] = field(default_factory=dict)
    """The first lines of each reason."""
    not_utf8: int = 0
    """Lines that were read as Windows-1252 because they are not UTF-8."""
    bad_times: int = 0
    unknown: set[str] = field(default_factory=set)
    """Columns that mean nothing here."""
    columns: set[str] = field(default_factory=set)

    def skip(self, line: int, reason: str) -> None:
        """Count a line that cannot be used."""
        self.skipped[reason] += 1
        lines = self.first_lines.setdefault(reason, [])
        if len(lines) < _SHOWN:
            lines.append(line)

    def notes(self) -> list[str]:
        """Return what the reader of the figures has to know, a line each."""
        told = []
        for reason, count in self.skipped.most_common():
            lines = ", ".join(map(str, self.first_lines[reason]))
            more = ", …" if count > _SHOWN else ""
            told.append(f"{count:,} lines skipped: {reason} (line {lines}{more})")
        if self.not_utf8:
            told.append(f"{self.not_utf8:,} lines are not UTF-8 and were read as Windows-1252")
        if self.bad_times:
            told.append(f"{self.bad_times:,} timestamps could not be read")
        if self.unknown:
            told.append(f"columns not used: {', '.join(sorted(self.unknown))}")
        return told


def load(
    path: Path, *, prompt_column: str = "prompt", on_read: Callable[[Reading], None] | None = None
) -> Workload:
    """Return the workload of the log at *path*.

    Its beginning is read now, so that a file that cannot be used is refused at once.

    Args:
        path: `.jsonl`, `.ndjson`, `.csv` or `.tsv`, or one of them with `.gz`.
        prompt_column: What the prompt is called.
        on_read: Called with what was met, at the end of each reading.

    Raises:
        BadInput: there is no such file, or no line of it can be used.
    """
    if not path.is_file():
        raise BadInput(f"--log: there is no file {path}")
    _refuse_utf16(path)
    rows = _csv_rows if _is_csv(path) else _json_rows

    def asks() -> Iterator[Ask]:
        reading = Reading()
        try:
            yield from _asks(path, rows, prompt_column, reading)
        finally:
            if on_read is not None:
                on_read(reading)

    reading = Reading()
    if next(_asks(path, rows, prompt_column, reading), None) is None:
        raise BadInput(_nothing_usable(path, prompt_column, reading))
    return Workload(name=path.name, asks=asks, source=f"the log {path.name}")


def _nothing_usable(path: Path, prompt_column: str, reading: Reading) -> str:
    if reading.columns and prompt_column not in reading.columns:
        return (
            f"--log: {path} has no column {prompt_column!r} but {sorted(reading.columns)}:"
            " rename it, or name yours with --prompt-column"
        )
    why = "; ".join(reading.notes()) or "it is empty"
    return f"--log: no line of {path} can be used: {why}"


def _asks(
    path: Path,
    rows: Callable[[IO[bytes], Reading], Iterator[tuple[int, Mapping[str, Any]]]],
    prompt_column: str,
    reading: Reading,
) -> Iterator[Ask]:
    try:
        with _open(path) as file:
            for line, row in rows(file, reading):
                ask = _ask(row, prompt_column, line, reading)
                if ask is not None:
                    reading.rows += 1
                    yield ask
    except (OSError, EOFError) as error:
        # A file cut off in transfer: what came before is as good as it was.
        reading.skip(0, f"the file ends or breaks early ({type(error).__name__})")


def _ask(row: Mapping[str, Any], prompt_column: str, line: int, reading: Reading) -> Ask | None:
    names = {str(name) for name in row}
    if not names <= reading.columns:
        reading.columns |= names
        reading.unknown |= names - {*COLUMNS, prompt_column}
    prompt = row.get(prompt_column)
    if not isinstance(prompt, str) or not prompt.strip():
        reading.skip(line, f"no text in {prompt_column!r}")
        return None
    if len(prompt) > _MAX_CHARS:
        reading.skip(line, f"a prompt of more than {_MAX_CHARS:,} characters")
        return None
    if not is_unicode(prompt):
        reading.skip(line, "a prompt that is not valid Unicode")
        return None
    at_s = _time_s(row.get("timestamp"))
    if at_s is None and row.get("timestamp") not in (None, ""):
        reading.bad_times += 1
    return Ask(
        prompt,
        answer_id=_name(row.get("answer_id")),
        at_s=at_s,
        tenant=_name(row.get("tenant")),
        prompt_tokens=_count(row.get("prompt_tokens")),
        completion_tokens=_count(row.get("completion_tokens")),
    )


# --- lines of a file --------------------------------------------------------------------------


def _open(path: Path) -> IO[bytes]:
    how: Any = gzip.open if path.suffix == ".gz" else open
    stream: IO[bytes] = how(path, "rb")
    return stream


def _is_csv(path: Path) -> bool:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if {".csv", ".tsv"} & set(suffixes):
        return True
    if {".jsonl", ".ndjson", ".json"} & set(suffixes):
        return False
    with _open(path) as file:
        return not file.readline().lstrip().startswith(b"{")


def _refuse_utf16(path: Path) -> None:
    try:
        with _open(path) as file:
            start = file.read(4)
    except (OSError, EOFError) as error:
        raise BadInput(f"--log: {path} cannot be read ({type(error).__name__})") from error
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BadInput(f"--log: {path} is UTF-16: iconv -f UTF-16 -t UTF-8 {path} > utf8.log")


def _lines(file: IO[bytes], reading: Reading) -> Iterator[str]:
    for number, raw in enumerate(file):
        line = raw.removeprefix(b"\xef\xbb\xbf") if number == 0 else raw
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError:
            reading.not_utf8 += 1
            yield line.decode("cp1252", errors="replace")


def _json_rows(file: IO[bytes], reading: Reading) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(_lines(file, reading), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            reading.skip(number, "no JSON")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            reading.skip(number, "no JSON object")


def _csv_rows(file: IO[bytes], reading: Reading) -> Iterator[tuple[int, Mapping[str, Any]]]:
    lines = _lines(file, reading)
    header_line = next(lines, "")
    delimiter = max(",;\t", key=header_line.count)
    header = [name.strip() for name in next(csv.reader([header_line], delimiter=delimiter), [])]
    reading.columns |= set(header)
    previous_limit = csv.field_size_limit(_MAX_CHARS + 1)
    try:
        parsed = csv.reader(lines, delimiter=delimiter)
        while True:
            try:
                values = next(parsed)
            except StopIteration:
                return
            except csv.Error:
                reading.skip(parsed.line_num + 1, "no CSV, or a quotation mark too many")
                continue
            if not values:
                continue
            if len(values) == len(header):
                yield parsed.line_num + 1, dict(zip(header, values, strict=True))
            else:
                reading.skip(parsed.line_num + 1, "not as many columns as the header has")
    finally:
        csv.field_size_limit(previous_limit)


# --- values -----------------------------------------------------------------------------------


def _name(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _count(value: Any) -> int | None:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number >= 0 else None


def _time_s(value: Any) -> float | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return _iso_time_s(value)
    if not abs(number) < 1e18:  # neither NaN nor infinite
        return None
    return number / 1000 if abs(number) > _MILLISECONDS_FROM else number


def _iso_time_s(value: Any) -> float | None:
    try:
        when = datetime.fromisoformat(str(value).strip())
    except ValueError:
        return None
    return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()
