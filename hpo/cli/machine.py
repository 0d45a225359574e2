"""The commands about this machine: the dashboard it serves, its data sets, its health, its versions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hpo
from hpo.cli.app import StorageUrl, app, data_app, say, show
from hpo.errors import HpoError


@app.command()
def dashboard(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="The port; 0 for any that is free.")
    ] = 8080,
    password_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A file that holds the password [default: HPO_DASHBOARD_PASSWORD]"),
    ] = None,
    insecure_no_auth: Annotated[
        bool, typer.Option("--insecure-no-auth", help="Let everyone who can reach the address do everything.")
    ] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse whatever would change something.")] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further name of this server, as behind a proxy; may be repeated."),
    ] = None,
    artifacts: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where artifacts are kept [default: HPO_ARTIFACTS, else beside the database file]"
        ),
    ] = None,
    storage: StorageUrl = None,
) -> None:
    """Serve Optuna's dashboard until Ctrl-C.

    It opens no browser. On this machine's own address it needs no password; on any other it does.
    """
    hpo.dashboard(
        storage=storage,
        host=host,
        port=port,
        password_file=password_file,
        insecure=insecure_no_auth,
        read_only=read_only,
        allow_hosts=allow_host or (),
        artifacts=artifacts,
        announce=say,
    )


@data_app.command("list")
def data_list() -> None:
    """List the data sets and where each is."""
    from hpo.api.machine import datasets_table

    say(datasets_table())


@data_app.command("fetch")
def data_fetch(name: Annotated[str, typer.Argument(metavar="NAME", help="A data set's name.")]) -> None:
    """Download a data set into the cache."""
    say(hpo.fetch(name))


@app.command()
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Send trials that nobody trains back to the queue.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object a line.")] = False,
    storage: StorageUrl = None,
) -> None:
    """Check storage, data sets and devices.

    Each check is a line that says what was found, and for a problem what to do. Without --fix nothing is changed.
    """
    problems = 0
    for finding in hpo.doctor(storage=storage, fix=fix):
        show(finding, json)
        problems += finding.verdict == "problem"
    if problems:
        raise HpoError(f"{problems} {'problem' if problems == 1 else 'problems'} found")


@app.command()
def version() -> None:
    """Print the versions of hpo and its base."""
    from hpo.api.machine import version_line

    say(version_line())
