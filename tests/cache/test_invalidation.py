"""What is invalidated is gone at once, for everybody, and does not come back."""

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from llm_cache import LLMCache
from llm_cache.errors import (
    CacheClosed,
    InvalidRequest,
    PartialInvalidation,
)
from llm_cache.testing import FakeClock

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."
OPTIONS: dict[str, Any] = {
    "model": "m",
    "system": "Be brief.",
    "tags": ["geo", "b c"],
    "depends_on": ["doc:42@v3"],
}
Invalidate = Callable[[LLMCache, str], Awaitable[Any]]

KINDS: dict[str, Invalidate] = {
    "key": lambda cache, key: cache.invalidate(key=key),
    "request": lambda cache, _: cache.invalidate_request(QUESTION, **OPTIONS),
    "tag": lambda cache, _: cache.invalidate(tag="b c"),
    "dependency": lambda cache, _: cache.invalidate(dependency="doc:42"),
    "version of a dependency": lambda cache, _: cache.invalidate(dependency="doc:42@v3"),
    "model": lambda cache, _: cache.invalidate(model="m"),
    "system": lambda cache, _: cache.invalidate(system="Be brief."),
    "age": lambda cache, _: cache.invalidate(older_than_s=0),
    "pattern": lambda cache, _: cache.invalidate(pattern="what*france?"),
    "tenant": lambda cache, _: cache.invalidate(tenant=None),
    "tag of a tenant": lambda cache, _: cache.invalidate(tag="geo", tenant=None),
    "pattern of a tenant": lambda cache, _: cache.invalidate(pattern="*capital*", tenant=None),
    "reject": lambda cache, key: cache.reject(key),
    "clear": lambda cache, _: cache.clear(),
}
OTHERS: dict[str, Invalidate] = {
    "tag": lambda cache, _: cache.invalidate(tag="c"),
    "dependency": lambda cache, _: cache.invalidate(dependency="doc:4"),
    "version of a dependency": lambda cache, _: cache.invalidate(dependency="doc:42@v2"),
    "model": lambda cache, _: cache.invalidate(model="gpt-4o-mini"),
    "system": lambda cache, _: cache.invalidate(system="Be brief"),
    "age": lambda cache, _: cache.invalidate(older_than_s=60),
    "pattern": lambda cache, _: cache.invalidate(pattern="capital*"),
    "sign of a glob": lambda cache, _: cache.invalidate(pattern="[w]hat*"),
    "tenant": lambda cache, _: cache.invalidate(tenant="acme"),
    "tag of a tenant": lambda cache, _: cache.invalidate(tag="geo", tenant="acme"),
    "key for a tenant": lambda cache, key: cache.invalidate(key=key, tenant="acme"),
    "pattern for a tenant": lambda cache, _: cache.invalidate(pattern="w*", tenant="acme"),
    "shared scope": lambda cache, _: cache.invalidate(shared_scope="geo"),
    "dry run": lambda cache, key: cache.invalidate(key=key, dry_run=True),
    "dry run of a tag": lambda cache, _: cache.invalidate(tag="geo", dry_run=True),
    "dry run of a pattern": lambda cache, _: cache.invalidate(pattern="w*", dry_run=True),
}


async def settle(cache: LLMCache) -> None:
    await cache._sweeper.settle()


@pytest.fixture
def workers(make_cache) -> tuple[LLMCache, LLMCache]:
    return make_cache(), make_cache()


# ---------------------------------------------------------------------------- every kind


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_invalidated_is_gone_for_every_worker(workers, embedder, kind):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    mine, other = workers
    key = (await mine.chat(QUESTION, **OPTIONS)).key
    assert (await other.chat(QUESTION, **OPTIONS)).status == "exact"
    assert (await other.chat(REPHRASED, **OPTIONS)).status == "semantic"

    await KINDS[kind](mine, key)

    for worker in workers:
        assert await worker.lookup_exact(QUESTION, **OPTIONS) is None
        assert await worker.lookup_semantic(REPHRASED, **OPTIONS) is None
        assert await worker.lookup_exact(REPHRASED, **OPTIONS) is None


@pytest.mark.parametrize("kind", OTHERS)
async def test_what_is_not_meant_stays(workers, embedder, kind):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    mine, other = workers
    key = (await mine.chat(QUESTION, **OPTIONS)).key
    await OTHERS[kind](mine, key)
    await settle(mine)

    for worker in workers:
        assert (await worker.chat(QUESTION, **OPTIONS)).status == "exact"
    assert (await other.chat(REPHRASED, **OPTIONS)).status == "semantic"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", [False, True])
async def test_store_under_way_brings_nothing_back(workers, upstream, kind, stream):
    mine, other = workers
    key = (await mine.chat(QUESTION, **OPTIONS)).key
    upstream.hold()
    call = asyncio.create_task(
        mine.chat(QUESTION, cache_control="no-cache", stream=stream, **OPTIONS)
    )
    await upstream.called(2)
    await KINDS[kind](other, key)
    upstream.answer("made of what was invalidated")
    late = await call
    assert "".join([p async for p in late]) if stream else late.text

    # What was stored after the moment that `older_than_s` names is younger.
    alive = kind == "age"
    for worker in workers:
        assert (await worker.lookup_exact(QUESTION, **OPTIONS) is not None) == alive


@pytest.mark.parametrize("kind", set(KINDS) - {"age", "reject", "key"})
async def test_first_store_that_is_under_way_is_dead_on_arrival(workers, upstream, kind):
    """Nothing is there yet that an index or a key could name."""
    mine, other = workers
    upstream.hold()
    call = asyncio.create_task(mine.chat(QUESTION, **OPTIONS))
    await upstream.called()
    await KINDS[kind](other, "")
    upstream.answer("made of what was invalidated")
    await call
    for worker in workers:
        assert await worker.lookup_exact(QUESTION, **OPTIONS) is None
        assert await worker.lookup_semantic(QUESTION, **OPTIONS) is None


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_stored_afterwards_lives(workers, kind):
    mine, other = workers
    key = (await mine.chat(QUESTION, **OPTIONS)).key
    await KINDS[kind](other, key)
    await settle(other)
    await mine.chat(QUESTION, **OPTIONS)
    for worker in workers:
        assert (await worker.chat(QUESTION, **OPTIONS)).status == "exact"


@pytest.mark.parametrize("kind", set(KINDS) - {"key", "reject"})
async def test_whoever_comes_after_an_invalidation_shares_nothing_begun_before(
    workers, upstream, kind
):
    mine, other = workers
    upstream.hold()
    before = asyncio.create_task(mine.chat(QUESTION, **OPTIONS))
    await upstream.called()
    await KINDS[kind](mine, "")
    here = asyncio.create_task(mine.chat(QUESTION, **OPTIONS))
    there = asyncio.create_task(other.chat(QUESTION, **OPTIONS))
    if kind == "age":
        # A call that was under way before is no answer stored before.
        upstream.release()
        await asyncio.gather(before, here, there)
        return
    await _until_waiting(other)
    upstream.answer("old")
    assert (await before).text == "old"
    await upstream.called(2)
    upstream.release()
    assert "old" not in {(await here).text, (await there).text}


@pytest.mark.parametrize("kind", ["clear", "tag", "pattern"])
async def test_stream_that_began_before_an_invalidation_is_not_joined_after_it(
    cache, upstream, kind
):
    upstream.hold()
    before = asyncio.create_task(cache.chat(QUESTION, stream=True, **OPTIONS))
    await upstream.called()
    await KINDS[kind](cache, "")
    after = asyncio.create_task(cache.chat(QUESTION, stream=True, **OPTIONS))
    upstream.answer("old")
    assert "".join([piece async for piece in await before]) == "old"
    await upstream.called(2)
    upstream.answer("new")
    assert "".join([piece async for piece in await after]) == "new"


async def _until_waiting(cache: LLMCache) -> None:
    """Return when a call of *cache* waits for the lease of another."""
    async with asyncio.timeout(10):
        while not cache._engine._leases._landings._ears:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)


# ---------------------------------------------------------------------------- what is reached


async def test_numbers_of_answers_are_told_before_they_are_invalidated(cache):
    for i in range(7):
        await cache.chat(f"question {i}", tags=["odd"] if i % 2 else ["even"], tenant="acme")
    for selection, count in (
        ({"tag": "odd"}, 3),
        ({"tag": "odd", "tenant": "acme"}, 3),
        ({"tag": "odd", "tenant": None}, 0),
        ({"tenant": "acme"}, 7),
        ({"older_than_s": 0}, 7),
        ({"older_than_s": 3_600}, 0),
        ({"pattern": "question ?"}, 7),
        ({"pattern": "QUESTION  3"}, 1),
        ({"pattern": "*3*", "tenant": None}, 0),
    ):
        told = await cache.invalidate(**selection, dry_run=True)
        assert (told.reached, told.complete, told.dry_run) == (count, True, True), selection
    assert (await cache.invalidate(tag="odd")).reached is None
    assert (await cache.invalidate(tag="odd", dry_run=True)).reached == 0
    assert (await cache.invalidate(tenant="acme", dry_run=True)).reached == 4
    assert (await cache.invalidate(pattern="question*")).reached == 4


async def test_aliases_are_not_counted_as_answers(cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await cache.chat(QUESTION, tags=["t"])
    await cache.chat(REPHRASED, tags=["t"])
    assert (await cache.invalidate(tag="t", dry_run=True)).reached == 1
    assert (await cache.invalidate(pattern="*capital*", dry_run=True)).reached == 1


async def test_older_answers_go_and_younger_stay(make_cache):
    clock = FakeClock()
    cache = make_cache(clock=clock)
    await cache.chat("old")
    clock.advance(100)
    await cache.chat("young")
    await cache.invalidate(older_than_s=50)
    assert await cache.lookup_exact("old") is None
    assert await cache.lookup_exact("young") is not None


async def test_answers_made_from_answers_go_with_them(cache):
    a = await cache.chat("a", depends_on=["doc:1@v1"])
    b = await cache.chat("b", depends_on=[a.key])
    await cache.chat("c", depends_on=[b.key, "doc:2"])
    await cache.chat("d", depends_on=["doc:2"])

    await cache.invalidate(dependency="doc:1")
    found = [await cache.lookup_exact(name) for name in "abcd"]
    assert [reply is not None for reply in found] == [False, False, False, True]


@pytest.mark.parametrize("way", ["invalidate", "reject"])
async def test_what_was_made_from_one_answer_goes_with_it(cache, way):
    a = await cache.chat("a")
    b = await cache.chat("b", depends_on=[a.key])
    await cache.chat("c", depends_on=[b.key])
    if way == "invalidate":
        await cache.invalidate(key=a.key)
    else:
        await cache.reject(a.key)
    assert [await cache.lookup_exact(name) for name in "abc"] == [None] * 3


async def test_what_was_made_from_an_alias_was_made_from_its_origin(cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    origin = await cache.chat(QUESTION)
    await cache.chat(REPHRASED)
    alias = (await cache.explain(REPHRASED)).key
    assert alias != origin.key
    await cache.chat("made of it", depends_on=[alias])

    await cache.invalidate(key=origin.key)
    assert await cache.lookup_exact("made of it") is None


async def test_answer_made_from_one_that_is_gone_is_served_but_not_stored(cache):
    a = await cache.chat("a")
    await cache.invalidate(key=a.key)
    b = await cache.chat("b", depends_on=[a.key])

    assert (b.status, b.reason, b.key) == ("miss", "source_gone", None)
    assert b.text
    assert cache.not_stored() == {"source_gone": 1}
    assert await cache.lookup_exact("b") is None


async def test_source_that_is_invalidated_while_it_is_used_takes_the_answer_along(cache, upstream):
    a = await cache.chat("a")
    upstream.hold()
    call = asyncio.create_task(cache.chat("b", depends_on=[a.key]))
    await upstream.called(2)
    await cache.invalidate(key=a.key)
    upstream.release()
    await call
    assert await cache.lookup_exact("b") is None


async def test_request_that_an_alias_answers_takes_the_answer_itself_along(cache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await cache.chat(QUESTION)
    await cache.chat(REPHRASED)
    assert (await cache.invalidate_request(REPHRASED)).reached == 1
    assert await cache.lookup_semantic(REPHRASED) is None
    assert await cache.lookup_exact(QUESTION) is None


async def test_system_prompt_in_parts_is_the_same_version(cache):
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    messages = [system, {"role": "user", "content": QUESTION}]
    await cache.chat(messages)
    await cache.invalidate(system="Be brief.")
    assert await cache.lookup_exact(messages) is None


async def test_tags_from_an_iterator_are_kept(cache):
    await cache.chat(QUESTION, tags=(tag for tag in ("a", "b")))
    await cache.invalidate(tag="b")
    assert await cache.lookup_exact(QUESTION) is None


async def test_answers_of_other_shapes_are_reached_too(cache):
    async def produce() -> Any:
        return {"any": "shape"}

    request = {"model": "claude", "system": [{"type": "text", "text": "S"}], "prompt": "x y z"}
    for selection in ({"model": "claude"}, {"system": "S"}, {"tag": "t"}, {"pattern": "x*"}):
        await cache.get_or_create(request, produce, tags=["t"])
        assert (await cache.get_or_create(request, produce)).status == "exact"
        await cache.invalidate(**selection)
        assert (await cache.get_or_create(request, produce, tags=["t"])).status == "miss"


async def test_embeddings_are_reached_by_tenant_and_model(make_cache, upstream):
    client = make_cache().wrap(upstream.client(), tenant="acme")
    cache = make_cache()
    for selection in ({"tenant": "acme"}, {"model": "e"}):
        before = upstream.embedding_calls
        await client.embeddings.create(model="e", input="x")
        await client.embeddings.create(model="e", input="x")
        assert upstream.embedding_calls == before + 1
        await cache.invalidate(**selection)


# ---------------------------------------------------------------------------- patterns


async def test_signs_of_a_query_language_mean_themselves(cache):
    odd = r"a|b (c) [d] {e} @f:g ~h -i \j %k% 'l' \"m\" ^n$ .+ 100%"
    await cache.chat(odd)
    await cache.chat("ab")
    assert (await cache.invalidate(pattern=odd, dry_run=True)).reached == 1
    assert (await cache.invalidate(pattern="a|b*", dry_run=True)).reached == 1
    assert (await cache.invalidate(pattern=".*", dry_run=True)).reached == 0
    assert (await cache.invalidate(pattern="[ab]b", dry_run=True)).reached == 0


async def test_pattern_sees_through_case_blanks_and_lines(cache):
    await cache.chat("Straße\n  in   BERLIN")
    for pattern in ("straße in berlin", "STRASSE  IN*", "*e\tin berlin"):
        assert (await cache.invalidate(pattern=pattern, dry_run=True)).reached == 1, pattern


async def test_pattern_reaches_no_more_than_its_limit(cache):
    for i in range(6):
        await cache.chat(f"question {i}")
    told = await cache.invalidate(pattern="question*", limit=4, dry_run=True)
    assert (told.reached, told.complete) == (4, False)
    done = await cache.invalidate(pattern="question*", limit=4)
    assert (done.reached, done.complete, done.dry_run) == (4, False, False)
    found = [await cache.lookup_exact(f"question {i}") for i in range(6)]
    assert sum(reply is not None for reply in found) == 2
    rest = await cache.invalidate(pattern="question*", limit=2)
    assert (rest.reached, rest.complete) == (2, True)


async def test_answers_that_no_index_has_are_not_passed_over_in_silence(cache):
    await cache.chat("question 1")
    await cache.chat("question 2", semantic=False)
    with pytest.raises(PartialInvalidation, match="allow_partial"):
        await cache.invalidate(pattern="question*")
    assert await cache.lookup_exact("question 1") is not None

    done = await cache.invalidate(pattern="question*", allow_partial=True)
    assert (done.reached, done.complete) == (1, False)
    assert await cache.lookup_exact("question 1") is None
    # Whoever asks knows the prompt, and holds it against the pattern.
    assert await cache.lookup_exact("question 2", semantic=False) is None


async def test_answer_without_an_index_entry_is_forgotten_when_it_has_expired(make_cache):
    clock = FakeClock()
    cache = make_cache(clock=clock, ttl_s=10, stale_if_error_s=10)
    await cache.chat("question", semantic=False)
    clock.advance(39)
    with pytest.raises(PartialInvalidation):
        await cache.invalidate(pattern="q*")
    clock.advance(2)
    assert (await cache.invalidate(pattern="q*")).complete


async def test_pattern_tells_of_answers_without_prompts(make_cache):
    for settings in ({"semantic": False}, {"store_prompts": False, "guards": False}):
        cache = make_cache(**settings)
        await cache.chat("What is the capital of France?")
        with pytest.raises(PartialInvalidation, match="tag="):
            await cache.invalidate(pattern="*capital*")


async def test_exact_answer_whose_prompt_is_not_kept_is_reached_by_whoever_asks(make_cache):
    cache = make_cache(store_prompts=False, guards=False)
    await cache.chat(QUESTION)
    assert not (await cache.invalidate(pattern="what*", allow_partial=True)).complete
    assert await cache.lookup_exact(QUESTION) is None


async def test_worker_without_the_semantic_layer_reaches_what_others_stored(make_cache):
    cache = make_cache()
    await cache.chat(QUESTION)
    assert (await make_cache(semantic=False).invalidate(pattern="what*")).reached == 1
    assert await cache.lookup_exact(QUESTION) is None
    assert await cache.lookup_semantic(QUESTION) is None


@pytest.mark.one_server("a cluster is walked without cursors")
async def test_pattern_that_stops_early_leaves_no_cursor_behind(cache, redis):
    for i in range(6):
        await cache.chat(f"question {i}")
    before = await redis.execute_command("FT.INFO", cache._semantic.vectors.index)
    await cache.invalidate(pattern="question*", limit=1)
    after = await redis.execute_command("FT.INFO", cache._semantic.vectors.index)
    assert _cursors(after) == _cursors(before)


def _cursors(info: Any) -> Any:
    return info[b"cursor_stats"][b"index_total"]


# ---------------------------------------------------------------------------- Redis


async def test_nothing_else_in_this_redis_is_touched(make_cache, redis, namespace):
    names = [f"{namespace}.b:x:{{y}}", f"{namespace}b", f"x{namespace}:epoch", f"{namespace}.b:s:"]
    for name in names:
        await redis.set(name, name)
    await redis.hset(f"{namespace}.b:purges", mapping={"epoch": "1"})
    neighbour = make_cache(namespace=f"{namespace}.b2")
    await neighbour.chat(QUESTION, **OPTIONS)
    await neighbour.server_stats()
    before = await _checksums(redis, namespace)
    assert len(before) > len(names)

    cache = make_cache()
    cache._sweeper._rest_s = 0
    for invalidate in KINDS.values():
        key = (await cache.chat(QUESTION, **OPTIONS)).key
        await invalidate(cache, key)
        await settle(cache)
    assert await _checksums(redis, namespace) == before


async def _checksums(redis: Any, namespace: str) -> dict[bytes, str]:
    """Return what stands in this test's keys outside of *namespace*; other tests' may expire."""
    sums = {}
    async for name in redis.scan_iter(f"*{namespace}*", count=1_000):
        if not name.startswith(f"{namespace}:".encode()) and (dump := await redis.dump(name)):
            sums[name] = hashlib.sha256(dump).hexdigest()
    return sums


FORBIDDEN = ("KEYS", "FLUSHDB", "FLUSHALL", "SCAN", "RANDOMKEY")


@pytest.mark.one_server("MONITOR hears one server")
async def test_no_command_walks_the_keys_on_the_path_of_a_call(make_cache, redis, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    cache = make_cache(sweep=False)
    async with redis.monitor() as monitor:
        for invalidate in KINDS.values():
            key = (await cache.chat(QUESTION, **OPTIONS)).key
            await cache.chat(REPHRASED, **OPTIONS)
            await invalidate(cache, key)
        await redis.echo("the end")
        seen = []
        while "the end" not in (command := (await monitor.next_command())["command"]):
            seen.append(command.split()[0].upper())
    assert "MGET" in seen
    assert not {*seen} & {*FORBIDDEN}


@pytest.mark.one_server("MONITOR hears one server")
async def test_walk_in_the_background_scans_and_does_nothing_worse(make_cache, redis):
    cache = make_cache()
    await cache.chat(QUESTION)
    async with redis.monitor() as monitor:
        await cache.clear()
        await settle(cache)
        await redis.echo("the end")
        seen = []
        while "the end" not in (command := (await monitor.next_command())["command"]):
            seen.append(command.split()[0].upper())
    assert "SCAN" in seen
    assert not {*seen} & ({*FORBIDDEN} - {"SCAN"})


async def test_what_is_dead_is_removed_in_the_background(make_cache, redis, namespace, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    cache = make_cache()
    await cache.chat(QUESTION, tags=["old"])
    await cache.chat(REPHRASED, tags=["old"])
    kept = (await cache.chat("Who wrote Faust?")).key
    await cache.invalidate(tag="old")
    await settle(cache)
    left = [k for kind in ("x", "s", "refs") for k in await redis.keys(f"{namespace}:{kind}:*")]
    assert len(left) == 2
    assert kept.encode() in left


async def test_dead_answers_do_not_crowd_out_a_living_one(make_cache, embedder):
    cache = make_cache(sweep=False)
    near = [f"Name the capital of France, {word}" for word in _words(30)]
    for prompt in near:
        embedder.similar(QUESTION, prompt, 0.99)
        await cache.store_semantic(prompt, "dead", tags=["old"])
    embedder.similar(QUESTION, REPHRASED, 0.95)
    await cache.store_semantic(REPHRASED, "alive")
    await cache.invalidate(tag="old")

    assert (await cache.chat(QUESTION)).text == "alive"


def _words(count: int) -> list[str]:
    """Return words that no guard takes for numbers or names."""
    return ["please " + "very " * i + "soon" for i in range(count)]


@pytest.mark.one_server("servers of a cluster talk to each other")
async def test_invalidation_costs_as_many_commands_for_many_answers_as_for_one(make_cache, redis):
    cache = make_cache(sweep=False)

    async def cost() -> int:
        await cache.invalidate(tag="t")
        before = (await redis.info("stats"))["total_commands_processed"]
        await cache.invalidate(tag="t")
        after = (await redis.info("stats"))["total_commands_processed"]
        return int(after - before)

    await cache.chat("0", tags=["t"])
    one = await cost()
    for i in range(50):
        await cache.chat(f"{i}", tags=["t"])
    assert await cost() == one


@pytest.mark.parametrize("seed", range(3))
async def test_losing_control_keys_at_any_moment_brings_nothing_back(
    make_cache, redis, namespace, seed
):
    chance = random.Random(seed)
    workers = [make_cache(sweep=False) for _ in range(3)]
    dead: set[str | None] = set()
    for step in range(120):
        worker = chance.choice(workers)
        name = f"t{chance.randrange(4)}"
        match chance.randrange(4):
            case 0:
                lost = chance.choice([["epoch"], ["purges"], ["epoch", "purges"]])
                await redis.delete(*(f"{namespace}:{key}" for key in lost))
            case 1:
                # What is there now, alive or dead, must never be seen again.
                async for key in redis.scan_iter(f"{namespace}:x:*"):
                    dead |= await _texts(worker, name) if key else set()
                await worker.invalidate(tag=name)
            case _:
                reply = await worker.chat(f"step {step % 5}", tags=[name], model=name)
                assert reply.text not in dead or reply.status == "miss"
    assert dead


async def _texts(cache: LLMCache, name: str) -> set[str | None]:
    found = [await cache.lookup_exact(f"step {i}", model=name) for i in range(5)]
    return {reply.key for reply in found if reply}


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "say what"),
        ({"tag": ""}, "tag"),
        ({"tag": 3}, "tag"),
        ({"tag": "\ud800"}, "tag"),
        ({"tag": "x" * 4_001}, "4000"),
        ({"dependency": ""}, "dependency"),
        ({"model": ""}, "model"),
        ({"system": ""}, "system"),
        ({"shared_scope": ""}, "shared_scope"),
        ({"tenant": ""}, "tenant"),
        ({"tenant": 5}, "tenant"),
        ({"tenant": "\udfff"}, "tenant"),
        ({"tag": "a", "model": "b"}, "tag, model"),
        ({"tag": "a", "older_than_s": 1}, "tag, older_than_s"),
        ({"key": "x", "pattern": "y"}, "key, pattern"),
        ({"key": "x"}, "namespace"),
        ({"key": "llm_cache:x:{short}"}, "namespace"),
        ({"older_than_s": -1}, "older_than_s"),
        ({"older_than_s": 1e12}, "older_than_s"),
        ({"older_than_s": float("nan")}, "older_than_s"),
        ({"older_than_s": "1"}, "older_than_s"),
        ({"pattern": ""}, "pattern"),
        ({"pattern": "*"}, "every prompt"),
        ({"pattern": " *?* "}, "every prompt"),
        ({"pattern": "x" * 1_001}, "1000"),
        ({"pattern": "x*", "limit": 0}, "limit"),
        ({"pattern": "x*", "limit": -1}, "limit"),
        ({"pattern": "x*", "limit": 1.5}, "limit"),
        ({"pattern": "x*", "limit": True}, "limit"),
        ({"tag": "a", "limit": 5}, "pattern="),
        ({"shared_scope": "s", "tenant": "t"}, "tenant="),
    ],
)
async def test_invalidation_that_cannot_be_meant_changes_nothing(
    cache, redis, namespace, arguments, words
):
    await cache.chat(QUESTION)
    before = await redis.hgetall(f"{namespace}:purges")
    with pytest.raises(InvalidRequest, match=words):
        await cache.invalidate(**arguments)
    assert await redis.hgetall(f"{namespace}:purges") == before
    assert (await cache.chat(QUESTION)).status == "exact"


@pytest.mark.parametrize("name", ["tags", "depends_on"])
@pytest.mark.parametrize("value", ["one text", [""], [3], ["\ud800"], ["x" * 4_001], 7, [b"x"]])
async def test_names_that_cannot_be_meant_are_refused(cache, upstream, name, value):
    with pytest.raises(InvalidRequest):
        await cache.chat(QUESTION, **{name: value})
    assert upstream.calls == 0


@pytest.mark.parametrize("name", ["reject", "approve"])
async def test_feedback_on_what_is_no_answer_is_refused(cache, name):
    with pytest.raises(InvalidRequest, match="namespace"):
        await getattr(cache, name)("nonsense", QUESTION)


async def test_answer_with_more_names_than_fit_is_served_and_not_stored(cache):
    reply = await cache.chat(QUESTION, tags=[f"{i:04}" + "x" * 3_000 for i in range(30)])
    assert (reply.status, reply.reason) == ("miss", "too_large")


async def test_answer_with_many_tags_is_found_by_the_walk(cache, redis, namespace):
    await cache.chat(QUESTION, tags=[f"tag number {i}" for i in range(500)])
    assert (await cache.invalidate(tag="tag number 499", dry_run=True)).reached == 1
    await cache.invalidate(tag="tag number 499")
    await settle(cache)
    assert await redis.keys(f"{namespace}:x:*") == []


async def test_key_of_an_answer_that_is_gone_reaches_none(cache):
    key = (await cache.chat(QUESTION)).key
    assert (await cache.invalidate(key=key)).reached == 1
    assert (await cache.invalidate(key=key)).reached == 0


async def test_closed_cache_invalidates_nothing(make_cache):
    cache = await make_cache().open()
    await cache.aclose()
    for work in (cache.clear(), cache.invalidate(tag="x"), cache.reject("x")):
        with pytest.raises(CacheClosed):
            await work


@pytest.mark.one_server("the benchmark measures one server")
async def test_twenty_thousand_answers_are_gone_with_one_invalidation(redis_url, namespace):
    if "+" in redis_url:
        pytest.skip("the benchmark opens its own way to one server")
    from benchmarks.invalidation import measure

    figures = await measure(redis_url, namespace=namespace, entries=20_000, readers=2)
    assert figures.alive_before == figures.asked
    assert figures.alive_after == 0
    assert figures.left_after_walk == 0


async def test_whoever_has_no_embedder_removes_what_leads_to_dead_answers_too(
    make_cache, redis, namespace
):
    await make_cache().chat(QUESTION, tags=["old"])
    exact = make_cache(semantic=False)
    await exact.invalidate(tag="old")
    await exact._sweeper.settle()
    assert [name async for name in redis.scan_iter(f"{namespace}:s:*")] == []
