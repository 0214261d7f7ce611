"""The file that an export writes: JSON lines, each with a checksum that goes on from the last.

    {"kind": "header", "format": "llm-cache export", "version": 1, …, "check": "…"}
    {"kind": "answer", "digest": "…", "expires_ms": …, "entry": {…}, "semantic": […], "check": "…"}
    {"kind": "mark", "cursor": …, "check": "…"}                  how far the walk had come by then
    {"kind": "end", "answers": …, "aliases": …, "semantic": …, "check": "…"}

`check` is the last member of every line: the first 16 hexadecimal digits of the SHA-256 of the
`check` of the line before and of the line itself up to there. So a line that is changed, missing,
doubled or out of place is found, and named by its number; a file without its last line was cut
off.

A file that is still being written has the name of the finished one with `.part` behind it, plain
whatever the suffix. It ends at a mark, from which the walk can go on.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from tempfile import mkstemp
from typing import IO, Any, BinaryIO, cast

from llm_cache._core.codec import decode_entry, encode_entry
from llm_cache._core.kept import read_kept
from llm_cache._core.keys import SCHEMA
from llm_cache._core.types import Entry, Json
from llm_cache.errors import CorruptEntry, FileUnwritable, InvalidFile, InvalidRequest

FORMAT = "llm-cache export"
VERSION = 1
PART = ".part"
_MODE = 0o600
_MOST_LINE_BYTES = 256 * 1024 * 1024
_CHECK = ',"check":"'
_CHECK_DIGITS = 16
_DIGEST_SIGNS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_LONGEST_TTL_MS = 10 * 366 * 86_400_000
_DIGEST_CHARS = range(16, 129)
_FIELDS = {field.name: field for field in fields(Entry)}
_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class SemanticEntry:
    """A semantic entry as it is in Redis, whatever its fields."""

    space: str
    """Fingerprint of the embedder. It says what a vector is: model, dimensions, stored type."""
    fields: Mapping[str, bytes] = field(repr=False)

    @property
    def prompt(self) -> str:
        """The prompt, empty where it is not kept."""
        kept = read_kept(self.fields.get("prompt", b""), None)
        return "" if kept is None else kept.prompt

    @property
    def scope(self) -> str:
        """The scope within which it is found."""
        return self.fields.get("scope", b"").decode("utf-8", "replace")

    @property
    def vector(self) -> bytes | None:
        """The vector, turned by the signs of the scope; `None` where the file has none."""
        return self.fields.get("vector")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, or an alias of one, on its way from one Redis to another."""

    digest: str
    entry: Entry
    expires_ms: int
    """Unix time in milliseconds."""
    semantic: tuple[SemanticEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file, checked."""

    number: int
    check: str
    kind: str
    content: Mapping[str, Json] = field(repr=False)
    end: int
    """Bytes of the file up to its end."""


# ------------------------------------------------------------------ lines


def seal(content: Mapping[str, Json], check: str) -> tuple[bytes, str]:
    """Return *content* as the line after the one with *check*, and its own check.

    Raises:
        ValueError: it is not JSON, or holds a lone surrogate.
    """
    text = _encoder.encode(content)[:-1].encode()
    own = _checksum(check, text)
    return b'%b%b%b"}\n' % (text, _CHECK.encode(), own.encode()), own


def read_lines(source: IO[bytes], *, name: str) -> Iterator[Line]:
    """Yield the lines of a file from its beginning.

    Raises:
        InvalidFile: with the number of the line.
    """
    check, number, end = "", 0, 0
    while raw := _next_line(source, name, number + 1):
        number, end = number + 1, end + len(raw)
        line = _opened(raw, check, number, end, name)
        check = line.check
        yield line


def _next_line(source: IO[bytes], name: str, number: int) -> bytes:
    try:
        raw = source.readline(_MOST_LINE_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidFile(f"{name}, line {number}: cannot be read: {error}") from error
    if number > 1 and raw and not raw.endswith(b"\n"):
        raise InvalidFile(f"{name}, line {number}: the file was cut off within this line")
    return raw


def _opened(raw: bytes, check: str, number: int, end: int, name: str) -> Line:
    text, separator, tail = raw.rpartition(_CHECK.encode())
    own = _checksum(check, text)
    content = _parsed(raw)
    if number == 1 and (content or {}).get("format") != FORMAT:
        raise InvalidFile(f"{name}, line 1: this is no export of llm-cache")
    if not separator or tail != own.encode() + b'"}\n' or content is None:
        raise InvalidFile(
            f"{name}, line {number}: damaged, or not where it was: its checksum does not follow"
            " from the lines before it"
        )
    return Line(number, own, str(content.get("kind")), content, end)


def _parsed(raw: bytes) -> dict[str, Json] | None:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _checksum(before: str, text: bytes) -> str:
    return sha256(before.encode() + text).hexdigest()[:_CHECK_DIGITS]


def check_header(line: Line, *, name: str) -> None:
    """Refuse a file that this release cannot read.

    Raises:
        InvalidFile: its version is another, or its answers would never be found.
    """
    if line.content.get("version") != VERSION:
        raise InvalidFile(
            f"{name}, line 1: version {line.content.get('version')!r} of the format; this release"
            f" reads version {VERSION}"
        )
    if line.content.get("schema") != SCHEMA.decode():
        raise InvalidFile(
            f"{name}, line 1: written by a release that names answers otherwise"
            f" ({line.content.get('schema')!r}, not {SCHEMA.decode()!r}): none would be found"
        )


# ------------------------------------------------------------------ answers


def to_json(answer: Answer, *, vectors: bool) -> dict[str, Json]:
    """Return *answer* as the content of a line, with or without its vectors."""
    content: dict[str, Json] = {
        "kind": "answer",
        "digest": answer.digest,
        "expires_ms": answer.expires_ms,
        "entry": {
            name: value
            for name, about in _FIELDS.items()
            if (value := getattr(answer.entry, name)) != about.default
        },
    }
    if answer.semantic:
        content["semantic"] = [_semantic_to_json(e, vectors=vectors) for e in answer.semantic]
    return content


def _semantic_to_json(entry: SemanticEntry, *, vectors: bool) -> dict[str, Json]:
    texts: dict[str, str] = {}
    binary: dict[str, str] = {}
    for name, value in entry.fields.items():
        if name == "vector":
            if vectors:
                binary[name] = b64encode(value).decode()
            continue
        try:
            texts[name] = value.decode()
        except UnicodeDecodeError:
            binary[name] = b64encode(value).decode()
    return {"space": entry.space, "fields": texts, "binary": binary}


def to_answer(line: Line, *, name: str) -> Answer:
    """Return the answer in *line*, checked as far as it can be without Redis.

    Raises:
        InvalidFile: it is none that this release can store.
    """
    try:
        digest = line.content["digest"]
        _require(isinstance(digest, str) and is_digest(digest), "digest")
        expires_ms = line.content["expires_ms"]
        _require(type(expires_ms) is int and expires_ms > 0, "expires_ms")
        entry = _entry(line.content["entry"])
        _require(expires_ms - 1000 * entry.created_s < _LONGEST_TTL_MS, "expires_ms")
        # What the codec reads back is what it would read back from Redis.
        _require(decode_entry(encode_entry(entry, digest), digest) == entry, "entry")
        semantic = tuple(_semantic(part) for part in line.content.get("semantic", ()))
    except (ValueError, KeyError, TypeError, AttributeError, CorruptEntry) as error:
        raise InvalidFile(
            f"{name}, line {line.number}: not an answer that this release can store"
            f" ({type(error).__name__}: {error})"
        ) from error
    return Answer(digest, entry, expires_ms, semantic)


def _entry(content: Any) -> Entry:
    unknown = sorted(content.keys() - _FIELDS.keys())
    if unknown:
        raise ValueError(f"fields of a later release: {', '.join(unknown)}")
    missing = [
        name for name, about in _FIELDS.items() if about.default is MISSING and name not in content
    ]
    if missing:
        raise ValueError(f"without {', '.join(missing)}")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) and name != "answer" else value
        for name, value in content.items()
    }
    return Entry(**values)


def _semantic(content: Any) -> SemanticEntry:
    space = content["space"]
    _require(isinstance(space, str) and is_digest(space), "space")
    values = {name: text.encode() for name, text in content["fields"].items()}
    for name, text in content["binary"].items():
        values[name] = b64decode(text, validate=True)
    _require(bool(values.get("scope")), "scope")
    _require("vector" not in values or _is_vector(values["vector"]), "vector")
    return SemanticEntry(space, values)


def _is_vector(value: bytes) -> bool:
    return len(value) > 0 and len(value) % 2 == 0  # FLOAT16


def is_digest(text: str) -> bool:
    """Tell whether *text* may be a digest; no key that is made with it can be another's."""
    return len(text) in _DIGEST_CHARS and _DIGEST_SIGNS.issuperset(text)


def _require(is_fine: bool, what: str) -> None:  # noqa: FBT001 - reads as the check it is
    if not is_fine:
        raise ValueError(what)


# ------------------------------------------------------------------ files


@contextmanager
def reading(path: Path) -> Iterator[IO[bytes]]:
    """Open the file at *path*; one that ends in `.gz` is unpacked on the way.

    Raises:
        InvalidFile: it cannot be opened.
    """
    try:
        source = gzip.open(path, "rb") if _is_packed(path) else path.open("rb")  # noqa: SIM115
    except OSError as error:
        raise InvalidFile(f"{path}: {error.strerror or error}") from error
    with source:
        yield cast("IO[bytes]", source)


def check_target(path: Path) -> None:
    """Refuse a name that a file cannot be written under.

    Raises:
        InvalidRequest: the directory is missing, or the suffix promises another packing.
    """
    if path.suffix in {".zst", ".bz2", ".xz", ".zip"}:
        raise InvalidRequest(f"{path.name}: exports are plain, or packed with gzip (.gz)")
    if not path.parent.is_dir():
        raise InvalidRequest(f"there is no directory {path.parent}")


def _is_packed(path: Path) -> bool:
    return path.suffix == ".gz"


@dataclass(slots=True)
class Tally:
    """What a file holds."""

    answers: int = 0
    aliases: int = 0
    semantic: int = 0

    def add(self, answer: Answer) -> None:
        """Count *answer*."""
        if answer.entry.origin is None:
            self.answers += 1
        else:
            self.aliases += 1
        self.semantic += len(answer.semantic)


@dataclass(slots=True)
class PartialFile:
    """The file while it is being written. Blocking: for a thread.

    Every method that writes raises `FileUnwritable`, which leaves what was written before.
    """

    path: Path
    """Of the finished file."""
    output: BinaryIO
    check: str = ""
    tally: Tally = field(default_factory=Tally)
    pending: list[bytes] = field(default_factory=list)
    pending_bytes: int = 0

    @property
    def part(self) -> Path:
        """Where it is until it is finished."""
        return part_of(self.path)

    @classmethod
    def begin(cls, path: Path, header: Mapping[str, Json]) -> PartialFile:
        """Make a new file, which must not be there, readable by its owner alone."""
        part = part_of(path)
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, _MODE)
        except OSError as error:
            raise FileUnwritable(f"cannot write {part}: {error.strerror or error}") from error
        begun = cls(path, os.fdopen(descriptor, "r+b", buffering=0))
        begun.add({"kind": "header", "format": FORMAT, "version": VERSION, **header})
        # At once, so that there is something to go on from.
        begun.flush()
        return begun

    @classmethod
    def resume(cls, path: Path) -> tuple[PartialFile, Line, Line | None]:
        """Open the file of an earlier run; return it, its header, and its last mark.

        What stands behind the mark was not finished, and is cut away.

        Raises:
            InvalidFile: it is none of ours.
        """
        part = part_of(path)
        with _told(part):
            output = part.open("r+b", buffering=0)
        file = cls(path, output)
        header, mark, tally = None, None, Tally()
        with part.open("rb") as source:
            try:
                for line in read_lines(source, name=str(part)):
                    if header is None:
                        check_header(line, name=str(part))
                        header = mark = line
                    elif line.kind == "answer":
                        tally.add(to_answer(line, name=str(part)))
                    elif line.kind == "mark":
                        mark, file.tally = (
                            line,
                            Tally(tally.answers, tally.aliases, tally.semantic),
                        )
            except InvalidFile:
                # The end of a file that somebody was writing when he was stopped.
                if header is None or mark is None:
                    output.close()
                    raise
        if header is None or mark is None:
            output.close()
            raise InvalidFile(f"{part}: empty: remove it and begin anew")
        output.truncate(mark.end)
        output.seek(mark.end)
        file.check = mark.check
        return file, header, None if mark is header else mark

    def add(self, content: Mapping[str, Json]) -> None:
        """Add a line; it is written with the next `flush`."""
        line, self.check = seal(content, self.check)
        self.pending.append(line)
        self.pending_bytes += len(line)

    def flush(self) -> None:
        """Write what was added."""
        data = memoryview(b"".join(self.pending))
        self.pending, self.pending_bytes = [], 0
        with _told(self.part):
            while data:
                data = data[self.output.write(data) :]

    def finish(self, end: Mapping[str, Json]) -> None:
        """Write the last line, and give the file its name, in one step."""
        self.add({"kind": "end", **asdict(self.tally), **end})
        self.flush()
        with _told(self.part):
            os.fsync(self.output.fileno())
            self.output.close()
        if _is_packed(self.path):
            self._pack()
        else:
            with _told(self.part):
                self.part.replace(self.path)

    def filter(self, is_kept: Callable[[Answer], bool]) -> None:
        """Leave out the answers that are not to be kept any more."""
        self.flush()
        with _temporary(self.path) as (new, output), self.part.open("rb") as source:
            kept = PartialFile(self.path, output)
            for line in read_lines(source, name=str(self.part)):
                if line.kind == "answer":
                    answer = to_answer(line, name=str(self.part))
                    if not is_kept(answer):
                        continue
                    kept.tally.add(answer)
                kept.add({name: v for name, v in line.content.items() if name != "check"})
                if kept.pending_bytes > _WRITTEN_AT_ONCE_BYTES:
                    kept.flush()
            kept.flush()
            with _told(self.part):
                new.replace(self.part)
        with _told(self.part):
            self.output.close()
            self.output = self.part.open("r+b", buffering=0)
            self.output.seek(0, os.SEEK_END)
        self.check, self.tally = kept.check, kept.tally

    def close(self) -> None:
        """Let go of the file, wherever it stands."""
        self.output.close()

    def _pack(self) -> None:
        with _temporary(self.path) as (new, output), self.part.open("rb") as source:
            with _told(self.part), gzip.GzipFile(fileobj=output, mode="wb", mtime=0) as packed:
                for block in _blocks(source):
                    packed.write(block)
            with _told(self.part):
                output.flush()
                os.fsync(output.fileno())
                new.replace(self.path)
                self.part.unlink()


_WRITTEN_AT_ONCE_BYTES = 1024 * 1024


def part_of(path: Path) -> Path:
    """Return the name of the file at *path* until it is finished."""
    return path.with_name(path.name + PART)


def _blocks(source: IO[bytes]) -> Iterable[bytes]:
    return iter(lambda: source.read(_WRITTEN_AT_ONCE_BYTES), b"")


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Open a new file beside *path*, which is removed again if what is done with it fails."""
    with _told(path):
        descriptor, name = mkstemp(prefix=f"{path.name}.", dir=path.parent)
    new = Path(name)
    try:
        with os.fdopen(descriptor, "r+b") as output:
            yield new, output
    except BaseException:
        new.unlink(missing_ok=True)
        raise


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say of an error of the file system what it means for an export."""
    try:
        yield
    except OSError as error:
        raise FileUnwritable(
            f"cannot write {path}: {error.strerror or error}. What was written by then is kept"
            " there: see to it and go on with resume=True (--resume)"
        ) from error
