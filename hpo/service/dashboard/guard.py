"""What stands between the network and a WSGI application: whose Host, which password, reading or writing, from where.

Promises: a request goes through only if its Host is a name of this server, its password is right where there is one,
it reads where nothing may be written, and a write was not sent by a page of another site. What is refused never
reaches the application, and no thread waits for anything. Every answer carries headers that keep other sites' pages
from framing or reading it. Knows nothing of Optuna or of what the application does; TLS is a proxy's business.
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
FORGOTTEN_AFTER_S = 600.0
CLIENTS_KEPT = 10_000
COOKIE = "hpo_client"
# A Host header: a name or an IPv4 address, or an IPv6 address in brackets, and maybe a port. No user, no escapes.
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*))(?::([0-9]{1,5}))?", re.ASCII)
# What a form of any site can send without the browser asking first, besides a POST without any type.
FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")
SECURITY_HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]
# A browser obeys this and the application's own policy, so each can only forbid more.
PAGE_POLICY = (
    "script-src 'self' 'unsafe-eval'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; object-src 'none'"
)
# A file that somebody uploaded is shown as a picture or saved. Opened by itself it is nobody's page and runs nothing.
FILE_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"


Header = tuple[str, str]
Answer = tuple[str, list[Header], bytes]
"""A status line, headers, and a body."""


class Refusal(Exception):
    """The answer to a request that does not go through: a status line, a sentence, and further headers."""

    def __init__(self, status: str, sentence: str, *headers: Header) -> None:
        self.status, self.headers = status, headers
        super().__init__(sentence)


class Hosts:
    """The names by which a server on this address may be called.

    A page of another site can point its own name at this address (DNS rebinding); the browser then takes it for the
    same site, and only the Host header tells. Such an attack needs a name, so addresses are safe: a server that others
    can reach accepts every address, because behind a container or a router it cannot know its own. The port is not
    looked at: it is no one's secret, and a published or forwarded one differs from the one listened on.
    """

    def __init__(self, address: str, names: Iterable[str] = ()) -> None:
        self._loopback = is_loopback(address)
        self._names = {"localhost", _bare(address), *(_bare(name) for name in names)}
        if not self._loopback:
            own = socket.gethostname().lower()
            self._names |= {own, own.partition(".")[0]}

    def check(self, environ: WSGIEnvironment) -> None:
        """Refuse a Host that is none, is malformed, or is not one of the names."""
        found = HOST.fullmatch(environ.get("HTTP_HOST", ""))
        if found is None:
            raise Refusal("400 Bad Request", "the request needs one Host header: a name or an address")
        name = _bare(found[1])
        if name not in self._names and not (is_loopback(name) if self._loopback else _address(name)):
            raise Refusal(
                "421 Misdirected Request",
                f"this server does not go by the name '{name}'; if it should, start it with --allow-host {name}",
            )


class Login:
    """One password for all, by HTTP Basic; the user name is not looked at.

    After a wrong password nothing more is tried for that client until a wait is over, which doubles with every further
    one: such a request is answered at once, without looking at its password, by saying how long to wait. A client is
    an address (of IPv6 a /64). Behind a proxy or a router many share one, so whoever has logged in gets a cookie and
    is a client of its own from then on: those who guess cannot lock them out. Somebody new at that address has to
    wait as well. The cookie opens nothing, and it cannot be made up.
    """

    def __init__(self, password: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        self._digest, self._clock = hashlib.sha256(password).digest(), clock
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        # Client -> failures in a row, and when it may try again. In the order of the last failure.
        self._failures: dict[str, tuple[int, float]] = {}

    def check(self, environ: WSGIEnvironment) -> list[Header]:
        """Refuse who does not know the password; return the headers that the answer needs."""
        header = environ.get("HTTP_AUTHORIZATION")
        challenge = ("WWW-Authenticate", 'Basic realm="hpo", charset="UTF-8"')
        if header is None:  # a browser's first request: no guess
            raise Refusal("401 Unauthorized", "a password is needed; any user name will do", challenge)
        known = self._known(environ)
        client = known or _network(environ.get("REMOTE_ADDR", ""))
        given = hashlib.sha256(_password(header)).digest()
        with self._lock:  # one after the other: a hundred guesses at the same moment are not a hundred tries
            now = self._clock()
            count, until = self._failures.get(client, (0, now))
            if until > now:
                seconds = str(math.ceil(until - now))
                sentence = f"too many wrong passwords; try again in {seconds} s"
                raise Refusal("429 Too Many Requests", sentence, ("Retry-After", seconds))
            self._failures.pop(client, None)
            if not hmac.compare_digest(given, self._digest):
                self._count(client, 1 if now - until > FORGOTTEN_AFTER_S else count + 1, now)
                raise Refusal("401 Unauthorized", "wrong password", challenge)
        if known:
            return []
        name = secrets.token_hex(16)
        cookie = f"{COOKIE}={name}.{self._sign(name)}; Path=/; HttpOnly; SameSite=Strict"
        return [("Set-Cookie", cookie)]

    def _count(self, client: str, failures: int, now: float) -> None:
        self._failures[client] = (failures, now + min(FIRST_WAIT_S * 2 ** min(failures - 1, 30), LONGEST_WAIT_S))
        if len(self._failures) > CLIENTS_KEPT:
            del self._failures[next(iter(self._failures))]

    def _known(self, environ: WSGIEnvironment) -> str | None:
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
    """The application behind these checks. Paths that begin with one of `files` lead to what users uploaded."""

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
        """Answer a request."""
        try:
            cookies = self._check(environ)
        except Refusal as refusal:
            status, headers, body = self._refused(refusal, environ)
            start_response(status, headers)
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
        added = [*self._added(environ), *cookies]
        replaced = {name.lower() for name, _ in added} - {"content-security-policy", "set-cookie"}

        # Where the application sends a browser to a page of its own, without scheme and host: a proxy has others.
        own = f"{environ['wsgi.url_scheme']}://{environ['HTTP_HOST']}"

        def start(status: str, headers: list[Header], exc_info: object = None) -> Callable[[bytes], object]:
            kept = [
                (name, value.removeprefix(own) if name.lower() == "location" else value)
                for name, value in headers
                if name.lower() not in replaced and not name.lower().startswith("access-control-")
            ]
            return start_response(status, [*kept, *added], exc_info)  # type: ignore[arg-type]

        return self._app(environ, start)

    def refusal(self, environ: WSGIEnvironment) -> Answer | None:
        """Return the answer to a request that does not go through, before its body is there; None where it does."""
        try:
            self._check(environ)
        except Refusal as refusal:
            return self._refused(refusal, environ)
        return None

    def _check(self, environ: WSGIEnvironment) -> list[Header]:
        """Refuse a request that does not go through; return the cookies that its answer brings."""
        self._hosts.check(environ)
        cookies = self._login.check(environ) if self._login else []
        self._check_method(environ)
        return cookies

    def _added(self, environ: WSGIEnvironment) -> list[Header]:
        """Return the headers of every answer to a request."""
        path = "/" + str(environ.get("PATH_INFO", "")).lstrip("/")
        if not path.startswith(self._files):
            return [*SECURITY_HEADERS, ("Content-Security-Policy", PAGE_POLICY)]
        # Pictures in a page are shown all the same.
        attached = ("Content-Disposition", "attachment")
        return [*SECURITY_HEADERS, ("Content-Security-Policy", FILE_POLICY), attached]

    def _refused(self, refusal: Refusal, environ: WSGIEnvironment) -> Answer:
        body = f"{refusal}\n".encode()
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        return refusal.status, [*headers, *refusal.headers, *self._added(environ)], body

    def _check_method(self, environ: WSGIEnvironment) -> None:
        method = environ["REQUEST_METHOD"]
        if method in READING:
            return
        if self._read_only:
            raise Refusal("403 Forbidden", "this server is read-only: it was started with --read-only")
        if not _same_origin(environ):
            raise Refusal("403 Forbidden", "changes are only made from this server's own pages")


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach a server on that address."""
    parsed = _address(address)
    return parsed is not None and (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def host_name(text: str) -> str | None:
    """Return a name or an address as the Host check compares it; None where it is neither, as with a port or a path."""
    bare = f"[{text}]" if text.count(":") > 1 and not text.startswith("[") else text
    found = HOST.fullmatch(bare)
    return _bare(bare) if found and not found[2] else None


def _same_origin(environ: WSGIEnvironment) -> bool:
    """Whether a write comes from a page of this server, or from no page at all."""
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:  # the browser itself says so; no page can set it
        return site in ("same-origin", "none")
    origin = environ.get("HTTP_ORIGIN")
    if origin is not None:
        # The scheme is left out: behind a proxy with TLS the page has https and this server http.
        return origin.startswith(("http://", "https://")) and _place(origin) == _place(
            f"{origin.partition(':')[0]}://{environ['HTTP_HOST']}"
        )
    # Browsers send Origin with whatever is not read: without it, this is a script or curl. A browser too old for that
    # could still be made to send a form.
    kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    return kind not in FORM_TYPES and not (kind == "" and environ["REQUEST_METHOD"] == "POST")


def _place(origin: str) -> tuple[str, int] | None:
    """The host and the port of an origin; None where it is anything but an origin."""
    try:
        parts = urlsplit(origin)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        return None
    if HOST.fullmatch(parts.netloc) is None or parts.netloc != origin.partition("://")[2]:
        return None
    return (_bare(parts.netloc.rpartition(":")[0] if parts.port is not None else parts.netloc), port)


def _password(header: str) -> bytes:
    """The password of an Authorization header; nothing that a password could be where there is none."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""
    return decoded.partition(b":")[2]


def _bare(name: str) -> str:
    """A host as it is compared: without brackets and the root's dot, in lower case, an address in its short form."""
    name = name.strip("[]").lower().removesuffix(".")
    address = _address(name)
    return name if address is None else str(address)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None


def _network(address: str) -> str:
    """Whom failures are counted against: an IPv4 address, or the /64 of an IPv6 one, which is one customer's."""
    parsed = _address(address.partition("%")[0])
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
