"""The model behind the cache, through the openai SDK."""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llm_cache._core.types import ChatRequest, Completion
from llm_cache.config import openai_base_url, openai_key_in_env
from llm_cache.errors import ConfigurationError

if TYPE_CHECKING:
    from openai import AsyncOpenAI


class Upstream:
    """Asks the model. Errors of the SDK reach the caller as they are.

    Args:
        client: The SDK's client; `None` makes `AsyncOpenAI()` when the model is first asked.
    """

    def __init__(self, client: AsyncOpenAI | None) -> None:
        self._given = client
        self._owned: AsyncOpenAI | None = None

    @cached_property
    def base_url(self) -> str:
        """Where the model is; part of every key. Known without making a client."""
        if self._given is not None:
            return str(self._given.base_url)
        return openai_base_url()

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

    async def complete(self, request: ChatRequest) -> Completion:
        """Return the model's answer as the JSON it was sent as."""
        completion = await self.client.chat.completions.create(
            model=request.model,
            messages=request.messages,  # type: ignore[arg-type]  # checked by normalize
            **self._arguments(request),
        )
        return completion.model_dump(mode="json", exclude_unset=True)

    async def aclose(self) -> None:
        """Close the client, if it was made here."""
        owned, self._owned = self._owned, None
        if owned is not None:
            await owned.close()

    def _arguments(self, request: ChatRequest) -> dict[str, Any]:
        """Return the parameters, those that the SDK does not know inside `extra_body`."""
        unknown = {name: v for name, v in request.params.items() if name not in self._known}
        known = {name: v for name, v in request.params.items() if name in self._known}
        if unknown:
            known["extra_body"] = {**unknown, **(known.get("extra_body") or {})}
        return known

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.client.chat.completions.create).parameters)
