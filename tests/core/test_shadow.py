"""What decisions would have been worth."""

import pytest

from llm_cache._core.hit_policy import Decision, ThresholdPolicy, decide
from llm_cache._core.shadow import Shadow, compared, label, outcome
from llm_cache._core.types import Candidate
from llm_cache._labels import LabelledPair, read_row

TRAP = Candidate("k1", "d1", "How do I reset my password in 2 days?", 0.95)
SAME = Candidate("k2", "d2", "How can I reset my password?", 0.9)


def decision(*candidates: Candidate) -> Decision:
    return decide("How do I reset my password?", candidates, ThresholdPolicy(0.85))


@pytest.mark.parametrize(
    ("candidate", "agrees", "worth"),
    [
        (SAME, True, Shadow.RIGHT_HIT),
        (SAME, False, Shadow.WRONG_HIT),
        (TRAP, True, Shadow.MISSED_HIT),
        (TRAP, False, Shadow.RIGHT_MISS),
    ],
)
def test_the_fresh_answer_tells_what_a_decision_was_worth(candidate, agrees, worth):
    assert outcome(decision(candidate), agrees=agrees) is worth


def test_what_would_be_served_is_compared_else_the_nearest():
    assert compared(decision(TRAP, SAME)) == SAME
    assert compared(decision(TRAP)) == TRAP
    assert compared(decision()) is None


def test_a_label_is_a_row_to_calibrate_on():
    row = read_row(1, label("new?", SAME, agrees=True))
    assert row == LabelledPair("new?", SAME.prompt, True, 0.9)
