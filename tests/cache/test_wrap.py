"""The drop-in client behaves as the SDK's own."""

import asyncio
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from llm_cache import cache_info
from llm_cache.errors import ConfigurationError, InvalidRequest, OnlyIfCachedMiss
from llm_cache.testing import Answer, tool_call

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
REPHRASED = [{"role": "user", "content": "Tell me the capital city of France."}]


@pytest.fixture
def client(cache, upstream):
    return cache.wrap(upstream.client())


def info(answer: object) -> Any:
    """Return what `cache_info` does, without the types of `None`."""
    return cache_info(answer)


async def create(client: Any, messages: Any = MESSAGES, **params: Any) -> Any:
    return await client.chat.completions.create(model="m", messages=messages, **params)


async def test_second_call_is_answered_by_the_cache(client, upstream):
    first = await create(client)
    second = await create(client)

    assert upstream.calls == 1
    assert type(second) is type(first)
    assert second.model_dump() == first.model_dump()
    assert (info(first).status, info(second).status) == ("miss", "exact")
    assert info(second).key == info(first).key


async def test_rephrased_call_is_answered_too(client, embedder):
    embedder.similar(MESSAGES[0]["content"], REPHRASED[0]["content"], 0.95)
    await create(client)
    assert info(await create(client, REPHRASED)).status == "semantic"


async def test_client_is_of_the_clients_own_class_and_the_original_stays_as_it_was(
    client, cache, upstream
):
    original = upstream.client()
    wrapped = cache.wrap(original)
    await create(wrapped)

    assert isinstance(wrapped, openai.AsyncOpenAI)
    assert info(await create(original)) is None
    assert upstream.calls == 2


async def test_chat_and_wrapped_client_share_their_entries(cache, upstream):
    client = upstream.client()
    cache_of_client = cache
    await cache_of_client.chat(MESSAGES, model="m")
    assert info(await create(cache.wrap(client))).status == "exact"


async def test_streams_are_the_sdks(client, upstream):
    texts = []
    for status in ("miss", "exact"):
        stream = await create(client, stream=True)
        assert isinstance(stream, openai.AsyncStream)
        texts.append([c.choices[0].delta.content or "" async for c in stream])
        assert info(stream).status == status
    assert "".join(texts[0]) == "".join(texts[1])
    assert upstream.calls == 1


async def test_stream_can_be_left(client, upstream):
    upstream.answer(Answer(text="one two", gate=asyncio.Event(), gate_after=2))
    async with await create(client, stream=True) as stream:
        await anext(stream)
    await upstream.disconnected()


@pytest.mark.parametrize("leave", ["helper", "close", "response"])
async def test_one_who_leaves_a_shared_stream_early_leaves_it_to_the_others(
    client, upstream, leave
):
    gate = asyncio.Event()
    upstream.answer(Answer(text="one two three", gate=gate, gate_after=2))
    stays = await create(client, stream=True)
    if leave == "helper":
        async with client.chat.completions.stream(model="m", messages=MESSAGES) as events:
            await anext(events)
    else:
        goes = await create(client, stream=True)
        await anext(goes)
        await (goes.close() if leave == "close" else goes.response.aclose())
    gate.set()
    texts = [c.choices[0].delta.content or "" async for c in stays if c.choices]

    assert "".join(texts) == "one two three"
    assert info(await create(client)).status == "exact"
    assert upstream.calls == 1


async def test_response_of_a_stream_tells_of_the_real_one_without_its_body(client, upstream):
    live = await create(client, stream=True)
    assert live.response.status_code == 200
    assert live.response.headers["content-type"].startswith("text/event-stream")
    assert live.response.request.url.path == "/v1/chat/completions"
    assert not hasattr(live.response, "aiter_bytes")
    assert [c async for c in live]

    replayed = await create(client, stream=True)
    assert replayed.response.status_code == 200
    assert replayed.response.headers["cache-status"] == "llm-cache; hit"
    assert not hasattr(replayed.response, "request")
    replayed.response.close()


async def test_usage_chunk_comes_only_to_those_who_ask(client, upstream):
    async def usages(**params: Any) -> Any:
        stream = await create(client, stream=True, **params)
        return [c.usage for c in [c async for c in stream] if c.usage is not None]

    assert await usages() == []
    (fresh,) = await usages(stream_options={"include_usage": True}, seed=1)
    (replayed,) = await usages(stream_options={"include_usage": True}, seed=1)
    assert replayed == fresh
    assert await usages(seed=1) == []
    assert await usages(stream_options={"include_usage": False}, seed=2) == []
    (kept,) = await usages(stream_options={"include_usage": True}, seed=2)
    assert kept.total_tokens == fresh.total_tokens


@pytest.mark.parametrize(
    "answer",
    [
        Answer(text="Paris is the capital."),
        Answer(text=None, finish_reason="tool_calls", tool_calls=[tool_call("f", {"a": 1})]),
        Answer(text=None, refusal="I cannot help with that."),
        Answer(text="Paris, of course.", n=2),
    ],
    ids=["text", "tools", "refusal", "two choices"],
)
async def test_accumulated_stream_equals_the_plain_answer(client, upstream, answer):
    """Live, replayed and plain give the SDK's own accumulator one final message."""
    params = {"n": answer.n} if answer.n else {}

    async def accumulate() -> Any:
        stream = client.chat.completions.stream(model="m", messages=MESSAGES, **params)
        async with stream as events:
            async for _ in events:
                pass
            final = await events.get_final_completion()
        return [c.message.model_dump(exclude_none=True) for c in final.choices]

    upstream.answer(answer)
    live = await accumulate()
    replayed = await accumulate()
    plain = await create(client, **params)
    messages = [c.message.model_dump(exclude_none=True) for c in plain.choices]

    assert upstream.calls == 1
    assert live == replayed
    for message in (*messages, *live):
        for call in message.get("tool_calls", ()):
            call.pop("index", None)
            call["function"].pop("parsed_arguments", None)
    assert live == messages


class Capital(BaseModel):
    city: str


async def test_parse_gives_the_parsed_object_from_the_cache_too(client, upstream):
    upstream.answer('{"city": "Paris"}')

    async def parse() -> Any:
        return await client.chat.completions.parse(
            model="m", messages=MESSAGES, response_format=Capital
        )

    first, second = await parse(), await parse()
    assert (
        first.choices[0].message.parsed
        == second.choices[0].message.parsed
        == Capital(city="Paris")
    )
    assert info(second).status == "exact"
    assert upstream.chat_requests[0].body["response_format"]["type"] == "json_schema"


async def test_parse_of_beta_is_the_same(client, upstream):
    upstream.answer('{"city": "Paris"}')
    for _ in range(2):
        parsed = await client.beta.chat.completions.parse(
            model="m", messages=MESSAGES, response_format=Capital
        )
    assert parsed.choices[0].message.parsed == Capital(city="Paris")
    assert info(parsed).status == "exact"


async def test_parse_works_with_an_sdk_that_has_no_omit(client, upstream, monkeypatch):
    monkeypatch.delattr(openai, "omit", raising=False)
    upstream.answer("Paris")
    parsed = await client.chat.completions.parse(model="m", messages=MESSAGES)
    assert parsed.choices[0].message.content == "Paris"
    assert "response_format" not in upstream.chat_requests[0].body


async def test_raw_response_can_be_parsed(client, upstream):
    upstream.answer('{"city": "Paris"}')
    raw = await client.chat.completions.with_raw_response.parse(
        model="m", messages=MESSAGES, response_format=Capital
    )
    assert raw.status_code == 200
    assert raw.parse().choices[0].message.parsed == Capital(city="Paris")


async def test_hits_have_the_request_id_none(client, upstream):
    fresh = await create(client)
    hit = await create(client)
    parsed = await client.chat.completions.parse(model="m", messages=MESSAGES)
    assert hasattr(fresh, "_request_id")
    assert (hit._request_id, parsed._request_id) == (None, None)
    assert hit.model_dump() == fresh.model_dump()


async def test_schema_of_another_shape_is_another_request(client, upstream):
    class Other(BaseModel):
        city: str
        country: str

    upstream.default = '{"city": "Paris", "country": "France"}'
    for shape in (Capital, Other):
        await client.chat.completions.parse(model="m", messages=MESSAGES, response_format=shape)
    assert upstream.calls == 2


async def test_derived_clients_are_cached_too(client, upstream):
    await create(client)
    for derived in (client.with_options(timeout=5), client.copy(max_retries=1)):
        assert info(await create(derived)).status == "exact"
    elsewhere = client.with_options(base_url=upstream.base_url.replace("127.0.0.1", "localhost"))
    assert info(await create(elsewhere)).status == "miss"


async def test_headers_and_query_of_the_client_are_part_of_the_key(cache, upstream):
    def client(**options: Any) -> Any:
        return cache.wrap(upstream.client(**options))

    await create(client())
    assert info(await create(client(default_headers={"X-Variant": "b"}))).status == "miss"
    assert info(await create(client(default_query={"api-version": "2"}))).status == "miss"
    assert info(await create(client(api_key="another key"))).status == "exact"


async def test_options_of_the_client_hold_for_its_calls(cache, upstream, redis):
    acme = cache.wrap(upstream.client(), tenant="acme", ttl_s=60)
    other = cache.wrap(upstream.client(), tenant="other")
    key = info(await create(acme)).key

    assert info(await create(other)).status == "miss"
    assert info(await create(acme)).status == "exact"
    assert await redis.pttl(key) <= 60_000
    assert info(await create(acme, tenant="third")).status == "miss"


async def test_unknown_option_is_named_when_the_client_is_made(cache, upstream):
    with pytest.raises(ConfigurationError, match="tennant"):
        cache.wrap(upstream.client(), tennant="a")


async def test_client_that_is_not_async_is_refused(cache, upstream):
    with openai.OpenAI(base_url=upstream.base_url, api_key="test") as sync:
        for client in (sync, object(), None):
            with pytest.raises(ConfigurationError, match="AsyncOpenAI"):
                cache.wrap(client)


async def test_client_of_a_derived_class_is_taken(cache):
    azure = openai.AsyncAzureOpenAI(
        api_key="test", api_version="2024-10-21", azure_endpoint="http://127.0.0.1:1"
    )
    assert isinstance(cache.wrap(azure), openai.AsyncAzureOpenAI)


async def test_answer_that_is_no_json_is_handed_on_as_the_sdk_does(client, upstream):
    page = "<html>Log in</html>"
    upstream.answer(Answer(raw_body=page.encode(), headers={"content-type": "text/html"}))
    assert await create(client) == page
    assert info(await create(client)).status == "miss"


async def test_cache_control_goes_through_extra_headers(client, upstream):
    with pytest.raises(OnlyIfCachedMiss):
        await create(client, extra_headers={"Cache-Control": "only-if-cached"})
    await create(client)
    again = await create(client, extra_headers={"Cache-Control": "no-cache"})
    assert info(again).status == "miss"
    left_out = await create(client, extra_headers={"Cache-Control": "no-store"})
    assert info(left_out).status == "bypass"


async def test_raw_responses_pass_through(client, upstream):
    raw = await client.chat.completions.with_raw_response.create(model="m", messages=MESSAGES)
    assert raw.status_code == 200
    assert raw.parse().choices[0].message.content
    assert upstream.calls == 1


async def test_everything_else_is_the_clients_own(client, upstream):
    upstream.route("/v1/models", lambda _: {"object": "list", "data": []}, method="GET")
    assert (await client.models.list()).data == []


async def test_info_is_no_field_of_the_answer(client):
    completion = await create(client)
    assert "llm_cache" not in str(completion.model_dump())
    assert "llm_cache" not in completion.model_dump_json()
    assert info(object()) is None


@pytest.mark.parametrize("messages", ["Hi", [], [{"role": "robot", "content": "Hi"}], [3]])
async def test_malformed_messages_are_refused_before_the_model_is_asked(
    client, upstream, messages
):
    with pytest.raises(InvalidRequest):
        await create(client, messages)
    assert upstream.calls == 0


async def test_sdk_messages_can_be_sent_back(client, upstream):
    first = await create(client)
    history = [*MESSAGES, first.choices[0].message, {"role": "user", "content": "And of Spain?"}]
    assert info(await create(client, history)).status == "miss"
    assert info(await create(client, history)).status == "exact"
