"""Calibration: what it shows, and when it refuses."""

import pickle
from typing import Any

import numpy as np
import pytest

from llm_cache._core.hit_policy import decide
from llm_cache._core.keys import fingerprint
from llm_cache._core.policy_file import decode
from llm_cache._core.types import Candidate
from llm_cache.calibrate import (
    CalibrationRefused,
    LabelledPair,
    LoggedAnswer,
    LoggedRequest,
    calibrate,
    label_log,
)
from llm_cache.errors import InvalidEmbedding, InvalidRequest
from llm_cache.testing import FakeEmbedder
from llm_cache.verify import same_text

DIMENSIONS = 32
LETTERS = "bcdfghjklmnpqrstvwxz"


def word(number: int) -> str:
    return "zq" + LETTERS[number // 400 % 20] + LETTERS[number // 20 % 20] + LETTERS[number % 20]


def topics(
    count: int, *, rows: int, spread: float, seed: int = 0
) -> tuple[list[LoggedRequest], np.ndarray[Any, Any]]:
    """Requests about topics: their prompts, the answers they need, and their vectors."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(count, DIMENSIONS))
    chosen = random.integers(count, size=rows)
    vectors = centres[chosen] + spread * random.normal(size=(rows, DIMENSIONS))
    log = [LoggedRequest(f"tell {word(at)}", f"a{topic}") for at, topic in enumerate(chosen)]
    return log, vectors


@pytest.fixture
def embedder():
    return FakeEmbedder(DIMENSIONS, model_id="fake/calibrated")


EASY = topics(20, rows=620, spread=0.3)


def pairs(rows: int, *, wrong_above: float = 0.0, seed: int = 0) -> list[LabelledPair]:
    random = np.random.default_rng(seed)
    return [
        LabelledPair(
            f"tell {word(2 * at)}",
            f"tell {word(2 * at + 1)}",
            bool(similarity > 0.8 and random.random() >= wrong_above),
            float(similarity),
        )
        for at, similarity in enumerate(random.uniform(0.4, 1.0, rows))
    ]


async def test_what_is_clear_is_certified(embedder):
    log, vectors = EASY
    calibration = await calibrate(log, embedder=embedder, vectors=vectors)
    assert calibration.certificate.bound <= 0.01
    assert all(r.point and r.point.hit_rate > 0.5 for r in calibration.results)
    assert calibration.stored.space == fingerprint("fake/calibrated", DIMENSIONS)
    assert decode(calibration.to_json()) == calibration.stored


async def test_the_stricter_of_the_two_cuts_is_kept(embedder):
    log, vectors = topics(20, rows=900, spread=0.7)
    calibration = await calibrate(
        log, embedder=embedder, vectors=vectors, basis="requests", max_wrong=0.03
    )
    kept = min(
        calibration.results, key=lambda result: result.point.hit_rate if result.point else 0
    )
    assert calibration.policy == kept.policy
    assert calibration.certificate.split == kept.split
    assert {result.split for result in calibration.results} == {"random", "chronological"}


async def test_the_same_log_gives_the_same_policy(embedder):
    log, vectors = EASY
    first = await calibrate(log, embedder=embedder, vectors=vectors)
    again = await calibrate(log, embedder=embedder, vectors=vectors)
    assert first.policy == again.policy


async def test_pairs_are_enough(embedder):
    calibration = await calibrate(pairs(3000), embedder=embedder, max_wrong=0.02)
    served = decide(
        "tell zqxxx", [Candidate("k", "d", "tell zqzzz", 0.99)], calibration.policy
    ).served
    assert served or "relation" not in calibration.policy.weighed_guards
    assert embedder.calls == 0


async def test_prompts_without_vectors_are_embedded(embedder):
    log = [("one thing", "a"), ("one thing please", "a"), ("other matters", "b")]
    with pytest.raises(CalibrationRefused):
        await calibrate(log, embedder=embedder)
    assert set(embedder.texts) == {"one thing", "one thing please", "other matters"}


# -- refusals


async def refused(log: Any, embedder: FakeEmbedder, **options: Any) -> CalibrationRefused:
    with pytest.raises(CalibrationRefused) as caught:
        await calibrate(log, embedder=embedder, **options)
    return caught.value


async def test_too_few_labels_are_refused_with_the_number_missing(embedder):
    log, vectors = EASY
    refusal = await refused(log[:50], embedder, vectors=vectors[:50])
    assert refusal.labels == 50
    # 299 right ones show 1 %, and a third of the labels goes into the fit.
    assert refusal.missing_labels == 449 - 50
    assert "399 more labels" in str(refusal)


async def test_noise_is_refused(embedder):
    log, vectors = EASY
    random = np.random.default_rng(1)
    noisy = [
        LoggedRequest(
            row.prompt, f"a{random.integers(20)}" if random.random() < 0.3 else row.answer_id
        )
        for row in log
    ]
    for basis in ("hits", "requests"):
        await refused(noisy, embedder, vectors=vectors, basis=basis)


async def test_pairs_that_are_wrong_too_often_are_refused(embedder):
    refusal = await refused(pairs(3000, wrong_above=0.1), embedder, max_wrong=0.01)
    assert refusal.missing_labels is None


async def test_no_wrong_hit_at_all_cannot_be_shown(embedder):
    log, vectors = EASY
    refusal = await refused(log, embedder, vectors=vectors, max_wrong=0)
    assert refusal.missing_labels is None
    assert "0" not in str(refusal.missing_labels)


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ([], "empty"),
        ([("one", "a"), ("two", "a")], "same answer"),
        ([("one", "a"), ("two", "b")], "no two requests"),
        ([("one", "two", True), ("one", "three", True)], "both kinds"),
        ([("one", "two", False), ("one", "three", False)], "both kinds"),
    ],
)
async def test_labels_of_one_kind_are_refused(embedder, log, why):
    assert why in str(await refused(log, embedder))


async def test_labels_that_contradict_each_other_are_refused(embedder):
    log = [(word(at % 50), f"a{at // 50}") for at in range(100)]
    assert "50 of 50 labels contradict" in str(await refused(log, embedder))
    both = [("one", "two", True), ("two", "one", False), ("one", "three", False)]
    assert "contradict" in str(await refused(both, embedder))


async def test_a_few_contradictions_count_as_wrong(embedder):
    log, vectors = EASY
    twice = [*log, *(LoggedRequest(row.prompt, "another") for row in log[:5])]
    calibration = await calibrate(
        twice,
        embedder=embedder,
        vectors=[*vectors, *vectors[:5]],
        basis="requests",
        max_wrong=0.03,
    )
    assert calibration.contradictions == 5


async def test_repeats_are_exact_hits_and_show_nothing(embedder):
    log, vectors = EASY
    repeated = [*log[:100]] * 9
    refusal = await refused(repeated, embedder, vectors=np.tile(vectors[:100], (9, 1)))
    assert refusal.labels == 100


async def test_repeats_do_not_change_the_result(embedder):
    log, vectors = EASY
    shouted = [LoggedRequest(f" {row.prompt.upper()} ", row.answer_id) for row in log]
    once = await calibrate(log, embedder=embedder, vectors=vectors)
    twice = await calibrate([*log, *shouted], embedder=embedder, vectors=[*vectors, *vectors])
    assert twice.policy == once.policy
    assert twice.duplicates == len(log)


# -- bad input


@pytest.mark.parametrize(
    "options",
    [
        {"max_wrong": -0.01},
        {"max_wrong": 1},
        {"max_wrong": "1%"},
        {"max_wrong": None},
        {"max_wrong": True},
        {"max_wrong": float("nan")},
        {"confidence": 1},
        {"confidence": 0.4},
        {"basis": "request"},
    ],
)
async def test_what_cannot_be_asked_for(embedder, options):
    with pytest.raises(InvalidRequest):
        await calibrate(EASY[0], embedder=embedder, vectors=EASY[1], **options)


@pytest.mark.parametrize(
    "row",
    [
        "a prompt",
        ("one",),
        ("", "a"),
        ("one", None),
        (1, "a"),
        {"prompt": "one"},
        {"prompt": "one", "answer": "x"},
        {"a": "one", "b": "two", "same": "yes"},
        ("one", "two", True, 1.01),
        ("one", "two", True, float("nan")),
        ("one", "two", True, "0.9"),
        LoggedRequest("one", "a", float("inf")),
        None,
    ],
)
async def test_a_bad_row_is_named(embedder, row):
    with pytest.raises(InvalidRequest, match="row 2"):
        await calibrate([("fine", "a"), row], embedder=embedder)


async def test_requests_and_pairs_do_not_mix(embedder):
    with pytest.raises(InvalidRequest, match="mixes"):
        await calibrate([("one", "a"), ("one", "two", True)], embedder=embedder)


async def test_some_timestamps_are_no_order(embedder):
    log = [LoggedRequest("one", "a", 1.0), LoggedRequest("two", "b")]
    with pytest.raises(InvalidRequest, match="timestamp_s"):
        await calibrate(log, embedder=embedder)


async def test_vectors_have_to_fit(embedder):
    log, vectors = EASY
    with pytest.raises(InvalidEmbedding):
        await calibrate(log, embedder=embedder, vectors=vectors[:-1])
    with pytest.raises(InvalidEmbedding):
        await calibrate(log, embedder=embedder, vectors=vectors * np.nan)


async def test_timestamps_give_the_order(embedder):
    log, vectors = EASY
    timed = [LoggedRequest(r.prompt, r.answer_id, float(at)) for at, r in enumerate(log)]
    order = np.random.default_rng(3).permutation(len(log))
    shuffled = await calibrate(
        [timed[at] for at in order], embedder=embedder, vectors=vectors[order]
    )
    assert shuffled.policy == (await calibrate(log, embedder=embedder, vectors=vectors)).policy


def test_a_refusal_survives_the_way_out_of_a_worker():
    refusal = CalibrationRefused("too few", 10, 290)
    again = pickle.loads(pickle.dumps(refusal))
    assert str(again) == str(refusal)
    assert (again.labels, again.missing_labels) == (10, 290)


# -- labels from answers


ANSWERED = [
    LoggedAnswer("how do I pay", "By card."),
    LoggedAnswer("how do I pay please", "by  card."),
    LoggedAnswer("how do I pay abroad", "In cash."),
    LoggedAnswer("what is the weather", "Fine."),
]


async def test_equal_answers_label_a_log(embedder):
    labelled = await label_log(ANSWERED, same_text, embedder=embedder)
    ids = [row.answer_id for row in labelled]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


async def test_a_verifier_labels_a_log(embedder):
    class Judge:
        async def verify(self, new: str, cached: str, answer: str) -> bool:
            return (new, cached, answer) == (ANSWERED[1].prompt, ANSWERED[0].prompt, "By card.")

    ids = [row.answer_id for row in await label_log(ANSWERED, Judge(), embedder=embedder)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


async def test_a_judge_that_fails_agrees_with_nothing(embedder):
    def judge(fresh, earlier):
        raise RuntimeError

    labelled = await label_log(ANSWERED, judge, embedder=embedder)
    assert len({row.answer_id for row in labelled}) == len(ANSWERED)


async def test_unlike_prompts_are_not_judged(embedder):
    asked = []

    def judge(fresh, earlier):
        asked.append((fresh, earlier))
        return False

    await label_log(ANSWERED[2:], judge, embedder=embedder)
    assert asked == []
