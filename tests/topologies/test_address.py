"""What the URL of several servers may say."""

import pytest

from llm_cache._redis.address import Kind, mask, read_address
from llm_cache._redis.connection import Connection
from llm_cache.errors import ConfigurationError


def test_cluster_names_some_of_its_nodes():
    address = read_address("redis+cluster://me:pa%40ss@one:7000,two:7001,[::1]?client_name=x")

    assert address.kind is Kind.CLUSTER
    assert address.hosts == (("one", 7000), ("two", 7001), ("::1", 6379))
    assert address.options == {"username": "me", "password": "pa@ss", "client_name": "x"}


def test_sentinels_name_a_service_and_perhaps_a_database():
    address = read_address("redis+sentinel://:secret@one,two:26380/mymaster/3?sentinel_password=s")

    assert address.kind is Kind.SENTINEL
    assert address.hosts == (("one", 26379), ("two", 26380))
    assert address.service == "mymaster"
    assert address.options == {"password": "secret", "db": 3}
    assert address.sentinel_options == {"password": "s"}


def test_tls_is_spoken_with_sentinels_too():
    address = read_address("rediss+sentinel://one/m?ssl_ca_certs=/ca.pem")

    assert address.is_secure
    assert address.options == address.sentinel_options == {"ssl_ca_certs": "/ca.pem"}


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis+cluster://one:7000/2", "one database"),
        ("redis+cluster://one:7000?db=2", "one database"),
        ("redis+cluster://", "hosts"),
        ("redis+cluster://one:7000,", "hosts"),
        ("redis+cluster://one:port", "hosts"),
        ("redis+cluster://one/x/y", "number of a database"),
        ("redis+cluster://one?foo=bar", "foo"),
        ("redis+cluster://one?sentinel_password=x", "sentinel_password"),
        ("redis+cluster://one?ssl_ca_certs=/ca.pem", "rediss"),
        ("redis+cluster://one?protocol=4", "protocol"),
        ("redis+sentinel://one", "mymaster"),
        ("redis+sentinel://one/m/x", "number of a database"),
        ("redis+sentinel://one/m?socket_timeout=abc", "socket_timeout"),
        ("redis+cluster+x://one", "must begin with"),
    ],
)
def test_url_that_cannot_work_is_refused_at_once(url, named):
    with pytest.raises(ConfigurationError, match=named):
        Connection(url, max_connections=1, timeout_s=1)


@pytest.mark.parametrize("scheme", ["redis+cluster", "rediss+sentinel"])
def test_password_is_in_no_error_and_in_no_repr(scheme):
    url = f"{scheme}://me:hunter2@one,two/x/y/z"
    with pytest.raises(ConfigurationError) as caught:
        read_address(url)

    fine = read_address(f"{scheme}://me:hunter2@one,two/{'m' if 'sentinel' in scheme else ''}")
    assert "hunter2" not in f"{caught.value} {fine!r} {mask(url)}"
    assert mask(url).startswith(f"{scheme}://***@one,two")
