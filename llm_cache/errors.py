"""Every exception this package raises on its own account.

LLMCacheError
├── ConfigurationError (ValueError)   a setting or a collaborator has to change
│   ├── EmbeddedRedisUnavailable      `embedded://` cannot find or start a server here
│   ├── SearchModuleMissing           this Redis has no RediSearch
│   ├── IndexMismatch                 an index of this name was made with other settings
│   ├── MissingExtra                  an optional dependency is not installed
│   ├── UnusablePolicy                a calibrated policy that this cache must not follow
│   └── UsedElsewhere                 a cache was taken to another event loop or process
├── CalibrationRefused                the labels do not show what was asked for
├── InvalidRequest (ValueError)       this call can never work, whatever the state of the cache
│   └── PartialInvalidation           an invalidation cannot reach everything that is meant
├── CacheClosed                       used after `aclose()`
├── StoreError                        Redis
│   ├── StoreUnavailable              it refused, went away or answered an error
│   │   └── StoreTimeout              it did not answer in time
│   └── CorruptEntry                  stored bytes are not an entry of this release
├── EmbedderError                     the embedder failed
│   ├── EmbedderTimeout               it did not answer in time
│   └── InvalidEmbedding              it answered something that is not a usable vector
├── OverBudget                        the cache has added all to a call that it may add
├── DependencySkipped                 what failed again and again is left alone for a while
├── NotStorable                       an explicit store was given an answer that must not be kept
├── TransferError                     a file of answers, prompts or labels
│   ├── InvalidFile                   it is not what it should be; the message names the line
│   └── FileUnwritable                it could not be written: a full disk, no right to
└── OnlyIfCachedMiss                  `only-if-cached` was asked for and there is no entry

Errors of the model's client (`openai.RateLimitError` and its like) reach the caller unchanged.
No message contains a prompt, an answer or a secret.
"""

from __future__ import annotations


class LLMCacheError(Exception):
    """Base of every exception of this package."""


class ConfigurationError(LLMCacheError, ValueError):
    """A setting or a collaborator cannot work; the message names the one to change."""


class EmbeddedRedisUnavailable(ConfigurationError):
    """`embedded://` found no server it can run, or the server it ran did not start."""


class SearchModuleMissing(ConfigurationError):
    """This Redis has no RediSearch, which the semantic layer needs."""


class IndexMismatch(ConfigurationError):
    """An index of the name we need exists with other settings; it is left as it is."""


class MissingExtra(ConfigurationError):
    """An optional dependency is not installed; the message gives the `pip install` line."""

    def __init__(self, what: str, extra: str) -> None:
        # Both stay in `args`, so that the error can be pickled on its way out of a worker.
        super().__init__(what, extra)

    def __str__(self) -> str:
        """Return the message."""
        what, extra = self.args
        return f"{what} is not installed: pip install 'llm-cache[{extra}]'"


class UnusablePolicy(ConfigurationError):
    """A calibrated policy of another embedder, of a newer release, or not a policy at all."""


class UsedElsewhere(ConfigurationError):
    """A cache was used in another event loop, or another process, than it was opened in."""


class CalibrationRefused(LLMCacheError):
    """The labels do not show that wrong hits are as rare as was asked for.

    Attributes:
        reason: what stands in the way.
        labels: how many there were.
        missing_labels: how many more of the same kind would do; `None` where no number would.
    """

    def __init__(self, reason: str, labels: int, missing_labels: int | None = None) -> None:
        # All stay in `args`, so that the error can be pickled on its way out of a worker.
        super().__init__(reason, labels, missing_labels)
        self.reason = reason
        self.labels = labels
        self.missing_labels = missing_labels

    def __str__(self) -> str:
        """Return the reason, and what is missing."""
        if self.missing_labels is None:
            return f"{self.reason}; more labels like these {self.labels:,} would not change that"
        return f"{self.reason}; about {self.missing_labels:,} more labels are needed"


class InvalidRequest(LLMCacheError, ValueError):
    """The request itself is malformed; nothing was looked up, sent or written."""


class CacheClosed(LLMCacheError):
    """The cache was used after `aclose()`."""


class StoreError(LLMCacheError):
    """Redis did not do what it was asked to."""


class StoreUnavailable(StoreError):
    """Redis refused, went away, or answered with an error."""


class StoreTimeout(StoreUnavailable):
    """Redis did not answer within `redis_timeout_s`."""


class CorruptEntry(StoreError):
    """The stored bytes are not an entry that this release can read."""


class EmbedderError(LLMCacheError):
    """The embedder raised, or did not answer within `embed_timeout_s`."""


class EmbedderTimeout(EmbedderError):
    """The embedder did not answer within `embed_timeout_s`, or what was left of the budget."""


class InvalidEmbedding(EmbedderError):
    """The embedder answered something that is not one finite, non-zero vector per text."""


class OverBudget(LLMCacheError):
    """The cache has added `added_latency_budget_s` to a call. Raised with `fail_closed` alone."""


class DependencySkipped(LLMCacheError):
    """A dependency has failed so often that it is not asked for a while, so nobody waits for it.

    Raised with `fail_closed` alone; the message names the dependency and its last error.
    """


class NotStorable(LLMCacheError, ValueError):
    """An explicit store was given an answer that must never be served again."""


class PartialInvalidation(InvalidRequest):
    """An invalidation cannot reach everything that is meant. Nothing was invalidated."""


class TransferError(LLMCacheError):
    """A file could not be written, or read to its end."""


class InvalidFile(TransferError, ValueError):
    """A file is damaged, cut off, or none of ours; nothing of it was taken. Names the line."""


class FileUnwritable(TransferError):
    """A file could not be written; the message says what is left of it, and how to go on."""


class OnlyIfCachedMiss(LLMCacheError):
    """`Cache-Control: only-if-cached` was asked for and the cache has no answer."""
