"""Benchmarks of llm_cache. They use the public API only; `python -m benchmarks --help`."""
