"""waitress with limits: how many connections there are, how long a request may take to arrive, how large it may be.

Promises: whoever sends nothing, or a byte now and then, is cut off after seconds, and after one second where all places
are taken, so that the next gets in. A body is read only of a request that its headers let through, and only where they
say how long it is and there is room for it; what is read lies in memory up to half a megabyte and in temporary files
beyond. No thread waits for somebody who reads an answer slowly. Knows HTTP's envelope, not what is asked for.
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

from hpo.service.dashboard.guard import Answer

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from hpo.service.dashboard.guard import Guard

CONNECTIONS = 512
"""Places for connections; half of the files that the process may open, where that is less."""
REQUEST_S, CROWDED_S = 10, 1
"""How long a connection may be open, or stay open after an answer, without a whole request; where no place is free."""
SLOWEST_BODY = 16 * 1024
"""Bytes of a body that must arrive for each further second."""
STALLED_S = 30
"""How long an answer may lie without the other side taking any of it."""
LARGEST_HEADERS = 32 * 1024
BODIES_AT_ONCE = 2
"""How many bodies of the largest size are held at once, in bytes: those of all requests together."""


class LimitedServer(TcpWSGIServer):
    """A guarded application on a socket that listens, answered by so many threads; `map` gets its connections."""

    def __init__(
        self, guard: Guard, listener: socket.socket, map: dict[int, Any], *, threads: int, largest_body: int
    ) -> None:
        open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.places = CONNECTIONS if open_files < 0 else min(CONNECTIONS, open_files // 2)
        self.guard, self.largest_body, self._open = guard, largest_body, map
        adj = Adjustments(
            sockets=[listener],
            threads=threads,
            ident=None,
            max_request_header_size=LARGEST_HEADERS,
            max_request_body_size=largest_body,
            outbuf_high_watermark=2**40,  # an answer goes to a file, and its thread on
            connection_limit=self.places + 2,  # it counts the listener and what wakes it up, too
            cleanup_interval=1,
            asyncore_use_poll=True,  # select() fails beyond 1,024 open files
            clear_untrusted_proxy_headers=True,
        )
        info = (listener.family, listener.type, listener.proto, listener.getsockname())
        self.channel_class = LimitedChannel
        super().__init__(guard, map, _sock=listener, adj=adj, sockinfo=info, bind_socket=False)

    @property
    def channels(self) -> list[LimitedChannel]:
        """The connections that there are."""
        return [each for each in list(self._open.values()) if isinstance(each, LimitedChannel)]

    def maintenance(self, now: float) -> None:
        """Close the connections that take too long; called every second."""
        channels = self.channels
        patience = REQUEST_S if len(channels) < self.places else CROWDED_S
        for channel in channels:
            if channel.is_late(now, patience):
                channel.handle_close()

    def refusal(self, request: HTTPRequestParser, address: str) -> Answer | None:
        """Return what a request is answered with before its body is read; None where it is to be read."""
        environ: WSGIEnvironment = {f"HTTP_{name}": value for name, value in request.headers.items()}
        path: str = request.path  # type: ignore[attr-defined]  # its stubs do not know it
        environ |= {"REQUEST_METHOD": request.command, "PATH_INFO": path, "REMOTE_ADDR": address}
        environ["CONTENT_TYPE"] = request.headers.get("CONTENT_TYPE", "")
        if refused := self.guard.refusal(environ):
            return refused
        if request.chunked:
            return _plain("411 Length Required", "the request has to say how long its body is (Content-Length)")
        if request.content_length >= self.largest_body:
            most = f"{self.largest_body - 1:,}"
            return _plain("413 Content Too Large", f"the request has a body of more than {most} bytes")
        held = sum(channel.bodies for channel in self.channels)  # this one's among them
        if held > BODIES_AT_ONCE * self.largest_body:
            return _plain("503 Service Unavailable", "too much is being uploaded at once; try again", Retry_After="5")
        return None


class LimitedChannel(HTTPChannel):
    """A connection: `since` is when it began to wait for its next request."""

    server: LimitedServer

    def __init__(
        self, server: LimitedServer, sock: socket.socket, addr: Any, adj: Adjustments, map: Mapping[int, Any]
    ) -> None:
        self.since = time.time()
        refusal: Callable[[HTTPRequestParser], Answer | None] = functools.partial(server.refusal, address=addr[0])
        self.parser_class = functools.partial(_Request, refusal=refusal)  # type: ignore[assignment]  # it is only called
        super().__init__(server, sock, addr, adj, map)

    @property
    def bodies(self) -> int:
        """How long the bodies of its requests are."""
        return sum(request.content_length for request in [self.request, *self.requests] if request is not None)

    def is_late(self, now: float, patience: float) -> bool:
        """Whether it has had the time that its next request, or the other side's reading of an answer, may take."""
        if self.total_outbufs_len:
            return now - self.last_activity > STALLED_S
        arrived = 0 if self.request is None else self.request.body_bytes_received
        return not self.requests and now - self.since > patience + arrived / SLOWEST_BODY

    def service(self) -> None:
        """Answer a request, and wait for the next."""
        super().service()
        self.since = time.time()

    def handle_close(self) -> None:
        """End the connection, and with it the files that hold what was not sent, or what arrived of a body."""
        super().handle_close()
        if self.request is not None:
            self.request.close()

    def close(self) -> None:
        """The same: how all connections are closed when the server ends."""
        self.handle_close()


class _Request(HTTPRequestParser):
    """A request as it arrives; one that is refused ends with its headers, and so does its connection."""

    def __init__(self, adj: Adjustments, refusal: Callable[[HTTPRequestParser], Answer | None]) -> None:
        super().__init__(adj)
        self._refusal = refusal

    def parse_header(self, header_plus: bytes) -> None:
        """Take the headers; of a request with a body, refuse what they do not let through."""
        try:
            super().parse_header(header_plus)
        except ValueError as error:  # a length of more digits than Python reads
            raise ParsingError("Content-Length is invalid") from error
        if self.body_rcv is not None and (answer := self._refusal(self)):
            self.error = _Refused(answer)
            self.body_rcv, self.chunked, self.content_length, self.expect_continue = None, False, 0, False


class _Refused(Error):
    """An answer in the form in which waitress sends its own errors."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def to_response(self, ident: str | None = None) -> Any:
        return self._answer


def _plain(status: str, sentence: str, **headers: str) -> Answer:
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return status, [("Content-Type", "text/plain; charset=utf-8"), *named], f"{sentence}\n".encode()
