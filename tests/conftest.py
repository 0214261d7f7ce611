"""A real Redis with search for the whole run, a namespace of its own for each test.

Redis is one embedded server unless `--topology` says otherwise (`make test-topologies`).
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from llm_cache import CacheConfig, LLMCache
from llm_cache.testing import FakeEmbedder, RecordingHook, ScriptedUpstream
from tests.topologies.shapes import SHAPES, Shape, shape_of

MakeCache = Callable[..., LLMCache]
PATIENT: dict[str, Any] = {"redis_timeout_s": 20.0, "added_latency_budget_s": 20.0}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--topology",
        choices=sorted(SHAPES),
        default="standalone",
        help="the shape of the Redis that tests of the public API run against",
    )
    parser.addoption("--resp", choices=("2", "3"), help="protocol of caches; default: redis-py's")
    parser.addoption("--uvloop", action="store_true", help="run tests on uvloop")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--uvloop"):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


@pytest.fixture(scope="session")
def topology(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--topology"))


@pytest.fixture(autouse=True)
def _not_here(request: pytest.FixtureRequest, topology: str) -> None:
    """Skip what is about one server where there are several."""
    marker = request.node.get_closest_marker("one_server")
    if marker is not None and topology == "cluster":
        pytest.skip(marker.args[0])


@pytest.fixture(scope="session")
def redis_shape(topology: str) -> Iterator[Shape]:
    with shape_of(topology) as shape:
        yield shape


@pytest.fixture(scope="session")
def redis_url(redis_shape: Shape) -> str:
    return redis_shape.url


@pytest.fixture
def namespace() -> str:
    return f"t.{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def redis(redis_shape: Shape) -> AsyncIterator[Any]:
    """A client of redis-py's that may do everything."""
    client = redis_shape.client()
    yield client
    await client.aclose()


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder()


@pytest.fixture
def events() -> RecordingHook:
    return RecordingHook()


@pytest.fixture
def cache_url(redis_url: str, pytestconfig: pytest.Config) -> str:
    """What caches connect to: the URL, and the protocol that was asked for."""
    resp = pytestconfig.getoption("--resp")
    return redis_url if resp is None else f"{redis_url}?protocol={resp}"


@pytest.fixture
async def tidy_namespace(redis_shape: Shape, namespace: str) -> AsyncIterator[str]:
    """Lend the namespace, and see to it that its indexes are gone afterwards.

    A server looks at all its indexes when a hash is written, and reads everything it has for a new
    one: thousands of tests would make it ever slower.
    """
    yield namespace
    if "+cluster" not in redis_shape.url:
        async with redis_shape.client() as client:
            names = [name.decode() for name in await client.execute_command("FT._LIST")]
            for name in names:
                if name.startswith((f"{namespace}:", f"{namespace}.")):
                    await client.execute_command("FT.DROPINDEX", name, "DD")


@pytest.fixture
async def make_cache(
    cache_url: str,
    tidy_namespace: str,
    upstream: ScriptedUpstream,
    embedder: FakeEmbedder,
    events: RecordingHook,
) -> AsyncIterator[MakeCache]:
    """Make caches over the test's Redis, upstream and embedder; they are closed at the end.

    Keywords go to `CacheConfig` where it knows them, else to `LLMCache`.
    """
    made: list[LLMCache] = []
    settings = CacheConfig.__dataclass_fields__.keys()

    def make(url: str = cache_url, **options: Any) -> LLMCache:
        config = {name: options.pop(name) for name in settings & options.keys()}
        collaborators = {"client": upstream.client(), "embedder": embedder, "hooks": [events]}
        cache = LLMCache(
            url,
            # The upstream, its client and the cache share one loop here; give it time.
            config=CacheConfig(**{"namespace": tidy_namespace, **PATIENT, **config}),
            **{**collaborators, **options},
        )
        made.append(cache)
        return cache

    yield make
    for cache in made:
        await cache.aclose()


@pytest.fixture
async def cache(make_cache: MakeCache) -> LLMCache:
    return await make_cache().open()
