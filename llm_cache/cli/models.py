"""The models behind a command: on this machine, or at a service that speaks OpenAI's protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llm_cache.config import openai_key_in_env
from llm_cache.errors import ConfigurationError
from llm_cache.local import LocalChatServer, LocalEmbedder

if TYPE_CHECKING:
    from openai import AsyncOpenAI

BRIEF_SYSTEM = "Answer in one short sentence."
BRIEF: Mapping[str, Any] = {"temperature": 0, "max_tokens": 96, "stop": ["\n"]}
"""With these a small model comes to an end: at that of its first paragraph, and mostly well before
the limit. An answer that runs into the limit is cut, and a cut answer is never stored."""


@dataclass(frozen=True, slots=True)
class ChatModel:
    """A model, and the client that reaches it."""

    name: str
    client: AsyncOpenAI


@asynccontextmanager
async def local_embedder() -> AsyncIterator[LocalEmbedder]:
    """Load the embedding model of this machine, and free it at the end."""
    embedder = LocalEmbedder()
    try:
        await embedder.open()
        yield embedder
    finally:
        await embedder.aclose()


@asynccontextmanager
async def local_chat() -> AsyncIterator[ChatModel]:
    """Serve the chat model of this machine, and stop it at the end.

    The base URL is part of every key, and the server listens on another port each time. So the
    client has an address that never changes, or no run would find an answer of an earlier one.
    """
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    async with LocalChatServer() as server:
        where = urlsplit(server.base_url)

        async def redirect(request: Any) -> None:
            request.url = request.url.copy_with(host=where.hostname, port=where.port)

        async with AsyncOpenAI(
            base_url=f"http://{server.model}.local/v1",
            api_key="none",
            # A proxy of the environment must not be asked for this machine.
            http_client=DefaultAsyncHttpxClient(
                event_hooks={"request": [redirect]}, trust_env=False
            ),
        ) as client:
            yield ChatModel(server.model, client)


@asynccontextmanager
async def remote_chat(name: str, *, base_url: str | None = None) -> AsyncIterator[ChatModel]:
    """Make a client for OpenAI, or for what answers at *base_url*, and close it at the end.

    Raises:
        ConfigurationError: there is neither a key nor a base URL.
    """
    if not openai_key_in_env() and base_url is None:
        raise ConfigurationError(
            "there is no model to ask: set OPENAI_API_KEY, name another service that speaks its"
            " protocol with --base-url, or use the small models of this machine with --local"
        )
    from openai import AsyncOpenAI

    # Services on this machine want no key, but the SDK does.
    key = None if openai_key_in_env() else "none"
    async with AsyncOpenAI(base_url=base_url, api_key=key) as client:
        yield ChatModel(name, client)
