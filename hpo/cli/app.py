"""The command line's application, and the arguments and options that several commands have.

Knows no command, and imports nothing that takes time: help answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

import hpo
from hpo import stdout
from hpo.errors import HpoError

if TYPE_CHECKING:
    from hpo.api.answers import Output


class Command(TyperCommand):
    """A command whose stdout is for what it says itself: whatever the user's own code prints goes to stderr."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with stdout.reserved():
            return super().invoke(ctx)


class Commands(typer.Typer):
    """An application of such commands."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """Add a command."""
        return super().command(name, **{"cls": Command, **options})


app = Commands(
    name="hpo",
    help="Hyperparameter search for PyTorch networks that trains whole populations of trials at once.",
    rich_markup_mode=None,  # plain help: quick, and the same on a terminal and in a pipe
    pretty_exceptions_enable=False,
)
data_app = Commands(help="The data sets: what is where, and fetching them.", rich_markup_mode=None)
app.add_typer(data_app, name="data")


def complete_study(ctx: typer.Context, incomplete: str) -> list[str]:
    """Study names for the shell; without a storage there is nothing to complete."""
    try:
        known = hpo.studies(storage=ctx.params.get("storage"))
    except HpoError:
        return []
    return [study.name for study in known if study.name.startswith(incomplete) and study.name.isprintable()]


Trials = Annotated[int | None, typer.Option(min=1, metavar="N", help="Trials that the study shall have.")]
NewName = Annotated[str | None, typer.Option(metavar="NAME", help="Another name for the study.")]
Population = Annotated[int | None, typer.Option(min=1, metavar="N", help="Trials trained at once, at most.")]
Workers = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Processes that share the study; without it, this one.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing but warnings and errors.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.")]
Extend = Annotated[bool, typer.Option("--extend", help="Go on with a study whose file has changed.")]
ChangedCode = Annotated[
    bool, typer.Option("--changed-code", help="Go on although the study's own code is not what it began with.")
]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A study file, or what `hpo export` wrote.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A study's name.", autocompletion=complete_study)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the study file; may be repeated."),
]
StorageUrl = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Where studies are kept: sqlite:///FILE or postgresql://HOST/NAME [default: HPO_STORAGE, else sqlite:///hpo.db]",
    ),
]


@app.callback()
def _global_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Hyperparameter search for PyTorch networks that trains whole populations of trials at once."""
    try:
        Path.cwd()
    except FileNotFoundError as error:  # which would end torch, with a line of a library's own
        raise HpoError("the current folder was deleted; go to another one") from error


def say(what: object) -> None:
    """Print a line on stdout, or several, at once."""
    print(what, file=stdout.stream(), flush=True)


def show(found: Output, as_json: bool) -> None:
    """Print a command's result on stdout: as text, or as JSON."""
    say(found.json_text if as_json else found)


def put(text: str, output: Path | None) -> None:
    """Write a command's text to the file that was asked for, else to stdout."""
    if output is None:
        print(text, end="", file=stdout.stream(), flush=True)
    else:
        from hpo.api.files import write

        write(text, output)
