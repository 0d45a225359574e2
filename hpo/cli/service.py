"""Commands of the service: the queue, its workers, and the dashboard."""

from __future__ import annotations

import functools
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

import hpo
from hpo.cli.app import (
    ChangedCode,
    Device,
    Extend,
    Name,
    NewName,
    Overrides,
    Population,
    StorageUrl,
    Trials,
    app,
    complete_study,
    print_line,
)
from hpo.cli.interruption import stop_on_signals
from hpo.errors import UsageError

command = functools.partial(app.command, rich_help_panel="Service")


class LogFormat(StrEnum):
    """Formats of the log of `hpo work`."""

    TEXT = "text"
    JSON = "json"


@command()
def submit(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Read these study files")],
    overrides: Overrides = None,
    trials: Trials = None,
    name: NewName = None,
    population: Population = None,
    priority: Annotated[
        int | None, typer.Option(metavar="N", help="Set the priority: a higher number goes first [default: 0]")
    ] = None,
    extend: Extend = False,
    storage: StorageUrl = None,
) -> None:
    """Put studies into the queue, for `hpo work`.

    All files are checked before the first study is stored. A study that is already stored is not changed.
    """
    if name is not None and len(files) > 1:
        raise UsageError("--name: takes one study file; submit several files one by one")

    hpo.submit(
        [hpo.read(f, overrides or (), trials=trials, name=name, population=population) for f in files],
        storage=storage,
        extend=extend,
        priority=priority,
        on_stored=lambda study: print_line(study.queue_line()),
    )


@command(cls=TyperCommand)  # the command prints nothing on stdout, so user code may use it
def work(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Train only these studies", autocompletion=complete_study),
    ] = None,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="Exit when no trial is left")] = False,
    device: Device = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use N threads [default: this worker's share of the cores]")
    ] = None,
    changed_code: ChangedCode = False,
    log_format: Annotated[LogFormat, typer.Option(help="Set the format of the log's lines")] = LogFormat.TEXT,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, metavar="PORT", help="Serve metrics for Prometheus on this port; 0: any free one"
        ),
    ] = None,
    metrics_host: Annotated[str, typer.Option(metavar="ADDRESS", help="Serve metrics on this address")] = "127.0.0.1",
    storage: StorageUrl = None,
) -> None:
    """Train the trials of queued studies.

    The study of the highest priority goes first, studies of equal priority take turns. On SIGTERM or Ctrl-C the current
    epoch ends, and unfinished trials are requeued. The log goes to stderr.
    """
    with stop_on_signals() as interruption:
        status = hpo.work(
            names or (),
            storage=storage,
            until_idle=until_idle,
            device=device,
            threads=threads,
            changed_code=changed_code,
            log_format=log_format.value,
            metrics_port=metrics_port,
            metrics_host=metrics_host,
            stop=interruption.stop,
        )
        raise typer.Exit(status)


@command()
def status(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show only this study", autocompletion=complete_study)
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Update the status until Ctrl-C")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object; with --watch, one a line")] = False,
    storage: StorageUrl = None,
) -> None:
    """Show the studies of the queue, and the workers.

    A study's pace is measured over the last five minutes. A worker whose last heartbeat is old is dead.
    """
    from hpo.cli.status_display import status_display

    with status_display(json, once=not watch) as show:
        for each in hpo.watch(name, storage=storage) if watch else [hpo.status(name, storage=storage)]:
            show(each)


@command()
def pause(name: Name, storage: StorageUrl = None) -> None:
    """Pause a study.

    Running trials are requeued at the end of the epoch.
    """
    print_line(hpo.load(name, storage=storage).pause())


@command()
def resume(name: Name, storage: StorageUrl = None) -> None:
    """Resume a study that was paused or stopped."""
    print_line(hpo.load(name, storage=storage).resume())


@command()
def stop(name: Name, storage: StorageUrl = None) -> None:
    """Stop a study early.

    Running trials are finished, and no new trial starts.
    """
    print_line(hpo.load(name, storage=storage).stop())


@command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking")] = False,
    storage: StorageUrl = None,
) -> None:
    """Delete a study with all its trials.

    Asks for confirmation. Running trials end with their epoch.
    """
    study = hpo.load(name, storage=storage)
    question = study.deletion_question()
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"{question} Cannot ask without a terminal; confirm with --yes")
        print(f"{question} [y/N]: ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise typer.Exit(1)
    print_line(study.delete())


@command()
def dashboard(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Listen on this address")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Listen on this port; 0: any free one")
    ] = 8080,
    password_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Read the password from this file [default: HPO_DASHBOARD_PASSWORD]"),
    ] = None,
    insecure_no_auth: Annotated[
        bool, typer.Option("--insecure-no-auth", help="Allow everything to everyone who can reach the address")
    ] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse every change")] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Accept this name of the server too, as behind a proxy; may be repeated"),
    ] = None,
    artifacts: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Read artifacts here [default: HPO_ARTIFACTS, else beside the database file]"
        ),
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser")] = False,
    storage: StorageUrl = None,
) -> None:
    """Serve optuna-dashboard until Ctrl-C.

    Opens the page in the browser of a desktop. An address of this machine only needs no password; any other address
    does, and opens no browser.
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
        browser=not no_browser,
        announce=print_line,
    )
