"""Every exception this package raises on its own account.

LLMCacheError
├── ConfigurationError (ValueError)   a setting or a collaborator has to change
│   ├── EmbeddedRedisUnavailable      `embedded://` cannot find or start a server here
│   ├── SearchModuleMissing           this Redis has no RediSearch
│   ├── IndexMismatch                 an index of this name was made with other settings
│   └── MissingExtra                  an optional dependency is not installed
├── InvalidRequest (ValueError)       this call can never work, whatever the state of the cache
│   └── PartialInvalidation           a pattern cannot reach all that is meant
├── CacheClosed                       used after `aclose()`
├── StoreError                        Redis
│   ├── StoreUnavailable              it refused, went away or answered an error
│   │   └── StoreTimeout              it did not answer in time
│   └── CorruptEntry                  stored bytes are not an entry of this release
├── EmbedderError                     the embedder failed
│   └── InvalidEmbedding              it answered something that is not a usable vector
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


class InvalidEmbedding(EmbedderError):
    """The embedder answered something that is not one finite, non-zero vector per text."""


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
