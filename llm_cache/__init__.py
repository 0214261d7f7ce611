"""An asyncio, Redis-only cache for LLM answers: exact and semantic, never a wrong answer."""

from llm_cache._core.types import CacheStatus
from llm_cache.cache import LLMCache
from llm_cache.config import CacheConfig, Normalization
from llm_cache.embedders import CallableEmbedder, Embedder, OpenAIEmbedder
from llm_cache.local import LocalEmbedder
from llm_cache.reply import ChatReply

__version__ = "0.1.0"

__all__ = [
    "CacheConfig",
    "CacheStatus",
    "CallableEmbedder",
    "ChatReply",
    "Embedder",
    "LLMCache",
    "LocalEmbedder",
    "Normalization",
    "OpenAIEmbedder",
]
