"""A budget counts what is the cache's doing, and nothing else."""

from contextlib import AbstractContextManager

import pytest

from llm_cache import _deadline
from llm_cache._budget import Budget
from llm_cache._deadline import now_s as really


@pytest.fixture
async def pass_s(monkeypatch):
    """Let time pass that is charged."""
    ahead_s = [0.0]
    monkeypatch.setattr(_deadline, "now_s", lambda: really() + ahead_s[0])

    def go_on(seconds: float) -> None:
        ahead_s[0] += seconds

    return go_on


@pytest.fixture
def budget() -> Budget:
    return Budget(100.0)


@pytest.mark.parametrize(("name", "left_s"), [("waiting", 80.0), ("spared", 40.0)])
async def test_looks_between_the_laps_of_a_wait_are_a_part_of_it(name, left_s, pass_s, budget):
    async with budget.drawn_on():
        for _ in range(3):
            pass_s(20)
            lap: AbstractContextManager[None] = getattr(budget, name)()
            with lap:
                pass_s(1_000)

    assert budget.left_s == pytest.approx(left_s, abs=5)


async def test_what_comes_after_a_wait_is_charged(pass_s, budget):
    async with budget.drawn_on():
        with budget.waiting():
            pass_s(1_000)
        pass_s(30)

    assert budget.left_s == pytest.approx(70, abs=5)
