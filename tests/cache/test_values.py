"""Any provider, in its own shape; and any async function."""

import asyncio
from typing import Any

import pytest

from llm_cache import LLMCache
from llm_cache.errors import ConfigurationError, InvalidRequest

QUESTION = "What is the capital of France?"
REPHRASED = "Tell me the capital city of France."


def anthropic(question: str, **changes: Any) -> dict[str, Any]:
    return {
        "model": "claude",
        "max_tokens": 100,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": [{"type": "text", "text": question}]}],
        **changes,
    }


def ollama(question: str, **changes: Any) -> dict[str, Any]:
    return {"model": "llama", "prompt": question, "options": {"temperature": 0}, **changes}


class Provider:
    """Counts its calls and answers each with a value of its own."""

    def __init__(self, **value: Any) -> None:
        self.calls = 0
        self.value = value

    async def __call__(self) -> dict[str, Any]:
        self.calls += 1
        return {"answer": self.calls, **self.value}


@pytest.mark.parametrize("shape", [anthropic, ollama])
async def test_request_of_any_shape_is_cached_in_both_layers(cache, embedder, shape):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    provider = Provider()

    value, status = await cache.get_or_create(shape(QUESTION), provider)
    assert (value, status) == ({"answer": 1}, "miss")
    assert (await cache.get_or_create(shape(QUESTION), provider)).status == "exact"
    found = await cache.get_or_create(shape(REPHRASED), provider)
    assert (found.value, found.status) == ({"answer": 1}, "semantic")
    assert provider.calls == 1


@pytest.mark.parametrize(
    "changes",
    [{"model": "other"}, {"system": "Be long."}, {"max_tokens": 5}, {"options": {"seed": 1}}],
)
@pytest.mark.parametrize("shape", [anthropic, ollama])
async def test_request_that_differs_shares_nothing(cache, embedder, shape, changes):
    embedder.similar(QUESTION, REPHRASED, 0.99)
    await cache.get_or_create(shape(QUESTION), Provider())

    for question in (QUESTION, REPHRASED):
        found = await cache.get_or_create(shape(question, **changes), Provider(), semantic=None)
        assert found.status == ("miss" if question == QUESTION else "semantic")
        assert found.value == {"answer": 1}


async def test_same_text_with_another_image_is_another_request(cache):
    def ask(image: str) -> dict[str, Any]:
        content = [{"type": "image", "source": image}, {"type": "text", "text": "What is this?"}]
        return anthropic("", messages=[{"role": "user", "content": content}])

    await cache.get_or_create(ask("a"), Provider())
    assert (await cache.get_or_create(ask("b"), Provider())).status == "miss"


async def test_request_without_text_is_found_exactly(cache, embedder):
    request = {"query": [1, 2, 3]}
    await cache.get_or_create(request, Provider())
    assert (await cache.get_or_create(request, Provider())).status == "exact"
    assert embedder.calls == 0


async def test_producers_are_kept_apart(cache):
    await cache.get_or_create({"prompt": "x"}, Provider(), producer="a")
    found = await cache.get_or_create({"prompt": "x"}, Provider(), producer="b")
    assert found.status == "miss"


async def test_value_and_chat_of_equal_words_are_kept_apart(cache, upstream):
    await cache.chat("x", system=None)
    messages = [{"role": "user", "content": "x"}]
    found = await cache.get_or_create({"messages": messages, "model": "gpt-4o-mini"}, Provider())
    assert found.status == "miss"


async def test_caller_decides_what_is_complete(cache):
    cut = Provider(stop_reason="max_tokens")

    def is_complete(value: Any) -> bool:
        return bool(value["stop_reason"] == "end_turn")

    found = await cache.get_or_create(anthropic(QUESTION), cut, store_if=is_complete)
    assert (found.status, found.reason, found.key) == ("miss", "not_wanted", None)
    await cache.get_or_create(anthropic(QUESTION), cut, store_if=is_complete)
    assert cut.calls == 2
    assert cache.not_stored() == {"not_wanted": 2}


@pytest.mark.parametrize("value", [b"bytes", object(), {1: 2}, float("nan"), {"a": {1, 2}}])
async def test_value_that_is_no_data_is_refused_and_not_stored(cache, value):
    async def produce() -> Any:
        return value

    for _ in range(2):
        with pytest.raises(InvalidRequest, match="what produce returned"):
            await cache.get_or_create({"prompt": "x"}, produce)


@pytest.mark.parametrize("value", [0, False, "", [], {}, 1.5, "text"])
async def test_empty_values_are_values(cache, value):
    async def produce() -> Any:
        return value

    await cache.get_or_create({"prompt": "x"}, produce)
    found = await cache.get_or_create({"prompt": "x"}, produce)
    assert (found.value, found.status) == (value, "exact")


async def test_nothing_is_no_answer(cache):
    async def produce() -> None:
        return None

    assert (await cache.get_or_create({"prompt": "x"}, produce)).reason == "empty"


@pytest.mark.parametrize("request_", [{"a": object()}, {"a": float("inf")}, {1: 2}, [], "x"])
async def test_request_that_is_no_data_is_refused_before_anything_is_produced(cache, request_):
    provider = Provider()
    with pytest.raises(InvalidRequest):
        await cache.get_or_create(request_, provider)
    assert provider.calls == 0


async def test_error_of_the_producer_reaches_every_waiter_and_is_not_stored(cache):
    started, gate = asyncio.Event(), asyncio.Event()

    async def fail() -> None:
        started.set()
        await gate.wait()
        raise LookupError("no such document")

    waiting = [asyncio.create_task(cache.get_or_create({"prompt": "x"}, fail)) for _ in range(3)]
    await started.wait()
    gate.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)

    assert [type(r) for r in results] == [LookupError] * 3
    assert (await cache.get_or_create({"prompt": "x"}, Provider())).status == "miss"


async def test_function_is_cached_by_its_arguments(cache: LLMCache):
    calls = []

    @cache.cached()
    async def add(a: int, b: int = 2, *, scale: float = 1) -> float:
        """Add."""
        calls.append((a, b, scale))
        return (a + b) * scale

    assert [await add(1), await add(a=1, b=2), await add(1, scale=1.0)] == [3, 3, 3]
    assert await add(1, 3) == 4
    assert calls == [(1, 2, 1), (1, 3, 1)]
    assert (add.__name__, add.__doc__) == ("add", "Add.")


async def test_one_argument_of_a_function_can_be_compared(cache: LLMCache, embedder):
    embedder.similar(QUESTION, REPHRASED, 0.95)
    calls = []

    @cache.cached(prompt="question")
    async def answer(question: str, language: str) -> str:
        calls.append(question)
        return f"{language}: {question}"

    first = await answer(QUESTION, "en")
    assert await answer(REPHRASED, "en") == first
    assert await answer(REPHRASED, "fr") == f"fr: {REPHRASED}"
    assert calls == [QUESTION, REPHRASED]


async def test_functions_are_kept_apart(cache: LLMCache):
    @cache.cached()
    async def one(x: int) -> str:
        return "one"

    @cache.cached()
    async def two(x: int) -> str:
        return "two"

    assert (await one(1), await two(1)) == ("one", "two")


def test_function_that_cannot_be_cached_is_refused(make_cache):
    cache = make_cache()
    with pytest.raises(ConfigurationError, match="async"):
        cache.cached()(lambda: 1)

    async def f(a: int) -> int:
        return a

    with pytest.raises(ConfigurationError, match="no such argument"):
        cache.cached(prompt="question")(f)


async def test_anthropic_over_http(cache, upstream):
    """The worked example of the README, against an endpoint of Anthropic's shape."""
    reply = {"content": [{"type": "text", "text": "Paris."}], "stop_reason": "end_turn"}
    upstream.route("/v1/messages", lambda _: reply)
    client = upstream.client()

    async def ask(request: dict[str, Any]) -> Any:
        return await cache.get_or_create(
            request,
            lambda: client.post("/messages", body=request, cast_to=object),
            producer="anthropic",
            store_if=lambda answer: answer["stop_reason"] in ("end_turn", "tool_use"),
        )

    assert (await ask(anthropic(QUESTION))).value == reply
    assert (await ask(anthropic(QUESTION))).status == "exact"


async def test_ollama_over_http(cache, upstream):
    upstream.route("/v1/generate", lambda body: {"response": "Paris.", "done_reason": "stop"})
    client = upstream.client()
    request = ollama(QUESTION)

    for status in ("miss", "exact"):
        found = await cache.get_or_create(
            request, lambda: client.post("/generate", body=request, cast_to=object)
        )
        assert (found.value["response"], found.status) == ("Paris.", status)


async def test_option_that_there_is_not_is_refused(cache):
    async def produce() -> str:
        return "x"

    with pytest.raises(ConfigurationError, match="no option tennant"):
        await cache.get_or_create({"prompt": "x"}, produce, tennant="acme")
    with pytest.raises(ConfigurationError, match="no option tennant"):
        cache.cached(tennant="acme")


async def test_tags_that_can_be_read_once_hold_for_every_call(cache: LLMCache, upstream):
    @cache.cached(tags=(tag for tag in ["a"]))
    async def double(x: int) -> int:
        return 2 * x

    assert [await double(1), await double(2)] == [2, 4]
    client = cache.wrap(upstream.client(), tags=(tag for tag in ["a"]))
    for question in (QUESTION, REPHRASED):
        messages: Any = [{"role": "user", "content": question}]
        await client.chat.completions.create(model="m", messages=messages)
    assert (await cache.invalidate(tag="a", dry_run=True)).reached == 4
