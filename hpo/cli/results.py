"""Commands that show a study's results, retrain its trials, and write them to files."""

from __future__ import annotations

import functools
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

import hpo
from hpo.cli.app import (
    Device,
    Name,
    Output,
    Quiet,
    StorageUrl,
    Workers,
    app,
    complete_study,
    print_line,
    print_result,
    require_no_terminal,
    write_output,
)
from hpo.cli.interruption import stop_on_signals
from hpo.errors import UsageError

command = functools.partial(app.command, rich_help_panel="Results")


class ReportFormat(StrEnum):
    """File formats of reports."""

    HTML = "html"
    MARKDOWN = "markdown"


class FigureFormat(StrEnum):
    """File formats of figures."""

    HTML = "html"
    PNG = "png"


class ExportFormat(StrEnum):
    """File formats of exports."""

    JSON = "json"
    TOML = "toml"
    CSV = "csv"
    PARQUET = "parquet"


@command()
def studies(storage: StorageUrl = None) -> None:
    """List the studies of a storage.

    With the data set, trials by state, best value and last activity of each.
    """
    from hpo.api.running import studies_table

    print_line(studies_table(storage=storage))


@command()
def top(
    name: Name,
    number: Annotated[int, typer.Option("-n", "--number", min=1, metavar="N", help="Print N trials")] = 5,
    storage: StorageUrl = None,
) -> None:
    """Print the best trials of a study."""
    for line in hpo.load(name, storage=storage).top_lines(number):
        print_line(line)


@command()
def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            help="Compare these studies; NAME#12 is trial 12 of a study",
            autocompletion=complete_study,
        ),
    ],
    by: Annotated[
        str | None, typer.Option("--by", metavar="PARAMETER", help="Compare for each value of a parameter separately")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Draw a figure too, as .html or .png")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object")] = False,
    storage: StorageUrl = None,
) -> None:
    """Compare all configurations of a grid, or the best of searches.

    Prints final and best values, the generalization gap, the epochs to 95% of the best value, and a paired test over
    seeds against the first configuration.
    """
    comparison = hpo.compare(*names, by=by, storage=storage)
    if output is not None:
        comparison.write_figure(output)
    print_result(comparison, json)


@command()
def confirm(
    name: Name,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Confirm the N best configurations")] = 5,
    seeds: Annotated[int, typer.Option(min=2, metavar="N", help="Run each under N fresh seeds")] = 10,
    splits: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Spread the runs over N fresh splits; 1: the search's split "
            "[default: 5 where validation examples are few, else 1]",
        ),
    ] = None,
    ensemble: Annotated[bool, typer.Option("--ensemble", help="Confirm the ensemble of `hpo ensemble`, too")] = False,
    device: Device = "auto",
    workers: Workers = None,
    quiet: Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object")] = False,
    storage: StorageUrl = None,
) -> None:
    """Run the best trials and the baseline again under fresh seeds.

    The best of many noisy scores is partly luck. A confirmation measures how much of it is luck, and whether tuning has
    beaten the baseline and the first trial. It is a study of its own; after an interruption the same command continues
    it.
    """
    with stop_on_signals() as interruption:
        study = hpo.load(name, storage=storage)
        study.confirm(
            top=top,
            seeds=seeds,
            splits=splits,
            ensemble=ensemble,
            device=device,
            workers=workers,
            progress="quiet" if quiet else "auto",
            on_found=lambda result: print_result(result, json),
            stop=interruption.stop,
        )
    for line in () if quiet else study.next_lines(storage):
        print(line, file=sys.stderr)


@command()
def ensemble(
    name: Name,
    size: Annotated[int, typer.Option(min=1, metavar="N", help="Pick at most N times")] = 10,
    device: Device = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object")] = False,
    storage: StorageUrl = None,
) -> None:
    """Select trials whose mean prediction is best.

    The trials are those whose weights `[training] keep` has stored. A trial may be picked several times: its picks are
    its weight. The predictions are those for the validation split, so the ensemble's score there is optimistic. The
    ensemble is stored with the study, for `hpo confirm --ensemble`, `hpo test --ensemble` and `hpo export --ensemble`.
    """
    print_result(hpo.load(name, storage=storage).ensemble(size=size, device=device), json)


@command("test")
def evaluate_test_set(
    name: Name,
    again: Annotated[bool, typer.Option("--again", help="Test again although this study has been tested")] = False,
    from_checkpoint: Annotated[
        bool, typer.Option("--from-checkpoint", help="Test the checkpoint of the search, without training")
    ] = False,
    trial: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Test trial N's configuration [default: the selected configuration]"),
    ] = None,
    subnetworks: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Average N networks of random dropout too")
    ] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Test the ensemble of `hpo ensemble` instead of one configuration")
    ] = False,
    device: Device = "auto",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FOLDER", help="Write to this new folder [default: NAME-test]"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object")] = False,
    storage: StorageUrl = None,
) -> None:
    """Evaluate the selected configuration on the test set, once.

    The network is trained on the training and validation splits together, then evaluated. The folder has the result,
    the confusion matrix, and the weights for `hpo predict`.
    """
    with stop_on_signals() as interruption:
        result = hpo.load(name, storage=storage).test(
            again=again,
            from_checkpoint=from_checkpoint,
            trial=trial,
            subnetworks=subnetworks,
            ensemble=ensemble,
            device=device,
            folder=output,
            stop=interruption.stop,
        )
    print_result(result, json)


@command()
def predict(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Use the network in this folder of `hpo test`")],
    examples: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Use the examples of this .npy file, or the rows of this .csv or .parquet file"
        ),
    ],
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Predict for new examples with a tested network.

    Images are uint8 as in the data set, or floats from 0, black, to 1, white; other examples are numbers as in the data
    set, with the axes of the data set. A table has the feature columns of the training table, in any order. The output
    is CSV. Its first column, image or example, has the number of the example, from 0; for a table, row has the number
    of the row in the file, where the header of a CSV file is row 1. The others are class and probability, or for other
    tasks than classification one for each predicted number or each label's probability.
    """
    write_output(str(hpo.predict(folder, examples, device=device)), output)


@command()
def verify(
    name: Name,
    trials: Annotated[int, typer.Option(min=1, metavar="N", help="Retrain N completed trials, the best included")] = 5,
    device: Device = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the certificate as one JSON object")] = False,
    storage: StorageUrl = None,
) -> None:
    """Retrain stored trials alone, and compare their curves.

    The certificate is stored with the study and written into its exports.
    """
    with stop_on_signals() as interruption:
        result = hpo.load(name, storage=storage).verify(trials, device=device, stop=interruption.stop)
        print_result(result, json)


@command()
def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Read this file written by `hpo export`")],
    device: Device = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object")] = False,
) -> None:
    """Retrain an exported trial from its file and the data alone.

    Prints how far scores and curves are from the exported ones. No storage is needed.
    """
    with stop_on_signals() as interruption:
        result = hpo.replay(file, device=device, stop=interruption.stop)
        print_result(result, json)


@command()
def plot(
    name: Name,
    figure: Annotated[
        list[str] | None,
        typer.Option(
            "--figure",
            metavar="KIND",
            help="Draw front, curves, landscape, history, importances or activations; may be repeated",
        ),
    ] = None,
    number: Annotated[
        int, typer.Option("-n", "--number", min=1, metavar="N", help="Draw the curves of the N best trials")
    ] = 20,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Write the files to this folder")
    ] = Path(),
    form: Annotated[FigureFormat, typer.Option("--format", help="Write HTML pages or PNG images")] = FigureFormat.HTML,
    storage: StorageUrl = None,
) -> None:
    """Draw a study's figures into files.

    By default: the learning curves of the best trials, the landscape, the history and the importances, and the Pareto
    front of several metrics. `activations` are histograms before training. Pages need no network; images need an
    installed Chrome or Chromium.
    """
    study = hpo.load(name, storage=storage)
    for path in study.write_figures(output, figure or (), number, form.value):
        print_line(path)


@command()
def report(
    name: Name,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write to this file [default: NAME-report.html or .md]"),
    ] = None,
    form: Annotated[
        ReportFormat, typer.Option("--format", help="Write an HTML page, or Markdown for a paper's appendix")
    ] = ReportFormat.HTML,
    storage: StorageUrl = None,
) -> None:
    """Write a report: an HTML page, or an appendix in Markdown.

    The report has the study file, the best trials, the confirmation, the test result, and how to reproduce it. It
    answers the checklists of conferences: runs, search space, selection rule, variance, seeds, splits, hardware,
    compute. The page also has figures.
    """
    print_line(hpo.load(name, storage=storage).write_report(output, form.value))


@command()
def export(
    name: Name,
    output: Output = None,
    confirmed: Annotated[
        bool, typer.Option("--confirmed", help="Export the winner of `hpo confirm`, with its estimates")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Export every trial, one JSON object a line")] = False,
    top: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Export the N best trials, one JSON object a line")
    ] = None,
    trial: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Export trial N, which must be complete")
    ] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Export the ensemble of `hpo ensemble`, with its members")
    ] = False,
    form: Annotated[
        ExportFormat | None, typer.Option("--format", help="Set the file format", show_default="json")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="TRACKER",
            help="Write every trial to this tracker instead: mlflow[:URI], tensorboard[:FOLDER], wandb or trackio",
        ),
    ] = None,
    storage: StorageUrl = None,
) -> None:
    """Export a study's best trial as JSON, or several trials.

    `hpo launch` accepts the file of one trial as a study of that trial, and `hpo replay` retrains it. For several
    metrics the Pareto front is exported, each of its trials as such an object. With --to the study is an experiment of
    a tracker and each trial a run; trials that are there already are not written again.
    """
    study = hpo.load(name, storage=storage)
    if to is not None:
        options = {"-o": output, "--confirmed": confirmed, "--all": every, "--top": top, "--trial": trial}
        for option, value in {**options, "--ensemble": ensemble, "--format": form}.items():
            if value not in (None, False):
                raise UsageError(f"{option}: cannot be combined with --to, which writes every trial to a tracker")
        print_line(study.export_to(to))
    elif form == ExportFormat.PARQUET:
        require_no_terminal(output, "--format parquet")
        content = study.export_parquet(confirmed=confirmed, every=every, top=top, trial=trial, ensemble=ensemble)
        write_output(content, output)
    else:
        kind = cast(Literal["json", "toml", "csv"], (form or ExportFormat.JSON).value)
        text = study.export_text(
            confirmed=confirmed,
            every=every,
            top=top,
            trial=trial,
            ensemble=ensemble,
            form=kind,
        )
        write_output(text, output)


@command()
def copy(
    name: Name,
    to: Annotated[
        str, typer.Option("--to", metavar="URL", help="Copy to this storage; a missing SQLite file is created")
    ],
    storage: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="URL", help="Copy from this storage [default: HPO_STORAGE, else sqlite:///hpo.db]"
        ),
    ] = None,
    new_name: Annotated[
        str | None, typer.Option("--name", metavar="NEW", help="Store the copy under another name")
    ] = None,
) -> None:
    """Copy a study with all its trials to another storage.

    Running trials are waiting in the copy. A stored study is never overwritten.
    """
    print_line(hpo.load(name, storage=storage).copy(to, new_name))
