"""Things break under 200 callers: nobody fails, nobody gets a wrong answer, and all heals.

Short versions of what `python -m benchmarks faults` measures; how long things take is looked at
there alone.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from benchmarks.faults import identity, leaders
from benchmarks.faults.command import THINKING
from benchmarks.faults.measure import broken_promises, measure
from benchmarks.faults.scenarios import SCENARIOS
from benchmarks.faults.stage import Settings

IN_SHORT = {
    *("sigkill", "sigstop", "black-hole", "reset", "corrupt", "oom", "lru", "flushall"),
    *("failover", "slots", "embedder-hangs"),
}
"""Those that every run of the tests includes; the others run with `make test-faults`."""
# A busy machine takes more than a quarter of a second of a call, and that is not what breaks here.
SETTINGS = replace(Settings.quickly(), budget_s=2.0)


@pytest.fixture(scope="module")
def model_url() -> Iterator[str]:
    """A model in a process of its own, for all scenarios: it would take time from the callers."""
    with subprocess.Popen(
        [sys.executable, "-m", "llm_cache.testing", *THINKING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize(
    "name",
    [
        name if name in IN_SHORT else pytest.param(name, marks=pytest.mark.heavy)
        for name in SCENARIOS
    ],
)
async def test_nobody_notices_but_the_model(name, model_url):
    row = await measure(SCENARIOS[name], SETTINGS, model_url)

    assert row["wrong_answers"] == []
    assert row["errors"] == []
    assert broken_promises(row, in_time=False) == []
    assert row["calls_during"] > 0


async def test_callers_of_a_leader_that_dies_are_answered(model_url):
    row = await leaders.measure(SETTINGS, model_url)

    assert row["errors"] == []
    assert leaders.broken_promises(row, in_time=False) == []
    assert row["calls"] == 200


@pytest.mark.parametrize("on_cluster", [False, True])
async def test_nobody_gets_the_answer_of_somebody_else(on_cluster):
    row = await identity.measure(SETTINGS, on_cluster=on_cluster)

    assert row["broken_promises"] == []
    assert row["errors"] == []
    assert row["hits"] > 0
