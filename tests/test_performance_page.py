"""The pages of figures say what the committed results say."""

import pytest

from benchmarks.page import PAGES, RESULTS, render


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_are_those_of_the_committed_results(page):
    text = page.read_text(encoding="utf-8")
    assert render(text, RESULTS) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_table_that_was_edited_by_hand_is_noticed(page):
    text = page.read_text(encoding="utf-8")
    edited = text.replace("<!-- end of results -->", "| 1 |\n<!-- end of results -->", 1)
    assert edited != text
    assert render(edited, RESULTS) == text
