"""TLS with certificates of both sides, and a user that may do no more than it has to."""

import re
from pathlib import Path
from typing import Any

import pytest

from llm_cache._redis.connection import Connection
from llm_cache.errors import StoreUnavailable
from llm_cache.events import DependencyFailed
from tests.topologies.servers import Acl
from tests.topologies.shapes import RULES

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."
PAGE = Path(__file__).parents[2] / "docs" / "topologies.md"


@pytest.fixture
def acl(request):
    with Acl([*RULES, *getattr(request, "param", ())]) as acl:
        yield acl


async def test_client_shows_its_certificate(make_cache, tls):
    cache = make_cache(tls.url)

    assert (await cache.chat(QUESTION)).status == "miss"
    assert (await cache.chat(QUESTION)).status == "exact"


async def test_connections_share_what_tls_has_to_load(tls):
    connection = Connection(tls.url, max_connections=2, timeout_s=5)
    await connection.open()

    pool: Any = connection.client.connection_pool
    alone: Any = connection.lane().dedicated()

    assert pool.make_connection().ssl_context is alone.ssl_context
    await connection.aclose()


async def test_client_without_a_certificate_is_refused(tls):
    connection = Connection(tls.url_without_certificate, max_connections=1, timeout_s=5)
    with pytest.raises(StoreUnavailable, match="no usable Redis"):
        await connection.open()


async def test_server_whose_certificate_nobody_vouches_for_is_refused(tls):
    connection = Connection(f"rediss://127.0.0.1:{tls.port}", max_connections=1, timeout_s=5)
    with pytest.raises(StoreUnavailable, match="certificate verify failed"):
        await connection.open()


@pytest.mark.parametrize("acl", [["-get", "-mget"]], indirect=True)
async def test_command_that_is_refused_is_named(make_cache, acl, events):
    cache = make_cache(acl.url)
    with pytest.raises(StoreUnavailable, match=r"GET.*no permissions to run the 'get' command"):
        await cache.open()


@pytest.mark.parametrize("acl", [["-evalsha"]], indirect=True)
async def test_refusal_later_on_is_an_event_and_no_failed_call(make_cache, acl, events):
    cache = make_cache(acl.url)

    assert (await cache.chat(QUESTION)).status == "miss"

    told = [str(event.error) for event in events.of(DependencyFailed)]
    assert any("EVALSHA" in text and "no permissions" in text for text in told)


async def test_keys_of_others_are_out_of_reach(acl):
    connection = Connection(acl.url, max_connections=1, timeout_s=5)
    await connection.open()
    with pytest.raises(StoreUnavailable, match="GET: Redis refused this user"):
        await connection.execute("GET", "others:key")
    await connection.aclose()


async def test_user_of_a_cluster_needs_three_more(make_cache, cluster, embedder, events):
    more = ("+cluster|slots", "+asking", "+command|info")
    for server in cluster.servers:
        server.command("ACL", "SETUSER", "cache", "reset", "on", ">secret", *RULES, *more)
    embedder.similar(QUESTION, REPHRASED, 0.97)
    cache = make_cache(cluster.url.replace("://", "://cache:secret@"))

    assert (await cache.chat(QUESTION)).status == "miss"
    assert (await cache.chat(QUESTION)).status == "exact"
    assert (await cache.chat(REPHRASED)).status == "semantic"
    assert (await cache.invalidate(pattern="*capital*")).reached == 1
    assert not events.of(DependencyFailed)


def test_page_tells_the_rights_that_are_tested():
    (told,) = re.findall(r"ACL SETUSER cache (.*?)\n```", PAGE.read_text("utf-8"), re.DOTALL)
    words = [word for word in told.replace("\\\n", " ").split() if word[0] != ">" and word != "on"]
    tested = [rule.replace("t.*", "llm_cache:*") for rule in RULES]
    assert words == tested
