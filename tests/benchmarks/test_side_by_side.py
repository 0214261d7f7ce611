"""Ours beside others: one stream, one Redis, and a row for whoever cannot run."""

from typing import Any

import pytest

from benchmarks import side_by_side
from benchmarks.side_by_side import CannotRun, Plan, Timed, measure

PLAN = Plan(entries=40, reads=40, callers=20)


class Careless:
    """Answers anybody with whatever was stored last, and knows nothing exactly."""

    name, version = "careless", "1.0"

    async def open(self, *_: Any, **__: Any) -> Any:
        return Careless()

    async def exact_set(self, *_: Any) -> Any:
        raise NotImplementedError

    async def exact_get(self, *_: Any) -> Any:
        raise NotImplementedError

    async def semantic_store(self, _prompt: str, answer: str, _vector: Any) -> Timed[None]:
        self.answer = answer
        return Timed(None, 0.001)

    async def semantic_check(self, *_: Any) -> Timed[str | None]:
        return Timed(getattr(self, "answer", None), 0.002)

    async def close(self) -> None: ...


class Missing:
    """Is not installed."""

    name, version = "missing", ""

    async def open(self, *_: Any, **__: Any) -> Any:
        raise CannotRun("pip could not find it")


class Failing:
    """Breaks."""

    name, version = "failing", "2"

    async def open(self, *_: Any, **__: Any) -> Any:
        raise ConnectionError("Too many connections")


@pytest.fixture
async def rows(around, results, metered, monkeypatch):
    monkeypatch.setattr(side_by_side, "others", lambda: [Careless(), Missing(), Failing()])
    await measure(around, results, PLAN, metered)
    return {row["name"]: row for row in results.section("peers")["rows"]}


async def test_ours_is_measured_like_the_others(rows):
    ours = rows["llm_cache"]

    assert ours["why_not"] is None
    assert ours["exact_hit"]["missed"] == ours["semantic_hit"]["missed"] == 0
    assert (ours["crowd"]["count"], ours["crowd"]["failed"]) == (60, 0)
    assert ours["bytes_per_entry"] > 0
    assert ours["faq"]["requests"] == 200


async def test_wrong_answers_of_others_are_seen(rows):
    careless = rows["careless"]

    assert careless["exact_hit"] is None
    assert careless["semantic_hit"]["p50_s"] == pytest.approx(0.002, rel=0.01)
    assert careless["faq"]["wrong"] == 195
    assert careless["faq"]["hit_rate"] == 199 / 200


async def test_who_cannot_run_is_a_row_that_says_why(rows):
    assert rows["missing"]["why_not"] == "pip could not find it"
    assert rows["failing"]["why_not"] == "ConnectionError: Too many connections"
