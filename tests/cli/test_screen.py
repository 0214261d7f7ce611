"""Numbers and lines as people read them."""

from __future__ import annotations

import pytest
from rich.text import Text

from llm_cache.cli.prices import dollars
from llm_cache.cli.screen import Screen, age, complain, seconds, size


@pytest.mark.parametrize(
    ("duration_s", "shown"),
    [
        (0.0, "0.00 ms"),
        (0.00085, "0.85 ms"),
        (0.009994, "9.99 ms"),
        (0.009995, "10.0 ms"),
        (0.0421, "42.1 ms"),
        (0.09995, "100 ms"),
        (0.9994, "999 ms"),
        (0.9995, "1.00 s"),
        (12.345, "12.35 s"),
        (99.995, "100 s"),
    ],
)
def test_durations_have_three_digits_and_seven_places(duration_s, shown):
    assert seconds(duration_s) == shown
    assert len(shown) <= 7


@pytest.mark.parametrize(
    ("age_s", "shown"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (7200, "2 h"), (86_400, "1 d")],
)
def test_ages_are_told_in_their_largest_unit(age_s, shown):
    assert age(age_s) == shown


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(999, "999 B"), (1000, "1.0 KB"), (2_200_000, "2.2 MB"), (1.5e9, "1.50 GB")],
)
def test_sizes(size_bytes, shown):
    assert size(size_bytes) == shown


@pytest.mark.parametrize(
    ("cost", "shown"),
    [
        (0.0, "0 USD"),
        (0.0000539, "0.000054 USD"),
        (0.00041, "0.00041 USD"),
        (0.5, "0.50 USD"),
        (1234.5, "1,234.50 USD"),
    ],
)
def test_costs_keep_two_digits_that_say_something(cost, shown):
    assert dollars(cost) == shown


def test_a_long_value_is_folded_beside_its_label(capsys):
    Screen().fact("Label", "word " * 50)

    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("Label  ")
    assert others
    assert all(line.startswith(" " * 14 + "word") for line in others)
    assert not any(line.endswith(" ") for line in [first, *others])


def test_square_brackets_are_nothing_special(capsys):
    screen = Screen()
    screen.print("pip install 'llm-cache[cli]'")
    screen.hanging(Text("[red]"), Text("llm-cache[demo]"))
    complain("llm-cache[prices]")

    captured = capsys.readouterr()
    assert captured.out == "pip install 'llm-cache[cli]'\n[red]llm-cache[demo]\n"
    assert captured.err == "llm-cache: llm-cache[prices]\n"
