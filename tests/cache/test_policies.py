"""Which policy decides: the calibrated one of the tenant, else a rule; never a looser one."""

import json
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest

from llm_cache import LocalEmbedder
from llm_cache._core.hit_policy import FEATURES, CalibratedPolicy
from llm_cache._core.keys import fingerprint
from llm_cache._core.policy_file import StoredPolicy, encode
from llm_cache.errors import ConfigurationError, InvalidRequest, StoreUnavailable, UnusablePolicy
from llm_cache.events import DependencyFailed
from llm_cache.testing import FakeEmbedder
from tests.cache.test_verifying import Says
from tests.core.test_policy_file import STORED

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."
OTHERS = ("How do I bake bread?", "Who wrote Faust?", "Is tea hot?", "Do cats swim?")


def from_similarity(least: float) -> StoredPolicy:
    """Return a policy of the fake embedder that looks at nothing but similarity and guards."""
    weights = [100.0 if name == "similarity" else 0.0 for name in FEATURES]
    policy = CalibratedPolicy(0.0, tuple(weights), 100 * least)
    return replace(STORED, policy=policy, space=fingerprint("fake", 64), model_id="fake")


def newer(stored: StoredPolicy) -> bytes:
    return json.dumps({**json.loads(encode(stored)), "version": 99}).encode()


@pytest.fixture
def stored_alike(embedder):
    """Store an answer, with a rephrased question at some similarity from it."""

    async def store(cache, similarity: float, **options: str) -> None:
        embedder.similar(QUESTION, REPHRASED, similarity)
        await cache.chat(QUESTION, **options)

    return store


async def test_a_policy_decides_as_soon_as_it_is_set(cache, stored_alike):
    await stored_alike(cache, 0.85)
    assert await cache.lookup_semantic(REPHRASED) is None
    await cache.set_policy(from_similarity(0.8))

    assert (await cache.chat(REPHRASED)).status == "semantic"
    assert cache.stats()["policy"] == f"certified: {STORED.certificate}"
    assert (await cache.server_stats())["policy"] == cache.stats()["policy"]


async def test_a_policy_may_be_stricter_than_the_rule(cache, stored_alike):
    await stored_alike(cache, 0.95)
    await cache.set_policy(from_similarity(0.98))
    told = await cache.explain(REPHRASED)

    assert (await cache.chat(REPHRASED)).status == "miss"
    assert told.neighbours[0].verdict.startswith("confidence ")
    assert (told.policy, told.similarity_threshold) == (cache.stats()["policy"], None)


async def test_guards_veto_under_a_policy_too(cache, embedder):
    embedder.similar(QUESTION, "What is the capital of Spain?", 0.99)
    await cache.chat(QUESTION)
    await cache.set_policy(from_similarity(0.5))
    assert (await cache.chat("What is the capital of Spain?")).status == "miss"


async def test_a_verifier_may_let_pass_what_a_policy_refuses(make_cache, stored_alike):
    cache = make_cache(verifier=Says(True), verify_from=0.8)
    await stored_alike(cache, 0.85)
    await cache.set_policy(from_similarity(0.98))
    assert (await cache.chat(REPHRASED)).status == "semantic"


async def test_all_that_are_stored_are_told_with_the_statistics_of_the_server(cache, make_cache):
    await cache.set_policy(from_similarity(0.8))
    await cache.set_policy(from_similarity(0.9), tenants=["acme"])
    looking = await make_cache(semantic=False).open()
    (policies,) = (await looking.server_stats())["policies"].values()
    assert sorted(policies) == ["*", "tenant:acme"]
    assert all(said.startswith("certified: at most") for said in policies.values())
    await cache.remove_policy()
    await cache.remove_policy(tenants=["acme"])
    assert (await looking.server_stats())["policies"] == {}


async def test_it_can_be_removed(cache, stored_alike):
    await stored_alike(cache, 0.85)
    await cache.set_policy(from_similarity(0.8))
    assert await cache.remove_policy() == 1
    assert await cache.remove_policy() == 0

    assert await cache.lookup_semantic(REPHRASED) is None
    assert cache.stats()["policy"] == "uncertified: similarity at least 0.9, guards"


async def test_what_was_written_to_a_file_can_be_set(cache):
    await cache.set_policy(encode(from_similarity(0.8)))
    assert cache.stats()["policy"].startswith("certified: ")


@pytest.mark.parametrize("secret", [None, "0123456789abcdef"])
async def test_a_tenant_has_a_policy_of_its_own(make_cache, stored_alike, secret):
    cache = make_cache(tenant_secret=secret)
    for tenant in ("acme", "globex"):
        await stored_alike(cache, 0.85, tenant=tenant)
    await cache.set_policy(from_similarity(0.8), tenants=["acme"])

    assert (await cache.chat(REPHRASED, tenant="acme")).status == "semantic"
    assert (await cache.chat(REPHRASED, tenant="globex")).status == "miss"
    assert cache.stats(tenant="acme")["policy"].startswith("certified: ")
    assert cache.stats(tenant="globex")["policy"].startswith("uncertified: ")


async def test_a_worker_that_opens_later_follows_it(cache, make_cache):
    await cache.set_policy(from_similarity(0.8))
    other = await make_cache().open()
    assert other.stats()["policy"].startswith("certified: ")


async def test_a_worker_that_was_open_follows_it_in_a_while(cache, make_cache, monkeypatch):
    monkeypatch.setattr("llm_cache._decisions.RELOAD_S", 0.01)
    other = await make_cache().open()
    await cache.set_policy(from_similarity(0.8))
    while not other.stats()["policy"].startswith("certified: "):
        await other.lookup_exact(QUESTION)


async def test_while_redis_fails_the_last_one_is_followed(cache, events):
    await cache.set_policy(from_similarity(0.8))
    decisions = cache._semantic.decisions
    await cache._connection.aclose()
    with pytest.raises(StoreUnavailable):
        await decisions.reload()
    assert cache.stats()["policy"].startswith("certified: ")


# -- policies that must not be followed


async def test_under_a_policy_of_a_newer_release_nothing_is_served(
    make_cache, redis, stored_alike, events
):
    cache = make_cache()
    await stored_alike(cache, 0.99)
    await redis.hset(cache._keys.policy(fingerprint("fake", 64)), "*", newer(from_similarity(0.8)))
    late = await make_cache().open()
    await late._semantic.decisions.reload()

    assert (await late.chat(REPHRASED)).status == "miss"
    assert (await late.chat(QUESTION)).status == "exact"
    assert "update llm-cache" in late.stats()["policy"]
    (failed,) = events.of(DependencyFailed)
    assert (failed.dependency, type(failed.error)) == ("policy", UnusablePolicy)


async def test_a_policy_weighs_signatures_where_prompts_are_not_kept(make_cache, stored_alike):
    terse = make_cache(store_prompts=False)
    await terse.set_policy(from_similarity(0.5))
    await stored_alike(terse, 0.6)

    assert (await terse.chat(REPHRASED)).status == "semantic"
    assert "certified" in terse.stats()["policy"]


@pytest.mark.parametrize(
    ("policy", "error", "says"),
    [
        (STORED, UnusablePolicy, "embedder 'model/1'"),
        (newer(from_similarity(0.8)), UnusablePolicy, "update llm-cache"),
        (b"{}", UnusablePolicy, "not a calibrated policy"),
        (0.85, ConfigurationError, "calibration.stored"),
    ],
)
async def test_what_cannot_be_followed_is_not_written(cache, redis, policy, error, says):
    with pytest.raises(error, match=says):
        await cache.set_policy(policy)
    assert not await redis.exists(cache._keys.policy(fingerprint("fake", 64)))
    assert cache.stats()["policy"].startswith("uncertified: ")


@pytest.mark.parametrize("tenants", ["acme", [""], [None], [3]])
async def test_tenants_are_a_list_of_names(cache, redis, tenants):
    with pytest.raises(InvalidRequest, match="tenant"):
        await cache.set_policy(from_similarity(0.8), tenants=tenants)
    assert cache.stats()["policy"].startswith("uncertified: ")


async def test_without_the_semantic_layer_there_is_no_policy(make_cache):
    cache = make_cache(semantic=False)
    assert (await cache.server_stats())["policy"] is None
    with pytest.raises(ConfigurationError, match="semantic=False"):
        await cache.set_policy(from_similarity(0.8))


# -- the rule of thumb


class Isolating(FakeEmbedder):
    """Tells what is enough for a candidate that stands alone."""

    isolated_threshold = 0.75


async def test_a_candidate_that_stands_alone_needs_less(make_cache):
    embedder = Isolating()
    embedder.similar(QUESTION, REPHRASED, 0.8)
    one = make_cache(embedder=embedder)
    for prompt in (QUESTION, *OTHERS):
        await one.chat(prompt)
    strict = make_cache(embedder=embedder, similarity_threshold=0.9)

    assert await strict.lookup_semantic(REPHRASED) is None
    assert (await one.lookup_semantic(REPHRASED)).similarity == pytest.approx(0.8, abs=0.001)
    assert "0.75 where no other entry is near" in one.stats()["policy"]


async def test_with_a_rival_near_it_needs_as_much_as_any(make_cache):
    embedder = Isolating()
    rival = "Tell me the capital city of Spain."
    embedder.similar(QUESTION, REPHRASED, 0.8)
    embedder.set(rival, embedder.vector(REPHRASED))
    embedder.similar(REPHRASED, rival, 0.7)
    cache = make_cache(embedder=embedder)
    for prompt in (QUESTION, rival, *OTHERS):
        await cache.chat(prompt)

    assert await cache.lookup_semantic(REPHRASED) is None


@pytest.mark.parametrize("name", ["similarity_threshold", "isolated_threshold"])
@pytest.mark.parametrize("threshold", [75, -0.1, float("nan"), "0.8", True])
def test_a_threshold_of_an_embedder_that_is_none_is_refused(make_cache, name, threshold):
    embedder = Isolating()
    setattr(embedder, name, threshold)
    with pytest.raises(ConfigurationError, match=name):
        make_cache(embedder=embedder)


def test_a_threshold_of_an_embedder_may_be_any_real_number(make_cache):
    embedder = Isolating()
    embedder.similarity_threshold = np.float32(0.9)  # type: ignore[assignment]
    make_cache(embedder=embedder)


async def test_an_faq_asked_once_in_each_wording_is_answered_without_a_wrong_hit(make_cache):
    lines = files("llm_cache").joinpath("_data", "faq_groups.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    group_of: dict[str, str] = {}
    hits = wrong = 0
    cache = make_cache(embedder=LocalEmbedder())
    for at in np.random.default_rng(0).permutation(len(rows)).tolist():
        reply = await cache.chat(rows[at]["text"])
        if reply.status == "semantic":
            hits += 1
            wrong += group_of[reply.key] != rows[at]["group"]
        else:
            group_of[reply.key] = rows[at]["group"]

    assert wrong == 0
    assert hits / len(rows) >= 0.40
