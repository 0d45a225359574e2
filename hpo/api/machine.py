"""This machine: its data sets, the dashboard it serves, its health, its versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpo.api.loading import open_existing

if TYPE_CHECKING:
    from hpo.data import Listing
    from hpo.results.doctor.finding import Finding


def datasets() -> list[Listing]:
    """Return every known data set: name, folder on this machine or None, and number of training images."""
    from hpo.data import list_datasets

    return list_datasets()


def datasets_table() -> str:
    """Return the table that `hpo data list` prints."""
    from hpo.results.display.tables import datasets_table

    return datasets_table(datasets())


def fetch(name: str) -> Path:
    """Download a data set into the cache, unless a valid copy is there; return its folder. Raises DataError."""
    from hpo.data import fetch

    return fetch(name)


def dashboard(
    *,
    storage: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    password_file: str | Path | None = None,
    insecure: bool = False,
    read_only: bool = False,
    allow_hosts: Sequence[str] = (),
    artifacts: str | Path | None = None,
    browser: bool = False,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve optuna-dashboard until Ctrl-C; call `announce` with its address once it answers.

    With `browser`, it is opened in the browser of a desktop, unless other machines can reach the address. `port` 0 is
    any free one. An address that other machines can reach needs a password, from `password_file` or
    HPO_DASHBOARD_PASSWORD, unless `insecure`. Raises UsageError for options that contradict each other, and HpoError
    where it cannot listen.
    """
    from hpo.service.dashboard.dashboard import check_names, read_password, serve
    from hpo.storage.artifacts import artifact_folder

    password = read_password(None if password_file is None else Path(password_file), insecure=insecure)
    check_names(allow_hosts)
    opened = open_existing(storage)
    serve(
        opened,
        artifact_folder(opened.location, None if artifacts is None else Path(artifacts)),
        host,
        port,
        announce=announce,
        password=password,
        insecure=insecure,
        read_only=read_only,
        names=allow_hosts,
        browser=browser,
    )


def doctor(*, storage: str | None = None, fix: bool = False) -> Iterator[Finding]:
    """Check storage, data sets, packages, devices and threads; yield each finding as soon as its check ends.

    With `fix`, orphaned trials are requeued; without it nothing is changed. A problem is a finding, never an error.
    """
    from hpo.results.doctor.checks import findings

    return findings(storage, fix)


def versions() -> dict[str, str]:
    """Return the versions by program: hpo, python, torch, optuna, numpy."""
    from hpo.versions import versions

    return versions()
