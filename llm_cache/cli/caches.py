"""The cache that a command's options describe, before the models they name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import typer

from llm_cache import CacheConfig, LLMCache
from llm_cache.cli.models import BRIEF, BRIEF_SYSTEM, local_chat, local_embedder, remote_chat
from llm_cache.cli.options import make_config
from llm_cache.events import EventHook

_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Models:
    """What `--model`, `--base-url` and `--local` say."""

    name: str | None
    base_url: str | None
    is_local: bool

    @property
    def is_chat_local(self) -> bool:
        """Whether the chat model is of this machine, and not the embedder alone."""
        return self.is_local and self.base_url is None

    def make_config(self, *, system: str | None, **settings: Any) -> CacheConfig:
        """Return the settings of a chat with these models; what cannot be is wrong usage.

        The *system* message is `None` for the default, `""` for none.
        """
        if self.is_chat_local and self.name is not None:
            raise typer.BadParameter("--local has one model: leave out --model, or add --base-url")
        # Whoever asks here wants to see what the cache does, and has the time.
        settings.setdefault("added_latency_budget_s", _PATIENCE_S)
        if system is not None:
            settings["system"] = system or None
        elif self.is_chat_local:
            settings["system"] = BRIEF_SYSTEM
        return make_config(**settings)


@asynccontextmanager
async def cache_for(
    models: Models,
    url: str | None,
    config: CacheConfig,
    *,
    hooks: Iterable[EventHook],
    asks_chat: bool = True,
) -> AsyncIterator[tuple[LLMCache, Mapping[str, Any]]]:
    """Make ready a cache, and what each of its chats is to be called with.

    The cache is not opened, but closed at the end, and the models with it. A chat model that is
    not to be asked needs neither a server nor a key.

    Raises:
        ConfigurationError: there is no way to reach the models.
    """
    async with AsyncExitStack() as stack:
        params: Mapping[str, Any] = {}
        if models.is_chat_local:
            params = BRIEF
            chat = local_chat(is_asked=asks_chat)
        else:
            chat = remote_chat(
                config.model if models.name is None else models.name,
                base_url=models.base_url,
                is_asked=asks_chat or (config.semantic and not models.is_local),
            )
        chat_model = await stack.enter_async_context(chat)
        embedder = None
        if models.is_local and config.semantic:
            embedder = await stack.enter_async_context(local_embedder())
        cache = LLMCache(
            url,
            client=chat_model.client,
            embedder=embedder,
            config=replace(config, upstream_id=chat_model.upstream_id),
            hooks=hooks,
        )
        stack.push_async_callback(cache.aclose)
        yield cache, {"model": chat_model.name, **params}
