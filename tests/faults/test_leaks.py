"""Nothing grows, and growth would be seen."""

from dataclasses import replace

import pytest

from benchmarks.faults.leaks import MOST_MB, Look, grown, measure
from benchmarks.session import UpstreamProcess

CALM = [
    Look(
        requests=i,
        memory_mb=100,
        objects=1_000,
        tasks=3,
        files=50,
        model_connections=5,
        clients=10,
        redis_mb=5,
    )
    for i in range(20)
]


@pytest.mark.parametrize(
    "requests",
    [4_000, pytest.param(100_000, marks=[pytest.mark.heavy, pytest.mark.timeout(900)])],
)
async def test_requests_leave_nothing_behind(requests):
    async with UpstreamProcess() as upstream:
        looks, statuses = await measure(requests, upstream.base_url)

    assert grown(looks) == []
    assert statuses.total() == requests
    assert {"exact", "semantic", "miss", "stream, exact", "stream, miss", "left"} <= set(statuses)


@pytest.mark.parametrize(
    ("name", "each"),
    [
        ("memory_mb", MOST_MB / 4),
        ("objects", 3),
        ("tasks", 1),
        ("files", 1),
        ("model_connections", 5),
        ("clients", 1),
    ],
)
def test_growth_is_seen(name, each):
    growing = [
        replace(look, **{name: getattr(look, name) + each * look.requests}) for look in CALM
    ]

    assert [told.split()[0] for told in grown(growing)] == [name]
    assert grown(CALM) == []


def test_peaks_are_no_growth():
    peaks = [replace(look, memory_mb=200.0) if look.requests % 3 else look for look in CALM]
    assert grown(peaks) == []
