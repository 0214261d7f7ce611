"""What the demonstration asks, and in which order."""

from __future__ import annotations

import pytest

from llm_cache.cli.questions import faq, script

WORDINGS = {"a": ["a1", "a2"], "b": ["b1", "b2"], "c": ["c1", "c2"]}


def test_the_questions_come_in_five_wordings_each():
    assert len(faq()) == 40
    assert {len(texts) for texts in faq().values()} == {5}


def test_the_same_seed_asks_the_same():
    assert script(faq(), count=50, seed=7) == script(faq(), count=50, seed=7)
    assert script(faq(), count=50, seed=7) != script(faq(), count=50, seed=8)


def test_a_shorter_script_is_the_beginning_of_a_longer_one():
    assert script(faq(), count=20, seed=1)[:6] == script(faq(), count=6, seed=1)


def test_it_asks_new_questions_other_wordings_and_repeats():
    group_of = {text: group for group, texts in faq().items() for text in texts}
    kinds, groups, texts = [], set(), set()
    for text in script(faq(), count=10, seed=3):
        group = group_of[text]
        kinds.append("E" if text in texts else "R" if group in groups else "N")
        groups.add(group)
        texts.add(text)

    assert "".join(kinds) == "NNRERNRRER"


@pytest.mark.parametrize("count", [6, 7, 100])
def test_when_every_wording_was_asked_only_repeats_are_left(count):
    prompts = script(WORDINGS, count=count, seed=0)

    assert len(prompts) == count
    assert set(prompts) <= {text for texts in WORDINGS.values() for text in texts}
    if count == 100:
        assert len(set(prompts)) == 6
