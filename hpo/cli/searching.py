"""The commands that train, or prepare it: launch, submit, work, narrow, check."""

from __future__ import annotations

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
    File,
    Name,
    NewName,
    Overrides,
    Population,
    Quiet,
    StorageUrl,
    Trials,
    Workers,
    app,
    complete_study,
    say,
)
from hpo.cli.interruption import stop_on_signals
from hpo.errors import UsageError


class LogFormat(StrEnum):
    """How a line of the log looks."""

    TEXT = "text"
    JSON = "json"


@app.command()
def launch(
    file: File,
    overrides: Overrides = None,
    trials: Trials = None,
    name: NewName = None,
    population: Population = None,
    device: Device = "auto",
    workers: Workers = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="[ADDRESS]", help="Let workers run on this Ray cluster, or on one started for them."),
    ] = None,
    gpus_per_worker: Annotated[
        float, typer.Option(min=0, metavar="X", help="With --ray: GPUs that a worker has, such as 0.25.")
    ] = 0.0,
    enqueue: Annotated[
        list[str] | None,
        typer.Option(metavar="JSON", help="Train a trial with these values first, such as '{\"lr\": 0.01}'."),
    ] = None,
    extend: Extend = False,
    changed_code: ChangedCode = False,
    quiet: Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Write events to stdout, one JSON object a line.")] = False,
    storage: StorageUrl = None,
) -> None:
    """Run a study, or go on with it.

    It ends when the study has its trials. Ctrl-C ends it earlier: what has finished is kept, and the same command goes
    on from there.
    """
    with stop_on_signals() as interruption:
        study = hpo.launch(
            hpo.read(file, overrides or (), trials=trials, name=name, population=population),
            storage=storage,
            device=device,
            workers=workers,
            ray=ray,
            gpus_per_worker=gpus_per_worker,
            extend=extend,
            changed_code=changed_code,
            enqueue=enqueue or (),
            progress="json" if json else "quiet" if quiet else "auto",
            stop=interruption.stop,
        )
        closing = [*(study.summary_lines() if json else ()), *study.next_lines(storage)]
        for line in () if quiet else closing:
            print(line, file=sys.stderr)
        if study.interrupted:
            raise typer.Exit(interruption.status)


@app.command()
def submit(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Study files.")],
    overrides: Overrides = None,
    trials: Trials = None,
    name: NewName = None,
    population: Population = None,
    priority: Annotated[
        int | None, typer.Option(metavar="N", help="How urgent: a higher number goes first [default: 0]")
    ] = None,
    extend: Extend = False,
    storage: StorageUrl = None,
) -> None:
    """Put studies into the queue, for `hpo work`.

    All files are checked before the first is stored. A study that is there already stays as it is.
    """
    if name is not None and len(files) > 1:
        raise UsageError("--name: names one study; submit several files one by one")

    hpo.submit(
        [hpo.read(f, overrides or (), trials=trials, name=name, population=population) for f in files],
        storage=storage,
        extend=extend,
        priority=priority,
        on_stored=lambda study: say(study.queue_line()),
    )


@app.command(cls=TyperCommand)  # it says nothing on stdout: what the user's own code prints there is not in its log
def work(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Only these studies.", autocompletion=complete_study),
    ] = None,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="End when nothing is left to do.")] = False,
    device: Device = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads [default: this worker's share of the cores]")
    ] = None,
    changed_code: ChangedCode = False,
    log_format: Annotated[LogFormat, typer.Option(help="How a line of the log looks.")] = LogFormat.TEXT,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, metavar="PORT", help="Serve metrics for Prometheus there; 0: any.")
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="The address that metrics are served on.")
    ] = "127.0.0.1",
    storage: StorageUrl = None,
) -> None:
    """Train whatever the queue has trials left of.

    The most urgent study first, equals in turn, until SIGTERM or Ctrl-C: then the epoch in hand ends, and what is not
    finished goes back to the queue. The log goes to stderr.
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


@app.command()
def narrow(
    name: Name,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The file [default: the new study's name]")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Search what is proposed, and narrow that, so many times.")
    ] = None,
    new_name: Annotated[
        str | None, typer.Option("--name", metavar="NEW", help="The new study's name [default: NAME-2]")
    ] = None,
    device: Device = "auto",
    workers: Workers = None,
    quiet: Quiet = False,
    storage: StorageUrl = None,
) -> None:
    """Narrow a study's ranges around its best trials.

    Writes the next study's file. Where the best lies at an edge, that side is widened instead. With --rounds nothing is
    written: the next studies are searched, one after the other, and the same command goes on after an interruption.
    """
    if rounds is None:
        if device != "auto" or workers is not None:
            raise UsageError(
                f"--{'device' if workers is None else 'workers'}: goes with --rounds; without it nothing is trained"
            )
        proposal = hpo.load(name, storage=storage).narrow(new_name)
        for line in () if quiet else proposal.lines:
            print(line, file=sys.stderr)
        say(proposal.write(output))
        return
    if output is not None:
        raise UsageError("--output: with --rounds no file is written, the studies are in the storage")
    with stop_on_signals() as interruption:
        searched = hpo.load(name, storage=storage).rounds(
            rounds,
            name=new_name,
            device=device,
            workers=workers,
            progress="quiet" if quiet else "auto",
            say=say,
            stop=interruption.stop,
        )
        if searched[-1].interrupted:
            raise typer.Exit(interruption.status)


@app.command()
def check(file: File, overrides: Overrides = None) -> None:
    """Validate a study file and show it resolved.

    With its search space and its size: parameters a network, members a population, memory.
    """
    say(hpo.read(file, overrides or ()).check())
