"""An OpenAI-compatible server that does what a test tells it to."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import itertools
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

import numpy as np

from llm_cache.errors import ConfigurationError
from llm_cache.testing._answers import (
    Answer,
    Json,
    Seconds,
    encode_event,
    encode_json,
    error_payload,
    expected_answer,
)
from llm_cache.testing._embedder import bag_of_words
from llm_cache.testing._tally import Tally

if TYPE_CHECKING:
    from types import TracebackType

    import openai

    from llm_cache.testing._http import HttpConnection, HttpRequest, HttpServer

_logger = logging.getLogger("llm_cache.testing")

_CHAT_PATH = "/v1/chat/completions"
_EMBEDDINGS_PATH = "/v1/embeddings"
_JSON_TYPE = "application/json"
_STREAM_TYPE = "text/event-stream; charset=utf-8"

Default: TypeAlias = (
    Answer | str | Callable[[Json], Answer | str] | Callable[[Json], Awaitable[Answer | str]]
)
"""What is answered when nothing is scripted."""
Embeddings: TypeAlias = Callable[[list[str], Json], Any]
"""Texts and request to vectors or an `Answer`; may be async."""
Handler: TypeAlias = Callable[[Any], Any]
"""A request's body to JSON, bytes or an `Answer`; may be async."""


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request as it arrived."""

    method: str
    path: str
    """Without the query."""
    query: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: Any
    """The parsed JSON; None if there is none."""
    raw: bytes


class _RequestError(Exception):
    """A request that gets an error of OpenAI's shape."""

    def __init__(self, status: int, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class _Reply(NamedTuple):
    """What goes to the client: an answer, and the body it has when it is a success."""

    answer: Answer
    ok_body: bytes | None = None
    """None: a chat completion, which the answer spells out for itself."""


class ScriptedUpstream:
    """A small OpenAI-compatible server on loopback, for tests and load tests.

    ```python
    async with ScriptedUpstream() as upstream:
        upstream.answer("42")
        completion = await upstream.client().chat.completions.create(model=..., messages=...)
    ```

    It serves `POST /v1/chat/completions`, plain and streamed, `POST /v1/embeddings`, and what
    `route` adds; the rest is a 404. Nothing is cached or retried, so the counts are the number of
    requests that arrived. Requests are taken up in the order of their arrival and answered
    concurrently.

    Args:
        hold: chat requests wait until an answer is scripted, see `hold`.
        host: the address to listen on.
        port: 0 lets the operating system choose.
        embedding_dimensions: of an embedding when the request does not say.
        record: keep `requests` and `embedding_inputs`. A load test turns this off, the counts
            work without.
    """

    def __init__(
        self,
        *,
        hold: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
        embedding_dimensions: int = 1536,
        record: bool = True,
    ) -> None:
        self.default: Default = expected_answer
        """What is answered when nothing is scripted: an answer, or what to call for one."""
        self.embeddings: Embeddings | None = None
        """Called with the texts and the request for vectors, or for an `Answer`.

        An `Answer` of a status below 400 gives the usual vectors, with its delays and its gate.
        """
        self.requests: list[RecordedRequest] = []
        """Every request that arrived whole, whatever its path."""
        self.embedding_inputs: list[str] = []
        """Every text that was to be embedded, in order, repeats included."""
        self._host = host
        self._port = port
        self._embedding_dimensions = embedding_dimensions
        self._record = record
        self._held = hold
        self._scripted: deque[Answer] = deque()
        self._waiting: deque[asyncio.Future[Answer | None]] = deque()
        self._chats = Tally("chat requests")
        self._embeds = Tally("embedding requests")
        self._disconnects = Tally("disconnects")
        self._routes: dict[tuple[str, str], Handler] = {
            ("POST", _CHAT_PATH): self._chat,
            ("POST", _EMBEDDINGS_PATH): self._embed,
        }
        self._server: HttpServer | None = None
        self._numbers = itertools.count(1)
        self._clients: list[openai.AsyncOpenAI] = []

    # --- its life ---

    async def open(self) -> None:
        """Listen. Requests are answered as soon as this returns."""
        if self._server is not None:
            raise RuntimeError("the upstream was opened before; make another one")
        try:
            # h11 comes along with openai's HTTP client; the other doubles do without it.
            from llm_cache.testing._http import HttpServer
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "ScriptedUpstream reads HTTP with h11, which is not installed: pip install h11"
            ) from error
        server = HttpServer(self._respond)
        self._port = await server.open(self._host, self._port)
        self._server = server

    async def aclose(self) -> None:
        """Stop: cancel what is being answered, close every connection and every client.

        Whoever still waits for an answer sees the connection break. May be called twice. To
        imitate an outage rather, answer with `Answer(drop=True)`: clients stay usable.
        """
        if self._server is None:
            return
        await self._server.aclose()
        for client in self._clients:
            await client.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # --- how to reach it ---

    @property
    def origin(self) -> str:
        """Scheme, host and port, for SDKs that add the whole path."""
        if self._server is None:
            raise RuntimeError("the upstream has no address before open()")
        return f"http://{self._host}:{self._port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI SDK takes as its base URL."""
        return f"{self.origin}/v1"

    def client(self, **options: Any) -> openai.AsyncOpenAI:
        """Return an SDK client of this upstream, without retries; it is closed with the upstream.

        *options* are those of `AsyncOpenAI` and win.
        """
        import openai  # most of a second, which the other doubles do not need

        if "http_client" not in options:
            # Loopback is neither behind the proxy that the environment may name, nor encrypted;
            # the TLS context that is left out would be most of the cost of a client.
            options["http_client"] = openai.DefaultAsyncHttpxClient(trust_env=False, verify=False)
        defaults = {"base_url": self.base_url, "api_key": "test", "max_retries": 0}
        client = openai.AsyncOpenAI(**{**defaults, **options})
        self._clients.append(client)
        return client

    # --- what it is told ---

    def answer(self, answer: Answer | str) -> None:
        """Script the answer of one chat request: the one held longest, else the next to come.

        Scripted answers are given out first in, first out. A request whose client is known to
        have left gets none; when the test itself made a client leave, `disconnected` tells when
        that is known here.
        """
        self._scripted.append(Answer(text=answer) if isinstance(answer, str) else answer)
        self._match()

    def hold(self) -> contextlib.AbstractContextManager[object]:
        """Make chat requests wait for `answer` from now on, until `release`.

        As a context manager it releases at its end.
        """
        self._held = True
        releasing = contextlib.ExitStack()
        releasing.callback(self.release)
        return releasing

    def release(self) -> None:
        """End `hold`: requests that wait, and later ones, get the default answer."""
        self._held = False
        self._match()

    def route(self, path: str, handler: Handler, *, method: str = "POST") -> None:
        """Let *handler* answer requests for *path*, to imitate another provider's endpoint.

        It is called with the parsed body (None if that is no JSON), may be async, and returns
        JSON, bytes, or an `Answer`. It comes before the built-in paths.
        """
        self._routes[method.upper(), path] = handler

    # --- what it has seen ---

    @property
    def calls(self) -> int:
        """How many chat requests arrived."""
        return self._chats.count

    @property
    def embedding_calls(self) -> int:
        """How many embedding requests arrived."""
        return self._embeds.count

    @property
    def disconnects(self) -> int:
        """How many clients left before their answer was complete."""
        return self._disconnects.count

    @property
    def chat_requests(self) -> list[RecordedRequest]:
        """The chat requests among `requests`."""
        return [request for request in self.requests if request.path == _CHAT_PATH]

    async def called(self, n: int = 1, *, timeout_s: float = 5.0) -> None:
        """Return once *n* chat requests arrived in all; `TimeoutError` if they do not."""
        await self._chats.reached(n, timeout_s)

    async def disconnected(self, n: int = 1, *, timeout_s: float = 5.0) -> None:
        """Return once *n* clients left early in all; `TimeoutError` if they do not."""
        await self._disconnects.reached(n, timeout_s)

    # --- answering ---

    async def _respond(self, request: HttpRequest, connection: HttpConnection) -> None:
        path, _, query = request.target.partition("?")
        body = _parse(request.raw)
        if self._record:
            recorded = RecordedRequest(
                method=request.method,
                path=path,
                query=query,
                headers=request.headers,
                body=body,
                raw=request.raw,
            )
            self.requests.append(recorded)
        number = next(self._numbers)
        try:
            reply = await self._reply(request.method, path, body)
            await _deliver(reply, body, request, connection, number)
        except asyncio.CancelledError:
            if self._server is not None and not self._server.closing:
                self._disconnects.add()
            raise
        except _RequestError as error:
            _refuse(connection, error.status, str(error), code=error.code)
        except Exception as error:  # the test's own code failed: say so where the test looks
            _logger.exception("what was scripted for %s raised", path)
            _refuse(connection, 500, f"What was scripted for {path} raised {error!r}")

    async def _reply(self, method: str, path: str, body: Any) -> _Reply:
        handler = self._routes.get((method, path))
        if handler is None:
            if any(path == known for _, known in self._routes):
                raise _RequestError(405, f"Not allowed to {method} on {path}")
            raise _RequestError(404, f"Unknown request URL: {method} {path}", code="unknown_url")
        reply = await _awaited(handler(body))
        if isinstance(reply, _Reply):
            return reply
        if isinstance(reply, Answer):
            return _Reply(reply)
        return _Reply(Answer(), reply if isinstance(reply, bytes) else encode_json(reply))

    # --- chat ---

    async def _chat(self, body: Any) -> _Reply:
        messages = body.get("messages") if isinstance(body, dict) else None
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise _RequestError(400, "The body is not JSON with a list of messages.")
        self._chats.add()
        answer = await self._next_answer()
        if answer is None:
            default = self.default
            made = await _awaited(default(body)) if callable(default) else default
            answer = Answer(text=made) if isinstance(made, str) else made
        return _Reply(answer)

    async def _next_answer(self) -> Answer | None:
        """Return the scripted answer of this request; None means the default."""
        if not self._waiting and (self._scripted or not self._held):
            return self._scripted.popleft() if self._scripted else None
        waiter: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._match()
        try:
            return await waiter
        except asyncio.CancelledError:
            # The client left between the match and now: the next request gets the answer.
            given = None if waiter.cancelled() or not waiter.done() else waiter.result()
            if given is not None:
                self._scripted.appendleft(given)
                self._match()
            raise

    def _match(self) -> None:
        """Give out scripted answers in order, and the default to the rest unless held."""
        while self._waiting and (self._scripted or not self._held):
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(self._scripted.popleft() if self._scripted else None)

    # --- embeddings ---

    async def _embed(self, body: Any) -> _Reply:
        texts = _embedding_texts(body)
        self._embeds.add()
        if self._record:
            self.embedding_inputs.extend(texts)
        made = None if self.embeddings is None else await _awaited(self.embeddings(texts, body))
        answer = made if isinstance(made, Answer) else Answer()
        if made is None or isinstance(made, Answer):
            dimensions = body.get("dimensions") or self._embedding_dimensions
            made = [bag_of_words(text, dimensions) for text in texts]
        return _Reply(answer, _embedding_payload(made, texts, body))


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _refuse(
    connection: HttpConnection, status: int, message: str, *, code: str | None = None
) -> None:
    if connection.answering:  # too late for another status: all that is left is to break off
        connection.close()
        return
    payload = encode_json(error_payload(status, message, code=code))
    connection.send(status, {"content-type": _JSON_TYPE}, payload)


def _embedding_texts(body: Any) -> list[str]:
    """Return the texts to embed; tokens count as a text that spells their numbers."""
    given = body.get("input") if isinstance(body, dict) else None
    tokens_of_one = isinstance(given, list) and bool(given) and isinstance(given[0], int)
    items: list[Any] = given if isinstance(given, list) and not tokens_of_one else [given]
    if not items or not all(isinstance(item, str | list) and item for item in items):
        raise _RequestError(400, "The body is not JSON with a non-empty input.")
    return [item if isinstance(item, str) else " ".join(map(str, item)) for item in items]


def _embedding_payload(vectors: Sequence[Any], texts: Sequence[str], body: Json) -> bytes:
    in_base64 = body.get("encoding_format") == "base64"
    rows = []
    for index, vector in enumerate(vectors):
        row = np.asarray(vector, "<f4")
        spelled = base64.b64encode(row.tobytes()).decode() if in_base64 else row.tolist()
        rows.append({"object": "embedding", "index": index, "embedding": spelled})
    tokens = sum(len(text) // 4 + 1 for text in texts)
    return encode_json(
        {
            "object": "list",
            "data": rows,
            "model": body.get("model"),
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


async def _deliver(
    reply: _Reply, body: Any, request: HttpRequest, connection: HttpConnection, number: int
) -> None:
    answer = reply.answer
    answer_id = f"chatcmpl-{number}"
    stream_asked = isinstance(body, dict) and body.get("stream") is True
    stream_given = stream_asked and answer.status < 400 and reply.ok_body is None
    streamed = stream_given and answer.raw_body is None

    if answer.gate is not None and not (streamed and answer.gate_after):
        await answer.gate.wait()
    await _pause(answer.delay_s)
    if answer.drop:
        connection.close()
        return

    headers = {
        "content-type": _STREAM_TYPE if stream_given else _JSON_TYPE,
        "x-request-id": f"req_{number}",
        **{name.lower(): value for name, value in answer.headers.items()},
    }
    if streamed:
        frames = [encode_event(event) for event in answer.events(body, answer_id=answer_id)]
        connection.start_stream(answer.status, headers, chunked=request.chunks_allowed)
        await _stream(answer, frames, connection)
    else:
        payload = _payload(reply, body, answer_id)
        connection.send(answer.status, headers, payload, cut_after=answer.cut_after)


def _payload(reply: _Reply, body: Any, answer_id: str) -> bytes:
    answer = reply.answer
    if answer.raw_body is not None:
        return answer.raw_body
    if answer.status >= 400:
        return encode_json(error_payload(answer.status, answer.error))
    if reply.ok_body is not None:
        return reply.ok_body
    return encode_json(answer.completion(body, answer_id=answer_id))


async def _stream(answer: Answer, frames: Sequence[bytes], connection: HttpConnection) -> None:
    left = answer.cut_after
    for number, frame in enumerate(frames):
        await _before_event(number, answer, connection)
        if left is not None and left <= len(frame):
            connection.write(frame[:left])
            await connection.flush()
            connection.close()
            return
        if left is not None:
            left -= len(frame)
        connection.write(frame)
        await connection.flush_if_large()
    await connection.end_stream()


async def _before_event(number: int, answer: Answer, connection: HttpConnection) -> None:
    gate = answer.gate if number == answer.gate_after > 0 else None
    delay_s = answer.chunk_delay_s if number else answer.first_token_delay_s
    if gate is not None or delay_s:
        await connection.flush()
    if gate is not None:
        await gate.wait()
    await _pause(delay_s)


async def _pause(duration: Seconds) -> None:
    duration_s = duration() if callable(duration) else duration
    if duration_s > 0:
        await asyncio.sleep(duration_s)
