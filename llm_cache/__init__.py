"""An asyncio, Redis-only cache for LLM answers."""

__version__ = "0.1.0"
