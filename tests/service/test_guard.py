"""Tests of the guard in front of a small application on a real socket: accepted and refused requests.

The requests are written byte by byte, because no client library would send most of them.
"""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from waitress import wasyncore
from waitress.server import create_server

from hpo.service.dashboard.guard import (
    FILE_POLICY,
    FORGET_AFTER_S,
    LONGEST_WAIT_S,
    PAGE_POLICY,
    Guard,
    Hosts,
    Login,
    host_name,
)

METHODS = ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "GETT", "HEADER"]
PASSWORD = "pass:wörd"
Header = tuple[str, str]


class Answer:
    """Response: status, headers by lower-case name, body."""

    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        self.headers: dict[str, list[str]] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            self.headers.setdefault(name.lower(), []).append(value)


class Site:
    """Guarded application that counts the requests that reach it."""

    def __init__(self, guard: Callable[[Any], Guard]) -> None:
        self.reached: list[tuple[str, str]] = []
        self._channels: dict[int, Any] = {}
        self._server: Any = create_server(
            guard(self._app), map=self._channels, host="127.0.0.1", port=0, threads=4, ident=None
        )
        self.port = self._server.effective_port
        self._thread = threading.Thread(target=wasyncore.loop, kwargs={"timeout": 1.0, "map": self._channels})
        self._thread.start()

    def _app(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.reached.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        headers = [
            ("Content-Type", "text/html"),
            ("Access-Control-Allow-Origin", "*"),
            ("X-Frame-Options", "ALLOWALL"),
            ("Content-Security-Policy", "default-src 'self'"),
            ("Location", f"http://{environ['HTTP_HOST']}/there"),
        ]
        start_response("200 OK", headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else b"reached"]

    def raw(self, request: bytes) -> Answer:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(request)
            return Answer(b"".join(iter(lambda: connection.recv(65536), b"")))

    def send(self, method: str = "GET", path: str = "/", *headers: Header, host: str | None = "localhost") -> Answer:
        lines = [f"{method} {path} HTTP/1.1", "Connection: close"]
        lines += [f"Host: {host}"] if host is not None else []
        lines += [f"{name}: {value}" for name, value in headers]
        return self.raw("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def close(self) -> None:
        self._server.trigger.pull_trigger(lambda: wasyncore.close_all(self._channels))
        self._thread.join(timeout=30)
        self._server.task_dispatcher.shutdown()


@pytest.fixture
def site() -> Iterator[Callable[..., Site]]:
    """Serve an application behind a guard, by default as `hpo dashboard` on 127.0.0.1."""
    made: list[Site] = []

    def make(hosts: Hosts | None = None, login: Login | None = None, **options: Any) -> Site:
        made.append(Site(lambda app: Guard(app, hosts or Hosts("127.0.0.1"), login, **options)))
        return made[-1]

    yield make
    for each in made:
        each.close()


class Clock:
    """Clock that is set by the test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def basic(password: str, user: str = "me", encoding: str = "utf-8") -> Header:
    return ("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode(encoding)).decode())


Make = Callable[..., Site]


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8080", "localhost.", "127.0.0.1", "127.0.0.1:1", "127.8.9.1:80", "[::1]", "[::1]:65535",
     "[0:0:0:0:0:0:0:1]", "hpo.example.org", "HPO.Example.ORG.:443"],
)  # fmt: skip
def test_a_name_of_this_server_is_accepted(site: Make, host: str) -> None:
    at = site(Hosts("127.0.0.1", ["hpo.example.org"]))
    assert at.send(host=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "evil-localhost", "127.0.0.1.evil.example", "10.0.0.5", "0.0.0.0",
     "[2001:db8::1]", "sub.hpo.example.org", "hpo.example.org.evil.example", "0x7f000001", "2130706433", "127.1",
     "localhost..", "a" * 1000],
)  # fmt: skip
def test_any_other_name_is_refused_with_the_option_to_allow_it(site: Make, host: str) -> None:
    at = site(Hosts("127.0.0.1", ["hpo.example.org"]))
    answer = at.send(host=host)
    assert answer.status == 421
    assert b"--allow-host" in answer.body
    assert at.reached == []


@pytest.mark.parametrize(
    "host",
    [None, "", " ", "localhost@evil.example", "user:pw@localhost", "localhost/", "localhost, localhost", "local%68ost",
     "localhost:", "localhost:x", "localhost:123456", "localhost:80:80", "[::1", "::1", "[localhost]", "[]",
     "loc alhost", "http://localhost", "localhost#", "localhost?", "lo\xe7alhost", "-", ".", "[::1%25eth0]", "*"],
)  # fmt: skip
def test_an_invalid_host_is_refused(site: Make, host: str | None) -> None:
    at = site()
    answer = at.send(host=host)
    assert answer.status == 400
    assert at.reached == []


def test_two_hosts_are_refused(site: Make) -> None:
    at = site()
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: %b\r\nConnection: close\r\n\r\n"
    assert at.raw(request % b"localhost").status == 400
    assert at.raw(request % b"evil.example").status == 400
    assert at.raw(b"GET / HTTP/1.0\r\n\r\n").status == 400
    assert at.reached == []


def test_the_host_header_counts_and_no_other_name(site: Make) -> None:
    at = site()
    assert at.send("GET", "http://localhost/", host="evil.example").status == 421
    assert at.send("GET", "/", ("X-Forwarded-Host", "localhost"), host="evil.example").status == 421
    assert at.send("GET", "/", ("X-Forwarded-Host", "evil.example")).status == 200


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.7"])
def test_a_public_server_accepts_addresses_and_its_own_name(site: Make, address: str) -> None:
    at = site(Hosts(address))
    own = socket.gethostname()
    for host in ("192.0.2.7:8080", "10.1.2.3", "[2001:db8::1]:80", "localhost:9000", own, own.upper()):
        assert at.send(host=host).status == 200, host
    for host in ("evil.example", f"{own}.evil.example", "192.0.2.7.evil.example"):
        assert at.send(host=host).status == 421, host


@pytest.mark.parametrize(
    ("text", "name"),
    [("HPO.example.org", "hpo.example.org"), ("::1", "::1"), ("[::1]", "::1"), ("10.0.0.5", "10.0.0.5"),
     ("host:80", None), ("http://host", None), ("host/", None), ("", None), ("*.example.org", None), ("a b", None)],
)  # fmt: skip
def test_host_names(text: str, name: str | None) -> None:
    assert host_name(text) == name


def test_the_password_is_accepted_with_any_user_name(site: Make) -> None:
    at = site(login=Login(PASSWORD.encode()))
    for user in ("", "me", "ümlaut"):
        assert at.send("GET", "/", basic(PASSWORD, user)).status == 200
    assert at.send("GET", "/", ("Authorization", basic(PASSWORD)[1].replace("Basic", "bAsIc  "))).status == 200


def test_a_request_without_a_password_is_challenged_and_not_counted(site: Make) -> None:
    at = site(login=Login(PASSWORD.encode()))
    for _ in range(20):
        answer = at.send()
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == ['Basic realm="hpo", charset="UTF-8"']
    assert at.reached == []
    assert at.send("GET", "/", basic(PASSWORD)).status == 200


@pytest.mark.parametrize(
    "value",
    ["", "Basic", "Basic ", "Basic !!!", "Basic cGFzcw", "Basic " + base64.b64encode(b"nocolon").decode(),
     "Basic " + base64.b64encode(b"me:\xff\xfe\x00").decode(), "Basic " + "QQ==" * 5000, "Basic \xe7\xe7",
     "Bearer " + base64.b64encode(b"me:" + PASSWORD.encode()).decode(), basic(PASSWORD, encoding="latin-1")[1],
     basic("")[1], basic(PASSWORD + " ")[1], basic(PASSWORD.upper())[1], basic(PASSWORD[:-1])[1],
     basic(PASSWORD)[1] + ", " + basic(PASSWORD)[1]],
)  # fmt: skip
def test_other_credentials_are_refused(site: Make, value: str) -> None:
    at = site(login=Login(PASSWORD.encode()))
    assert at.send("GET", "/", ("Authorization", value)).status == 401
    assert at.reached == []


def test_waits_double_up_to_a_limit(site: Make) -> None:
    clock = Clock()
    at = site(login=Login(PASSWORD.encode(), clock))
    waits = []
    for _ in range(8):
        assert at.send("GET", "/", basic("wrong")).status == 401
        refused = at.send("GET", "/", basic("wrong"))
        assert refused.status == 429
        waits.append(int(refused.headers["retry-after"][0]))
        # Within the wait the right password is not even looked at: who guesses learns nothing.
        assert at.send("GET", "/", basic(PASSWORD)).status == 429
        clock.now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    assert waits[-1] == LONGEST_WAIT_S
    assert at.send("GET", "/", basic(PASSWORD)).status == 200
    assert at.send("GET", "/", basic("wrong")).status == 401
    assert at.send("GET", "/", basic("wrong")).headers["retry-after"] == ["1"]  # they begin anew
    assert at.reached == [("GET", "/")]


def test_old_wrong_passwords_are_forgotten(site: Make) -> None:
    clock = Clock()
    at = site(login=Login(PASSWORD.encode(), clock))
    for _ in range(5):
        at.send("GET", "/", basic("wrong"))
        clock.now += LONGEST_WAIT_S
    clock.now += FORGET_AFTER_S
    at.send("GET", "/", basic("wrong"))
    assert at.send("GET", "/", basic("wrong")).headers["retry-after"] == ["1"]


def test_simultaneous_guesses_count_as_one(site: Make) -> None:
    at = site(login=Login(PASSWORD.encode(), Clock()))
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(at.send("GET", "/", basic("wrong")).status)) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [401] + [429] * 11


def test_wrong_passwords_of_others_at_the_address_do_not_lock_out_a_logged_in_browser(site: Make) -> None:
    at = site(login=Login(PASSWORD.encode(), Clock()))
    (cookie,) = at.send("GET", "/", basic(PASSWORD)).headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
    mine = ("Cookie", cookie.partition(";")[0])
    assert at.send("GET", "/", basic("wrong")).status == 401
    assert at.send("GET", "/", basic(PASSWORD)).status == 429
    known = at.send("GET", "/", basic(PASSWORD), mine)
    assert known.status == 200
    assert "set-cookie" not in known.headers
    # The cookie opens nothing by itself, and who has it waits for guesses of his own.
    assert at.send("GET", "/", mine).status == 401
    assert at.send("GET", "/", basic("wrong"), mine).status == 401
    assert at.send("GET", "/", basic(PASSWORD), mine).status == 429


@pytest.mark.parametrize(
    "change", [lambda c: c + "0", lambda c: c.replace(".", "0."), lambda c: "hpo_client=.", lambda c: "hpo_client=\xe7"]
)
def test_a_forged_cookie_is_ignored(site: Make, change: Callable[[str], str]) -> None:
    at = site(login=Login(PASSWORD.encode(), Clock()))
    (cookie,) = at.send("GET", "/", basic(PASSWORD)).headers["set-cookie"]
    at.send("GET", "/", basic("wrong"))
    assert at.send("GET", "/", basic(PASSWORD), ("Cookie", change(cookie.partition(";")[0]))).status == 429


def test_proxy_headers_do_not_change_the_client(site: Make) -> None:
    at = site(login=Login(PASSWORD.encode(), Clock()))
    at.send("GET", "/", basic("wrong"), ("X-Forwarded-For", "192.0.2.1"))
    assert at.send("GET", "/", basic("wrong"), ("X-Forwarded-For", "192.0.2.2")).status == 429


def test_an_ipv6_network_is_one_client() -> None:
    login = Login(PASSWORD.encode(), Clock())

    def status(address: str) -> str:
        environ = {"HTTP_AUTHORIZATION": basic("wrong")[1], "REMOTE_ADDR": address}
        with pytest.raises(Exception, match="password") as caught:
            login.check(environ)  # type: ignore[arg-type]
        return str(getattr(caught.value, "status", ""))[:3]

    assert [status(f"2001:db8::{each}") for each in (1, 2)] == ["401", "429"]
    assert status("2001:db8:0:1::1") == "401"
    assert [status(address) for address in ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2")] == ["401", "429", "401"]


@pytest.mark.parametrize("method", METHODS)
def test_read_only_refuses_all_methods_but_get_and_head(site: Make, method: str) -> None:
    at = site(read_only=True)
    answer = at.send(method, "/", ("Sec-Fetch-Site", "same-origin"))
    assert answer.status == 403
    assert b"read-only" in answer.body
    override = [("X-HTTP-Method-Override", method), ("X-HTTP-Method", method), ("X-Method-Override", method)]
    assert at.send("GET", f"/?_method={method}", *override).status == 200
    assert at.send("HEAD", "/", *override).body == b""
    assert at.reached == [("GET", "/"), ("HEAD", "/")]


def test_a_method_in_lower_case_is_refused_too(site: Make) -> None:
    at = site(read_only=True)
    assert at.send("delete").status in (400, 403)
    assert at.reached == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("header", [("Sec-Fetch-Site", "cross-site"), ("Origin", "http://evil.example")])
def test_a_write_from_another_site_is_refused(site: Make, method: str, header: Header) -> None:
    at = site()
    assert at.send(method, "/", header).status == 403
    assert at.reached == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("Sec-Fetch-Site", "same-origin")], 200),
        ([("Sec-Fetch-Site", "none")], 200),
        ([("Sec-Fetch-Site", "same-site")], 403),
        ([("Sec-Fetch-Site", "cross-site"), ("Origin", "http://localhost:8080")], 403),
        ([("Sec-Fetch-Site", "")], 403),
        ([("Sec-Fetch-Site", "same-origin, cross-site")], 403),
        ([("Origin", "http://localhost:8080")], 200),
        ([("Origin", "https://localhost:8080")], 200),
        ([("Origin", "HTTP://LOCALHOST:8080")], 403),
        ([("Origin", "http://localhost")], 403),
        ([("Origin", "http://localhost:8081")], 403),
        ([("Origin", "http://localhost:8080.evil.example")], 403),
        ([("Origin", "http://localhost.evil.example:8080")], 403),
        ([("Origin", "http://evil.localhost:8080")], 403),
        ([("Origin", "http://evil.example/localhost:8080")], 403),
        ([("Origin", "http://localhost:8080@evil.example")], 403),
        ([("Origin", "http://evil.example#@localhost:8080")], 403),
        ([("Origin", "http://user@localhost:8080")], 403),
        ([("Origin", "http://localhost:8080/")], 403),
        ([("Origin", "file://localhost:8080")], 403),
        ([("Origin", "http://[::1")], 403),
        ([("Origin", "null")], 403),
        ([("Origin", "")], 403),
        ([("Origin", "http://localhost:8080"), ("Origin", "http://evil.example")], 403),
        ([], 403),  # a POST without a type: a form of any site can be that
        ([("Content-Type", "application/json")], 200),
        ([("Content-Type", "text/plain")], 403),
        ([("Content-Type", "TEXT/plain; charset=utf-8")], 403),
        ([("Content-Type", "application/x-www-form-urlencoded")], 403),
        ([("Content-Type", "multipart/form-data; boundary=x")], 403),
        ([("Content-Type", "text/plain"), ("Origin", "null")], 403),
        ([("Content-Type", "application/json"), ("Referer", "http://evil.example/")], 200),
    ],
)
def test_origins_of_a_post(site: Make, headers: list[Header], status: int) -> None:
    at = site()
    assert at.send("POST", "/", *headers, host="localhost:8080").status == status
    assert len(at.reached) == (status == 200)


@pytest.mark.parametrize(
    ("host", "origin"),
    [("hpo.example.org", "https://hpo.example.org"), ("hpo.example.org:80", "http://hpo.example.org"),
     ("[::1]:8080", "http://[::1]:8080"), ("LOCALHOST:8080", "http://localhost:8080")],
)  # fmt: skip
def test_a_page_of_this_server_by_another_spelling(site: Make, host: str, origin: str) -> None:
    at = site(Hosts("127.0.0.1", ["hpo.example.org"]))
    assert at.send("DELETE", "/", ("Origin", origin), host=host).status == 200


def test_a_script_may_write_and_anyone_may_read(site: Make) -> None:
    at = site()
    assert at.send("DELETE").status == 200
    assert at.send("GET", "/", ("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site")).status == 200


@pytest.mark.parametrize(
    ("method", "path", "host"), [("GET", "/", "localhost"), ("DELETE", "/", "localhost"), ("GET", "/", "evil.example")]
)
def test_every_response_has_the_security_headers(site: Make, method: str, path: str, host: str) -> None:
    answer = site(read_only=True).send(method, path, host=host)
    assert answer.headers["x-content-type-options"] == ["nosniff"]
    assert answer.headers["x-frame-options"] == ["DENY"]
    assert answer.headers["referrer-policy"] == ["same-origin"]
    assert answer.headers["cross-origin-opener-policy"] == ["same-origin"]
    assert answer.headers["cross-origin-resource-policy"] == ["same-origin"]
    assert answer.headers["content-security-policy"][-1] == PAGE_POLICY
    assert "access-control-allow-origin" not in answer.headers
    assert "content-disposition" not in answer.headers
    assert "server" not in answer.headers


def test_the_applications_own_policy_stays_and_its_address_does_not(site: Make) -> None:
    answer = site().send()
    assert answer.headers["content-security-policy"] == ["default-src 'self'", PAGE_POLICY]
    assert answer.headers["location"] == ["/there"]


@pytest.mark.parametrize("path", ["/files/1/a", "//files/1/a", "/%66iles/1/a", "/files/"])
def test_an_uploaded_file_runs_no_script(site: Make, path: str) -> None:
    answer = site(files=["/files/"]).send("GET", path)
    assert FILE_POLICY in answer.headers["content-security-policy"]
    assert answer.headers["content-disposition"] == ["attachment"]
