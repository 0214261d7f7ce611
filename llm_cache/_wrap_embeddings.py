"""`embeddings.create` of a wrapped client: each input is looked up, and only the rest is asked."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from openai.resources.embeddings import AsyncEmbeddings
from openai.types import CreateEmbeddingResponse, Embedding
from openai.types.create_embedding_response import Usage

from llm_cache._call import Call, CallOptions, control_header, take_options
from llm_cache._core.canonical import is_not_given
from llm_cache._core.parameters import fold_headers_and_query
from llm_cache._core.types import CacheStatus, Json
from llm_cache._http.upstream import Upstream
from llm_cache.config import upstream_name
from llm_cache.errors import InvalidRequest, OnlyIfCachedMiss
from llm_cache.reply import CacheInfo, set_cache_info

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from llm_cache.cache import LLMCache

_NOT_IN_BODY = frozenset(
    {"encoding_format", "timeout", "extra_headers", "extra_query", "extra_body"}
)
"""How a vector travels, not what it is; and what is in the key under names of its own."""
_STORED_AT_ONCE = 16
_INPUTS_A_TURN = 64
"""Between as many, others have their turn: some milliseconds of work."""


_T = TypeVar("_T")
_U = TypeVar("_U")


class CachedEmbeddings(AsyncEmbeddings):
    """The SDK's resource, with every input of `create` taken from the cache if it is there.

    `usage` is what was paid now: that of the request for the missing inputs, zero without one.
    """

    def __init__(
        self, client: AsyncOpenAI, cache: LLMCache, upstream: Upstream, options: CallOptions
    ) -> None:
        super().__init__(client)
        self._cache = cache
        self._upstream = upstream
        self._options = options

    # `input` is what the SDK calls it.
    async def create(self, *, input: Any, model: Any, **params: Any) -> Any:  # noqa: A002
        """Create embeddings, or take them from the cache. One `MGET`, and a `SET` for each new."""
        options = take_options(params, self._options)
        if options is None:
            return await super().create(input=input, model=model, **params)
        items = _items(input)
        if not items:
            return await super().create(input=items, model=model, **params)
        calls = await self._plan(items, model, params, options)
        found, epoch = await self._look_up(calls)
        missing = [i for i, answer in enumerate(found) if answer is None]
        asked: dict[str, int] = {}
        for i in missing:
            asked.setdefault(calls[i].digest, i)  # the same input twice has one vector
        usage, request_id = Usage(prompt_tokens=0, total_tokens=0), None
        if asked:
            if calls[0].terms.control.only_if_cached:
                raise OnlyIfCachedMiss("only-if-cached: there is no stored vector of some input")
            order = list(asked)
            reply: Any = await super().create(
                input=[items[asked[digest]] for digest in order], model=model, **params
            )
            if not isinstance(reply, CreateEmbeddingResponse):
                return reply  # the SDK hands on whatever a server says that is no JSON, as text
            usage, request_id = reply.usage, getattr(reply, "_request_id", None)
            vectors = [row.embedding for row in sorted(reply.data, key=lambda row: row.index)]
            fresh = dict(zip(order, await _each(_pack, vectors), strict=True))
            for i in missing:
                found[i] = fresh[calls[i].digest]
            if epoch is not None:
                await self._store([(calls[i], found[i]) for i in asked.values()], epoch)
        rows = await _rows(found, as_text=params.get("encoding_format") == "base64")
        response = CreateEmbeddingResponse.construct(
            object="list", model=model, data=[], usage=usage
        )
        response.data = rows  # given to `construct`, it would look at every number
        object.__setattr__(response, "_request_id", request_id)
        return set_cache_info(response, _info(len(items), len(missing), epoch))

    async def _plan(
        self, items: Sequence[Any], model: Any, params: dict[str, Any], options: CallOptions
    ) -> list[Call]:
        config = self._cache.config
        sent = {name: value for name, value in params.items() if not is_not_given(value)}
        headers, query = fold_headers_and_query(sent, self._upstream.defaults)
        body = {**sent, **_over_body(sent)}
        common = {
            "upstream": upstream_name(config, self._upstream.base_url),
            "headers": headers,
            "query": query,
            "model": model,
            "body": {name: value for name, value in body.items() if name not in _NOT_IN_BODY},
        }
        given: CallOptions = {**options, "semantic": False}
        if given.get("cache_control") is None:
            given["cache_control"] = control_header(sent)

        planner = self._cache._planner  # noqa: SLF001

        def plan(item: Any) -> Call:
            return planner.value({**common, "input": item}, producer="embeddings", **given)

        return await _each(plan, items)

    async def _look_up(self, calls: Sequence[Call]) -> tuple[list[Json], str | None]:
        """Return an answer or `None` for each call, and the epoch; no epoch if Redis failed."""
        if calls[0].terms.bypass is not None:
            return [None] * len(calls), None
        self._cache._check_use()  # noqa: SLF001
        lookups = await self._cache._engine.look_up_many(calls)  # noqa: SLF001
        if lookups is None:
            return [None] * len(calls), None
        now_s = self._cache._clock()  # noqa: SLF001
        answers = [
            found.entry.answer
            if found.entry is not None and call.accepts(found.entry, now_s)
            else None
            for call, found in zip(calls, lookups, strict=True)
        ]
        return answers, lookups[0].epoch

    async def _store(self, fresh: Sequence[tuple[Call, Json]], epoch: str) -> None:
        engine = self._cache._engine  # noqa: SLF001
        for start in range(0, len(fresh), _STORED_AT_ONCE):
            some = fresh[start : start + _STORED_AT_ONCE]
            await asyncio.gather(
                *(engine.keep(call, answer, epoch=epoch) for call, answer in some)
            )


def _items(given: Any) -> list[Any]:
    """Return the inputs: a text or a list of tokens is one, a list of them several."""
    if isinstance(given, str):
        return [given]
    items = list(given)
    return [items] if items and all(isinstance(item, int) for item in items) else items


def _over_body(sent: dict[str, Any]) -> dict[str, Any]:
    """Return what the SDK lays over the body."""
    over = sent.get("extra_body") or {}
    if not isinstance(over, Mapping):
        raise InvalidRequest("extra_body must be a mapping of names to values")
    if "input" in over:
        raise InvalidRequest("input is given as input=, not in extra_body")
    return dict(over)


async def _each(function: Callable[[_T], _U], items: Sequence[_T]) -> list[_U]:
    """Return what *function* makes of each of *items*, letting others have their turn."""
    made: list[_U] = []
    for start in range(0, len(items), _INPUTS_A_TURN):
        if start:
            await asyncio.sleep(0)
        made += map(function, items[start : start + _INPUTS_A_TURN])
    return made


async def _rows(answers: Sequence[Json], *, as_text: bool) -> list[Embedding]:
    def row(numbered: tuple[int, Json]) -> Embedding:
        index, answer = numbered
        made = Embedding.construct(object="embedding", index=index, embedding=[])
        made.embedding = _unpack(answer, as_text=as_text)  # see above
        return made

    return await _each(row, list(enumerate(answers)))


def _pack(vector: str | Sequence[float]) -> Json:
    """Return *vector* as it is stored: base64 of FLOAT32, if that is all there is to it."""
    if isinstance(vector, str):
        return vector
    exact = np.asarray(vector, dtype=np.float64)
    with np.errstate(over="ignore"):
        short = exact.astype("<f4")
    if np.allclose(short, exact, rtol=1e-6, atol=0.0, equal_nan=True):
        return base64.b64encode(short.tobytes()).decode()
    return list(vector)


def _unpack(answer: Json, *, as_text: bool) -> Any:
    if not isinstance(answer, str):
        return list(answer)
    return answer if as_text else np.frombuffer(base64.b64decode(answer), "<f4").tolist()


def _info(asked_for: int, missing: int, epoch: str | None) -> CacheInfo:
    if epoch is None:
        return CacheInfo(status=CacheStatus.BYPASS)
    status = CacheStatus.MISS if missing else CacheStatus.EXACT
    return CacheInfo(status=status, reason=f"{asked_for - missing} of {asked_for} were cached")
