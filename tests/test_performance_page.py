"""The page of figures says what the committed results say."""

from benchmarks.page import PAGE, RESULTS, render


def test_tables_are_those_of_the_committed_results():
    text = PAGE.read_text(encoding="utf-8")
    assert render(text, RESULTS) == text


def test_table_that_was_edited_by_hand_is_noticed():
    text = PAGE.read_text(encoding="utf-8")
    edited = text.replace("<!-- end of results -->", "| 1 |\n<!-- end of results -->", 1)
    assert edited != text
    assert render(edited, RESULTS) == text
