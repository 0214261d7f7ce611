"""What turns texts into vectors: the `Embedder` protocol and the embedders of this package.

`LocalEmbedder` is in `llm_cache.local`.
"""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from llm_cache.config import check_threshold, openai_key_in_env
from llm_cache.errors import ConfigurationError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

EmbedFunction = Callable[[list[str]], Awaitable[Any]]

_OPENAI_DIMENSIONS = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
}
_DEFAULT_THRESHOLD = 0.97
DEFAULT_MAX_BATCH = 64
"""Most texts of one request, where the embedder does not say."""
DEFAULT_MAX_IN_FLIGHT = 4
"""Most requests at a time, where the embedder does not say."""


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors.

    Prompts that are to be embedded at the same time travel together. An exception of `embed` with
    a `status_code` of 400, 413 or 422 says that a text was refused: the others are tried again
    without it. Nothing else is retried here.

    An embedder may also have:

    - `blind_spots(text) -> str | None`: what its model cannot see of a text, as text that two
      prompts must share before their vectors mean anything, or `None` when the text as a whole is
      beyond it and must not be compared at all.
    - `max_batch: int`: most texts of one `embed`. 64 where it is missing.
    - `max_in_flight: int | None`: most calls of `embed` at a time; further texts wait and travel
      together. 4 where it is missing. `None` hands over every text as it comes, for an embedder
      that queues and batches for itself, as one on this machine does.
    - `async open()`: makes it ready, so that the first call need not wait for that. Called when
      the cache opens, and again after a failure.
    - `isolated_threshold: float`: a lower `similarity_threshold`, for a candidate that stands
      alone, with no other entry near it.
    - `is_free: bool`: whether nothing is paid for its vectors. `False` where it is missing.

    What `embed` returns may have an attribute `tokens`: how many tokens are paid for. Where it is
    missing they are estimated, and told as an estimate.
    """

    @property
    def model_id(self) -> str:
        """Name of the model; with `dimensions` it names the vector space."""

    @property
    def dimensions(self) -> int | None:
        """Length of each vector; `None` when only a first embedding tells."""

    @property
    def similarity_threshold(self) -> float:
        """Least cosine similarity at which two prompts of this model are taken for one."""

    async def embed(self, texts: Sequence[str]) -> Any:
        """Return one vector for each text, as an array of shape (n, dimensions)."""


class PaidRows(list[list[float]]):
    """Vectors that know what they cost."""

    tokens: int | None = None
    """How many tokens are paid for; `None` where the service does not say."""


class OpenAIEmbedder:
    """Embeddings of OpenAI, or of any service that speaks its protocol.

    Args:
        client: The SDK's client; `None` makes one from `OPENAI_API_KEY` at the first use.
        model: The embedding model.
        dimensions: Shorter vectors, where the model supports it (`text-embedding-3-*` do): less
            memory and faster search for a little less precision. `None` keeps the model's own.
        similarity_threshold: 0.97 is the starting point for `text-embedding-3-small`; 0.99 is
            cautious, 0.92 daring. Go below only after looking at your near misses.
        max_batch: Most texts of one request. OpenAI takes 2048, others less: a request refused
            for its size is tried again in halves.
        max_in_flight: Most requests at a time.

    Raises:
        ConfigurationError: a value out of its range.
    """

    def __init__(
        self,
        client: AsyncOpenAI | None = None,
        *,
        model: str = "text-embedding-3-small",
        dimensions: int | None = None,
        similarity_threshold: float = _DEFAULT_THRESHOLD,
        max_batch: int = DEFAULT_MAX_BATCH,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
    ) -> None:
        if dimensions is not None and dimensions < 1:
            raise ConfigurationError(f"dimensions must be above 0; got {dimensions}")
        self._client = client
        self._owned: AsyncOpenAI | None = None
        self._model = model
        self._asked = dimensions
        self.dimensions = dimensions or _OPENAI_DIMENSIONS.get(model)
        self.similarity_threshold = check_threshold(similarity_threshold, "similarity_threshold")
        self.max_batch = check_limit(max_batch, "max_batch")
        self.max_in_flight = check_limit(max_in_flight, "max_in_flight")

    @property
    def model_id(self) -> str:
        """Name of the model."""
        return self._model

    async def embed(self, texts: Sequence[str]) -> PaidRows:
        """Return one vector for each text. One request; retried by the SDK's own rules.

        Raises:
            ConfigurationError: there is no client and no API key.
            openai.OpenAIError: whatever the SDK raises.
        """
        options: dict[str, Any] = {} if self._asked is None else {"dimensions": self._asked}
        reply = await self._get_client().embeddings.create(
            model=self._model, input=list(texts), **options
        )
        rows = sorted(reply.data, key=lambda row: row.index)
        vectors = PaidRows(row.embedding for row in rows)
        vectors.tokens = getattr(reply.usage, "prompt_tokens", None)
        return vectors

    async def aclose(self) -> None:
        """Close the client, if this embedder made it."""
        owned, self._owned = self._owned, None
        if owned is not None:
            await owned.close()

    def _get_client(self) -> AsyncOpenAI:
        if self._client is not None:
            return self._client
        if self._owned is None:
            if not openai_key_in_env():
                raise ConfigurationError(
                    "the default embedder needs an OpenAI key: set OPENAI_API_KEY, pass"
                    " embedder=OpenAIEmbedder(client), or embed on this machine with"
                    " embedder=LocalEmbedder() (pip install 'llm-cache[local]')"
                )
            from openai import AsyncOpenAI

            self._owned = AsyncOpenAI()
        return self._owned


class CallableEmbedder:
    """Makes an embedder of an async function that takes texts and answers vectors.

    Args:
        function: `async def embed(texts) -> rows of numbers`.
        model_id: Names the vector space. Change it when the model behind the function changes:
            vectors of two models must never be compared.
        dimensions: Length of the vectors; `None` learns it by embedding one word at `open()`.
        similarity_threshold: Least cosine similarity of a semantic hit. 0.97 suits few models
            exactly; measure yours.
        max_batch: Most texts of one call.
        max_in_flight: Most calls at a time; `None` makes one for every text as it comes.
        is_free: Whether nothing is paid for the vectors, as for a model on this machine.

    Raises:
        ConfigurationError: a value out of its range.
    """

    def __init__(
        self,
        function: EmbedFunction,
        *,
        model_id: str,
        dimensions: int | None = None,
        similarity_threshold: float = _DEFAULT_THRESHOLD,
        max_batch: int = DEFAULT_MAX_BATCH,
        max_in_flight: int | None = DEFAULT_MAX_IN_FLIGHT,
        is_free: bool = False,
    ) -> None:
        if not model_id:
            raise ConfigurationError("model_id must name the embedding model")
        self._function = function
        self.model_id = model_id
        self.dimensions = dimensions
        self.is_free = is_free
        self.similarity_threshold = check_threshold(similarity_threshold, "similarity_threshold")
        self.max_batch = check_limit(max_batch, "max_batch")
        self.max_in_flight = (
            None if max_in_flight is None else check_limit(max_in_flight, "max_in_flight")
        )

    async def embed(self, texts: Sequence[str]) -> Any:
        """Return what the function answers."""
        return await self._function(list(texts))


def check_limit(value: object, name: str) -> int:
    """Return *value* as a whole number above 0.

    Raises:
        ConfigurationError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(
            f"{name} of an embedder must be a whole number above 0; got {value!r}"
        )
    return value


def as_embedder(embedder: Embedder | EmbedFunction) -> Embedder:
    """Return *embedder*, wrapping a bare async function in a `CallableEmbedder` with a warning.

    Raises:
        ConfigurationError: it is neither an embedder nor a callable.
    """
    if isinstance(embedder, Embedder):
        return embedder
    if not callable(embedder):
        raise ConfigurationError(
            "embedder must have model_id, dimensions, similarity_threshold and async embed(texts),"
            f" or be an async function; got {type(embedder).__name__}"
        )
    name = f"{embedder.__module__}.{getattr(embedder, '__qualname__', type(embedder).__name__)}"
    warnings.warn(
        f"the embedder {name} is used as model_id={name!r} with"
        f" similarity_threshold={_DEFAULT_THRESHOLD}; say both with CallableEmbedder(…), so that"
        " a new model behind the same function is never compared with the old one's vectors",
        stacklevel=3,
    )
    return CallableEmbedder(embedder, model_id=name)
