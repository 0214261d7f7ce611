"""An asyncio, Redis-only cache for LLM answers: exact and semantic, never a wrong answer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_cache._core.control import CacheControl
    from llm_cache._core.types import CacheStatus
    from llm_cache._explain import Explanation, Neighbour
    from llm_cache._invalidate import Invalidation
    from llm_cache._savings import Savings, savings
    from llm_cache.cache import LLMCache
    from llm_cache.config import CacheConfig, Normalization
    from llm_cache.embedders import CallableEmbedder, Embedder, OpenAIEmbedder
    from llm_cache.local import LocalEmbedder
    from llm_cache.prices import Price
    from llm_cache.reply import CachedValue, CacheInfo, ChatReply, ChatStream, cache_info
    from llm_cache.tokens import TokenCount, count_tokens

__version__ = "0.1.0"

__all__ = [
    "CacheConfig",
    "CacheControl",
    "CacheInfo",
    "CacheStatus",
    "CachedValue",
    "CallableEmbedder",
    "ChatReply",
    "ChatStream",
    "Embedder",
    "Explanation",
    "Invalidation",
    "LLMCache",
    "LocalEmbedder",
    "Neighbour",
    "Normalization",
    "OpenAIEmbedder",
    "Price",
    "Savings",
    "TokenCount",
    "cache_info",
    "count_tokens",
    "savings",
]


_MODULES = {
    "_core.control": ("CacheControl",),
    "_core.types": ("CacheStatus",),
    "_explain": ("Explanation", "Neighbour"),
    "_invalidate": ("Invalidation",),
    "_savings": ("Savings", "savings"),
    "cache": ("LLMCache",),
    "config": ("CacheConfig", "Normalization"),
    "embedders": ("CallableEmbedder", "Embedder", "OpenAIEmbedder"),
    "local": ("LocalEmbedder",),
    "prices": ("Price",),
    "reply": ("CacheInfo", "CachedValue", "ChatReply", "ChatStream", "cache_info"),
    "tokens": ("TokenCount", "count_tokens"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import *name* when it is first asked for: nobody waits for what he does not use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    """List what is there, whether it was asked for or not."""
    return sorted({*globals(), *__all__})
