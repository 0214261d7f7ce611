"""The scripted upstream's HTTP/1.1: h11 reads, responses are written byte by byte.

Only reading goes through h11. Responses are framed here, because a test wants to say which bytes
are sent and where they stop.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

import h11

from llm_cache.testing._answers import encode_json, error_payload

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

_MAX_HEAD_BYTES = 256 * 1024
_FLUSH_AT_BYTES = 64 * 1024
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request that has arrived whole."""

    method: str
    target: str
    headers: dict[str, str]
    """Names in lower case; values of a repeated name joined by a comma."""
    raw: bytes
    keep_alive: bool
    chunks_allowed: bool
    """The client speaks HTTP/1.1; an older one is told the end by closing."""


class HttpServer:
    """Listens, and runs *respond* as a task for each request; cancelled if the client leaves."""

    def __init__(
        self, respond: Callable[[HttpRequest, HttpConnection], Coroutine[Any, Any, None]]
    ) -> None:
        self.respond = respond
        self.connections: set[HttpConnection] = set()
        """Those that are open or have something under way."""
        self.closing = False
        self._listener: asyncio.Server | None = None

    async def open(self, host: str, port: int) -> int:
        """Listen; return the port."""
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: HttpConnection(self), host, port, backlog=1024
        )
        bound: int = self._listener.sockets[0].getsockname()[1]
        return bound

    async def aclose(self) -> None:
        """Stop listening, break every connection, and wait for what was under way to end."""
        self.closing = True
        if self._listener is None:
            return
        self._listener.close()
        under_way = list(self.connections)
        for connection in under_way:
            connection.abort()
        await asyncio.gather(*(connection.closed for connection in under_way))
        await self._listener.wait_closed()


class HttpConnection(asyncio.Protocol):
    """A keep-alive connection: one request is answered at a time, later ones wait their turn.

    A protocol rather than a pair of streams: it hears of a client's leaving while the answer is
    still being thought about, and costs no task while idle.
    """

    def __init__(self, server: HttpServer) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the socket is closed and nothing is being answered."""
        self.answering = False
        """Some bytes of the present request's response are on their way."""
        self._server = server
        self._transport: asyncio.Transport
        self._parser = h11.Connection(h11.SERVER, _MAX_HEAD_BYTES)
        self._head: h11.Request | None = None
        self._body: list[bytes] = []
        self._request: HttpRequest | None = None
        self._task: asyncio.Task[None] | None = None
        self._out = bytearray()
        self._chunked = False
        self._writable: asyncio.Future[None] | None = None
        self._lost = False

    # --- what asyncio tells ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections.add(self)
        if self._server.closing:  # it was accepted while the listener went away
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read on, unless a request is still being answered."""
        try:
            self._parser.receive_data(data)
        except h11.RemoteProtocolError as error:
            self._reject(error)
            return
        if self._task is None:
            self._read_request()

    def pause_writing(self) -> None:
        """Make `flush` wait."""
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """Let `flush` go on."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Cancel the answer nobody will read."""
        self._lost = True
        self.resume_writing()
        if self._task is None:
            self._forget()
        else:
            self._task.cancel()

    def _forget(self) -> None:
        self._server.connections.discard(self)
        if not self.closed.done():
            self.closed.set_result(None)

    # --- reading ---

    def _read_request(self) -> None:
        try:
            while True:
                event = self._parser.next_event()
                if isinstance(event, h11.Data):
                    self._body.append(event.data)
                elif isinstance(event, h11.Request):
                    self._head = event
                elif isinstance(event, h11.EndOfMessage):
                    return self._start_response()
                elif event is h11.NEED_DATA:
                    if self._parser.they_are_waiting_for_100_continue:
                        self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                        self._parser.send(h11.InformationalResponse(status_code=100, headers=[]))
                    return None
                else:  # the connection is closed, or never was one of ours
                    self._transport.close()
                    return None
        except h11.RemoteProtocolError as error:
            self._reject(error)

    def _start_response(self) -> None:
        head = self._head
        assert head is not None  # noqa: S101 - h11 ends no message that it has not begun
        headers: dict[str, str] = {}
        for raw_name, raw_value in head.headers:
            name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        modern = head.http_version == b"1.1"
        self._request = HttpRequest(
            method=head.method.decode("ascii"),
            target=head.target.decode("latin-1"),
            headers=headers,
            raw=b"".join(self._body),
            keep_alive=modern and "close" not in headers.get("connection", "").lower(),
            chunks_allowed=modern,
        )
        self._head = None
        self._body = []
        self._task = asyncio.get_running_loop().create_task(
            self._server.respond(self._request, self)
        )
        self._task.add_done_callback(self._finish_response)

    def _finish_response(self, _task: asyncio.Task[None]) -> None:
        request, self._request, self._task = self._request, None, None
        answered, self.answering = self.answering, False
        if self._lost:
            self._forget()
            return
        if not answered or request is None or not request.keep_alive:
            self._transport.close()
        if self._transport.is_closing():
            return
        # A new parser a request is cheaper than telling h11 about a response it has not framed.
        rest, ended = self._parser.trailing_data
        self._parser = h11.Connection(h11.SERVER, _MAX_HEAD_BYTES)
        if rest and not ended:
            self.data_received(rest)

    def _reject(self, error: h11.RemoteProtocolError) -> None:
        if self._task is None:
            payload = encode_json(error_payload(error.error_status_hint, str(error)))
            self.send(error.error_status_hint, {"content-type": "application/json"}, payload)
        self._transport.close()

    # --- writing ---

    def send(
        self, status: int, headers: Mapping[str, str], body: bytes, *, cut_after: int | None = None
    ) -> None:
        """Send a whole response; with *cut_after* only so many bytes of its body, then close."""
        self.answering = True
        request = self._request
        framing = {"content-length": str(len(body))}
        if request is None or not request.keep_alive:
            framing["connection"] = "close"
        if request is not None and request.method == "HEAD":
            body = b""
        self._transport.write(_head(status, {**framing, **headers}) + body[:cut_after])
        if cut_after is not None:
            self.close()

    def start_stream(self, status: int, headers: Mapping[str, str], *, chunked: bool) -> None:
        """Begin a response whose length is not known yet."""
        framing = {"transfer-encoding": "chunked"} if chunked else {"connection": "close"}
        self.answering = True
        self._chunked = chunked
        self._out += _head(status, {**framing, **headers})

    def write(self, data: bytes) -> None:
        """Add *data* to the body of the stream; `flush` sends it."""
        if self._chunked and data:  # an empty chunk would be the end
            self._out += b"%x\r\n%b\r\n" % (len(data), data)
        else:
            self._out += data

    async def flush(self) -> None:
        """Send what was written, and wait while the client does not keep up."""
        self._transport.write(bytes(self._out))
        self._out.clear()
        if self._writable is not None:
            await self._writable

    async def flush_if_large(self) -> None:
        """Flush once it is worth a system call of its own."""
        if len(self._out) >= _FLUSH_AT_BYTES:
            await self.flush()

    async def end_stream(self) -> None:
        """Send the rest of the stream and its end."""
        if self._chunked:
            self._out += b"0\r\n\r\n"
        await self.flush()

    def close(self) -> None:
        """Close the connection after what was sent has gone out."""
        self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    return f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n{lines}\r\n".encode("latin-1")
