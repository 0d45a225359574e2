"""Optuna's dashboard on a storage that hpo has opened: one web server in this process, until it is interrupted.

It promises to listen before it says where, to say in one line why it cannot, and to open no browser. Whoever can reach
the address can also change studies: that is why the address is this machine's own unless another is asked for.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from optuna.storages import BaseStorage
from optuna_dashboard import wsgi

from hpo.errors import HpoError


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # a page that is still loading does not hold up the end

    def server_bind(self) -> None:
        # WSGIServer's own asks the name service for the machine's name, which may take seconds and is of no use here
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a page polls several times a second."""


def serve(storage: BaseStorage, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve the dashboard until KeyboardInterrupt; `announce` is given the address once it answers (port 0: any)."""
    app = wsgi(storage)
    try:
        server = (_ServerV6 if ":" in host else _Server)((host, port), _Handler)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise HpoError(f"{host}:{port}: the port is in use; choose another with --port") from error
        raise HpoError(f"{host}:{port}: cannot listen there ({error.strerror or error})") from error
    with server:
        server.set_app(app)
        shown = f"[{host}]" if ":" in host else host
        announce(f"http://{shown}:{server.server_port}/")
        server.serve_forever()
