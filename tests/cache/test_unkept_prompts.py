"""`store_prompts=False`: a signature stands in the place of a prompt, and the guards read that."""

import pytest

from llm_cache.events import DependencyFailed
from llm_cache.inspection import inspect_stored

QUESTION = "How do I enable dark mode for user 48213 Arbuthnot?"
SAME = "How can I enable dark mode for user 48213 Arbuthnot?"
TRAP = "How do I disable dark mode for user 48213 Arbuthnot?"


@pytest.fixture
def terse(make_cache):
    return make_cache(store_prompts=False)


@pytest.mark.parametrize("encryption_keys", [None, [bytes(32)]])
async def test_guards_let_through_and_object_by_the_signature_alone(
    make_cache, embedder, events, encryption_keys
):
    cache = make_cache(store_prompts=False, encryption_keys=encryption_keys)
    for other in (SAME, TRAP):
        embedder.similar(QUESTION, other, 0.99)
    await cache.chat(QUESTION)

    trapped = await cache.explain(TRAP)
    assert [n.verdict for n in trapped.neighbours] == ["guard: antonyms"]
    assert (await cache.chat(SAME)).status == "semantic"
    assert events.of(DependencyFailed) == []


async def test_workers_that_keep_prompts_and_those_that_do_not_serve_each_other(
    make_cache, terse, embedder
):
    embedder.similar(QUESTION, SAME, 0.99)
    embedder.similar("How tall is K2?", "What is the height of K2?", 0.99)
    talkative = make_cache()
    await terse.chat(QUESTION)
    await talkative.chat("How tall is K2?")

    assert (await talkative.chat(SAME)).status == "semantic"
    assert (await terse.chat("What is the height of K2?")).status == "semantic"


async def test_signature_is_short_and_is_no_prompt(terse, redis, namespace):
    prompts = (QUESTION, QUESTION * 500)
    for prompt in prompts:
        await terse.chat(prompt)
    async for name in redis.scan_iter(f"{namespace}:s:*"):
        kept = await redis.hget(name, "prompt")
        assert len(kept) <= 257
        assert b"dark mode" not in kept


async def test_prompt_that_is_not_kept_is_not_inspected_nor_served_without_its_words(
    terse, embedder, redis, namespace
):
    embedder.similar(QUESTION, SAME, 0.99)
    reply = await terse.chat(QUESTION)
    seen = await inspect_stored(terse, reply.key)
    assert seen is not None
    assert [part.prompt for part in seen.semantic] == [""]

    async for name in redis.scan_iter(f"{namespace}:s:*"):
        await redis.hset(name, "prompt", b"\xfe\x01 damaged")
    assert (await terse.chat(SAME)).status == "miss"


async def test_policy_of_a_worker_without_guards_still_leaves_signatures_for_others(
    make_cache, terse, embedder
):
    embedder.similar(QUESTION, TRAP, 0.99)
    await make_cache(store_prompts=False, guards=False).chat(QUESTION)
    assert (await terse.chat(TRAP)).status == "miss"


async def test_import_keeps_no_more_of_a_prompt_than_the_cache_does(
    make_cache, terse, redis, namespace, tmp_path
):
    from llm_cache.transfer import export_entries, import_entries

    talkative = make_cache()
    await talkative.chat(QUESTION)
    await export_entries(talkative, tmp_path / "file")
    await import_entries(terse, tmp_path / "file", replace_newer=True)

    async for name in redis.scan_iter(f"{namespace}:s:*"):
        assert (await redis.hget(name, "prompt"))[:1] == b"\xfe"
    assert (await terse.lookup_semantic(QUESTION)).similarity > 0.99
