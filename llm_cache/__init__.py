"""An asyncio, Redis-only cache for LLM answers: exact and semantic, never a wrong answer."""

from typing import TYPE_CHECKING, Any

from llm_cache._core.control import CacheControl
from llm_cache._core.types import CacheStatus
from llm_cache._explain import Explanation, Neighbour
from llm_cache._invalidate import Invalidation
from llm_cache._savings import Savings, savings
from llm_cache.cache import LLMCache
from llm_cache.config import CacheConfig, Normalization
from llm_cache.embedders import CallableEmbedder, Embedder, OpenAIEmbedder
from llm_cache.prices import Price
from llm_cache.reply import CachedValue, CacheInfo, ChatReply, ChatStream, cache_info
from llm_cache.tokens import TokenCount, count_tokens

if TYPE_CHECKING:
    from llm_cache.local import LocalEmbedder

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


def __getattr__(name: str) -> Any:
    """Import the local embedder when it is first asked for: most programs never do."""
    if name == "LocalEmbedder":
        from llm_cache.local import LocalEmbedder

        return LocalEmbedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
