"""Optuna's dashboard as a server of its own: the storage's studies, notes, figures and artifacts, behind a guard.

It promises to listen before it says where, to say in one line why it cannot, to open no browser, and to end within
seconds of Ctrl-C or SIGTERM whatever it was answering. An address that others can reach needs a password, unless the
caller says that it shall not. Who may do what is decided in guard.py, how much at once in server.py; this module knows
the dashboard and the socket.
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
from hpo.service.dashboard.guard import Guard, Hosts, Login, host_name, is_loopback
from hpo.service.dashboard.pages import ARTIFACTS, application
from hpo.service.dashboard.server import LimitedServer
from hpo.service.dashboard.view import View
from hpo.storage import Storage

VARIABLE = "HPO_DASHBOARD_PASSWORD"
THREADS = 8
"""Answers at once. A page asks for three things; the importance of the hyperparameters takes seconds."""
GRACE_S = 1.0
"""What an answer that is being made has left when the server is to end."""
LARGEST_UPLOAD = bottle.BaseRequest.MEMFILE_MAX + 1
"""Bytes of a request, as much as the dashboard itself takes (128 MB, or OPTUNA_DASHBOARD_MEMFILE_MAX)."""
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
) -> None:
    """Serve the dashboard until KeyboardInterrupt or SIGTERM; `announce` is given the address once it answers.

    Port 0 is any free one. `names` are further names that requests may call this server by. Without a password it
    serves this machine only, unless `insecure` says that everyone may do everything.
    """
    server = Server(
        storage, artifacts, host, port, password=password, insecure=insecure, read_only=read_only, names=names
    )
    with contextlib.closing(server), _ended_by_sigterm():
        announce(server.url)
        server.run()


class Server:
    """A server that listens: `run` answers until `stop`, which any thread may call; `close` frees the port."""

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
                    f"{host}: others can reach this address, so it needs a password: set {VARIABLE}, or name a file"
                    " with --password-file; --insecure-no-auth lets everyone in"
                )
            hosts = Hosts(address, [name for name in (host, *names) if host_name(name)])
            self._view = View(storage.location)
            app = application(self._view, artifacts)
            login = Login(password) if password is not None else None
            guarded = Guard(app, hosts, login, read_only=read_only, files=[ARTIFACTS])
            # Its warnings tell of every moment in which there is more to do than threads.
            logging.getLogger("waitress").setLevel(logging.ERROR)
            self._channels: dict[int, Any] = {}
            largest = LARGEST_WHEN_READ_ONLY if read_only else LARGEST_UPLOAD
            self._server: Any = LimitedServer(guarded, listener, self._channels, threads=THREADS, largest_body=largest)
        except BaseException:
            listener.close()
            raise
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{listener.getsockname()[1]}/"

    def run(self) -> None:
        """Answer until `stop`, or until a signal's handler raises."""
        wasyncore.loop(timeout=1.0, use_poll=True, map=self._channels)

    def stop(self) -> None:
        """Let `run` return; what is being answered is cut off."""
        try:
            self._server.trigger.pull_trigger(lambda: wasyncore.close_all(self._channels))
        except OSError as error:
            if error.errno != errno.EBADF:  # an answer has just woken the loop, which has closed all before it was told
                raise

    def close(self) -> None:
        """Free the port; answers that are being made have a moment to end."""
        self._server.task_dispatcher.shutdown(timeout=GRACE_S)
        wasyncore.close_all(self._channels)
        self._view.close()


def read_password(file: Path | None, *, insecure: bool = False) -> bytes | None:
    """Return the password that is asked for: the file's, else the environment's, else none.

    `insecure` says that there shall be none: then to have one is a contradiction.
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
        raise UsageError(f"{source}: holds a password, and --insecure-no-auth asks for none; leave one of them out")
    if insecure:
        return None
    if not password:
        raise UsageError(f"{source}: is empty; put the dashboard's password there")
    if b"\n" in password or b"\r" in password:
        raise UsageError(f"{source}: has several lines; the password is one line")
    return password


def check_names(names: Sequence[str]) -> None:
    """Refuse a name of --allow-host that no request could have."""
    for name in names:
        if host_name(name) is None:
            raise UsageError(f"--allow-host {name!r}: not a name; write it alone, without http:// and port")


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit: the first process of a container would not even notice the signal otherwise."""

    def end(signum: int, frame: object) -> NoReturn:
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens there. A name that means several addresses is its first, IPv4 before IPv6."""
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
