"""Tests of the server's limits on real sockets: idle connections, slow and large requests, slow readers."""

from __future__ import annotations

import base64
import contextlib
import resource
import select
import socket
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import optuna
import pytest
from deadlines import deadline, wait_for
from waitress import wasyncore

from hpo.service.dashboard import server
from hpo.service.dashboard.guard import Guard, Hosts, Login
from hpo.service.dashboard.server import LimitedServer

THREADS = 4
LARGEST = 2**20
LARGE = 16  # MiB of an answer: more than the kernel takes of it
PASSWORD = "secret"
AUTHORIZED = f"Authorization: Basic {base64.b64encode(f'me:{PASSWORD}'.encode()).decode()}"


def whole(connection: socket.socket) -> bytes:
    """Read to the end of a connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


class Site:
    """Small application behind a guard and the limits, with a record of its requests."""

    def __init__(self) -> None:
        self.reached: list[str] = []
        self._channels: dict[int, Any] = {}
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = listener.getsockname()[1]
        guard = Guard(self._app, Hosts("127.0.0.1"), Login(PASSWORD.encode()))
        self.server = LimitedServer(guard, listener, self._channels, threads=THREADS, largest_body=LARGEST)
        loop = {"timeout": 0.1, "use_poll": True, "map": self._channels}
        self._thread = threading.Thread(target=wasyncore.loop, kwargs=loop)
        self._thread.start()

    def _app(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.reached.append(environ["PATH_INFO"])
        body = (
            [bytes(2**20)] * LARGE
            if environ["PATH_INFO"] == "/large"
            else [environ["wsgi.input"].read()[:3] or b"page"]
        )
        start_response("200 OK", [("Content-Length", str(sum(map(len, body))))])
        return body

    def connect(self, sent: str = "", *lines: str) -> socket.socket:
        """Connect, and send the beginning of a request, or the lines of one."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=deadline())
        if lines:
            sent = "\r\n".join([sent, "Host: localhost", *lines, "", ""])
        connection.sendall(sent.encode())
        return connection

    def page(self) -> bytes:
        """Ask for the page, as somebody does who may; return what came back."""
        with self.connect("GET / HTTP/1.1", AUTHORIZED, "Connection: close") as connection:
            return whole(connection)

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self.server.trigger.pull_trigger(lambda: wasyncore.close_all(self._channels))
        self._thread.join(deadline())
        self.server.task_dispatcher.shutdown()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


@pytest.fixture
def crowd() -> Iterator[contextlib.ExitStack]:
    """Return a stack that closes many sockets, after raising this process's limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)) if hard >= 0 else 4096, hard))
    with contextlib.ExitStack() as stack:
        yield stack
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten all time limits to one second."""
    monkeypatch.setattr(server, "REQUEST_S", 1)
    monkeypatch.setattr(server, "STALLED_S", 1)


def is_closed(connection: socket.socket) -> bool:
    """Return whether the server closes the connection without a response."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_idle_connections_do_not_block_others(
    crowd: contextlib.ExitStack,
    stored: Callable[..., optuna.Study],
    served: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored()
    url = served(password=PASSWORD.encode())
    place = "127.0.0.1", int(urlsplit(url).port or 0)
    idle = [crowd.enter_context(socket.create_connection(place, timeout=deadline())) for _ in range(500)]
    name, _, value = AUTHORIZED.partition(": ")
    for path in ("dashboard", "api/studies"):
        with urllib.request.urlopen(
            urllib.request.Request(url + path, headers={name: value}), timeout=deadline()
        ) as page:
            assert page.status == 200
    monkeypatch.setattr(server, "REQUEST_S", 0)
    assert all(map(is_closed, idle))


def test_a_full_server_closes_idle_connections_early(
    crowd: contextlib.ExitStack, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 10 * deadline())
    site.server.max_connections, site.server.adj.connection_limit = 20, 22
    idle = [crowd.enter_context(site.connect("GET")) for _ in range(30)]
    assert site.page().endswith(b"page")
    assert any(map(is_closed, idle[:20]))


BEGUN = [
    "",
    "G",
    f"GET / HTTP/1.1\r\nHost: localhost\r\n{AUTHORIZED}\r\nX: ",
    f"POST / HTTP/1.1\r\nHost: localhost\r\n{AUTHORIZED}\r\nContent-Type: a/b\r\nContent-Length: 1000\r\n\r\n",
]


@pytest.mark.usefixtures("impatient")
def test_a_slow_request_is_cut_off(site: Site) -> None:
    ends = time.monotonic() + deadline()
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(site.connect(begun)) for begun in BEGUN]
        while slow:
            assert time.monotonic() < ends
            cut_off = select.select(slow, [], [], 0.2)[0]
            assert all(map(is_closed, cut_off))
            slow = [connection for connection in slow if connection not in cut_off]
            for connection in slow:
                with contextlib.suppress(ConnectionError):  # cut off between the two
                    connection.sendall(b"x")
    assert site.reached == []


@pytest.mark.usefixtures("impatient")
def test_a_steadily_arriving_body_gets_more_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SLOWEST_BODY", 10)
    head = "POST / HTTP/1.1", AUTHORIZED, "Content-Type: a/b", "Content-Length: 200", "Connection: close"
    with site.connect(*head) as connection:
        for _ in range(20):
            assert not select.select([connection], [], [], 0.1)[0]
            connection.sendall(b"x" * 10)
        assert whole(connection).endswith(b"xxx")


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Content-Length: 10"], 401),
        (["Content-Length: 1073741824"], 401),
        (["Content-Length: 1073741824", AUTHORIZED], 413),
        (["Content-Length: 1073741824", AUTHORIZED, "Expect: 100-continue"], 413),
        (["Content-Length: 10", AUTHORIZED, "Origin: http://evil.example"], 403),
        (["Content-Length: 10", AUTHORIZED, "Host: evil.example"], 400),
        (["Transfer-Encoding: chunked", AUTHORIZED], 411),
        (["Content-Length: -1", AUTHORIZED], 400),
        (["Content-Length: 9" + "9" * 5000, AUTHORIZED], 400),
    ],
)
def test_refusals_come_before_the_body(site: Site, lines: list[str], status: int) -> None:
    with site.connect("POST / HTTP/1.1", "Content-Type: application/json", *lines) as connection:
        answer = whole(connection)
    assert int(answer.split()[1]) == status
    assert answer.count(b"HTTP/1.1") == 1
    assert site.reached == []


def test_headers_have_a_limit(site: Site) -> None:
    with site.connect("GET / HTTP/1.1\r\nX: ".ljust(server.LARGEST_HEADERS, "x")) as connection:
        assert whole(connection).startswith(b"HTTP/1.0 431 ")
    assert site.reached == []


def test_the_total_size_of_bodies_is_limited(site: Site) -> None:
    head = "POST / HTTP/1.1", AUTHORIZED, "Content-Type: a/b", f"Content-Length: {LARGEST - 1}", "Expect: 100-continue"
    with contextlib.ExitStack() as stack:
        for _ in range(server.BODIES_AT_ONCE):
            assert stack.enter_context(site.connect(*head)).recv(65536).startswith(b"HTTP/1.1 100 ")
        assert stack.enter_context(site.connect(*head)).recv(65536).startswith(b"HTTP/1.1 503 ")
        assert site.page().endswith(b"page")


def test_a_thousand_requests_at_once_are_answered(crowd: contextlib.ExitStack, site: Site) -> None:
    head = "GET / HTTP/1.1", AUTHORIZED, "Connection: close"
    connections = [crowd.enter_context(site.connect(*head)) for _ in range(1000)]
    assert all(whole(connection).endswith(b"page") for connection in connections)
    assert len(site.reached) == 1000


@pytest.mark.parametrize("ends", ["the server", "the client"])
def test_a_connection_that_ends_leaves_no_file_open(site: Site, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    made: list[Any] = []
    temporary = tempfile.TemporaryFile

    def note(mode: str) -> Any:
        made.append(temporary(mode))
        return made[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", note)
    length = f"Content-Length: {LARGEST - 1}"
    with (
        site.connect("GET /large HTTP/1.1", AUTHORIZED) as reader,
        site.connect("POST / HTTP/1.1", AUTHORIZED, "Content-Type: a/b", length) as writer,
    ):
        writer.sendall(bytes(LARGEST - 2))
        wait_for(lambda: len(made) == 2)
        if ends == "the client":
            reader.close()
            writer.close()
            wait_for(lambda: not site.server.active_channels)
        site.close()
        assert all(file.closed for file in made)


@pytest.mark.usefixtures("impatient")
def test_a_client_that_reads_nothing_occupies_no_thread_and_is_cut_off(site: Site) -> None:
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(site.connect("GET /large HTTP/1.1", AUTHORIZED)) for _ in range(2 * THREADS)]
        assert site.page().endswith(b"page")
        wait_for(lambda: not site.server.active_channels)
        assert len(whole(readers[0])) < LARGE * 2**20
