"""A session of the benchmarks over the tests' Redis."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.embedding import InstantEmbedder, MeteredEmbedder
from benchmarks.results import Results
from benchmarks.session import Progress, Session


@pytest.fixture
def around(redis_url: str) -> Iterator[Session]:
    with Progress(quiet=True) as progress:
        yield Session(redis_url, 0, progress, "embedded://", asyncio.Event())


@pytest.fixture
def metered() -> MeteredEmbedder:
    return MeteredEmbedder(InstantEmbedder(), remembers=True)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "report", seed=0)
