"""The models behind a command: on this machine, or at a service that speaks OpenAI's protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_cache.config import openai_key_in_env
from llm_cache.errors import ConfigurationError
from llm_cache.local import LocalChatServer, LocalEmbedder

if TYPE_CHECKING:
    from openai import AsyncOpenAI

BRIEF_SYSTEM = "Answer in one short sentence."
BRIEF: Mapping[str, Any] = {"temperature": 0, "max_tokens": 96, "stop": ["\n"]}
"""With these a small model comes to an end: at that of its first paragraph, and mostly well before
the limit. An answer that runs into the limit is cut, and a cut answer is never stored."""
_NOWHERE = "http://nowhere.invalid/v1"


@dataclass(frozen=True, slots=True)
class ChatModel:
    """A model, and the client that reaches it."""

    name: str
    client: AsyncOpenAI
    upstream_id: str | None = None
    """What names it in keys; `None` for the base URL."""


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
async def local_chat(*, is_asked: bool = True) -> AsyncIterator[ChatModel]:
    """Serve the chat model of this machine, and stop it at the end.

    Nothing is started for one that is not *is_asked*, but named in keys.
    """
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    async with AsyncExitStack() as stack:
        base_url = _NOWHERE
        if is_asked:
            server = await stack.enter_async_context(LocalChatServer())
            base_url = server.base_url
        client = AsyncOpenAI(
            base_url=base_url,
            api_key="none",
            # A proxy of the environment must not be asked for this machine.
            http_client=DefaultAsyncHttpxClient(trust_env=False),
        )
        await stack.enter_async_context(client)
        # It listens on another port each time; named by its address, no run would find an answer
        # of an earlier one.
        yield ChatModel(LocalChatServer.model, client, upstream_id=LocalChatServer.model)


@asynccontextmanager
async def remote_chat(
    name: str, *, base_url: str | None = None, is_asked: bool = True
) -> AsyncIterator[ChatModel]:
    """Make a client for OpenAI, or for what answers at *base_url*, and close it at the end.

    Raises:
        ConfigurationError: there is neither a key nor a base URL, for one that *is_asked*.
    """
    if is_asked and not openai_key_in_env() and base_url is None:
        raise ConfigurationError(
            "there is no model to ask: set OPENAI_API_KEY, name another service that speaks its"
            " protocol with --base-url, or use the small models of this machine with --local"
        )
    from openai import AsyncOpenAI

    # Services on this machine want no key, but the SDK does.
    key = None if openai_key_in_env() else "none"
    async with AsyncOpenAI(base_url=base_url, api_key=key) as client:
        yield ChatModel(name, client)
