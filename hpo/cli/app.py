"""The command line's application, and the arguments and options that several commands share.

Defines no command, and imports nothing slow, so that help takes no noticeable time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from typer.core import TyperCommand, TyperGroup

import hpo
from hpo import stdout
from hpo.errors import HpoError


class Command(TyperCommand):
    """A command whose stdout holds its result only: what user code prints goes to stderr."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with stdout.reserved():
            return super().invoke(ctx)


class Group(TyperGroup):
    """A command group whose help lists the commands under the heading of their panel."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel. Typer itself writes panels only with rich, which is slow to import."""
        width = max(map(len, self.commands))
        room = formatter.width - width - 6  # characters for the help of a command
        named: Iterable[tuple[str, Any]] = self.commands.items()
        for panel, commands in itertools.groupby(named, lambda item: item[1].rich_help_panel):
            rows = [(name.ljust(width), each.get_short_help_str(room).removesuffix(".")) for name, each in commands]
            with formatter.section(panel if isinstance(panel, str) else "Commands"):
                formatter.write_dl(rows)


class Application(typer.Typer):
    """An application whose commands are `Command`s."""

    def __init__(self, **options: Any) -> None:
        # rich_markup_mode None: plain help, which is quick and the same on a terminal and in a pipe
        super().__init__(cls=Group, rich_markup_mode=None, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """Return a decorator that adds a command."""
        return super().command(name, **{"cls": Command, **options})


app = Application(
    name="hpo",
    help="Search hyperparameters of PyTorch networks, training whole populations of trials at once.",
    pretty_exceptions_enable=False,
)


def complete_study(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return study names for the shell's completion; none where there is no storage."""
    try:
        known = hpo.studies(storage=ctx.params.get("storage"))
    except HpoError:
        return []
    return [study.name for study in known if study.name.startswith(incomplete) and study.name.isprintable()]


Trials = Annotated[int | None, typer.Option(min=1, metavar="N", help="Set the study's number of trials")]
NewName = Annotated[str | None, typer.Option(metavar="NAME", help="Store the study under another name")]
Population = Annotated[int | None, typer.Option(min=1, metavar="N", help="Train at most N trials at once")]
Workers = Annotated[int | None, typer.Option(min=1, metavar="N", help="Train in N processes instead of in this one")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print warnings and errors only")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="Use auto, cpu, cuda, cuda:1 or mps")]
Extend = Annotated[bool, typer.Option("--extend", help="Continue a study whose file has changed")]
ChangedCode = Annotated[bool, typer.Option("--changed-code", help="Continue although the user's code has changed")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="Read a study file, or a file written by `hpo export`")]
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Select the study of this name", autocompletion=complete_study)
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write to this file instead of stdout")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the study file; may be repeated"),
]
StorageUrl = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Use the storage sqlite:///FILE or postgresql://HOST/NAME [default: HPO_STORAGE, else sqlite:///hpo.db]",
    ),
]


def _print_version(version: bool) -> None:
    if version:
        print_version()
        raise typer.Exit


@app.callback()
def _check_folder(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Search hyperparameters of PyTorch networks, training whole populations of trials at once."""
    try:
        Path.cwd()
    except FileNotFoundError as error:  # torch would end the process with a message of its own
        raise HpoError("the current folder was deleted: change to another folder") from error


def print_version() -> None:
    """Print the versions of hpo, Python, torch, Optuna and NumPy."""
    from hpo.versions import version_line

    print_line(version_line())


Result: TypeAlias = "hpo.Result[Any] | hpo.Comparison | hpo.Finding | hpo.Status"


def print_line(text: object) -> None:
    """Print text and a newline on stdout, and flush."""
    print(text, file=stdout.stream(), flush=True)


def print_result(result: Result, as_json: bool) -> None:
    """Print a command's result on stdout, as text or as JSON."""
    print_line(result.json_text if as_json else result)


def write_output(content: str | bytes, output: Path | None) -> None:
    """Write a command's result to the output file, or to stdout where none is given."""
    if output is not None:
        from hpo.files import write_atomically

        write_atomically(content, output)
    elif isinstance(content, str):
        print(content, end="", file=stdout.stream(), flush=True)
    else:
        stdout.stream().buffer.write(content)
        stdout.stream().flush()


def require_no_terminal(output: Path | None, option: str) -> None:
    """Raise UsageError where the option would write a binary file to a terminal."""
    if output is None and stdout.stream().isatty():
        raise hpo.UsageError(f"{option}: the file is binary, and stdout is a terminal; add -o FILE, or pipe the output")
