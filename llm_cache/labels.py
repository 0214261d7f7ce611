"""What people have said of pairs of prompts: the file that `review` writes and `calibrate` reads.

JSON lines, UTF-8, one pair each::

    {"new": "…", "cached": "…", "similarity": 0.93, "label": "same", "at": 1767225600.0}

`new` is the prompt that was asked, `cached` the stored one it was compared with, `similarity`
their cosine similarity. `label` is `same` where one answer may serve both and `different` where it
must not; `null` where nobody has said so yet. `at` is the Unix time in seconds. Beside these,
`space` may name the embedder that the similarity is from, by its fingerprint: similarities of two
embedders do not compare. Other members are left alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from llm_cache.errors import FileUnwritable, InvalidFile

_MODE = 0o600


class Verdict(StrEnum):
    """What was said of a pair."""

    SAME = "same"
    """One answer may serve both."""
    DIFFERENT = "different"
    """It must not."""


@dataclass(frozen=True, slots=True)
class Label:
    """A pair of prompts, and what was said of it."""

    new: str = field(repr=False)
    cached: str = field(repr=False)
    similarity: float
    label: Verdict | None
    """`None` where nothing was said yet."""
    at: float
    """Unix time in seconds."""
    space: str | None = None
    """Fingerprint of the embedder that the similarity is from, where it is known."""


def read_labels(path: Path | str) -> Iterator[Label]:
    """Yield the labels in the file at *path*, those without a verdict too.

    Raises:
        InvalidFile: a line is no label; the message names it.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _parsed(line, f"{path}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFile(f"{path}: {error}") from error


def append_labels(path: Path | str, labels: Iterable[Label]) -> None:
    """Add *labels* to the file at *path*; a new one is made readable by its owner alone.

    They are on the disk when this returns.

    Raises:
        FileUnwritable: they may not be, or not all of them.
    """
    path = Path(path)
    lines = [json.dumps(_to_json(label), ensure_ascii=False) + "\n" for label in labels]
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, _MODE)
        with os.fdopen(descriptor, "r+b", buffering=0) as output:
            # Somebody who was stopped may have left half a line.
            lines.insert(0, "" if _ends_a_line(output) else "\n")
            data = "".join(lines).encode("utf-8", "surrogatepass")
            while data:
                data = data[output.write(data) :]
            os.fsync(descriptor)
    except OSError as error:
        raise FileUnwritable(f"cannot write {path}: {error.strerror or error}") from error


def _ends_a_line(output: Any) -> bool:
    size = output.seek(0, os.SEEK_END)
    if size == 0:
        return True
    output.seek(size - 1)
    return bool(output.read(1) == b"\n")


def _to_json(label: Label) -> dict[str, Any]:
    return {
        name: value
        for name, value in asdict(label).items()
        if not (name == "space" and value is None)
    }


def _parsed(line: str, where: str) -> Label:
    try:
        content = json.loads(line)
        told = content["label"]
        label = Label(
            new=_text(content["new"]),
            cached=_text(content["cached"]),
            similarity=float(content["similarity"]),
            label=None if told is None else Verdict(told),
            at=float(content.get("at", 0.0)),
            space=content.get("space"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidFile(
            f'{where}: not a label, {{"new", "cached", "similarity", "label", "at"}}'
            f" ({type(error).__name__}: {error})"
        ) from error
    if not -1.001 <= label.similarity <= 1.001:
        raise InvalidFile(f"{where}: similarity {label.similarity} is none")
    return label


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a prompt is text")
    return value
