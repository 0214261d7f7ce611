"""The command line in this process, and the services it is pointed at."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llm_cache._redis.embedded import EmbeddedRedis, ServerCommand, find_server
from llm_cache.cli.app import make_app

# What the machine or the person in front of it has set must not change what a test sees.
NOT_SET = dict.fromkeys(
    [
        *("OPENAI_API_KEY", "OPENAI_BASE_URL", "REDIS_URL"),
        *("COLUMNS", "FORCE_COLOR", "NO_COLOR", "PY_COLORS"),
    ]
)


@pytest.fixture
def cli() -> Callable[..., Result]:
    """Run a command line in this process."""

    def run(
        *args: str, stdin: str | None = None, env: Mapping[str, str | None] | None = None
    ) -> Result:
        return CliRunner().invoke(make_app(), args, input=stdin, env={**NOT_SET, **(env or {})})

    return run


@pytest.fixture
def run(
    cli: Callable[..., Result], redis_url: str, namespace: str, service: dict[str, str]
) -> Any:
    """Run a command on the Redis and the service of this test."""

    def run(command: str, *args: str, **options: Any) -> Result:
        options.setdefault("env", service)
        return cli(command, "--redis-url", redis_url, "--namespace", namespace, *args, **options)

    return run


@pytest.fixture
def environment() -> dict[str, str]:
    """The environment of a command in a process of its own."""
    return {name: value for name, value in os.environ.items() if name not in NOT_SET}


@pytest.fixture(scope="session")
def service() -> Iterator[dict[str, str]]:
    """An OpenAI-compatible service, as the environment that leads the SDK to it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_cache.testing"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    yield {"OPENAI_BASE_URL": process.stdout.readline().strip(), "OPENAI_API_KEY": "test"}
    process.stdin.close()
    process.stdout.close()
    assert process.wait(timeout=10) == 0


@pytest.fixture
def own_redis() -> Iterator[str]:
    """A Redis with search whose settings a test may change."""
    yield from _serving(EmbeddedRedis())


@pytest.fixture
def plain_redis() -> Iterator[str]:
    """A Redis without a search module."""
    command = ServerCommand(find_server().executable, (), "without modules")
    yield from _serving(EmbeddedRedis(command=command))


def _serving(server: EmbeddedRedis) -> Iterator[str]:
    yield asyncio.run(server.start())
    asyncio.run(server.stop())
