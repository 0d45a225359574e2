"""The commands that ask a storage what it has found."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import hpo
from hpo.cli.app import Device, Name, Quiet, StorageUrl, Workers, app, complete_study, put, say, show
from hpo.cli.interruption import stop_on_signals


class FileFormat(StrEnum):
    """What a figure's file holds."""

    HTML = "html"
    PNG = "png"


class ExportFormat(StrEnum):
    """How an export is written."""

    JSON = "json"
    TOML = "toml"
    CSV = "csv"


@app.command()
def studies(storage: StorageUrl = None) -> None:
    """List the studies.

    With each one's data set, trials by state, best value and last activity.
    """
    from hpo.api.queue import studies_table

    say(studies_table(storage=storage))


@app.command()
def top(
    name: Name,
    number: Annotated[int, typer.Option("-n", "--number", min=1, metavar="N", help="How many trials.")] = 5,
    storage: StorageUrl = None,
) -> None:
    """Print the best trials of a study."""
    for line in hpo.load(name, storage=storage).top_lines(number):
        say(line)


@app.command()
def compare(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="Studies, or NAME#12: that trial's.", autocompletion=complete_study),
    ],
    by: Annotated[
        str | None, typer.Option("--by", metavar="PARAMETER", help="Compare for each value of a parameter apart.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Draw a figure too, as .html or .png.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Write a JSON object.")] = False,
    storage: StorageUrl = None,
) -> None:
    """Compare configurations: every one of a grid, the best of a search.

    Final and best values, the gap, epochs to 95% of the best, and a paired test over seeds against the first.
    """
    found = hpo.compare(*names, by=by, storage=storage)
    if output is not None:
        found.write_figure(output)
    show(found, json)


@app.command()
def confirm(
    name: Name,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="How many of the best configurations.")] = 5,
    seeds: Annotated[int, typer.Option(min=2, metavar="N", help="How many fresh seeds for each.")] = 10,
    device: Device = "auto",
    workers: Workers = None,
    quiet: Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Write the result to stdout, as one JSON object.")] = False,
    storage: StorageUrl = None,
) -> None:
    """Train the best configurations again under fresh seeds, and the baseline.

    The best of many noisy scores is partly luck: this tells how much, and whether tuning has helped. It makes a study
    of its own; interrupted, the same command goes on.
    """
    with stop_on_signals() as interruption:
        hpo.load(name, storage=storage).confirm(
            top=top,
            seeds=seeds,
            device=device,
            workers=workers,
            progress="quiet" if quiet else "auto",
            on_found=lambda found: show(found, json),
            stop=interruption.stop,
        )


@app.command()
def verify(
    name: Name,
    trials: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many completed trials, the best among them.")
    ] = 5,
    device: Device = "auto",
    json: Annotated[bool, typer.Option("--json", help="Write the certificate to stdout, as one JSON object.")] = False,
    storage: StorageUrl = None,
) -> None:
    """Train trials again, each alone, and say how far they are from what was stored.

    The result is kept with the study, and its export carries it.
    """
    with stop_on_signals() as interruption:
        found = hpo.load(name, storage=storage).verify(trials, device=device, stop=interruption.stop)
        show(found, json)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `hpo export` wrote.")],
    device: Device = "auto",
    json: Annotated[bool, typer.Option("--json", help="Write the result to stdout, as one JSON object.")] = False,
) -> None:
    """Repeat the trial of an export, from the file and the images alone.

    It says how far the scores and curves are from the exported ones.
    """
    with stop_on_signals() as interruption:
        found = hpo.replay(file, device=device, stop=interruption.stop)
        show(found, json)


@app.command()
def export(
    name: Name,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="A file, not stdout.")] = None,
    confirmed: Annotated[
        bool, typer.Option("--confirmed", help="The winner of `hpo confirm`, with its numbers.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Every trial, a JSON object a line.")] = False,
    top: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The N best trials, a JSON object a line.")
    ] = None,
    trial: Annotated[int | None, typer.Option(min=0, metavar="N", help="The completed trial of that number.")] = None,
    form: Annotated[ExportFormat, typer.Option("--format", help="How it is written.")] = ExportFormat.JSON,
    storage: StorageUrl = None,
) -> None:
    """Write a study's best trial as JSON, or several trials.

    `hpo launch` takes the file of one trial back, as a study of that trial, and `hpo replay` repeats it. Of several
    metrics the Pareto front is written, each of its trials such an object.
    """
    study = hpo.load(name, storage=storage)
    text = study.export_text(confirmed=confirmed, every=every, top=top, trial=trial, form=form.value)
    put(text, output)


@app.command()
def copy(
    name: Name,
    to: Annotated[str, typer.Option("--to", metavar="URL", help="The storage that gets the copy; a file may be new.")],
    storage: Annotated[
        str | None,
        typer.Option("--from", metavar="URL", help="The study's storage [default: HPO_STORAGE, else sqlite:///hpo.db]"),
    ] = None,
    new_name: Annotated[str | None, typer.Option("--name", metavar="NEW", help="Another name for the copy.")] = None,
) -> None:
    """Copy a study to another storage, whole.

    Trials that run wait in the copy. A study that is there already is never overwritten.
    """
    say(hpo.load(name, storage=storage).copy(to, new_name))


@app.command()
def plot(
    name: Name,
    figure: Annotated[
        list[str] | None,
        typer.Option(
            "--figure",
            metavar="KIND",
            help="front, curves, landscape, history, importances or activations; repeatable.",
        ),
    ] = None,
    number: Annotated[
        int, typer.Option("-n", "--number", min=1, metavar="N", help="How many of the best trials' curves.")
    ] = 20,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the files go.")] = Path(),
    form: Annotated[FileFormat, typer.Option("--format", help="Pages, or images.")] = FileFormat.HTML,
    storage: StorageUrl = None,
) -> None:
    """Draw a study's figures into files.

    The learning curves of the best trials, the landscape, the history, the importances; if asked for, histograms of
    activations before training. A page opens without a network; an image takes an installed Chrome or Chromium.
    """
    study = hpo.load(name, storage=storage)
    for path in study.write_figures(output, figure or (), number, form.value):
        say(path)


@app.command()
def report(
    name: Name,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The page [default: NAME-report.html]")
    ] = None,
    storage: StorageUrl = None,
) -> None:
    """Write a study's report: one page that needs no network.

    What was searched, figures, the best trials, what is confirmed and tested, and how to reproduce it.
    """
    say(hpo.load(name, storage=storage).write_report(output))
