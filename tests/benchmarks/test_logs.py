"""A user's own log, in every state that logs come in."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from benchmarks.errors import BadInput
from benchmarks.workloads import Ask, logs


def read(path: Path, **options: Any) -> tuple[list[Ask], list[str]]:
    notes: list[str] = []
    workload = logs.load(path, on_read=lambda reading: notes.extend(reading.notes()), **options)
    return list(workload.asks()), notes


def write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines) + b"\n")
    return path


def test_a_log_in_jsonl(tmp_path):
    row = {"prompt": "Hello?", "answer_id": 7, "timestamp": "2026-01-02T03:04:05Z"}
    path = write(tmp_path / "log.jsonl", json.dumps({**row, "prompt_tokens": 12}))

    (ask,), notes = read(path)

    assert (ask.prompt, ask.answer_id, ask.prompt_tokens) == ("Hello?", "7", 12)
    assert ask.at_s == 1_767_323_045.0
    assert notes == []


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_log_in_csv_with_commas_and_line_ends_in_its_prompts(tmp_path, separator):
    header = separator.join(["prompt", "answer_id"])
    path = write(tmp_path / "log.csv", header, f'"One, two;\tthree?\nFour?"{separator}a')

    (ask,), _ = read(path)

    assert ask == Ask("One, two;\tthree?\nFour?", "a")


def test_broken_lines_are_counted_with_their_numbers_and_never_shown(tmp_path):
    good = '{"prompt": "Hello?"}'
    broken = [
        '{"prompt": "secret',
        "[1]",
        '{"prompt": ""}',
        '{"prompt": 3}',
        '{"prompt": "\\ud800"}',
    ]
    path = write(tmp_path / "log.jsonl", good, *broken, "", good)

    asks, notes = read(path)

    assert [ask.prompt for ask in asks] == ["Hello?", "Hello?"]
    assert "1 lines skipped: no JSON (line 2)" in notes
    assert "1 lines skipped: no JSON object (line 3)" in notes
    assert "2 lines skipped: no text in 'prompt' (line 4, 5)" in notes
    assert not any("secret" in note for note in notes)


def test_lines_of_csv_with_other_columns_than_the_header(tmp_path):
    path = write(tmp_path / "log.csv", "prompt,answer_id", "a,1", "b", "c,3,4", "d,4")

    asks, notes = read(path)

    assert [ask.prompt for ask in asks] == ["a", "d"]
    assert notes == ["2 lines skipped: not as many columns as the header has (line 3, 4)"]


def test_unknown_columns_are_named(tmp_path):
    path = write(tmp_path / "log.jsonl", '{"prompt": "a", "user": "u", "latency": 1}')

    assert read(path)[1] == ["columns not used: latency, user"]


def test_mixed_encodings_are_read_line_by_line(tmp_path):
    lines = [b'\xef\xbb\xbf{"prompt": "caf\xc3\xa9"}', b'{"prompt": "caf\xe9"}']

    asks, notes = read(write(tmp_path / "log.jsonl", *lines))

    assert [ask.prompt for ask in asks] == ["café", "café"]
    assert notes == ["1 lines are not UTF-8 and were read as Windows-1252"]


def test_utf_16_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"prompt": "a"}', encoding="utf-16")

    with pytest.raises(BadInput, match="iconv -f UTF-16"):
        logs.load(tmp_path / "log.jsonl")


def test_a_log_without_the_column_names_those_it_has(tmp_path):
    path = write(tmp_path / "log.csv", "question,answer", "a,b")

    with pytest.raises(BadInput, match=r"no column 'prompt' but \['answer', 'question'\]"):
        logs.load(path)
    assert read(path, prompt_column="question")[0] == [Ask("a")]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"{broken\n", b"prompt\n"])
def test_a_log_of_nothing_is_refused(tmp_path, content):
    (tmp_path / "log.jsonl").write_bytes(content)

    with pytest.raises(BadInput, match="can be used"):
        logs.load(tmp_path / "log.jsonl")


def test_a_log_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match="there is no file"):
        logs.load(tmp_path / "log.jsonl")


@pytest.mark.parametrize(
    ("value", "at_s"),
    [
        (1_750_000_000, 1_750_000_000.0),
        (1_750_000_000_000, 1_750_000_000.0),
        ("1750000000.5", 1_750_000_000.5),
        ("2025-06-15T15:06:40", 1_750_000_000.0),
        ("NaN", None),
        ("yesterday", None),
    ],
)
def test_timestamps_in_the_ways_people_write_them(tmp_path, value, at_s):
    path = write(tmp_path / "log.jsonl", json.dumps({"prompt": "a", "timestamp": value}))

    (ask,), notes = read(path)

    assert ask.at_s == at_s
    assert notes == ([] if at_s is not None else ["1 timestamps could not be read"])


def test_a_file_cut_off_in_transfer_is_read_as_far_as_it_goes(tmp_path):
    whole = gzip.compress(b"".join(b'{"prompt": "%d"}\n' % i for i in range(50_000)))
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])

    asks, notes = read(path)

    assert 0 < len(asks) < 50_000
    assert any("breaks early" in note for note in notes)


def test_a_log_of_any_length_is_never_in_memory(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"prompt": "How do I reset my password?"}\n' * 100_000)
    workload = logs.load(path)

    tracemalloc.start()
    count = sum(1 for _ in workload.asks())
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 100_000
    assert peak_bytes < 1_000_000
