"""Answers never cross: not between scopes, tenants, namespaces, nor vector spaces."""

import asyncio
from typing import Any

import pytest

from llm_cache.errors import InvalidRequest
from llm_cache.testing import FakeEmbedder, expected_answer

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."

OTHERS: list[dict[str, Any]] = [
    {"model": "gpt-4o"},
    {"system": "Answer in French."},
    {"system": None},
    {"temperature": 0.7},
    {"seed": 1},
    {"n": 2},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    {"response_format": {"type": "json_object"}},
    {"tenant": "acme"},
    {"some_new_parameter": True},
    {"extra_headers": {"X-Model-Variant": "b"}},
]


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: next(iter(other)))
async def test_call_that_differs_asks_the_model(cache, upstream, embedder, other):
    await cache.chat(QUESTION)

    assert (await cache.chat(QUESTION, **other)).status == "miss"
    assert upstream.calls == 2


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: next(iter(other)))
async def test_neither_layer_finds_the_answer_of_another_call(cache, embedder, other):
    embedder.similar(QUESTION, REPHRASED, 0.99)
    await cache.store_semantic(QUESTION, "an answer")

    assert await cache.lookup_exact(QUESTION, **other) is None
    assert await cache.lookup_semantic(QUESTION, **other) is None
    assert await cache.lookup_semantic(REPHRASED, **other) is None
    assert (await cache.lookup_semantic(REPHRASED)).text == "an answer"


async def test_earlier_turns_part_the_scopes(cache, embedder):
    def talk(topic: str, question: str) -> list[dict[str, Any]]:
        return [
            {"role": "user", "content": f"Let us talk about {topic}."},
            {"role": "assistant", "content": "Gladly."},
            {"role": "user", "content": question},
        ]

    embedder.similar("How large is it?", "How big is it?", 0.99)
    await cache.chat(talk("Paris", "How large is it?"))

    assert (await cache.chat(talk("London", "How big is it?"))).status == "miss"
    assert (await cache.chat(talk("Paris", "How big is it?"))).status == "semantic"


async def test_many_tenants_with_the_same_prompt_get_their_own_answers(cache, upstream):
    async def ask(i: int) -> tuple[str, str]:
        reply = await cache.chat(QUESTION, tenant=f"tenant {i}", system=f"You serve {i}.")
        return reply.text, reply.status

    first = await asyncio.gather(*(ask(i) for i in range(200)))
    second = await asyncio.gather(*(ask(i) for i in range(200)))

    assert [text for text, _ in first] == [text for text, _ in second]
    assert {status for _, status in second} == {"exact"}
    assert len({text for text, _ in first}) == 200


@pytest.mark.parametrize("tenant", ["", 3, b"x"])
async def test_tenant_that_is_no_name_is_refused(cache, tenant):
    with pytest.raises(InvalidRequest, match="tenant"):
        await cache.chat(QUESTION, tenant=tenant)


async def test_tenant_can_be_required(make_cache):
    cache = make_cache(require_tenant=True)
    with pytest.raises(InvalidRequest, match="require_tenant"):
        await cache.chat(QUESTION)
    assert (await cache.chat(QUESTION, tenant="acme")).status == "miss"


async def test_namespaces_see_nothing_of_each_other(make_cache, namespace):
    plain, dotted = make_cache(), make_cache(namespace=f"{namespace}.b")
    await plain.store_semantic(QUESTION, "of the plain one")

    assert await dotted.lookup_exact(QUESTION) is None
    assert await dotted.lookup_semantic(QUESTION) is None
    await dotted.store_semantic(QUESTION, "of the dotted one")
    assert (await plain.lookup_semantic(QUESTION)).text == "of the plain one"
    assert (await plain.server_stats())["entries"] == 1


async def test_embedders_of_equal_dimension_see_nothing_of_each_other(make_cache):
    a = make_cache(embedder=FakeEmbedder(model_id="a"))
    b = make_cache(embedder=FakeEmbedder(model_id="b"))
    await a.store_semantic(QUESTION, "of model a")

    assert await b.lookup_semantic(QUESTION) is None
    assert (await b.server_stats())["entries"] == 0
    assert (await a.lookup_semantic(QUESTION)).text == "of model a"


async def test_cache_version_leaves_older_answers_behind(make_cache):
    await make_cache().chat(QUESTION)
    assert (await make_cache(cache_version="2").chat(QUESTION)).status == "miss"
    assert (await make_cache().chat(QUESTION)).status == "exact"


async def test_every_answer_is_the_one_the_model_gave_to_this_request(cache, upstream):
    questions = [f"Question {word}" for word in ("alpha", "beta", "gamma", "delta")]
    for question in questions * 2:
        reply = await cache.chat(question)
        bodies = [request.body for request in upstream.requests]
        body = next(b for b in bodies if b["messages"][1]["content"] == question)
        assert reply.text == expected_answer(body)


class NarrowEmbedder(FakeEmbedder):
    """Cannot see emoji, and cannot compare text in Cyrillic at all."""

    def blind_spots(self, text: str) -> str | None:
        if any("а" <= letter <= "я" for letter in text):
            return None
        return "".join(letter for letter in text if ord(letter) > 0x1F000)


async def test_prompts_that_differ_in_what_the_embedder_cannot_see_are_kept_apart(make_cache):
    embedder = NarrowEmbedder()
    cache = make_cache(embedder=embedder, guards=False)
    for text in ("What does 🙂 mean?", "What does 🙃 mean?", "What does 🙂 mean, please?"):
        embedder.similar("base", text, 0.99)
    await cache.chat("What does 🙂 mean?")

    assert (await cache.chat("What does 🙃 mean?")).status == "miss"
    assert (await cache.chat("What does 🙂 mean, please?")).status == "semantic"


async def test_prompt_that_the_embedder_cannot_compare_is_only_looked_up_exactly(make_cache):
    embedder = NarrowEmbedder()
    cache = make_cache(embedder=embedder)

    assert (await cache.chat("Как дела?")).status == "miss"
    assert (await cache.chat("Как дела?")).status == "exact"
    assert embedder.calls == 0


async def test_models_at_two_addresses_share_nothing(make_cache, upstream):
    there = upstream.client(base_url=upstream.base_url)
    elsewhere = upstream.client(base_url=upstream.base_url.replace("127.0.0.1", "localhost"))
    await make_cache(client=there).chat(QUESTION)

    assert await make_cache(client=elsewhere).lookup_exact(QUESTION) is None


async def test_service_may_be_named_instead_of_its_address(make_cache, upstream):
    there = upstream.client()
    elsewhere = upstream.client(base_url=upstream.base_url.replace("127.0.0.1", "localhost"))
    await make_cache(client=there, upstream_id="mine").chat(QUESTION)

    moved = make_cache(client=elsewhere, upstream_id="mine")
    assert (await moved.chat(QUESTION)).status == "exact"
    assert await make_cache(client=there, upstream_id="other").lookup_exact(QUESTION) is None
