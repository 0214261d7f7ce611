"""What a URL may say, what is never said of it, and how long an answer is waited for."""

import asyncio

import pytest

from llm_cache._redis.connection import Connection, mask
from llm_cache.cli.options import without_secrets
from llm_cache.errors import ConfigurationError, LLMCacheError, StoreTimeout


def connection(url: str) -> Connection:
    return Connection(url, max_connections=1, timeout_s=5)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hun/ter2@127.0.0.1:1",
        "redis://:hun@ter2@127.0.0.1:1/0",
        "redis://:hun@ter2@127.0.0.1:1/x",
        "redis://:hun?ter2@127.0.0.1",
        "redis://:hun#ter2@127.0.0.1",
        "redis://:hun[ter2@127.0.0.1",
        "redis://:hun/ter2@127.0.0.1:1/0?client_name=hun@ter2",
        "redis://127.0.0.1:1/x?password=hun@ter2",
        "redis://hun:ter2@127.0.0.1:1/0?password=hun",
        "redis://hun:ter2@127.0.0.1:1/0?socket_timeout=hun",
        "unix://hun:ter2@/nowhere/redis.sock",
        "unix://[hun:ter2@/nowhere/redis.sock",
        "http://hun:ter2@127.0.0.1:1",
        "hun:ter2@127.0.0.1:1",
    ],
)
async def test_password_is_in_no_error(url):
    with pytest.raises(LLMCacheError) as caught:
        await connection(url).open()

    said = [str(caught.value), mask(url), without_secrets(url)]
    assert not [text for text in said if "hun" in text or "ter2" in text]


@pytest.mark.parametrize("password", ["123?45", "123#45"])
def test_password_that_hides_the_host_is_refused(password):
    with pytest.raises(ConfigurationError, match="%3F and %23") as caught:
        connection(f"redis://:{password}@localhost")
    assert "123" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/1?client_name=me", "redis://localhost:6379/1"),
        ("redis://me:secret@localhost:6379/1", "redis://***@localhost:6379/1"),
        ("embedded:///var/cache", "embedded:///var/cache"),
    ],
)
def test_what_is_no_secret_is_shown(url, shown):
    assert mask(url) == shown


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("foo=bar", "foo"),
        ("retry=3", "retry"),
        ("encoding=nonsense", "encoding"),
        ("connection_class=x", "connection_class"),
        ("socket_timeout=abc", "socket_timeout"),
        ("db=one", "db"),
        ("protocol=4", "protocol"),
    ],
)
@pytest.mark.parametrize("start", ["redis://localhost", "unix:///nowhere/redis.sock"])
def test_option_that_cannot_work_is_named_at_once(start, query, named):
    with pytest.raises(ConfigurationError, match=named):
        connection(f"{start}?{query}")


def test_option_for_tls_needs_tls():
    connection("rediss://localhost?ssl_cert_reqs=none")
    with pytest.raises(ConfigurationError, match="ssl_cert_reqs"):
        connection("redis://localhost?ssl_cert_reqs=none")


@pytest.mark.parametrize(
    "query", ["db=1", "socket_timeout=3", "protocol=3", "client_name=", "client_name=a@b"]
)
async def test_option_that_works_is_taken(redis_url, query):
    opened = connection(f"{redis_url}?{query}")
    await opened.open()
    assert await opened.execute("ECHO", "hello") == b"hello"
    await opened.aclose()


async def test_answers_are_bytes_whatever_the_url_says(redis_url):
    opened = connection(f"{redis_url}?decode_responses=true")
    await opened.open()
    assert await opened.execute("ECHO", "hello") == b"hello"
    await opened.aclose()


@pytest.mark.parametrize(
    ("timeout_s", "limit"), [(None, "0.04 s of redis_timeout_s"), (0.05, "0.05 s of added_lat")]
)
async def test_reply_that_does_not_come_is_given_up_in_time(timeout_s, limit):
    redis = Connection("redis://127.0.0.1:1", max_connections=1, timeout_s=0.04)
    with pytest.raises(StoreTimeout, match=limit):
        await redis.run(asyncio.Event().wait(), timeout_s=timeout_s)
