"""The model behind the cache, through the openai SDK."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Hashable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llm_cache._core import canonical
from llm_cache._core.parameters import is_transport
from llm_cache._core.types import ChatRequest
from llm_cache.config import openai_base_url, openai_key_in_env
from llm_cache.errors import ConfigurationError

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

_CARRIED = frozenset({"extra_body", "extra_headers", "extra_query", "stream", "timeout"})
"""What the SDK's `create` takes besides the parameters of the API."""
_PAYER_HEADERS = ("openai-organization", "openai-project")
"""Headers of the client that say who pays for an answer, not what it is."""


class Upstream:
    """Asks the model. Errors of the SDK reach the caller as they are.

    Args:
        client: The SDK's client; `None` makes `AsyncOpenAI()` when the model is first asked.
    """

    def __init__(self, client: AsyncOpenAI | None) -> None:
        self._given = client
        self._owned: AsyncOpenAI | None = None
        self._refuses_usage = False
        self._is_prepared = False

    @cached_property
    def identity(self) -> Hashable:
        """What it has in common with those that every call means the same to."""
        return self.base_url, canonical.encode(self.defaults, "the client"), repr(self.timeout)

    @cached_property
    def base_url(self) -> str:
        """Where the model is; part of every key. Known without making a client."""
        return openai_base_url() if self._given is None else str(self._given.base_url)

    @cached_property
    def defaults(self) -> dict[str, dict[str, Any]]:
        """Headers and query that the client adds to every request; what is sent with a call wins.

        A gateway may choose the model by them, so they are part of every key.
        """
        if self._given is None:
            return {}
        headers = {
            name: value
            for name, value in self._given.default_headers.items()
            if isinstance(value, str) and _is_seen(name.lower())
        }
        return {"extra_headers": headers, "extra_query": dict(self._given.default_query)}

    @property
    def timeout(self) -> Any:
        """The client's time-out, in any form the SDK takes; `None` where no client is known."""
        return None if self._given is None else self._given.timeout

    @property
    def client(self) -> AsyncOpenAI:
        """The client in use.

        Raises:
            ConfigurationError: none was given and `OPENAI_API_KEY` is not set.
        """
        if self._given is not None:
            return self._given
        if self._owned is None:
            if not openai_key_in_env():
                raise ConfigurationError(
                    "there is no model to ask: set OPENAI_API_KEY, or pass"
                    " client=AsyncOpenAI(base_url=…, api_key=…)"
                )
            from openai import AsyncOpenAI

            self._owned = AsyncOpenAI()
        return self._owned

    async def prepare(self) -> None:
        """Import in a thread what the first call would import, for up to a second.

        A loop that stands still that long in the middle of a call loses the lease of its answer.
        """
        if not self._is_prepared and (self._given is not None or openai_key_in_env()):
            await asyncio.to_thread(importlib.import_module, "openai.resources.chat.completions")
            self._is_prepared = True

    async def complete(self, request: ChatRequest) -> ChatCompletion:
        """Return the model's answer."""
        completion: ChatCompletion = await self._create(request)
        return completion

    async def stream(self, request: ChatRequest) -> AsyncStream[ChatCompletionChunk]:
        """Return the model's answer as a stream; the caller closes it.

        The usage is asked for even where the caller did not, so that the stored answer has it for
        those who will; whoever forwards the stream leaves its chunk out. A service that refuses to
        be asked is asked no more.
        """
        options = request.params.get("stream_options") or {}
        if options.get("include_usage") or self._refuses_usage:
            plain: AsyncStream[ChatCompletionChunk] = await self._create(request, stream=True)
            return plain
        from openai import BadRequestError, UnprocessableEntityError

        asking = {"stream": True, "stream_options": {**options, "include_usage": True}}
        try:
            stream: AsyncStream[ChatCompletionChunk] = await self._create(request, **asking)
        except (BadRequestError, UnprocessableEntityError):
            stream = await self._create(request, stream=True)
            self._refuses_usage = True
        return stream

    async def aclose(self) -> None:
        """Close the client, if it was made here."""
        owned, self._owned = self._owned, None
        if owned is not None:
            await owned.close()

    async def _create(self, request: ChatRequest, **how: Any) -> Any:
        """Ask the model; parameters that the SDK does not know go into `extra_body`."""
        await self.prepare()
        known = {name: v for name, v in request.params.items() if name in self._known}
        unknown = {name: v for name, v in request.params.items() if name not in self._known}
        if unknown:
            known["extra_body"] = {**unknown, **(known.get("extra_body") or {})}
        create: Any = self.client.chat.completions.create
        return await create(model=request.model, messages=request.messages, **{**known, **how})

    @cached_property
    def _known(self) -> frozenset[str]:
        parameters = inspect.signature(self.client.chat.completions.create).parameters
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return frozenset(parameters)
        # Something is laid over the method, or over its class, that takes anything: a tracer, say.
        from openai.types.chat.completion_create_params import CompletionCreateParamsBase

        return frozenset(parameters) | CompletionCreateParamsBase.__annotations__.keys() | _CARRIED


def _is_seen(header: str) -> bool:
    """Tell whether *header*, in lower case, is one that a model could see."""
    return header not in _PAYER_HEADERS and not is_transport(header)
