"""`llm-cache doctor`: what is wrong with a set-up, and how to mend it."""

from __future__ import annotations

import asyncio
import json

import pytest
from redis import Redis

from llm_cache import CacheConfig, Embedder, LLMCache, LocalEmbedder
from llm_cache.testing import FakeEmbedder

Findings = dict[str, list[dict[str, str]]]


@pytest.fixture
def examine(cli, namespace):
    """Run `doctor --json`; return the exit code and the findings by name, lists of one each."""

    def run(*args, env=None):
        ran = cli("doctor", "--namespace", namespace, "--json", *args, env=env)
        report = json.loads(ran.stdout)
        findings: Findings = {}
        for finding in report["findings"]:
            findings.setdefault(finding["name"], []).append(finding)
        assert report["ok"] is (ran.exit_code == 0)
        assert all(finding["fix"] for finding in report["findings"] if finding["state"] != "ok"), (
            "every problem and every warning comes with its fix"
        )
        return ran.exit_code, findings

    return run


def states(findings: Findings, name: str) -> list[str]:
    return [finding["state"] for finding in findings[name]]


def configure(url: str, **settings: str) -> None:
    with Redis.from_url(url) as redis:
        for name, value in settings.items():
            redis.config_set(name.replace("_", "-"), value)


# --- a set-up that works ----------------------------------------------------------------------


def test_a_working_set_up_has_no_problem(examine, redis_url):
    code, findings = examine("--redis-url", redis_url, "--local")

    assert code == 0
    assert "8." in findings["server"][0]["detail"]
    assert findings["search"][0]["detail"].startswith("RediSearch 2.")
    assert "384 dimensions" in findings["embedder"][0]["detail"]
    assert "0.85, the default of all-MiniLM-L6-v2" in findings["threshold"][0]["detail"]
    assert "none yet" in findings["index"][0]["detail"]
    assert "local" in findings["extras"][0]["detail"]
    assert states(findings, "clock") == ["ok"]
    assert "hash-max-listpack-value 8192" in findings["hashes"][0]["detail"]


def test_what_could_be_better_is_a_warning(examine, redis_url):
    code, findings = examine("--redis-url", redis_url, "--no-semantic")

    assert code == 0
    assert states(findings, "memory") == ["warning"]
    assert states(findings, "persistence") == ["warning"]


def test_openai_is_the_default_embedder(examine, redis_url, service):
    code, findings = examine("--redis-url", redis_url, env=service)

    assert code == 0
    assert "text-embedding-3-small, 1536 dimensions" in findings["embedder"][0]["detail"]
    assert findings["threshold"][0]["detail"].startswith("0.97, the default")


def test_an_embedded_redis_is_started_to_see(examine, tmp_path):
    code, findings = examine("--redis-url", f"embedded://{tmp_path}", "--no-semantic")

    assert code == 0
    assert "starts here" in findings["redis"][0]["detail"]
    assert findings["search"][0]["detail"].startswith("RediSearch 2.")
    # There is nobody to whom these could be said.
    assert not {"memory", "hashes", "eviction", "persistence"} & findings.keys()


async def test_the_index_of_an_embedded_redis_is_looked_at(examine_later, tmp_path, namespace):
    url = f"embedded://{tmp_path}"
    embedder = LocalEmbedder()
    await filled(url, namespace, embedder)
    await embedder.aclose()

    code, findings = await examine_later("--redis-url", url, "--local")

    assert code == 0
    assert "1 entries of 384 dimensions" in findings["index"][0]["detail"]


def test_a_directory_that_is_not_there_is_a_problem_and_not_made(examine, tmp_path):
    missing = tmp_path / "missing dir"

    code, findings = examine("--redis-url", f"embedded://{missing}", "--no-semantic")

    assert code == 1
    assert states(findings, "redis") == ["problem"]
    assert f"no directory {missing}" in findings["redis"][0]["detail"]
    assert not missing.exists()


def test_people_see_the_same_in_80_columns(cli, redis_url, namespace):
    ran = cli(
        *("doctor", "--redis-url", redis_url, "--namespace", namespace, "--no-semantic"),
        env={"COLUMNS": "80"},
    )

    assert ran.exit_code == 0
    lines = ran.stdout.splitlines()
    assert any(line.startswith("ok       search       RediSearch 2.") for line in lines)
    assert any(line.startswith(" " * 22 + "fix: ") for line in lines)
    assert lines[-1] == "no problems, 2 warnings"


# --- Redis ------------------------------------------------------------------------------------


def test_no_redis_is_a_problem_with_its_fix(examine):
    code, findings = examine("--redis-url", "redis://:secret@127.0.0.1:1", "--no-semantic")

    (finding,) = findings["redis"]
    assert code == 1
    assert finding["state"] == "problem"
    assert "redis://***@127.0.0.1:1" in finding["detail"]
    assert "secret" not in str(findings)
    assert "docker compose up" in finding["fix"]


@pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", "redis://localhost:port"])
def test_a_url_that_cannot_work_is_a_problem(examine, url):
    code, findings = examine("--redis-url", url, "--no-semantic")

    assert code == 1
    assert states(findings, "redis") == ["problem"]


def test_a_wrong_password_is_a_problem(examine, own_redis):
    configure(own_redis, requirepass="right")

    code, findings = examine("--redis-url", own_redis, "--no-semantic")

    assert code == 1
    assert "check the URL and the password" in findings["redis"][0]["fix"]


def test_a_redis_without_search_is_a_problem(examine, plain_redis):
    code, findings = examine("--redis-url", plain_redis, "--local")

    assert code == 1
    assert states(findings, "search") == ["problem"]
    assert "semantic=False" in findings["search"][0]["fix"]
    assert "index" not in findings


def test_without_the_semantic_layer_search_is_not_needed(examine, plain_redis):
    code, findings = examine("--redis-url", plain_redis, "--no-semantic")

    assert code == 0
    assert states(findings, "search") == ["ok"]
    assert "embedder" not in findings


@pytest.mark.parametrize(
    ("policy", "maxmemory", "state"),
    [
        ("noeviction", "100mb", "problem"),
        ("noeviction", "0", "ok"),
        ("allkeys-lru", "100mb", "warning"),
        ("allkeys-random", "100mb", "warning"),
        ("volatile-lru", "100mb", "ok"),
        ("volatile-ttl", "100mb", "ok"),
    ],
)
def test_eviction(examine, plain_redis, policy, maxmemory, state):
    configure(plain_redis, maxmemory=maxmemory, maxmemory_policy=policy)

    code, findings = examine("--redis-url", plain_redis, "--no-semantic")

    assert code == (1 if state == "problem" else 0)
    assert states(findings, "eviction") == [state]
    assert states(findings, "memory") == ["warning" if maxmemory == "0" else "ok"]


def test_a_user_who_may_not_ask_everything_gets_an_answer_all_the_same(examine, own_redis):
    with Redis.from_url(own_redis) as redis:
        redis.execute_command(
            "ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-module", "-config|get"
        )

    code, findings = examine(
        "--redis-url", own_redis.replace("unix://", "unix://app:pw@"), "--local"
    )

    assert code == 0
    assert states(findings, "search") == states(findings, "persistence") == ["ok"]
    assert "may not ask" in findings["hashes"][0]["detail"]


# --- embedder, index, threshold ---------------------------------------------------------------


def test_no_key_is_a_problem_that_names_the_local_embedder(examine, redis_url):
    code, findings = examine("--redis-url", redis_url)

    assert code == 1
    assert states(findings, "embedder") == ["problem"]
    assert "OPENAI_API_KEY" in findings["embedder"][0]["fix"]
    assert "LocalEmbedder" in findings["embedder"][0]["fix"]


def test_an_embedder_that_cannot_be_reached_is_a_problem(examine, redis_url):
    env = {"OPENAI_API_KEY": "test-key", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}

    code, findings = examine("--redis-url", redis_url, env=env)

    assert code == 1
    assert states(findings, "embedder") == ["problem"]
    assert "test-key" not in str(findings)


async def filled(url: str, namespace: str, embedder: Embedder) -> None:
    config = CacheConfig(namespace=namespace)
    async with LLMCache(url, embedder=embedder, config=config) as cache:
        await cache.store_semantic("What is the capital of France?", "Paris.")


async def test_the_index_of_this_embedder_is_counted(examine_later, redis_url, namespace):
    embedder = LocalEmbedder()
    await filled(redis_url, namespace, embedder)
    await embedder.aclose()

    _, findings = await examine_later("--redis-url", redis_url, "--local")

    (finding,) = findings["index"]
    assert finding["state"] == "ok"
    assert "1 entries of 384 dimensions" in finding["detail"]


@pytest.mark.parametrize("dimensions", [64, 384])
async def test_the_index_of_another_embedder_is_a_warning(
    examine_later, redis_url, namespace, dimensions
):
    await filled(redis_url, namespace, FakeEmbedder(dimensions))

    code, findings = await examine_later("--redis-url", redis_url, "--local")

    assert code == 0
    assert states(findings, "index") == ["ok", "warning"]
    assert "FT.DROPINDEX" in findings["index"][1]["fix"]


async def test_an_index_of_a_namespace_with_a_longer_name_is_none_of_ours(
    examine_later, redis_url, namespace
):
    await filled(redis_url, f"{namespace}.more", FakeEmbedder())

    _, findings = await examine_later("--redis-url", redis_url, "--local")

    assert states(findings, "index") == ["ok"]


async def test_entries_that_cannot_be_indexed_are_a_problem(
    examine_later, redis, redis_url, namespace
):
    embedder = LocalEmbedder()
    await filled(redis_url, namespace, embedder)
    await embedder.aclose()
    (entry,) = await redis.keys(f"{namespace}:s:*")
    # A new index reads in the background what is there; what is written meanwhile it reads twice.
    await until_filled(redis, namespace)
    await redis.hset(entry + b"x", mapping={"vector": b"too short", "scope": "x"})

    code, findings = await examine_later("--redis-url", redis_url, "--local")

    assert code == 1
    assert "1 entries" in findings["index"][0]["detail"]
    assert "failed 1 time," in findings["index"][0]["detail"]


async def until_filled(redis, namespace: str) -> None:
    """Return when the index of *namespace* has read what was there before it."""
    names = [name.decode() for name in await redis.execute_command("FT._LIST")]
    (name,) = (name for name in names if name.startswith(f"{namespace}:"))
    async with asyncio.timeout(60):
        while True:
            reply = await redis.execute_command("FT.INFO", name)
            info = reply if isinstance(reply, dict) else dict(zip(*[iter(reply)] * 2, strict=True))
            if not int(info[b"indexing"]):
                return
            # Asked without a pause, Redis would have no time for the index.
            await asyncio.sleep(0.01)


async def test_an_index_with_other_settings_is_a_problem(
    examine_later, redis, redis_url, namespace
):
    embedder = LocalEmbedder()
    await filled(redis_url, namespace, embedder)
    await embedder.aclose()
    names = [name.decode() for name in await redis.execute_command("FT._LIST")]
    (name,) = (name for name in names if name.startswith(f"{namespace}:"))
    await redis.execute_command("FT.DROPINDEX", name)
    await redis.execute_command(
        *("FT.CREATE", name, "PREFIX", 1, f"{namespace}:s:", "SCHEMA", "vector", "VECTOR"),
        *("FLAT", 6, "TYPE", "FLOAT32", "DIM", 384, "DISTANCE_METRIC", "L2"),
    )

    code, findings = await examine_later("--redis-url", redis_url, "--local")

    assert code == 1
    assert "FLAT FLOAT32 L2" in findings["index"][0]["detail"]


@pytest.fixture
def examine_later(examine):
    """`examine` from within an event loop, where it can only run in a thread."""

    async def run(*args):
        return await asyncio.to_thread(examine, *args)

    return run


@pytest.mark.parametrize(
    ("threshold", "state"), [("0.849", "warning"), ("0.85", "ok"), ("0.9", "ok")]
)
def test_a_threshold_below_the_default_of_the_model_is_a_warning(
    examine, redis_url, threshold, state
):
    code, findings = examine("--redis-url", redis_url, "--local", "--threshold", threshold)

    assert code == 0
    assert states(findings, "threshold") == [state]


def test_nothing_is_written(examine, redis_url, namespace):
    examine("--redis-url", redis_url, "--local")

    with Redis.from_url(redis_url, decode_responses=True) as redis:
        assert redis.keys(f"{namespace}:*") == []
        assert not [name for name in redis.execute_command("FT._LIST") if namespace in name]
