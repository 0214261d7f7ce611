"""`CacheConfig`: every setting, checked when it is made. The only reader of the environment."""

from __future__ import annotations

import os
import re
import tempfile
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import nan
from numbers import Real
from pathlib import Path
from typing import Any

from llm_cache.errors import ConfigurationError
from llm_cache.prices import Price, check_prices

BypassPolicy = Callable[[Mapping[str, Any]], bool]

DEFAULT_REDIS_URL = "redis://localhost:6379"
DEFAULT_MODEL = "gpt-4o-mini"
DEFAULT_SYSTEM = "You are a helpful assistant."
_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]+")
_LEAST_SECRET = 16
_KEY_BYTES = 32
_TEN_YEARS_S = 10 * 365 * 86_400


class Normalization(StrEnum):
    """How the last user turn is folded before it enters the exact key.

    What reaches the model is never changed.
    """

    VERBATIM = "verbatim"
    """Not at all."""
    WHITESPACE = "whitespace"
    """NFC and trimmed; in single-line text, runs of blanks become one space."""
    CASEFOLD = "casefold"
    """`WHITESPACE`, and lower case."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """All settings of an `LLMCache`. Immutable; use `dataclasses.replace` to derive one.

    Raises:
        ConfigurationError: a value is out of its range; the message names the setting.
    """

    namespace: str = "llm_cache"
    """Prefix of every Redis key. Letters, digits and `_.-`."""
    cache_version: str = ""
    """Part of every key: change it and all older entries are no longer found."""
    require_tenant: bool = False
    """Refuse calls that name no tenant."""
    tenant_secret: str | None = field(default=None, repr=False)
    """With it, tenants appear in Redis only as an HMAC; all workers must have the same. Changing
    it leaves every tenant's answers behind."""
    encryption_keys: Sequence[str | bytes] | None = field(default=None, repr=False)
    """With them, answers and prompts are encrypted in Redis (AES-256-GCM, extra `encryption`), and
    what is not is no longer read. 32 bytes each, or their base64: the first encrypts, all decrypt.
    Vectors, tags, tenants and model names stay readable. All workers must have the same."""

    model: str = DEFAULT_MODEL
    """The model of calls that name none."""
    upstream_id: str | None = None
    """What names the model's service in every key, instead of its base URL: for one that is
    reached at changing addresses. Two services must never share it."""
    system: str | None = DEFAULT_SYSTEM
    """System message of plain-string prompts; `None` for no system message."""

    ttl_s: float = 86_400.0
    """Lifetime of an answer in seconds, absolute from the moment it is stored. Default 24 h."""
    model_ttl_s: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Lifetime of the answers of some models, by name; a call's own `ttl_s` goes before it."""
    ttl_jitter: float = 0.0
    """Share of its lifetime that an answer may lose by chance, below 1: what was stored together
    then does not expire together."""
    sliding_max_age_s: float | None = None
    """With it, every hit lengthens an answer's life to the TTL of the call from then on, but never
    beyond this age. `None` keeps lifetimes absolute, so that a popular wrong answer ends too."""
    stale_while_revalidate_s: float = 0.0
    """Seconds for which an answer past its lifetime is still served, while one worker asks the
    model anew in the background. Only for the very request that it is the answer to."""
    stale_if_error_s: float = 0.0
    """Seconds for which an answer past its lifetime is served where the model fails: for want of a
    connection, a time-out, too many requests, an error of the server; not where it refuses."""
    sweep: bool = True
    """Whether what was invalidated is removed from Redis in the background. It is dead at once in
    any case; without it, its memory is given back when it expires."""
    normalization: Normalization = Normalization.WHITESPACE
    """How prompts are folded before they enter the exact key."""

    semantic: bool = True
    """Whether rephrased prompts are looked up by vector. Needs a Redis with RediSearch."""
    similarity_threshold: float | None = None
    """Least cosine similarity of a semantic hit, 0 to 1; `None` takes the embedding model's."""
    guards: bool = True
    """Whether lexical guards may veto a candidate (other number, negation, direction, …)."""
    store_prompts: bool = True
    """Whether prompt texts are kept beside their vectors. Without, there is a signature in their
    place, from which guards and calibrated policies decide; verifiers and review need the texts,
    and so does invalidation by pattern."""
    verify_from: float | None = None
    """Cosine similarity from which on a candidate that is not similar enough to be served is shown
    to the verifier; `None` for no such band. Needs `LLMCache(verifier=…)`."""
    verify_timeout_s: float = 5.0
    """Most seconds the verifier may take; then it has said no."""
    verify_in_background: bool = False
    """Whether the caller gets the model's answer instead of waiting for the verifier; where that
    then says yes, the cached answer is what this request gets from then on."""
    shadow: bool = False
    """Whether the cache only watches: it looks up, decides and stores, but every call asks the
    model, and what would have been served is compared with its answer."""

    single_flight: bool = True
    """Whether callers of one request, in all processes, wait for one answer of the model."""
    bypass: BypassPolicy | None = None
    """Asked before each call, with the request as a mapping; where it says yes, the cache neither
    looks nor stores. `lambda request: request.get("temperature", 0) > 1`, for instance."""
    replay_chunks_per_s: float | None = None
    """Speed at which streams are replayed from the cache; `None` for as fast as can be."""

    added_latency_budget_s: float = 0.25
    """Most seconds the cache may add to a call, all its steps together: look-ups, embedding,
    search, waiting for a connection; then the model is asked without it. What is left of it the
    caller waits for the store. Waiting for another caller's answer to the same request does not
    count, nor does a verifier, which has `verify_timeout_s`, nor what the event loop is late by.
    """
    fail_closed: bool = False
    """Whether a call raises where Redis or the embedder fails, instead of asking the model."""
    store_in_background: bool = False
    """Whether an answer is returned before it is stored. The same request finds it all the same,
    in this process and in others; a rephrased one does once it is stored."""
    store_queue_size: int = 1_000
    """Most answers that wait to be stored after they were returned; further ones are not stored.
    They take memory, and are stored when the cache is closed, as far as Redis answers."""

    max_prompt_chars: int = 1_000_000
    """A request whose text is longer is refused."""
    max_entry_bytes: int = 1_048_576
    """An answer that takes more bytes than this is served but not stored."""
    compression: bool = True
    """Whether long answers are packed with Zstandard where `llm_cache[compression]` is installed.
    Workers without it cannot read them: install it everywhere, or switch it off."""

    max_connections: int = 50
    """Most connections in the Redis pool of one cache object; callers beyond it wait. Outside of
    it there are at most five, each made when first needed: for exact look-ups, searches, leases,
    stores, and news of other processes; on a cluster the first four to each primary."""
    redis_timeout_s: float = 2.0
    """Most seconds one Redis round trip may take, waiting for a connection included; on the way
    to an answer, no more than is left of `added_latency_budget_s`."""
    embed_timeout_s: float = 10.0
    """Most seconds one embedding may take, its time in the queue included. A call waits for no
    longer than its budget; what comes later is stored with the answer."""
    keep_embeddings_s: float | None = None
    """Seconds for which the vector of a prompt is kept in Redis, so that it is not embedded again;
    `None` keeps none. Pays where prompts recur in many scopes, or outlive their answers."""
    stats_flush_s: float = 10.0
    """Seconds between two flushes of this process's counters to Redis."""
    stats_tenants: int = 100
    """So many tenants, the first that come, are counted one by one; all others together."""
    prices: Mapping[str, Price] | None = None
    """What models cost, for the savings in USD: goes before the price list of the extra `prices`,
    and is all there is without it. `{"my-model": Price(input_usd=…, output_usd=…)}`."""

    review_sample_rate: float = 0.0
    """Share of semantic hits and near misses that is kept for people to look at, 0 to 1, with the
    texts of both prompts; 0 keeps none."""
    review_max_items: int = 10_000
    """About how many of them are kept; the oldest go first."""
    review_ttl_s: float = 7 * 86_400.0
    """Seconds each of them is kept."""

    def __post_init__(self) -> None:
        """Check every value; normalise enums given by their names."""
        if not _NAMESPACE.fullmatch(self.namespace):
            raise ConfigurationError(
                "namespace must be one or more of A-Z, a-z, 0-9, '_', '.', '-';"
                f" got {self.namespace!r}"
            )
        try:
            object.__setattr__(self, "normalization", Normalization(self.normalization))
        except ValueError:
            names = ", ".join(repr(str(name)) for name in Normalization)
            raise ConfigurationError(
                f"normalization must be one of {names}; got {self.normalization!r}"
            ) from None
        if not self.model:
            raise ConfigurationError("model must name a model")
        if self.upstream_id == "":
            raise ConfigurationError("upstream_id must be a name, or None for the base URL")
        self._check_lifetimes()
        self._check_secret()
        if self.encryption_keys is not None:
            object.__setattr__(self, "encryption_keys", check_keys(self.encryption_keys))
        if self.bypass is not None and not callable(self.bypass):
            raise ConfigurationError("bypass must be a function of the request, or None")
        if self.replay_chunks_per_s is not None and not (
            is_number(self.replay_chunks_per_s) and self.replay_chunks_per_s > 0
        ):
            raise ConfigurationError(
                f"replay_chunks_per_s must be above 0, or None; got {self.replay_chunks_per_s!r}"
            )
        if self.similarity_threshold is not None:
            check_threshold(self.similarity_threshold, "similarity_threshold")
        self._check_review()
        self._check_verifying()
        check_prices(self.prices)
        whole = ("max_prompt_chars", "max_entry_bytes", "max_connections", "store_queue_size")
        for name in (*whole, "review_max_items", "stats_tenants"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} must be a whole number above 0; got {value!r}")
        for name in (
            *("redis_timeout_s", "embed_timeout_s", "verify_timeout_s"),
            *("keep_embeddings_s", "stats_flush_s", "added_latency_budget_s"),
        ):
            value = getattr(self, name)
            is_off = value is None and name == "keep_embeddings_s"
            if not is_off and not (is_number(value) and 0 < value < _TEN_YEARS_S):
                raise ConfigurationError(f"{name} must be seconds above 0; got {value!r}")

    def _check_secret(self) -> None:
        if self.tenant_secret is not None and len(self.tenant_secret) < _LEAST_SECRET:
            raise ConfigurationError(
                f"tenant_secret must be text of at least {_LEAST_SECRET} characters, or None"
            )

    def _check_lifetimes(self) -> None:
        check_ttl(self.ttl_s, "ttl_s")
        if not isinstance(self.model_ttl_s, Mapping):
            raise ConfigurationError("model_ttl_s must be a mapping of models to seconds")
        # A copy of its own: the caller's may be changed.
        object.__setattr__(self, "model_ttl_s", dict(self.model_ttl_s))
        for model, ttl_s in self.model_ttl_s.items():
            check_ttl(ttl_s, f"model_ttl_s[{model!r}]")
        if not is_number(self.ttl_jitter) or not 0 <= self.ttl_jitter < 1:
            raise ConfigurationError(
                f"ttl_jitter is a share from 0 to less than 1; got {self.ttl_jitter!r}"
            )
        for name in ("stale_while_revalidate_s", "stale_if_error_s"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= _TEN_YEARS_S:
                raise ConfigurationError(f"{name} must be from 0 s to ten years; got {value!r}")
        if self.sliding_max_age_s is not None:
            if check_ttl(self.sliding_max_age_s, "sliding_max_age_s") < self.ttl_s:
                raise ConfigurationError("sliding_max_age_s must not be shorter than ttl_s")
            if self.stale_while_revalidate_s or self.stale_if_error_s:
                raise ConfigurationError(
                    "an answer that slides is never stale: set either sliding_max_age_s, or"
                    " stale_while_revalidate_s and stale_if_error_s"
                )

    def _check_verifying(self) -> None:
        if self.verify_from is None:
            return
        check_threshold(self.verify_from, "verify_from")
        if not self.store_prompts:
            raise ConfigurationError(
                "store_prompts=False leaves a verifier nothing to compare: set verify_from=None"
            )

    def _check_review(self) -> None:
        if not is_number(self.review_sample_rate) or not 0 <= self.review_sample_rate <= 1:
            raise ConfigurationError(
                f"review_sample_rate is a share from 0 to 1; got {self.review_sample_rate!r}"
            )
        if self.review_sample_rate and not self.store_prompts:
            raise ConfigurationError(
                "store_prompts=False leaves nothing to review: set review_sample_rate=0"
            )
        check_ttl(self.review_ttl_s, "review_ttl_s")


def upstream_name(config: CacheConfig, base_url: str) -> str:
    """Return what names the model's service at *base_url* in every key."""
    return base_url if config.upstream_id is None else config.upstream_id


def is_number(value: object) -> bool:
    """Tell whether *value* is an int or a float; `True` and `False` are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_ttl(value: object, name: str) -> float:
    """Return *value* as seconds.

    Raises:
        ConfigurationError: it is not a number from 0.001 (Redis counts milliseconds) to ten years.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigurationError(f"{name} must be a number of seconds; got {value!r}")
    if not 0.001 <= value <= _TEN_YEARS_S:
        raise ConfigurationError(
            f"{name} must be from 0.001 s to ten years; got {value!r}."
            " An answer without expiry is never stored"
        )
    return float(value)


def check_keys(given: Sequence[str | bytes]) -> tuple[bytes, ...]:
    """Return the keys *given*, 32 bytes each. What is wrong is told without them.

    Raises:
        ConfigurationError: there is none, one is no key, or one is there twice.
    """
    listed: object = given  # whatever was given
    if isinstance(listed, str | bytes) or not isinstance(listed, Sequence) or not listed:
        raise ConfigurationError(
            "encryption_keys must be a list of keys, the first of which encrypts; or None"
        )
    keys = tuple(_key(key, at) for at, key in enumerate(given))
    if len(set(keys)) < len(keys):
        raise ConfigurationError("encryption_keys holds a key twice")
    return keys


def _key(given: object, at: int) -> bytes:
    key = given
    if isinstance(given, str):
        try:
            key = b64decode(given.strip().replace("-", "+").replace("_", "/"), validate=True)
        except ValueError:
            key = None
    if not isinstance(key, bytes) or len(key) != _KEY_BYTES:
        raise ConfigurationError(
            f"encryption_keys[{at}] must be {_KEY_BYTES} random bytes, or their base64 as"
            " `openssl rand -base64 32` prints it"
        )
    return key


def check_threshold(value: object, name: str) -> float:
    """Return *value* as a cosine similarity.

    Raises:
        ConfigurationError: it is not a number from 0 to 1.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else nan
    if not 0 <= number <= 1:
        raise ConfigurationError(
            f"{name} is a cosine similarity from 0 to 1, higher is stricter; got {value!r}"
        )
    return number


def redis_url_from_env() -> str:
    """Return `REDIS_URL`, or the local default."""
    return os.environ.get("REDIS_URL") or DEFAULT_REDIS_URL


def tenant_secret_from_env() -> str | None:
    """Return `LLM_CACHE_TENANT_SECRET`: the command line has no other way to learn it unseen."""
    return os.environ.get("LLM_CACHE_TENANT_SECRET") or None


def encryption_keys_from_env() -> list[str] | None:
    """Return `LLM_CACHE_ENCRYPTION_KEYS`, parted by commas, for the command line."""
    return [
        key.strip() for key in os.environ.get("LLM_CACHE_ENCRYPTION_KEYS", "").split(",") if key
    ] or None


def openai_key_in_env() -> bool:
    """Tell whether `OPENAI_API_KEY` is set to something."""
    return bool(os.environ.get("OPENAI_API_KEY"))


def tiktoken_cache_dir() -> Path | None:
    """Return where `tiktoken` keeps the ranks it has downloaded; `None` if it is to keep none."""
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if name in os.environ:
            return Path(os.environ[name]) if os.environ[name] else None
    return Path(tempfile.gettempdir()) / "data-gym-cache"


def openai_base_url() -> str:
    """Return the address that `AsyncOpenAI()` would ask, without making one."""
    url = os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    return url.rstrip("/") + "/"
