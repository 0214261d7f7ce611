"""What is sent to the model, whatever is laid over the SDK."""

import gc
import inspect
import weakref
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.resources.chat.completions import AsyncCompletions

from llm_cache._http.upstream import Upstream
from llm_cache.errors import InvalidRequest

MESSAGES = [{"role": "user", "content": "Hi"}]


async def test_body_of_a_plain_call_is_the_sdks(cache, upstream):
    await upstream.client().chat.completions.create(model="m", messages=MESSAGES)
    await cache.chat(MESSAGES, model="m")
    direct, cached = upstream.chat_requests
    assert cached.body == direct.body


def traced(create: Any) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await create(*args, **kwargs)

    return call


@pytest.mark.parametrize("where", ["instance", "class"])
async def test_method_that_takes_anything_is_given_what_the_sdk_knows(
    make_cache, upstream, monkeypatch, where
):
    client = upstream.client()
    target = client.chat.completions if where == "instance" else AsyncCompletions
    monkeypatch.setattr(target, "create", traced(target.create))
    await make_cache(client=client).chat(
        MESSAGES,
        model="m",
        temperature=0.5,
        top_k=3,
        timeout=30,
        extra_headers={"X-Variant": "b"},
        extra_query={"v": "2"},
    )
    (request,) = upstream.chat_requests
    assert request.body == {
        "model": "m",
        "messages": MESSAGES,
        "temperature": 0.5,
        "top_k": 3,
    }
    assert request.headers["x-variant"] == "b"
    assert request.query == "v=2"


async def test_what_is_known_does_not_depend_on_what_is_laid_over(upstream):
    client = upstream.client()
    plain = Upstream(client)._known
    client.chat.completions.create = traced(client.chat.completions.create)
    over = Upstream(client)._known
    assert over - plain == {"args", "kwargs"}
    assert plain <= over
    assert plain == frozenset(inspect.signature(AsyncCompletions.create).parameters) - {"self"}


@pytest.mark.parametrize("params", [{"messages": MESSAGES}, {"messages": []}])
async def test_messages_given_twice_are_refused(cache, upstream, params):
    with pytest.raises(InvalidRequest, match="messages"):
        await cache.chat("Hi", model="m", **params)
    assert upstream.calls == 0


@pytest.mark.parametrize(
    "other",
    [
        {"base_url": "http://v/"},
        {"timeout": 5},
        {"default_headers": {"x-model": "b"}},
        {"default_query": {"api-version": "2"}},
    ],
    ids=str,
)
def test_what_is_known_of_one_client_holds_for_its_like_alone(other):
    def identity(**settings: Any) -> Any:
        given = {"base_url": "http://u/", "api_key": "a", **settings}
        return Upstream(AsyncOpenAI(**given)).identity

    assert identity() == identity(api_key="b") == identity(max_retries=0)
    assert identity() != identity(**other)


async def test_clients_are_let_go(cache, upstream):
    # As where each request of a web service makes a client of its own.
    client = AsyncOpenAI(base_url=upstream.base_url, api_key="a", max_retries=0)
    gone = weakref.ref(client)
    await cache.wrap(client).chat.completions.create(model="m", messages=MESSAGES)
    await client.close()
    del client
    gc.collect()
    assert gone() is None
