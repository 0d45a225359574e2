"""Commands of a search in this process: init, launch, check, narrow."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Annotated

import typer

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
    print_line,
)
from hpo.cli.interruption import stop_on_signals
from hpo.errors import UsageError
from hpo.text import hpo_command, printable

command = functools.partial(app.command, rich_help_panel="Search")


@command()
def init(
    data: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="Use these data: a known data set, or user data such as table:houses.csv"),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Predict this column of the table; may be repeated")
    ] = None,
    module: Annotated[
        str | None, typer.Option(metavar="FILE.py:NAME", help="Train this network instead of a built-in one")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="FILE.py:NAME", help="Search this function of optuna.Trial, without --data")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Use classification, regression or multilabel [default: by the targets]"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name the study [default: by the data or the file]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write to this file [default: NAME.toml]")
    ] = None,
) -> None:
    """Write a starter study file.

    Reads the data, as `hpo check` does, chooses ranges, metric and split for them, and says why in comments. The JSON
    Schema of study files is written beside the file, for editors. An existing study file is never overwritten.
    """
    path = hpo.init(
        data=data, target=target or (), module=module, objective=objective, task=task, name=name, output=output
    )
    print_line(path)
    for start, verb in (("next: ", "check"), ("      ", "launch")):
        print(printable(start + hpo_command(verb, str(path))), file=sys.stderr)


@command()
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
        typer.Option(metavar="[ADDRESS]", help="Run workers on this Ray cluster, or start a cluster for them"),
    ] = None,
    gpus_per_worker: Annotated[
        float,
        typer.Option(min=0, metavar="X", help="Reserve this many GPUs for each worker, with --ray; 0.25 is valid"),
    ] = 0.0,
    enqueue: Annotated[
        list[str] | None,
        typer.Option(metavar="JSON", help="Train a trial with these values first, such as '{\"lr\": 0.01}'"),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRACKER",
            help="Write the trials to this tracker too: mlflow[:URI], tensorboard[:FOLDER], wandb or trackio; may be "
            "repeated",
        ),
    ] = None,
    extend: Extend = False,
    changed_code: ChangedCode = False,
    quiet: Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Write events to stdout, one JSON object a line")] = False,
    storage: StorageUrl = None,
) -> None:
    """Run a study, or continue it.

    The command ends when the study has all its trials. Ctrl-C ends it earlier: finished trials are stored, and the same
    command continues the study.
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
            track=track or (),
            progress="json" if json else "quiet" if quiet else "auto",
            stop=interruption.stop,
        )
        lines = [*(study.summary_lines() if json else ()), *study.next_lines(storage)]
        for line in () if quiet else lines:
            print(line, file=sys.stderr)
        if study.interrupted:
            raise typer.Exit(interruption.status)


@command()
def check(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Read a study file, or a file written by `hpo export`")
    ] = None,
    overrides: Overrides = None,
    resolved: Annotated[
        bool, typer.Option("--all", help="Print the resolved file too: the study file with every default")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of study files, for an editor; needs no FILE")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Train for some seconds and print how fast stacks and single trials are")
    ] = False,
    device: Device = "auto",
    storage: StorageUrl = None,
) -> None:
    """Validate a study file and summarize it.

    The summary has the search space, the data, the number of parameters of a network, how many trials train at once in
    how much memory, the size of a frozen one, and the pruner. For a study that has begun in the storage, the pruner is
    the one chosen then.
    """
    if schema:
        print_line(hpo.study_schema().rstrip())
        return
    if file is None:
        raise UsageError("Missing argument 'FILE' (see hpo check --help)")
    print_line(hpo.read(file, overrides or ()).check(device, resolved=resolved, measure=measure, storage=storage))


@command()
def narrow(
    name: Name,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write to this file [default: the new study's name]"),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Search the next study and narrow that, N times")
    ] = None,
    new_name: Annotated[
        str | None, typer.Option("--name", metavar="NEW", help="Name the next study [default: NAME-2]")
    ] = None,
    device: Device = "auto",
    workers: Workers = None,
    quiet: Quiet = False,
    storage: StorageUrl = None,
) -> None:
    """Narrow a study's ranges around its best trials.

    Writes the next study's file. Where the best trials lie at the edge of a range, the range is widened on that side.
    With --rounds no file is written: the next studies are searched, one after the other, and after an interruption the
    same command continues.
    """
    if rounds is None:
        if device != "auto" or workers is not None:
            option = "device" if workers is None else "workers"
            raise UsageError(f"--{option}: needs --rounds; without --rounds nothing is trained")
        proposal = hpo.load(name, storage=storage).narrow(new_name)
        for line in () if quiet else proposal.lines:
            print(line, file=sys.stderr)
        print_line(proposal.write(output))
        return
    if output is not None:
        raise UsageError("--output: cannot be combined with --rounds, which writes no file but stores the studies")
    with stop_on_signals() as interruption:
        searched = hpo.load(name, storage=storage).rounds(
            rounds,
            name=new_name,
            device=device,
            workers=workers,
            progress="quiet" if quiet else "auto",
            say=print_line,
            stop=interruption.stop,
        )
        if searched[-1].interrupted:
            raise typer.Exit(interruption.status)
