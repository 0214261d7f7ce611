"""Labels: what is written is what is read."""

import json
import stat

import pytest

from llm_cache.errors import FileUnwritable, InvalidFile
from llm_cache.labels import Label, Verdict, append_labels, read_labels

SAME = Label("What is 1 + 1?", "1 + 1 is … what?\n", 0.97, Verdict.SAME, at=1.5)
DIFFERENT = Label("a 🙂", "b", 0.9, Verdict.DIFFERENT, at=2.0, space="abcd")
OPEN = Label("c", "d", -0.1, None, at=3.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "labels.jsonl"


def test_labels_come_back_as_they_were(path):
    append_labels(path, [SAME, DIFFERENT])
    append_labels(path, [OPEN])

    assert list(read_labels(path)) == [SAME, DIFFERENT, OPEN]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_line_has_the_members_that_are_documented(path):
    append_labels(path, [SAME])

    assert json.loads(path.read_text(encoding="utf-8")) == {
        "new": SAME.new,
        "cached": SAME.cached,
        "similarity": 0.97,
        "label": "same",
        "at": 1.5,
    }


def test_half_a_line_of_one_who_was_stopped_spoils_no_other(path):
    path.write_text('{"new": "half')
    append_labels(path, [SAME])

    assert path.read_text(encoding="utf-8").splitlines()[1].startswith('{"new": "What is 1')
    with pytest.raises(InvalidFile, match="line 1"):
        list(read_labels(path))


def test_blank_lines_and_members_of_others_are_left_alone(path):
    path.write_text(
        '\n{"new": "a", "cached": "b", "similarity": 1, "label": "same", "who": "x"}\n'
    )

    assert [label.label for label in read_labels(path)] == ["same"]


@pytest.mark.parametrize(
    "line",
    [
        "text",
        "[]",
        '{"new": "a", "cached": "b", "similarity": 0.9}',
        '{"new": 1, "cached": "b", "similarity": 0.9, "label": "same"}',
        '{"new": "a", "cached": "b", "similarity": "high", "label": "same"}',
        '{"new": "a", "cached": "b", "similarity": 1.1, "label": "same"}',
        '{"new": "a", "cached": "b", "similarity": NaN, "label": "same"}',
        '{"new": "a", "cached": "b", "similarity": 0.9, "label": "maybe"}',
    ],
)
def test_what_is_no_label_is_named_with_its_line(path, line):
    append_labels(path, [SAME])
    path.write_text(f"{path.read_text()}{line}\n")

    with pytest.raises(InvalidFile, match="line 2"):
        list(read_labels(path))


def test_a_file_that_is_not_there_or_cannot_be_written_is_told(path, tmp_path):
    with pytest.raises(InvalidFile, match="No such file"):
        list(read_labels(path))
    with pytest.raises(FileUnwritable, match="No such file"):
        append_labels(tmp_path / "missing" / "labels.jsonl", [SAME])
