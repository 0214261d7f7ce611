"""Where the time of a call goes is seen from outside, and adds up."""

import asyncio
from typing import Any

import pytest

from benchmarks.embedding import InstantEmbedder, MeteredEmbedder
from benchmarks.latency.scenes import Plan, measure
from benchmarks.latency.stages import MeteredLoop
from benchmarks.results import Results
from benchmarks.session import Progress, Session

STAGES = {"key", "redis", "search", "embedding", "guards", "upstream", "rest"}


class SlowEmbedder(InstantEmbedder):
    async def embed(self, texts: Any) -> Any:
        await asyncio.sleep(0.02)
        return await super().embed(texts)


@pytest.fixture
def scenes(redis_url, tmp_path):
    """Every kind of call, of a model that takes 30 ms and an embedder that takes 20."""
    results = Results(tmp_path, seed=0)

    async def run() -> None:
        with Progress(quiet=True) as progress:
            around = Session(redis_url, 0, progress, "embedded://", asyncio.Event())
            plan = Plan(rounds=2, block=4, upstream_delay_ms=30.0, stored=20)
            await measure(around, results, plan, MeteredEmbedder(SlowEmbedder()))

    with asyncio.Runner(loop_factory=MeteredLoop) as runner:
        runner.run(run())
    return {scene["name"]: scene for scene in results.section("latency")["scenes"]}


def test_the_stages_of_a_call_are_told_apart_and_add_up(scenes):
    assert all(scene["unexpected"] == {} for scene in scenes.values())
    spent = {name: scene["stages"]["outside"] for name, scene in scenes.items()}
    for name, stages in spent.items():
        assert stages.keys() == STAGES
        assert sum(stages.values()) == pytest.approx(scenes[name]["stages"]["whole_s"], rel=0.05)

    assert spent["exact hit"]["redis"] > 0
    assert spent["exact hit"]["embedding"] == spent["exact hit"]["upstream"] == 0
    assert spent["semantic hit"]["embedding"] >= 0.02
    assert spent["semantic hit"]["search"] > 0
    assert spent["miss"]["upstream"] >= 0.03
    # What embedder and model take is not taken for waiting for Redis.
    assert spent["bypass (no-store)"]["redis"] < 0.01
    assert spent["the model without the cache"]["key"] == 0
