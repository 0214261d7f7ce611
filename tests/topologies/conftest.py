"""Set-ups of their own for what breaks and heals; the calls go through the public API."""

from collections.abc import Iterator

import pytest

from tests.topologies.servers import Cluster, Sentinels, Tls


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three primaries, each with a replica."""
    with Cluster(3, replicas=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    with Sentinels() as sentinels:
        yield sentinels


@pytest.fixture(scope="module")
def tls() -> Iterator[Tls]:
    with Tls() as tls:
        yield tls
