"""Commands for this machine: doctor, data, version."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

import hpo
from hpo.cli.app import Application, StorageUrl, app, print_line, print_result, print_version
from hpo.errors import HpoError

command = functools.partial(app.command, rich_help_panel="Machine")
data = Application(help="List and download data sets.")


@command()
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Requeue orphaned trials, whose worker is dead")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line")] = False,
    storage: StorageUrl = None,
) -> None:
    """Check the storage, data sets and devices.

    Prints a line for each check: the result, and for a problem what to do. Changes nothing without --fix.
    """
    problems = 0
    for finding in hpo.doctor(storage=storage, fix=fix):
        print_result(finding, json)
        problems += finding.verdict == "problem"
    if problems:
        raise HpoError(f"{problems} {'problem' if problems == 1 else 'problems'} found")


@data.command("list")
def data_list() -> None:
    """List the data sets and the folder of each."""
    from hpo.api.machine import datasets_table

    print_line(datasets_table())


@data.command("fetch")
def data_fetch(name: Annotated[str, typer.Argument(metavar="NAME", help="Select the data set of this name")]) -> None:
    """Download a data set into the cache."""
    print_line(hpo.fetch(name))


app.add_typer(data, name="data", rich_help_panel="Machine")


@command()
def version() -> None:
    """Print the versions of hpo, Python, torch, Optuna and NumPy."""
    print_version()
