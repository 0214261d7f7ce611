"""What a call returns. It is the caller's own, and he may change it.

So nothing here is frozen: that would take a hit half a microsecond longer to make.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from llm_cache._core.types import CacheStatus, Completion, HasAnswer

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

_T = TypeVar("_T")
_U = TypeVar("_U")


@dataclass(slots=True, kw_only=True)
class CacheInfo:
    """How an answer was come by."""

    status: CacheStatus
    """How the call ended."""
    key: str | None = None
    """Redis key of the entry the answer is stored under; `None` when it is not stored. For an
    answer that was promoted from a semantic hit, the key of the original."""
    similarity: float | None = None
    """Cosine similarity between this prompt and the one that was answered; `None` unless the
    answer came, now or when it was promoted, through the semantic layer."""
    age_s: float = 0.0
    """Seconds since the answer was stored; 0 for a fresh one."""
    origin: str | None = None
    """Key of the entry that this answer is a promoted copy of."""
    shared: bool = False
    """Whether another call, under way at the same time, asked the model for this one too."""
    reason: str | None = None
    """Why the call was bypassed (`redis`, `embedder`, …), or why its answer was not stored."""


@dataclass(slots=True, kw_only=True)
class ChatReply(CacheInfo):
    """An answer and how it was come by. Unpacks into `(text, status)`."""

    source: HasAnswer = field(repr=False)
    """What has the answer. One from Redis is parsed when it is first looked at."""

    @property
    def data(self) -> Completion:
        """The completion as JSON, as the provider sent it; the same object every time."""
        completion: Completion = self.source.answer
        return completion

    @property
    def text(self) -> str:
        """Text of the first choice; empty where it has none (tool calls, say)."""
        choices = self.data.get("choices") or [{}]
        return (choices[0].get("message") or {}).get("content") or ""

    @property
    def usage(self) -> dict[str, Any] | None:
        """Token counts of the original answer, as the provider reported them."""
        return self.data.get("usage")

    @property
    def completion(self) -> ChatCompletion:
        """The SDK's object, built anew at each access."""
        from openai.types.chat import ChatCompletion

        return ChatCompletion.construct(**self.data)

    def __iter__(self) -> Iterator[Any]:
        """Yield text and status."""
        yield self.text
        yield self.status


@dataclass(slots=True, kw_only=True)
class CachedValue(CacheInfo):
    """What a producer returned, now or before. Unpacks into `(value, status)`."""

    value: Any = field(repr=False)
    """The value, as the JSON it was stored as."""

    def __iter__(self) -> Iterator[Any]:
        """Yield value and status."""
        yield self.value
        yield self.status


class ChatStream(Generic[_T]):
    """An answer that arrives in pieces. Iterate it once; `async with`, or `aclose()`, to leave.

    Whoever leaves before the end costs the others nothing; when the last one leaves, the model's
    stream is closed and nothing is stored.
    """

    def __init__(
        self,
        info: CacheInfo,
        pieces: AsyncIterator[_T],
        *,
        leave: Callable[[], None] | None = None,
        final: Callable[[], CacheInfo] | None = None,
        response: Any = None,
    ) -> None:
        self._info = info
        self._pieces = pieces
        self._leave = leave
        self._final = final
        self.response = SharedResponse(self._depart, response)
        """What may be known of the HTTP response; closing it is leaving. There is none behind a
        replay."""

    @property
    def info(self) -> CacheInfo:
        """How the answer is come by. Once a fresh stream has ended, with the key it is under."""
        return self._info

    @property
    def status(self) -> CacheStatus:
        """How the call ended."""
        return self._info.status

    def map(self, function: Callable[[_T], _U]) -> ChatStream[_U]:
        """Return this stream with *function* applied to each piece, without what gives nothing."""

        async def pieces() -> AsyncIterator[_U]:
            async for piece in self:
                mapped = function(piece)
                if mapped:
                    yield mapped

        return ChatStream(
            self._info,
            pieces(),
            leave=self._depart,
            final=lambda: self.info,
            response=self.response,
        )

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> _T:
        """Return the next piece as soon as it is there."""
        try:
            return await anext(self._pieces)
        except StopAsyncIteration:
            if self._final is not None:
                self._info = self._final()
            self._depart()
            raise
        except BaseException:
            # An error of the model, or the caller was cancelled: over in any case.
            self._depart()
            raise

    async def aclose(self) -> None:
        """Leave. Does nothing after the end."""
        self._depart()

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave."""
        await self.aclose()

    def _depart(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


class SharedResponse:
    """Stands for the HTTP response of a stream that others may listen to as well.

    It tells of the real one what does not touch the body. To close it is to leave the stream.

    Args:
        leave: What closing does.
        real: `None` where the cache answered.
    """

    def __init__(self, leave: Callable[[], None], real: Any = None) -> None:
        self._leave = leave
        self._real = real
        if real is None:
            self.status_code = 200
            self.headers = {"cache-status": "llm-cache; hit"}

    def __getattr__(self, name: str) -> Any:
        if name not in _ABOUT_A_RESPONSE:
            raise AttributeError(f"the response of a cached stream has no {name}")
        return getattr(self._real, name)

    def close(self) -> None:
        """Leave the stream."""
        self._leave()

    async def aclose(self) -> None:
        """Leave the stream."""
        self._leave()


_ABOUT_A_RESPONSE = frozenset(
    {
        "cookies",
        "headers",
        "history",
        "http_version",
        "is_error",
        "is_success",
        "reason_phrase",
        "request",
        "status_code",
        "url",
    }
)

_INFO = "_llm_cache_info"


def cache_info(answer: object) -> CacheInfo | None:
    """Return how *answer* of a wrapped client was come by; `None` where no cache had a part in it.

    *answer* is what `create` or `parse` returned. Of a fresh stream, the key is known at its end.
    """
    info = getattr(answer, _INFO, None)
    return info if isinstance(info, CacheInfo) else None


def set_cache_info(answer: _T, info: CacheInfo | None) -> _T:
    """Put *info* on an object of the SDK, where `cache_info` finds it."""
    # The way the SDK puts its own `_request_id` on an answer: an attribute that is no field.
    object.__setattr__(answer, _INFO, info)
    return answer
