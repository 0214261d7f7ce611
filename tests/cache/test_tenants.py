"""What belongs to one tenant never reaches another, by any way."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest

from llm_cache._core.keys import Scope, tenant_id
from llm_cache._core.targets import ANYONE, Kind, owner, parts, target
from llm_cache.errors import InvalidRequest, OnlyIfCachedMiss

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."
SECRET = "a secret of sixteen characters or more"
TENANTS: list[str | None] = [None, "acme", "acme ", "1:acme", "*", "-", "a@b.c|{d}", "äcme\n😀"]


def odd_names(count: int) -> list[str]:
    """Return different names of tenants, full of what may have a meaning somewhere."""
    chance = random.Random(7)
    signs = [*"|@{}()[]*?:~-%\"'\\$^.,<>=;!#&+/ \t\n\r\0", "acme", "ns", ":x:", "None", "null"]
    signs += [
        "*",
        "-",
        "1:",
        "0:",
        "é",
        "e\u0301",
        "ß",
        "İ",
        "😀",
        "\u202e",
        "\ufeff",
        "\U0010ffff",
    ]
    names = {"", "*", "-", "None"}
    while len(names) <= count:
        parts = (chance.choice(signs) for _ in range(chance.randint(1, 8)))
        names.add("".join(parts) * (400 if chance.random() < 0.005 else 1))
    return sorted(name[:4_000] for name in names if name)[:count]


@pytest.fixture
def near(embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)


# ---------------------------------------------------------------------------- N x N


async def test_no_answer_crosses_to_any_other_tenant(make_cache, near):
    writer, reader = make_cache(), make_cache()
    for a in TENANTS:
        await writer.clear()
        own = (await writer.chat(QUESTION, tenant=a)).text
        for b in TENANTS:
            for prompt in (QUESTION, REPHRASED):
                exact = await reader.lookup_exact(prompt, tenant=b)
                semantic = await reader.lookup_semantic(prompt, tenant=b)
                assert {r.text for r in (exact, semantic) if r} <= ({own} if a == b else set())
                assert (semantic is not None) == (a == b)
            if a != b:
                with pytest.raises(OnlyIfCachedMiss):
                    await reader.chat(
                        QUESTION, tenant=b, stream=True, cache_control="only-if-cached"
                    )


@pytest.mark.parametrize("stream", [False, True])
async def test_no_flight_is_shared_with_another_tenant(make_cache, upstream, stream):
    workers = [make_cache(), make_cache()]
    upstream.hold()
    calls = {
        tenant: [
            asyncio.create_task(worker.chat(QUESTION, tenant=tenant, stream=stream))
            for worker in workers
            for _ in range(2)
        ]
        for tenant in TENANTS
    }
    # One for each tenant; the second process streams only when the first has landed.
    await upstream.called(len(TENANTS))
    for i in range(len(TENANTS)):
        upstream.answer(f"answer {i}")
    upstream.release()
    texts = []
    for tasks in calls.values():
        replies = await asyncio.gather(*tasks)
        got = [await _text(r) if stream else r.text for r in replies]
        assert len(set(got)) == 1
        texts.append(got[0])
    assert len(set(texts)) == len(TENANTS) == upstream.calls


async def _text(stream: Any) -> str:
    return "".join([piece async for piece in stream])


INVALIDATIONS: list[dict[str, Any]] = [
    {},
    {"tag": "t"},
    {"model": "m"},
    {"system": "s"},
    {"dependency": "doc:1"},
    {"older_than_s": 0},
    {"pattern": "what*"},
    {"pattern": "what*", "limit": 1_000},
    {"key": "of another"},
]


@pytest.mark.parametrize("selection", INVALIDATIONS, ids=lambda s: "".join(s) or "all")
async def test_no_invalidation_reaches_another_tenant(make_cache, selection):
    options: dict[str, Any] = {
        "model": "m",
        "system": "s",
        "tags": ["t"],
        "depends_on": ["doc:1@v1"],
    }
    cache, other = make_cache(), make_cache()
    keys = {t: (await cache.chat(QUESTION, tenant=t, **options)).key for t in TENANTS}
    for a in TENANTS:
        for b in TENANTS if "key" in selection else [a]:
            given = {"key": keys[b]} if "key" in selection else selection
            told = await cache.invalidate(**given, tenant=a, dry_run=True)
            assert told.reached == (a == b)
        given = {"key": keys[a]} if "key" in selection else selection
        await cache.invalidate(**given, tenant=a)
        found = {t for t in TENANTS if await other.lookup_exact(QUESTION, tenant=t, **options)}
        assert found == set(TENANTS) - {a}
        await cache.chat(QUESTION, tenant=a, **options)


async def test_stats_of_one_tenant_are_no_others(make_cache):
    cache = make_cache()
    for count, tenant in enumerate(TENANTS[1:], start=1):
        for _ in range(count):
            await cache.chat(QUESTION, tenant=tenant)
    for count, tenant in enumerate(TENANTS[1:], start=1):
        stats = await cache.server_stats(tenant=tenant)
        assert (stats["miss"], stats["exact"]) == (1, count - 1)


async def test_no_feedback_reaches_another_tenant(make_cache, near):
    cache = make_cache()
    key = (await cache.chat(QUESTION, tenant="acme")).key
    assert not await cache.approve(key, REPHRASED, tenant="umbrella")
    assert not await cache.approve(key, REPHRASED)
    assert await cache.lookup_exact(REPHRASED, tenant="umbrella") is None
    assert await cache.approve(key, REPHRASED, tenant="acme")

    await cache.chat(QUESTION, tenant="umbrella")
    await cache.reject(key)
    assert (await cache.chat(QUESTION, tenant="umbrella")).status == "exact"
    assert (await cache.chat(REPHRASED, tenant="umbrella")).status == "semantic"


async def test_key_that_is_not_there_yet_is_invalidated_for_its_own_tenant_alone(
    make_cache, upstream
):
    cache = make_cache()
    key = (await cache.chat(QUESTION, tenant="acme")).key
    await cache.invalidate(key=key)
    upstream.hold()
    call = asyncio.create_task(cache.chat(QUESTION, tenant="acme"))
    await upstream.called(2)
    await cache.invalidate(key=key, tenant="umbrella")
    upstream.release()
    await call
    assert (await cache.chat(QUESTION, tenant="acme")).status == "exact"


# ---------------------------------------------------------------------------- any name


def test_no_two_of_ten_thousand_odd_tenants_meet():
    names = odd_names(10_000)
    assert len(set(names)) == 10_000
    for secret in (None, SECRET):
        ids: list[str | None] = [tenant_id(name, secret) for name in names]
        scopes = [
            Scope(b"frame", tenant=id_, cache_version="", normalization="verbatim")
            for id_ in [None, *ids]
        ]
        shared = [
            Scope(b"frame", tenant=None, shared_scope=n, cache_version="", normalization="x")
            for n in names
        ]
        assert len({scope.name for scope in (*scopes, *shared)}) == 20_001
        assert len({scope.digest("x") for scope in scopes}) == 10_001


def test_no_two_targets_of_ten_thousand_odd_tenants_are_one():
    names = odd_names(10_000)
    targets = {
        target(kind, value, tenant_id=name)
        for name in [ANYONE, None, *names]
        for kind, value in ((Kind.ALL, ""), (Kind.TAG, "t"), (Kind.TAG, "1:a t"))
    }
    assert len(targets) == 3 * 10_002


def test_target_can_be_taken_apart():
    names: Iterator[Any] = iter([ANYONE, None, *odd_names(10_000)])
    for name, value in zip(names, [*odd_names(10_000), "", "x"], strict=True):
        told = parts(target(Kind.PATTERN, value, tenant_id=name))
        assert told == ("pattern", owner(name), value)


async def test_hundreds_of_odd_tenants_keep_to_themselves(make_cache, near):
    cache, other = make_cache(), make_cache()
    names = random.Random(3).sample(odd_names(10_000), 300)
    keys = [await cache.store_semantic(QUESTION, f"{i}", tenant=t) for i, t in enumerate(names)]
    assert len(set(keys)) == 300
    gone = set(names[::3])
    for name in gone:
        await cache.invalidate(tenant=name)
    for i, name in enumerate(names):
        for found in (
            await other.lookup_exact(QUESTION, tenant=name),
            await other.lookup_semantic(REPHRASED, tenant=name),
        ):
            assert (found is None) == (name in gone)
            assert found is None or found.text == str(i)


@pytest.mark.parametrize("tenant", ["", "x" * 4_001, "\ud800", 3, b"x"])
async def test_tenant_that_is_no_name_is_refused_everywhere(cache, upstream, tenant):
    for call in (
        cache.chat(QUESTION, tenant=tenant),
        cache.invalidate(tenant=tenant),
        cache.lookup_exact(QUESTION, tenant=tenant),
        cache.get_or_create({"prompt": "x"}, _never, tenant=tenant),
    ):
        with pytest.raises(InvalidRequest, match="tenant"):
            await call
    assert upstream.calls == 0


async def _never() -> Any:
    raise AssertionError("must not be asked")


# ---------------------------------------------------------------------------- secrets, scopes


async def test_with_a_secret_no_tenant_is_named_anywhere_in_redis(
    make_cache, redis, namespace, near
):
    tenant = "Umbrella Corporation"
    settings = {"tenant_secret": SECRET, "review_sample_rate": 1.0, "sweep": False}
    cache = make_cache(**settings)
    reply = await cache.chat(QUESTION, tenant=tenant, tags=["t"])
    await cache.chat(REPHRASED, tenant=tenant)
    await cache.chat(QUESTION, tenant=tenant, stream=True)
    await cache.reject(reply.key, REPHRASED, tenant=tenant)
    await cache.chat(QUESTION, tenant=tenant)
    await cache.invalidate(tag="t", tenant=tenant)
    await cache.invalidate(pattern="x*", tenant=tenant)
    await cache.chat(QUESTION, tenant=tenant)
    await cache.aclose()

    seen = b"".join([part async for part in _everything(redis, namespace)])
    assert b"capital" in seen
    assert b"mbrella" not in seen
    again = make_cache(**settings)
    assert (await again.chat(QUESTION, tenant=tenant)).status == "exact"
    assert (await make_cache().chat(QUESTION, tenant=tenant)).status == "miss"


async def _everything(redis: Any, namespace: str) -> Any:
    async for name in redis.scan_iter(f"{namespace}:*"):
        yield name
        match await redis.type(name):
            case b"string":
                yield await redis.get(name)
            case b"hash":
                yield repr(await redis.hgetall(name)).encode()
            case b"set":
                yield repr(await redis.smembers(name)).encode()
            case b"zset":
                yield repr(await redis.zrange(name, 0, -1)).encode()
            case b"stream":
                yield repr(await redis.xrange(name)).encode()
            case kind:
                raise AssertionError(f"{name!r} is a {kind!r}")


async def test_tenants_share_what_they_say_they_share(make_cache, upstream, near):
    cache, other = make_cache(), make_cache()
    first = await cache.chat(QUESTION, tenant="a", shared_scope="faq")
    assert (await other.chat(QUESTION, tenant="b", shared_scope="faq")).text == first.text
    assert (await other.chat(REPHRASED, tenant="c", shared_scope="faq")).status == "semantic"
    for options in ({"tenant": "a"}, {"tenant": "b"}, {}, {"tenant": "faq"}, {"tenant": "shared"}):
        assert await other.lookup_exact(QUESTION, **options) is None
        assert await other.lookup_semantic(QUESTION, **options) is None
    assert await other.lookup_exact(QUESTION, tenant="a", shared_scope="other") is None


async def test_what_tenants_share_is_invalidated_by_nobody_alone(make_cache):
    cache = make_cache()
    options: dict[str, Any] = {"tenant": "a", "shared_scope": "faq", "tags": ["t"]}
    key = (await cache.chat(QUESTION, **options)).key
    for tenant in ("a", "b", None):
        await cache.invalidate(tenant=tenant)
        await cache.invalidate(tag="t", tenant=tenant)
        await cache.invalidate(older_than_s=0, tenant=tenant)
        await cache.invalidate(pattern="w*", tenant=tenant)
        assert (await cache.invalidate(key=key, tenant=tenant)).reached == 0
    assert (await cache.chat(QUESTION, **options)).status == "exact"
    await cache.invalidate(shared_scope="faq")
    assert await cache.lookup_exact(QUESTION, **options) is None


async def test_required_tenant_is_required_of_every_call(make_cache, upstream):
    cache = make_cache(require_tenant=True)
    for call in (
        cache.chat(QUESTION),
        cache.chat(QUESTION, shared_scope="faq"),
        cache.get_or_create({"prompt": "x"}, _never),
        cache.invalidate(tag="t"),
        cache.invalidate(pattern="t*"),
        cache.invalidate(older_than_s=1),
        cache.invalidate_request(QUESTION),
        cache.lookup_semantic(QUESTION),
    ):
        with pytest.raises(InvalidRequest, match="require_tenant"):
            await call
    client = cache.wrap(upstream.client())
    with pytest.raises(InvalidRequest, match="require_tenant"):
        await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}]
        )
    assert upstream.calls == 0


async def test_required_tenant_leaves_what_is_shared_and_all_within_reach(make_cache):
    cache = make_cache(require_tenant=True)
    options: dict[str, Any] = {"tenant": "a", "shared_scope": "faq"}
    await cache.chat(QUESTION, **options)
    await cache.invalidate(shared_scope="faq")
    assert await cache.lookup_exact(QUESTION, **options) is None
    await cache.chat(QUESTION, tenant="a")
    await cache.clear()
    assert await cache.lookup_exact(QUESTION, tenant="a") is None


async def test_wrapped_clients_of_two_tenants_share_nothing(cache, upstream):
    messages: Any = [{"role": "user", "content": QUESTION}]
    for tenant in ("a", "b"):
        client = cache.wrap(upstream.client(), tenant=tenant)
        for _ in range(2):
            await client.chat.completions.create(model="m", messages=messages)
    assert upstream.calls == 2
