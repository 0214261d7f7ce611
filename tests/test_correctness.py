"""How often the defaults serve, how often wrongly, and whether certificates keep their word."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from benchmarks.correctness import faq, known_truth, table
from benchmarks.correctness.datasets import Pair, Request
from llm_cache import LocalEmbedder
from llm_cache._core.certify import COVERAGES
from llm_cache._core.hit_policy import Neighbourhood, ThresholdPolicy, decide
from llm_cache._core.replay import Found, Prompts, Stream
from llm_cache._core.types import Candidate

DATA = Path(__file__).parent / "data"
DEFAULT = ThresholdPolicy(
    LocalEmbedder.similarity_threshold, isolated_threshold=LocalEmbedder.isolated_threshold
)


@pytest.fixture
async def embedder():
    embedder = LocalEmbedder()
    yield embedder
    await embedder.aclose()


async def test_an_faq_is_answered_without_a_wrong_hit(embedder):
    lines = files("llm_cache").joinpath("_data", "faq_groups.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    requests = [Request(row["text"], row["group"]) for row in rows]
    vectors = await embedder.embed([request.prompt for request in requests])
    asked = faq.ask(requests, vectors, DEFAULT, shuffles=20)
    assert asked.hit_rate >= 0.40
    assert asked.wrong == 0


@pytest.mark.parametrize("name", ["trap_pairs.jsonl", "guard_pairs.jsonl"])
async def test_traps_are_seen_and_paraphrases_served(embedder, name):
    rows = [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
    pairs = [Pair(row["a"], row["b"], bool(row["same"])) for row in rows]
    a = await embedder.embed([pair.a for pair in pairs])
    b = await embedder.embed([pair.b for pair in pairs])

    def serves(pair: Pair, cosine: float) -> bool:
        return bool(decide(pair.b, [Candidate("k", "d", pair.a, cosine)], DEFAULT).served)

    cosines = (a * b).sum(axis=1).tolist()
    served = [serves(pair, cosine) for pair, cosine in zip(pairs, cosines, strict=True)]
    row = table.shares("default", served, pairs)
    assert row.traps_served <= 0.08
    assert row.served >= 0.50


@pytest.mark.parametrize("basis", ["hits", "requests"])
def test_certified_pairs_keep_their_bound(basis):
    known = known_truth.pairs(25, basis=basis, seed=11)
    assert known.certified >= 5
    assert known.holds


def test_certified_streams_keep_their_bound():
    known = known_truth.streams(6, basis="requests", seed=11)
    assert known.certified >= 3
    assert known.holds


def test_operating_points_go_from_strict_to_loose():
    assert list(COVERAGES) == sorted(set(COVERAGES))


# -- the simulated cache


def stream_of(*similarities: tuple[str, str, float]) -> Stream:
    """Requests in a plane, given by prompt, answer and angle."""
    angles = [angle for _, _, angle in similarities]
    vectors = np.array([[np.cos(a), np.sin(a)] for a in angles], np.float32)
    prompts = Prompts([prompt for prompt, _, _ in similarities], vectors)
    return Stream(prompts, [answer for _, answer, _ in similarities], range(len(similarities)))


def always(found: Found) -> bool:
    return True


def test_a_served_request_stores_nothing():
    stream = stream_of(("one", "a", 0.0), ("two", "a", 0.1), ("three", "a", 0.2))
    seen: list[int] = []

    def noting(found: Found) -> bool:
        seen.append(found.entry)
        return True

    assert stream.replay(noting).hits == 2
    assert seen == [0, 0]


def test_a_wrong_entry_is_counted_as_often_as_it_is_served():
    stream = stream_of(("one", "a", 0.0), ("two", "b", 0.1), ("three", "b", 0.2))
    outcome = stream.replay(always)
    assert outcome.wrong_by_entry == {0: 2}
    assert outcome.wrong == 2


def test_what_fills_the_cache_is_not_counted():
    stream = stream_of(("one", "a", 0.0), ("two", "b", 0.1), ("three", "a", 0.2))
    outcome = stream.replay(always, count_from=2)
    assert (outcome.requests, outcome.hits, outcome.wrong) == (1, 1, 0)


def test_a_request_finds_only_what_came_before():
    stream = stream_of(("one", "a", 0.0), ("two", "b", 1.0), ("three", "a", 0.1))
    assert [found.entry for found in stream.found(until=3)] == [0, 0]


def test_a_novel_request_finds_what_came_after_too():
    stream = stream_of(("one", "novel", 0.0), ("two", "b", 1.0), ("three", "b", 0.1))
    (found,) = stream.novel(since=0)
    assert found.entry == 2
    assert not found.is_right


def test_the_nearest_are_found_among_many():
    random = np.random.default_rng(0)
    angles = random.uniform(0, 6.28, 300).tolist()
    stream = stream_of(*[(f"tell {at}", "a", angle) for at, angle in enumerate(angles)])
    for found in stream.found(until=300):
        cosines = [np.cos(angles[found.request] - angle) for angle in angles[: found.request]]
        best = sorted(cosines, reverse=True)[:4]
        assert found.around.similarities == pytest.approx(best, abs=1e-5)


def test_few_stored_ones_are_found_among_many_served():
    angles = [0.0, 3.1] + [0.001 * at for at in range(1, 200)]
    stream = stream_of(*[(f"tell {at}", "a", angle) for at, angle in enumerate(angles)])
    around: list[Neighbourhood] = []

    def noting(found: Found) -> bool:
        around.append(found.around)
        return found.request > 1

    stream.replay(noting)
    assert all(len(one.similarities) == 2 for one in around[1:])
