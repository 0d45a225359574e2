"""Serve optuna-dashboard: a storage's studies, notes, figures and artifacts, with access checks.

The server announces its address once it listens, and ends within seconds of Ctrl-C or SIGTERM. An address that other
machines can reach requires a password, unless `insecure`. guard.py decides which requests are allowed; server.py limits
their number, size and time.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import bottle  # type: ignore[import-untyped]
from waitress import wasyncore

from hpo.errors import HpoError, UsageError
from hpo.service.dashboard.application import ARTIFACTS, application
from hpo.service.dashboard.browser import open_browser
from hpo.service.dashboard.guard import Guard, Hosts, Login, host_name, is_loopback
from hpo.service.dashboard.server import LimitedServer
from hpo.service.dashboard.view import View
from hpo.storage import Storage

VARIABLE = "HPO_DASHBOARD_PASSWORD"
THREADS = 8
"""Requests answered at once. A page makes three; the parameter importances take seconds."""
SHUTDOWN_S = 1.0
"""Seconds that requests in progress may take when the server ends."""
LARGEST_UPLOAD = bottle.BaseRequest.MEMFILE_MAX + 1
"""Most bytes of a request body: optuna-dashboard's own limit (128 MB, or OPTUNA_DASHBOARD_MEMFILE_MAX)."""
LARGEST_WHEN_READ_ONLY = 64 * 1024


def serve(
    storage: Storage,
    artifacts: Path,
    host: str,
    port: int,
    announce: Callable[[str], None],
    *,
    password: bytes | None = None,
    insecure: bool = False,
    read_only: bool = False,
    names: Sequence[str] = (),
    browser: bool = False,
) -> None:
    """Serve the dashboard until KeyboardInterrupt or SIGTERM; call `announce` with the address once it listens.

    Port 0 is any free one. `names` are further host names of this server. Without a password it serves this machine
    only, unless `insecure`, which gives everyone full access. With `browser`, an address of this machine only is opened
    in the user's browser, if there is one.
    """
    server = Server(
        storage, artifacts, host, port, password=password, insecure=insecure, read_only=read_only, names=names
    )
    with contextlib.closing(server), _exit_on_sigterm():
        announce(server.url)
        if browser and server.is_local:
            open_browser(server.url)
        server.run()


class Server:
    """Server that listens when it is created; `run` answers requests until `stop`, which any thread may call."""

    def __init__(
        self,
        storage: Storage,
        artifacts: Path,
        host: str,
        port: int,
        *,
        password: bytes | None = None,
        insecure: bool = False,
        read_only: bool = False,
        names: Sequence[str] = (),
    ) -> None:
        listener = _bind(host, port)
        try:
            address = listener.getsockname()[0]
            if password is None and not insecure and not is_loopback(address):
                raise UsageError(
                    f"{host}: other machines can reach this address, so it needs a password: set {VARIABLE}, or "
                    "use --password-file; --insecure-no-auth gives everyone access"
                )
            hosts = Hosts(address, [name for name in (host, *names) if host_name(name)])
            self._view = View(storage.location)
            app = application(self._view, artifacts)
            login = Login(password) if password is not None else None
            guarded = Guard(app, hosts, login, read_only=read_only, files=[ARTIFACTS])
            # waitress warns whenever requests wait for a thread.
            logging.getLogger("waitress").setLevel(logging.ERROR)
            self._channels: dict[int, Any] = {}
            largest = LARGEST_WHEN_READ_ONLY if read_only else LARGEST_UPLOAD
            self._server: Any = LimitedServer(guarded, listener, self._channels, threads=THREADS, largest_body=largest)
        except BaseException:
            listener.close()
            raise
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{listener.getsockname()[1]}/"
        self.is_local = is_loopback(address)

    def run(self) -> None:
        """Answer requests until `stop`, or until a signal handler raises."""
        wasyncore.loop(timeout=1.0, use_poll=True, map=self._channels)

    def stop(self) -> None:
        """Make `run` return; requests in progress are cut off."""
        try:
            self._server.trigger.pull_trigger(lambda: wasyncore.close_all(self._channels))
        except OSError as error:
            if error.errno != errno.EBADF:  # the loop has already closed everything
                raise

    def close(self) -> None:
        """Free the port after at most `SHUTDOWN_S` seconds for requests in progress."""
        self._server.task_dispatcher.shutdown(timeout=SHUTDOWN_S)
        wasyncore.close_all(self._channels)
        self._view.close()


def read_password(file: Path | None, *, insecure: bool = False) -> bytes | None:
    """Return the password from the file, or else from the environment, or else None.

    Raises UsageError if there is one and `insecure` is set, or if it is empty or has several lines.
    """
    source = str(file) if file is not None else VARIABLE
    if file is not None:
        try:
            password = file.read_bytes()
        except OSError as error:
            raise UsageError(f"{file}: the password cannot be read ({error.strerror or error})") from error
        password = password.removesuffix(b"\n").removesuffix(b"\r")
    elif VARIABLE in os.environ:
        password = os.fsencode(os.environ[VARIABLE])
    else:
        return None
    if insecure and password:
        raise UsageError(f"{source}: contains a password, but --insecure-no-auth forbids one; remove one of them")
    if insecure:
        return None
    if not password:
        raise UsageError(f"{source}: is empty; store the dashboard's password there")
    if b"\n" in password or b"\r" in password:
        raise UsageError(f"{source}: has several lines; the password must be one line")
    return password


def check_names(names: Sequence[str]) -> None:
    """Raise UsageError for a name of --allow-host that is not a host name."""
    for name in names:
        if host_name(name) is None:
            raise UsageError(f"--allow-host {name!r}: not a host name; write it without http:// and port")


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Raise SystemExit on SIGTERM, which the first process of a container would ignore otherwise."""

    def exit_process(signum: int, frame: object) -> NoReturn:
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        yield
        return
    before = signal.signal(signal.SIGTERM, exit_process)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Of a name's several addresses it takes the first, IPv4 before IPv6."""
    try:
        infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(infos, key=lambda info: info[0] != socket.AF_INET)
        both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise HpoError(f"{host}:{port}: the port is in use; choose another with --port") from error
        reason = getattr(error, "strerror", None) or error
        raise HpoError(f"{host}:{port}: cannot listen there ({reason})") from error
