"""Guard of a WSGI application: checks each request's Host, password, method and origin.

A request is passed on only if its Host is a name of this server, its password is right, it reads if the server is
read-only, and a write does not come from another site's page. A refused request never reaches the application. Every
response has headers that keep other sites' pages from framing or reading it. TLS is left to a proxy.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import math
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

READING = ("GET", "HEAD")
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
"""Seconds that a client has to wait after its first wrong password, and at most."""
FORGET_AFTER_S = 600.0
"""Seconds after which a client's wrong passwords no longer count."""
MAX_CLIENTS = 10_000
"""Clients whose wrong passwords are counted; beyond that the oldest are forgotten."""
COOKIE = "hpo_client"
# A Host header: a name or an IPv4 address, or an IPv6 address in brackets, and an optional port. No user, no escapes.
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*))(?::([0-9]{1,5}))?", re.ASCII)
# Types that a form of another site can send without a preflight request, besides a POST without any type.
FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")
SECURITY_HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]
# A browser applies this policy and the application's own, so this one can only forbid more.
PAGE_POLICY = (
    "script-src 'self' 'unsafe-eval'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; object-src 'none'"
)
# An uploaded file is shown as a picture in a page or saved. Opened by itself it belongs to no site and runs no script.
FILE_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"


Header = tuple[str, str]
Response = tuple[str, list[Header], bytes]
"""A status line, headers, and a body."""


class Refusal(Exception):
    """Refusal of a request: a status line, a sentence for the body, and further headers."""

    def __init__(self, status: str, sentence: str, *headers: Header) -> None:
        self.status, self.headers = status, headers
        super().__init__(sentence)


class Hosts:
    """Host names of a server on this address.

    Another site can point its own name at this address (DNS rebinding): browsers then treat its pages as this server's,
    and only the Host header differs. The attack needs a name, so addresses are safe: a server that other machines can
    reach accepts every address, because behind a container or a router it does not know its own. The port is ignored:
    it is no secret, and a published or forwarded one differs from the one listened on.
    """

    def __init__(self, address: str, names: Iterable[str] = ()) -> None:
        self._loopback = is_loopback(address)
        self._names = {"localhost", _bare(address), *(_bare(name) for name in names)}
        if not self._loopback:
            machine = socket.gethostname().lower()
            self._names |= {machine, machine.partition(".")[0]}

    def check(self, environ: WSGIEnvironment) -> None:
        """Raise Refusal for a missing or malformed Host, or one that is no name of this server."""
        found = HOST.fullmatch(environ.get("HTTP_HOST", ""))
        if found is None:
            raise Refusal("400 Bad Request", "the request needs one Host header: a name or an address")
        name = _bare(found[1])
        if name not in self._names and not (is_loopback(name) if self._loopback else _address(name)):
            raise Refusal(
                "421 Misdirected Request",
                f"'{name}' is no name of this server; to allow it, start the server with --allow-host {name}",
            )


class Login:
    """Login with one password for all users, by HTTP Basic authentication; the user name is ignored.

    After a wrong password the client has to wait, twice as long after each further one. Until then its requests are
    refused without checking the password. A client is an IPv4 address or an IPv6 /64 network. Behind a proxy or a
    router many users share one address, so a login sets a signed cookie that makes the browser a client of its own:
    wrong passwords of others at its address cannot lock it out. The cookie gives no access by itself.
    """

    def __init__(self, password: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        self._digest, self._clock = hashlib.sha256(password).digest(), clock
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        # Client -> wrong passwords in a row, and the time of its next try. In the order of the last wrong password.
        self._failures: dict[str, tuple[int, float]] = {}

    def check(self, environ: WSGIEnvironment) -> list[Header]:
        """Raise Refusal for a missing or wrong password; return headers for the response."""
        header = environ.get("HTTP_AUTHORIZATION")
        challenge = ("WWW-Authenticate", 'Basic realm="hpo", charset="UTF-8"')
        if header is None:  # a browser's first request, not a wrong password
            raise Refusal("401 Unauthorized", "a password is required; any user name is accepted", challenge)
        cookie_client = self._client_of_cookie(environ)
        client = cookie_client or _network(environ.get("REMOTE_ADDR", ""))
        given = hashlib.sha256(_password(header)).digest()
        with self._lock:  # one at a time, so that simultaneous guesses count one after the other
            now = self._clock()
            count, until = self._failures.get(client, (0, now))
            if until > now:
                seconds = str(math.ceil(until - now))
                sentence = f"too many wrong passwords; try again in {seconds} s"
                raise Refusal("429 Too Many Requests", sentence, ("Retry-After", seconds))
            self._failures.pop(client, None)
            if not hmac.compare_digest(given, self._digest):
                self._count(client, 1 if now - until > FORGET_AFTER_S else count + 1, now)
                raise Refusal("401 Unauthorized", "wrong password", challenge)
        if cookie_client:
            return []
        name = secrets.token_hex(16)
        cookie = f"{COOKIE}={name}.{self._sign(name)}; Path=/; HttpOnly; SameSite=Strict"
        return [("Set-Cookie", cookie)]

    def _count(self, client: str, failures: int, now: float) -> None:
        self._failures[client] = (failures, now + min(FIRST_WAIT_S * 2 ** min(failures - 1, 30), LONGEST_WAIT_S))
        if len(self._failures) > MAX_CLIENTS:
            del self._failures[next(iter(self._failures))]

    def _client_of_cookie(self, environ: WSGIEnvironment) -> str | None:
        try:
            cookie = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(COOKIE)
        except CookieError:
            return None
        if cookie is None:
            return None
        name, _, signature = cookie.value.partition(".")
        return name if hmac.compare_digest(signature.encode(), self._sign(name).encode()) else None

    def _sign(self, name: str) -> str:
        return hmac.new(self._secret, name.encode(), "sha256").hexdigest()


class Guard:
    """WSGI application that passes checked requests on to another; paths under one of `files` are uploaded files."""

    def __init__(
        self,
        app: WSGIApplication,
        hosts: Hosts,
        login: Login | None = None,
        *,
        read_only: bool = False,
        files: Collection[str] = (),
    ) -> None:
        self._app, self._hosts, self._login = app, hosts, login
        self._read_only, self._files = read_only, tuple(files)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Check a request, and pass it on or refuse it."""
        try:
            cookies = self._check(environ)
        except Refusal as refusal:
            status, headers, body = self._refused(refusal, environ)
            start_response(status, headers)
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
        added = [*self._security_headers(environ), *cookies]
        replaced = {name.lower() for name, _ in added} - {"content-security-policy", "set-cookie"}

        # Redirects to the application's own pages get no scheme and host: those of a proxy differ.
        base = f"{environ['wsgi.url_scheme']}://{environ['HTTP_HOST']}"

        def start(status: str, headers: list[Header], exc_info: object = None) -> Callable[[bytes], object]:
            passed_on = [
                (name, value.removeprefix(base) if name.lower() == "location" else value)
                for name, value in headers
                if name.lower() not in replaced and not name.lower().startswith("access-control-")
            ]
            return start_response(status, [*passed_on, *added], exc_info)  # type: ignore[arg-type]

        return self._app(environ, start)

    def refusal(self, environ: WSGIEnvironment) -> Response | None:
        """Return the response to a refused request, before its body has arrived; None if it is not refused."""
        try:
            self._check(environ)
        except Refusal as refusal:
            return self._refused(refusal, environ)
        return None

    def _check(self, environ: WSGIEnvironment) -> list[Header]:
        """Raise Refusal for a request that fails a check; return the cookies to set."""
        self._hosts.check(environ)
        cookies = self._login.check(environ) if self._login else []
        self._check_method(environ)
        return cookies

    def _security_headers(self, environ: WSGIEnvironment) -> list[Header]:
        """Return the security headers of every response to a request."""
        path = "/" + str(environ.get("PATH_INFO", "")).lstrip("/")
        if not path.startswith(self._files):
            return [*SECURITY_HEADERS, ("Content-Security-Policy", PAGE_POLICY)]
        saved = ("Content-Disposition", "attachment")  # browsers still show it as a picture in a page
        return [*SECURITY_HEADERS, ("Content-Security-Policy", FILE_POLICY), saved]

    def _refused(self, refusal: Refusal, environ: WSGIEnvironment) -> Response:
        body = f"{refusal}\n".encode()
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        return refusal.status, [*headers, *refusal.headers, *self._security_headers(environ)], body

    def _check_method(self, environ: WSGIEnvironment) -> None:
        method = environ["REQUEST_METHOD"]
        if method in READING:
            return
        if self._read_only:
            raise Refusal("403 Forbidden", "this server is read-only; restart it without --read-only to make changes")
        if not _same_origin(environ):
            raise Refusal("403 Forbidden", "changes are accepted from this server's own pages only")


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach a server on that address."""
    parsed = _address(address)
    return parsed is not None and (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def host_name(text: str) -> str | None:
    """Return a name or address as the Host check compares it; None for anything else, as with a port."""
    bare = f"[{text}]" if text.count(":") > 1 and not text.startswith("[") else text
    found = HOST.fullmatch(bare)
    return _bare(bare) if found and not found[2] else None


def _same_origin(environ: WSGIEnvironment) -> bool:
    """Return whether a write comes from a page of this server, or from no page."""
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:  # set by the browser; no page can set it
        return site in ("same-origin", "none")
    origin = environ.get("HTTP_ORIGIN")
    if origin is not None:
        # The scheme is ignored: behind a proxy with TLS the page has https and this server http.
        return origin.startswith(("http://", "https://")) and _host_and_port(origin) == _host_and_port(
            f"{origin.partition(':')[0]}://{environ['HTTP_HOST']}"
        )
    # Browsers send Origin with every write. Without it, the client is a script or curl, or an old browser that another
    # site could make send a form.
    kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    return kind not in FORM_TYPES and not (kind == "" and environ["REQUEST_METHOD"] == "POST")


def _host_and_port(origin: str) -> tuple[str, int] | None:
    """Return the host and port of an origin; None for anything else."""
    try:
        parts = urlsplit(origin)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        return None
    if HOST.fullmatch(parts.netloc) is None or parts.netloc != origin.partition("://")[2]:
        return None
    return (_bare(parts.netloc.rpartition(":")[0] if parts.port is not None else parts.netloc), port)


def _password(header: str) -> bytes:
    """Return the password of an Authorization header, b"" (never a valid password) if it has none."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""
    return decoded.partition(b":")[2]


def _bare(name: str) -> str:
    """Return a host for comparison: no brackets or final dot, in lower case, an address in its short form."""
    name = name.strip("[]").lower().removesuffix(".")
    address = _address(name)
    return name if address is None else str(address)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None


def _network(address: str) -> str:
    """Return the network whose wrong passwords count together: an IPv4 address or an IPv6 /64."""
    parsed = _address(address.partition("%")[0])
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
