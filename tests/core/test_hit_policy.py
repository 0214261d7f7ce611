"""Which of the nearest candidates may answer."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from llm_cache._core import guards
from llm_cache._core.hit_policy import (
    FEATURES,
    CalibratedPolicy,
    Judgement,
    Neighbourhood,
    Policy,
    ThresholdPolicy,
    Verdict,
    decide,
    features,
    stricter,
)
from llm_cache._core.types import Candidate

ASKED = "How do I reset my password?"
PARAPHRASE = "How can I reset my password?"


def candidate(
    similarity: float,
    prompt: Any = PARAPHRASE,
    *,
    digest: str = "a",
    group: str = "",
    signature: bytes = b"",
) -> Candidate:
    return Candidate(f"key {digest}", digest, prompt, similarity, group, signature)


def served(candidates: list[Candidate], policy: Policy, prompt: str = ASKED) -> list[str]:
    return [c.digest for c in decide(prompt, candidates, policy).served]


def reasons(candidates: list[Candidate], policy: Policy, prompt: str = ASKED) -> list[str]:
    return [judged.reason for judged in decide(prompt, candidates, policy).judged]


def test_the_threshold_is_inclusive():
    policy = ThresholdPolicy(0.85)
    assert served([candidate(0.85)], policy) == ["a"]
    assert served([candidate(0.8499)], policy) == []


def test_an_identical_vector_may_come_back_a_little_off():
    assert served([candidate(0.9997)], ThresholdPolicy(1.0)) == ["a"]
    assert served([candidate(0.9996)], ThresholdPolicy(1.0)) == []


@pytest.mark.parametrize("threshold", [0.85, float("nan")])
def test_what_is_no_number_is_not_enough(threshold):
    assert served([candidate(float("nan"))], ThresholdPolicy(threshold)) == []
    assert served([candidate(0.9)], ThresholdPolicy(float("nan"))) == []


def test_a_vetoed_candidate_leaves_the_next_its_chance():
    trap = candidate(0.95, "How do I reset my password in 2 days?")
    assert served([trap, candidate(0.9, digest="b")], ThresholdPolicy(0.85)) == ["b"]


def test_each_refusal_says_why():
    trap = candidate(0.95, "How do I reset my password in 2 days?")
    assert reasons([trap, candidate(0.5)], ThresholdPolicy(0.85)) == [
        "guard: numbers",
        "similarity below 0.85",
    ]


def test_a_guard_that_fails_is_a_refusal():
    broken = candidate(0.95, prompt=None)
    assert reasons([broken], ThresholdPolicy(0.85)) == ["guard failed: TypeError"]
    damaged = candidate(0.95, signature=b"\x01not deflated")
    assert served([damaged], ThresholdPolicy(0.85)) == []


def test_without_guards_no_words_are_read():
    assert served([candidate(0.9, prompt=None)], ThresholdPolicy(0.85, is_guarded=False)) == ["a"]


def test_a_stored_signature_stands_for_the_prompt():
    trap = "How do I reset my password in 2 days?"
    kept = candidate(0.95, "", signature=guards.pack(trap))
    assert reasons([kept], ThresholdPolicy(0.85)) == ["guard: numbers"]


@pytest.mark.parametrize(
    ("prompt", "cached"),
    [
        ("Wie setze ich mein Passwort zurück?", "Und wie setze ich mein Passwort zurück?"),
        ("как сменить мой пароль", "и как сменить мой пароль"),
    ],
)
def test_a_language_without_word_lists_has_a_stricter_threshold(prompt, cached):
    policy = ThresholdPolicy(0.85, isolated_threshold=0.75)
    assert served([candidate(stricter(0.85), cached)], policy, prompt) == ["a"]
    below = [candidate(0.92, cached)]
    assert served(below, policy, prompt) == []
    assert reasons(below, policy, prompt) == [
        "similarity below 0.925 for a language without word lists"
    ]


def crowd(nearest: float, others: list[float]) -> list[Candidate]:
    return [candidate(nearest)] + [
        candidate(similarity, "What is the weather?", digest=str(similarity))
        for similarity in others
    ]


def test_a_candidate_that_stands_alone_needs_less_similarity():
    policy = ThresholdPolicy(0.85, isolated_threshold=0.75)
    assert served(crowd(0.75, [0.54, 0.5, 0.4]), policy) == ["a"]
    assert served(crowd(0.74, [0.5, 0.5, 0.4]), policy) == []
    assert served(crowd(0.75, [0.56, 0.5, 0.4]), policy) == []


def test_nobody_stands_alone_in_an_empty_room():
    policy = ThresholdPolicy(0.85, isolated_threshold=0.75)
    assert served(crowd(0.8, []), policy) == []
    assert served(crowd(0.8, [0.1, 0.1]), policy) == []


def test_the_isolated_threshold_never_makes_it_stricter():
    policy = ThresholdPolicy(0.6, isolated_threshold=0.75)
    assert served(crowd(0.65, [0.1, 0.1, 0.1]), policy) == ["a"]


def test_the_grey_band_asks_a_verifier_when_nothing_is_served():
    policy = ThresholdPolicy(0.9, verify_from=0.8)
    grey, clear = candidate(0.85), candidate(0.95, digest="b")
    assert decide(ASKED, [grey], policy).to_verify == grey
    assert decide(ASKED, [clear, grey], policy).to_verify is None
    assert decide(ASKED, [candidate(0.79)], policy).to_verify is None


def test_no_verifier_is_asked_about_what_a_guard_vetoes():
    trap = candidate(0.85, "How do I reset my password in 2 days?")
    assert decide(ASKED, [trap], ThresholdPolicy(0.9, verify_from=0.8)).to_verify is None


def test_the_margin_is_to_the_nearest_rival_of_another_answer():
    assert Neighbourhood((0.9, 0.8, 0.6), ("x", "x", "y")).margin == pytest.approx(0.3)
    assert Neighbourhood((0.9, 0.8), ("x", "y")).margin == pytest.approx(0.1)
    # Whatever lies beyond four that agree is no nearer than the fourth.
    assert Neighbourhood((0.9, 0.8, 0.7, 0.6), ("x",) * 4).margin == pytest.approx(0.3)
    assert Neighbourhood((0.9,), ("x",)).margin == pytest.approx(0.9)


def weighing(
    least_score: float = 0.0, weighed: Iterable[str] = (), **weights: float
) -> CalibratedPolicy:
    values = tuple(weights.get(name.replace(":", "_"), 0.0) for name in FEATURES)
    return CalibratedPolicy(0.0, values, least_score, frozenset(weighed))


def test_every_feature_has_a_value():
    comparison = guards.compare(guards.analyse(ASKED), guards.analyse(PARAPHRASE))
    assert len(features(Neighbourhood((0.9,), ("x",)), comparison)) == len(FEATURES)


def test_a_calibrated_policy_serves_from_its_score_on():
    assert served([candidate(0.9)], weighing(0.9, similarity=1.0)) == ["a"]
    assert served([candidate(0.8999)], weighing(0.9, similarity=1.0)) == []


def test_a_calibrated_policy_serves_the_nearest_only():
    policy = weighing(0.0, similarity=1.0)
    assert served([candidate(0.9), candidate(0.8, digest="b")], policy) == ["a"]


def test_guards_that_were_not_weighed_stay_vetoes():
    trap = candidate(0.95, "How do I reset my password in 2 days?")
    assert reasons([trap], weighing(similarity=1.0)) == ["guard: numbers"]
    assert served([trap], weighing(similarity=1.0, weighed=["numbers"])) == ["a"]
    assert served([trap], weighing(similarity=1.0, guard_numbers=-9.0, weighed=["numbers"])) == []


def test_answers_that_say_the_same_agree():
    policy = weighing(1.0, two_agree=1.0)
    same = [candidate(0.9, group="g"), candidate(0.8, digest="b", group="g")]
    assert served(same, policy) == ["a"]
    assert served([candidate(0.9), candidate(0.8, digest="b")], policy) == []


def test_only_a_calibrated_policy_is_certified():
    assert decide(ASKED, [], weighing()).is_certified
    decision = decide(ASKED, [candidate(0.9)], ThresholdPolicy(0.85))
    assert not decision.is_certified
    assert decision.judged[0].verdict is Verdict.SERVE


class Listening:
    """A threshold of 0.85 that keeps the similarities which it was asked about."""

    is_certified = False

    def __init__(self) -> None:
        self.asked: list[float] = []

    def judge(self, similarity: float, *about: Any) -> Judgement:
        self.asked.append(similarity)
        return ThresholdPolicy(0.85).judge(similarity, *about)


def test_what_is_behind_the_one_that_is_taken_is_judged_when_it_is_asked_for():
    policy = Listening()
    trap = candidate(0.95, "How do I reset my password in 2 days?", digest="trap")
    near = [trap, candidate(0.9), candidate(0.88, digest="b"), candidate(0.5, digest="c")]
    decision = decide(ASKED, near, policy)
    assert policy.asked == []

    serving = decision.serve()
    assert next(serving).digest == "a"
    assert policy.asked == [0.95, 0.9]
    assert [judged.candidate.digest for judged in decision.judged] == ["trap", "a", "b", "c"]
    assert [c.digest for c in serving] == ["b"]
    assert [c.digest for c in decision.served] == ["a", "b"]
    assert policy.asked == [0.95, 0.9, 0.88, 0.5]


# -- near misses, and the band below a calibrated policy


def near_misses(candidates: list[Candidate], policy: Policy) -> list[bool]:
    return [judged.is_near_miss for judged in decide(ASKED, candidates, policy).judged]


def test_a_near_miss_fell_short_by_little():
    policy = ThresholdPolicy(0.75)
    candidates = [candidate(at) for at in (0.75, 0.7499, 0.66, 0.64)]
    assert near_misses(candidates, policy) == [False, True, True, False]


def test_what_only_a_guard_refused_is_a_near_miss():
    trap = "How do I reset my password in 2 days?"
    assert near_misses([candidate(0.95, trap)], ThresholdPolicy(0.85)) == [True]
    assert near_misses([candidate(0.95, trap)], weighing(0.9, similarity=1.0)) == [True]
    # What would have been far below anyway is none, whatever its words.
    assert near_misses([candidate(0.1, trap)], weighing(9.0, similarity=1.0)) == [False]


def test_a_calibrated_policy_counts_what_is_missing_in_confidence():
    policy = weighing(0.0, similarity=1.0)
    (judged,) = decide(ASKED, [candidate(-0.2)], policy).judged
    assert judged.shortfall == pytest.approx(0.5 - 1 / (1 + 2.718281828**0.2), abs=1e-6)
    assert judged.is_near_miss


def test_a_worker_may_have_a_band_below_a_calibrated_policy():
    policy = replace(weighing(0.95, similarity=1.0), verify_from=0.8)
    grey = candidate(0.8)
    assert decide(ASKED, [grey], policy).to_verify == grey
    assert decide(ASKED, [candidate(0.7999)], policy).to_verify is None
    trap = candidate(0.9, "How do I reset my password in 2 days?")
    assert decide(ASKED, [trap], policy).to_verify is None


def test_without_the_words_of_the_cached_prompt_nothing_is_served():
    unknown = candidate(0.99, "")
    assert served([unknown], ThresholdPolicy(0.85)) == []
    assert served([unknown], weighing(0.0, similarity=1.0)) == []
    assert served([unknown], ThresholdPolicy(0.85, is_guarded=False)) == ["a"]
