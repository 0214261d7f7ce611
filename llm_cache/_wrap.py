"""A client of the openai SDK whose chat completions and embeddings go through the cache."""

from __future__ import annotations

import copy
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import openai
from openai import AsyncOpenAI, AsyncStream
from openai.resources.beta import AsyncBeta
from openai.resources.chat import AsyncChat
from openai.resources.chat.completions import AsyncCompletions
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from llm_cache._call import CallOptions, lasting_options, take_options
from llm_cache._http.upstream import Upstream
from llm_cache._wrap_embeddings import CachedEmbeddings
from llm_cache.errors import ConfigurationError, InvalidRequest
from llm_cache.reply import CacheInfo, ChatStream, cache_info, set_cache_info

if TYPE_CHECKING:
    from openai.types.chat import ParsedChatCompletion

    from llm_cache.cache import LLMCache


def wrap(cache: LLMCache, client: AsyncOpenAI, options: CallOptions) -> AsyncOpenAI:
    """Return a client as `LLMCache.wrap` describes it.

    Raises:
        ConfigurationError: *client* is no `AsyncOpenAI`, or an option is none of the cache's.
    """
    if not isinstance(client, AsyncOpenAI):
        raise ConfigurationError(
            f"cache.wrap() needs an AsyncOpenAI client; got {type(client).__name__}"
        )
    options = lasting_options(options)
    # A shallow copy shares the connections, and is of the client's own class, whichever that is.
    # What the SDK makes of a client on first use (`chat`, `embeddings`, …) are attributes of the
    # instance, so that setting them replaces them.
    wrapped: Any = copy.copy(client)
    upstream = Upstream(client)
    wrapped.__dict__["chat"] = _CachedChat(wrapped, cache, upstream, options)
    wrapped.__dict__["beta"] = _CachedBeta(wrapped)
    wrapped.__dict__["embeddings"] = CachedEmbeddings(wrapped, cache, upstream, options)

    def derive(**changes: Any) -> AsyncOpenAI:
        return wrap(cache, client.copy(**changes), options)

    wrapped.__dict__["copy"] = derive
    wrapped.__dict__["with_options"] = derive
    return cast("AsyncOpenAI", wrapped)


_Completion = TypeVar("_Completion", bound=ChatCompletion)


class _CachedChat(AsyncChat):
    def __init__(
        self, client: AsyncOpenAI, cache: LLMCache, upstream: Upstream, options: CallOptions
    ) -> None:
        super().__init__(client)
        self.__dict__["completions"] = _CachedCompletions(client, cache, upstream, options)


class _CachedBeta(AsyncBeta):
    """The SDK's resource; its `chat` is another name for the client's."""

    def __init__(self, client: AsyncOpenAI) -> None:
        super().__init__(client)
        self.__dict__["chat"] = client.chat


class _CachedCompletions(AsyncCompletions):
    """The SDK's resource, with `create` and `parse` taken through the cache.

    `stream()`, the SDK's helper, calls `create`, and so is cached too. Raw responses are passed
    through: whoever asks for them wants the headers of a real one.
    """

    def __init__(
        self, client: AsyncOpenAI, cache: LLMCache, upstream: Upstream, options: CallOptions
    ) -> None:
        super().__init__(client)
        self._cache = cache
        self._upstream = upstream
        self._options = options

    async def create(self, *, messages: Any, model: Any, **params: Any) -> Any:
        """Create a chat completion, or take it from the cache. As the SDK's, and `CallOptions`."""
        options = take_options(params, self._options)
        if options is None:
            return await super().create(messages=messages, model=model, **params)
        if isinstance(messages, str):
            raise InvalidRequest("messages must be a list of messages")
        standing = {**options, "model": model}
        call, request = self._cache._plan(messages, standing, params, self._upstream)  # noqa: SLF001
        if params.get("stream"):
            return _CachedStream(await self._cache._chunks(call, request, self._upstream))  # noqa: SLF001
        started_s = time.perf_counter()
        answered = await self._cache._answer(call, request, self._upstream)  # noqa: SLF001
        reply = self._cache._replied(call, answered, started_s)  # noqa: SLF001
        original = answered.original
        if original is None:
            completion = _with_request_id(ChatCompletion.construct(**reply.data), None)
            return set_cache_info(completion, reply)
        # The SDK hands on whatever a server says that is no JSON, as text.
        is_completion = isinstance(original, ChatCompletion)
        return set_cache_info(original, reply) if is_completion else original

    async def parse(
        self, *, messages: Any, model: Any, response_format: Any = None, **params: Any
    ) -> ParsedChatCompletion[Any]:
        """Create a chat completion and parse it. As the SDK's."""
        from openai.lib._parsing import (
            parse_chat_completion,
            type_to_response_format_param,
            validate_input_tools,
        )

        options = take_options(params, self._options)
        if options is None:
            if response_format is not None:
                params["response_format"] = response_format
            return await super().parse(messages=messages, model=model, **params)
        not_sent = _not_sent()
        tools = params.get("tools", not_sent)
        validate_input_tools(tools)
        kind = not_sent if response_format is None else response_format
        schema = type_to_response_format_param(kind)
        completion = await self.create(
            messages=messages, model=model, response_format=schema, **params, **options
        )
        parsed = parse_chat_completion(
            response_format=kind, chat_completion=completion, input_tools=tools
        )
        _with_request_id(parsed, getattr(completion, "_request_id", None))
        return set_cache_info(parsed, cache_info(completion))


class _CachedStream(AsyncStream[ChatCompletionChunk]):
    """The SDK's stream, over chunks that come from the cache or from a shared stream."""

    def __init__(self, chunks: ChatStream[ChatCompletionChunk]) -> None:
        # The SDK's own constructor wants an HTTP response to decode; a replay has none.
        self._chunks = chunks
        self.response = cast("Any", chunks.response)

    @property
    def _llm_cache_info(self) -> CacheInfo:
        return self._chunks.info

    async def __anext__(self) -> ChatCompletionChunk:
        return await anext(self._chunks)

    async def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        async for chunk in self._chunks:
            yield chunk

    async def close(self) -> None:
        await self._chunks.aclose()


def _not_sent() -> Any:
    """Return what marks an argument that is not sent, in this release of the SDK."""
    return getattr(openai, "omit", openai.NOT_GIVEN)


def _with_request_id(completion: _Completion, request_id: str | None) -> _Completion:
    # As the SDK does: an attribute that is no field.
    object.__setattr__(completion, "_request_id", request_id)
    return completion
