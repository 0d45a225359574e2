"""waitress server with limits on the number of connections, and on the time and size of requests.

A client that sends nothing, or a byte now and then, is disconnected after seconds, or after one second while the server
is full. A body is read only if the guard accepts the headers, they state its length, and there is room for it; up to
half a megabyte of it is in memory, the rest in temporary files. No thread waits for a client that reads slowly.
"""

from __future__ import annotations

import functools
import resource
import socket
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.utilities import Error

from hpo.service.dashboard.guard import Response

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from hpo.service.dashboard.guard import Guard

CONNECTIONS = 512
"""Most connections; half of the files that the process may open, if that is less."""
REQUEST_S, REQUEST_WHEN_FULL_S = 10, 1
"""Seconds within which a connection must send a complete request, and those while the server is full."""
SLOWEST_BODY = 16 * 1024
"""Bytes of a body that must arrive for each further second."""
STALLED_S = 30
"""Seconds after which a client that reads nothing of a response is disconnected."""
LARGEST_HEADERS = 32 * 1024
BODIES_AT_ONCE = 2
"""Bodies of the largest size that all requests together may have at once."""


class LimitedServer(TcpWSGIServer):
    """Server of a guarded application on a listening socket; it stores its connections in `map`."""

    def __init__(
        self, guard: Guard, listener: socket.socket, map: dict[int, Any], *, threads: int, largest_body: int
    ) -> None:
        open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.max_connections = CONNECTIONS if open_files < 0 else min(CONNECTIONS, open_files // 2)
        self.guard, self.largest_body, self._open = guard, largest_body, map
        adj = Adjustments(
            sockets=[listener],
            threads=threads,
            ident=None,
            max_request_header_size=LARGEST_HEADERS,
            max_request_body_size=largest_body,
            outbuf_high_watermark=2**40,  # a response is buffered in a file, so its thread is free
            connection_limit=self.max_connections + 2,  # waitress counts the listener and its trigger too
            cleanup_interval=1,
            asyncore_use_poll=True,  # select() fails beyond 1,024 open files
            clear_untrusted_proxy_headers=True,
        )
        info = (listener.family, listener.type, listener.proto, listener.getsockname())
        self.channel_class = LimitedChannel
        super().__init__(guard, map, _sock=listener, adj=adj, sockinfo=info, bind_socket=False)

    @property
    def channels(self) -> list[LimitedChannel]:
        """Return the open connections."""
        return [each for each in list(self._open.values()) if isinstance(each, LimitedChannel)]

    def maintenance(self, now: float) -> None:
        """Close the connections that take too long. waitress calls it every second."""
        channels = self.channels
        timeout_s = REQUEST_S if len(channels) < self.max_connections else REQUEST_WHEN_FULL_S
        for channel in channels:
            if channel.is_late(now, timeout_s):
                channel.handle_close()

    def refusal(self, request: HTTPRequestParser, address: str) -> Response | None:
        """Return the error response to a request before its body is read; None if the body is to be read."""
        environ: WSGIEnvironment = {f"HTTP_{name}": value for name, value in request.headers.items()}
        path: str = request.path  # type: ignore[attr-defined]  # its stubs do not know it
        environ |= {"REQUEST_METHOD": request.command, "PATH_INFO": path, "REMOTE_ADDR": address}
        environ["CONTENT_TYPE"] = request.headers.get("CONTENT_TYPE", "")
        if refused := self.guard.refusal(environ):
            return refused
        if request.chunked:
            return _plain("411 Length Required", "the request must state the length of its body (Content-Length)")
        if request.content_length >= self.largest_body:
            most = f"{self.largest_body - 1:,}"
            return _plain("413 Content Too Large", f"the request has a body of more than {most} bytes")
        total = sum(channel.body_bytes for channel in self.channels)  # including this one
        if total > BODIES_AT_ONCE * self.largest_body:
            return _plain("503 Service Unavailable", "too much is being uploaded at once; try again", Retry_After="5")
        return None


class LimitedChannel(HTTPChannel):
    """Connection of a client; it waits for the next request since the time `since`."""

    server: LimitedServer

    def __init__(
        self, server: LimitedServer, sock: socket.socket, addr: Any, adj: Adjustments, map: Mapping[int, Any]
    ) -> None:
        self.since = time.time()
        refusal: Callable[[HTTPRequestParser], Response | None] = functools.partial(server.refusal, address=addr[0])
        self.parser_class = functools.partial(_Request, refusal=refusal)  # type: ignore[assignment]  # it is only called
        super().__init__(server, sock, addr, adj, map)

    @property
    def body_bytes(self) -> int:
        """Return the total length of the bodies of its requests."""
        return sum(request.content_length for request in [self.request, *self.requests] if request is not None)

    def is_late(self, now: float, timeout_s: float) -> bool:
        """Return whether its next request, or the client's reading of a response, takes too long."""
        if self.total_outbufs_len:
            return now - self.last_activity > STALLED_S
        arrived = 0 if self.request is None else self.request.body_bytes_received
        return not self.requests and now - self.since > timeout_s + arrived / SLOWEST_BODY

    def service(self) -> None:
        """Answer a request, then wait for the next one."""
        super().service()
        self.since = time.time()

    def handle_close(self) -> None:
        """Close the connection and its temporary files."""
        super().handle_close()
        if self.request is not None:
            self.request.close()

    def close(self) -> None:
        """Do the same when the server ends."""
        self.handle_close()


class _Request(HTTPRequestParser):
    """Request parser that stops after the headers of a refused request; the connection is closed."""

    def __init__(self, adj: Adjustments, refusal: Callable[[HTTPRequestParser], Response | None]) -> None:
        super().__init__(adj)
        self._refusal = refusal

    def parse_header(self, header_plus: bytes) -> None:
        """Parse the headers, and refuse the request by them if it has a body."""
        try:
            super().parse_header(header_plus)
        except ValueError as error:  # more digits than Python converts
            raise ParsingError("Content-Length is invalid") from error
        if self.body_rcv is not None and (response := self._refusal(self)):
            self.error = _Refused(response)
            self.body_rcv, self.chunked, self.content_length, self.expect_continue = None, False, 0, False


class _Refused(Error):
    """Error response in the form that waitress sends."""

    def __init__(self, response: Response) -> None:
        self._response = response

    def to_response(self, ident: str | None = None) -> Any:
        return self._response


def _plain(status: str, sentence: str, **headers: str) -> Response:
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return status, [("Content-Type", "text/plain; charset=utf-8"), *named], f"{sentence}\n".encode()
