"""The commands that ask a storage what it has found."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hpo.cli.app import Device, Name, Quiet, StorageUrl, Workers, app, complete_study, storage_at
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
    from hpo.results.overview import studies_table

    print(studies_table(storage_at(storage)))


@app.command()
def top(
    name: Name,
    number: Annotated[int, typer.Option("-n", "--number", min=1, metavar="N", help="How many trials.")] = 5,
    storage: StorageUrl = None,
) -> None:
    """Print the best trials of a study."""
    from hpo.results.ranking import top_lines

    for line in top_lines(storage_at(storage), name, number):
        print(line)


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
    from hpo.results.comparison import compare as rows_of
    from hpo.results.comparison import json_text, text
    from hpo.results.groups import groups

    found = groups(storage_at(storage), names)
    rows = rows_of(found, by)
    shown = json_text(rows) if json else text(rows)
    if output is None:
        print(shown)
        return

    from hpo.results.figures.comparison import comparison
    from hpo.results.figures.files import form_of, save_as

    form_of(output)
    figure = comparison(found, by)
    print(shown)
    save_as(figure, ", ".join(names), output)


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
        from hpo.results.confirmation_lines import confirmation_lines, confirmation_text
        from hpo.service.confirming import confirm as train

        if not train(
            storage_at(storage),
            name,
            top=top,
            seeds=seeds,
            device=device,
            workers=workers,
            quiet=quiet,
            say=lambda found: print(confirmation_text(found) if json else "\n".join(confirmation_lines(found))),
            stop=interruption.stop,
        ):
            raise typer.Exit(interruption.status)


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
        from hpo.results.verification import certificate_text, verified_lines
        from hpo.results.verification import verify as look

        found = look(storage_at(storage), name, trials, device, interruption.stop, _warn)
        print(certificate_text(found) if json else "\n".join(verified_lines(found)))


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
        from hpo.results.replaying import replay as train
        from hpo.results.replaying import replay_lines, replay_text

        found = train(file, device, interruption.stop, _warn)
        print(replay_text(found) if json else "\n".join(replay_lines(found)))


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
    form: Annotated[ExportFormat, typer.Option("--format", help="How it is written.")] = ExportFormat.JSON,
    storage: StorageUrl = None,
) -> None:
    """Write a study's best trial as JSON, or several trials.

    `hpo launch` takes the file of the best back, as a study of one trial, and `hpo replay` repeats that trial.
    """
    from hpo.results.exporting import exported
    from hpo.results.writing import write

    text = exported(storage_at(storage), name, confirmed=confirmed, every=every, top=top, form=form.value)
    if output is None:
        sys.stdout.write(text)
    else:
        write(text, output)


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
    from hpo.results.copies import copy_line

    print(copy_line(storage_at(storage), name, to, new_name))


@app.command()
def plot(
    name: Name,
    figure: Annotated[
        list[str] | None,
        typer.Option(
            "--figure", metavar="KIND", help="curves, landscape, history, importances or activations; repeatable."
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
    from hpo.results.figures.files import plot as draw

    for path in draw(storage_at(storage), name, output, figure or (), number, form.value):
        print(path)


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
    from hpo.results.naming import file_stem
    from hpo.results.report import report as page
    from hpo.results.writing import write

    path = output or Path(f"{file_stem(name)}-report.html")
    write(page(storage_at(storage), name), path)
    print(path)


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
