"""The `hpo` command: each command parses, makes one call, and prints.

Machine output is on stdout, everything else on stderr. The status is 0 for done, 1 for a failure the user can act on
(one line, no traceback unless --debug), 2 for wrong usage, 130 after Ctrl-C and 143 after SIGTERM. Help answers at
once: torch, Optuna, NumPy and the database are imported by the commands that need them, never up here.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from typer.exceptions import TyperException
from typer.main import get_command

from hpo.errors import HpoError, UsageError

if TYPE_CHECKING:
    from hpo.storage import Storage


class LogFormat(StrEnum):
    """How a line of the log looks."""

    TEXT = "text"
    JSON = "json"


app = typer.Typer(
    name="hpo",
    help="Hyperparameter search for PyTorch networks that trains whole populations of trials at once.",
    rich_markup_mode=None,  # plain help: quick, and the same on a terminal and in a pipe
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="The data sets: what is where, and fetching them.", rich_markup_mode=None)
app.add_typer(data_app, name="data")


def _complete_study(ctx: typer.Context, incomplete: str) -> list[str]:
    """Study names for the shell; without a storage there is nothing to complete."""
    from hpo.storage import study_names

    try:
        names = study_names(_open(ctx.params.get("storage")))
    except HpoError:
        return []
    return [name for name in names if name.startswith(incomplete)]


Trials = Annotated[int | None, typer.Option(min=1, metavar="N", help="Trials that the study shall have.")]
NewName = Annotated[str | None, typer.Option(metavar="NAME", help="Another name for the study.")]
Population = Annotated[int | None, typer.Option(min=1, metavar="N", help="Trials trained at once, at most.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.")]
Extend = Annotated[bool, typer.Option("--extend", help="Go on with a study whose file has changed.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A study file, or what `hpo export` wrote.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A study's name.", autocompletion=_complete_study)]
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


@app.command()
def launch(
    file: File,
    overrides: Overrides = None,
    trials: Trials = None,
    name: NewName = None,
    population: Population = None,
    device: Device = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes that share the study; without it, this one.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="[ADDRESS]", help="Let workers run on this Ray cluster, or on one started for them."),
    ] = None,
    gpus_per_worker: Annotated[
        float, typer.Option(min=0, metavar="X", help="With --ray: GPUs that a worker has, such as 0.25.")
    ] = 0.0,
    extend: Extend = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but warnings and errors.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write events to stdout, one JSON object a line.")] = False,
    storage: StorageUrl = None,
) -> None:
    """Run a study, or go on with it.

    It ends when the study has its trials. Ctrl-C ends it earlier: what has finished is kept, and the same command goes
    on from there.
    """
    with _stop_on_signals() as interruption:
        from hpo.studyfile import read_study

        study = read_study(file, overrides or (), trials=trials, name=name, population=population)

        from rich.console import Console

        from hpo.results.closing import closing_lines
        from hpo.results.progress import progress
        from hpo.service.launching import launch as search
        from hpo.storage import open_storage

        opened = open_storage(storage)
        console = Console(stderr=True)
        with progress(json, quiet, console, interruption.stop) as display:
            search(
                study,
                opened,
                device=device,
                workers=workers,
                ray=ray,
                gpus_per_worker=gpus_per_worker,
                extend=extend,
                on_event=display,
                stop=interruption.stop,
            )
        if not quiet:
            for line in closing_lines(study, opened, display.ended, storage):
                display.line(line)
        if display.interrupted:
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

    from hpo.studyfile import read_study

    studies = [read_study(f, overrides or (), trials=trials, name=name, population=population) for f in files]

    from hpo.service.control import submit_all
    from hpo.storage import open_storage

    for line in submit_all(studies, open_storage(storage), extend=extend, priority=priority):
        print(line, flush=True)


@app.command()
def work(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Only these studies.", autocompletion=_complete_study),
    ] = None,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="End when nothing is left to do.")] = False,
    device: Device = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads [default: this worker's share of the cores]")
    ] = None,
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
    with _stop_on_signals() as interruption:
        from hpo.service.process import run_worker
        from hpo.service.worker import Duty

        duty = Duty(tuple(names or ()), device, threads, until_idle)
        status = run_worker(storage, duty, log_format.value, metrics_host, metrics_port, interruption.stop)
        raise typer.Exit(status)


@app.command()
def status(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only this study.", autocompletion=_complete_study)
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until Ctrl-C.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write a JSON object, with --watch one a line.")] = False,
    storage: StorageUrl = None,
) -> None:
    """Show the studies and who works on them.

    A study's pace is that of the last five minutes; a worker's last heartbeat tells whether it lives.
    """
    from hpo.service.showing import shown
    from hpo.service.status import status as look
    from hpo.service.status import watch as look_on

    opened = _open(storage)
    if watch:
        with shown(json) as show:
            look_on(opened, name, show)
    else:
        with shown(json, once=True) as show:
            show(look(opened, name))


@app.command()
def pause(name: Name, storage: StorageUrl = None) -> None:
    """Hold up a study.

    What runs ends at its next epoch and goes back to the queue.
    """
    from hpo.service.control import pause as hold_up

    print(hold_up(_open(storage), name))


@app.command()
def resume(name: Name, storage: StorageUrl = None) -> None:
    """Go on with a study that was paused or stopped."""
    from hpo.service.control import resume as go_on

    print(go_on(_open(storage), name))


@app.command()
def stop(name: Name, storage: StorageUrl = None) -> None:
    """End a study early.

    What runs is finished, and nothing new begins.
    """
    from hpo.service.control import stop as end

    print(end(_open(storage), name))


@app.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    storage: StorageUrl = None,
) -> None:
    """Delete a study with all its trials.

    It asks before. What runs of the study ends at its next epoch.
    """
    from hpo.service.control import delete as remove
    from hpo.service.control import question

    opened = _open(storage)
    asked = question(opened, name)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"{asked} Nobody is there to ask; say --yes")
        print(f"{asked} [y/N]: ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise typer.Exit(1)
    print(remove(opened, name))


@app.command()
def check(file: File, overrides: Overrides = None) -> None:
    """Validate a study file and show it resolved.

    With its search space and its size: parameters a network, members a population, memory.
    """
    from hpo.studyfile import read_study

    study = read_study(file, overrides or ())  # what is wrong with a file is said before torch is loaded

    from hpo.search.check import describe

    print(describe(study))


@app.command()
def studies(storage: StorageUrl = None) -> None:
    """List the studies.

    With each one's data set, trials by state, best value and last activity.
    """
    from hpo.results.overview import studies_table

    print(studies_table(_open(storage)))


@app.command()
def top(
    name: Name,
    number: Annotated[int, typer.Option("-n", "--number", min=1, metavar="N", help="How many trials.")] = 5,
    storage: StorageUrl = None,
) -> None:
    """Print the best trials of a study."""
    from hpo.results.ranking import top_lines

    for line in top_lines(_open(storage), name, number):
        print(line)


@app.command()
def export(
    name: Name,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="A file, not stdout.")] = None,
    storage: StorageUrl = None,
) -> None:
    """Write a study's best trial as JSON.

    `hpo launch` takes the file back, as a study of one trial.
    """
    from hpo.results.export import export_text, write

    text = export_text(_open(storage), name)
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

    print(copy_line(_open(storage), name, to, new_name))


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
    from hpo.service.dashboard import check_names, read_password, serve
    from hpo.storage.artifacts import artifact_folder

    password = read_password(password_file, insecure=insecure_no_auth)
    check_names(allow_host or ())
    opened = _open(storage)
    serve(
        opened,
        artifact_folder(opened.location, artifacts),
        host,
        port,
        announce=lambda url: print(url, flush=True),
        password=password,
        insecure=insecure_no_auth,
        read_only=read_only,
        names=allow_host or (),
    )


@data_app.command("list")
def data_list() -> None:
    """List the data sets and where each is."""
    from hpo.data import list_datasets
    from hpo.results.overview import datasets_table

    print(datasets_table(list_datasets()))


@data_app.command("fetch")
def data_fetch(name: Annotated[str, typer.Argument(metavar="NAME", help="A data set's name.")]) -> None:
    """Download a data set into the cache."""
    from hpo.data import fetch

    print(fetch(name))


@app.command()
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Send trials that nobody trains back to the queue.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object a line.")] = False,
    storage: StorageUrl = None,
) -> None:
    """Check storage, data sets and devices.

    Each check is a line that says what was found, and for a problem what to do. Without --fix nothing is changed.
    """
    from hpo.results.doctor import findings
    from hpo.results.findings import Verdict

    problems = 0
    for finding in findings(storage, fix):
        print(finding.json_line() if json else finding.line(), flush=True)
        problems += finding.verdict == Verdict.PROBLEM
    if problems:
        raise HpoError(f"{problems} {'problem' if problems == 1 else 'problems'} found")


@app.command()
def version() -> None:
    """Print the versions of hpo and its base."""
    from hpo.results.versions import version_line

    print(version_line())


class _Interruption:
    """The first SIGINT or SIGTERM asks the launch to stop, the second ends it at once, the third kills."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.status = 1  # stopped without a signal: the reader of --json went away

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.status = 128 + signum
        if self.stop.is_set():
            signal.signal(signum, signal.SIG_DFL)
            raise SystemExit(self.status)  # unwinds, so that the terminal is restored
        self.stop.set()


@contextmanager
def _stop_on_signals() -> Iterator[_Interruption]:
    interruption = _Interruption()
    before = {number: signal.signal(number, interruption) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _open(url: str | None) -> Storage:
    from hpo.results.lookup import open_existing

    return open_existing(url)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    args = _with_ray_address(args)
    debug = "--debug" in itertools.takewhile(lambda word: word.startswith("-"), args)
    try:
        status = get_command(app).main(args, prog_name="hpo", standalone_mode=False)
        sys.stdout.flush()
    except TyperException as error:
        return _fail(_wrong_usage(error), error.exit_code, debug)
    except HpoError as error:
        return _fail(str(error), error.exit_status, debug)
    except BrokenPipeError:
        return _hush()
    except OSError as error:
        return _fail(str(error), 1, debug)
    except Exception as error:  # noqa: BLE001 - the outermost edge: a defect is one line too, and --debug shows it
        return _fail(f"{type(error).__name__}: {error} (a defect in hpo; `hpo --debug` shows where)", 1, debug)
    return status if isinstance(status, int) else 0


def _with_ray_address(args: list[str]) -> list[str]:
    """Give `--ray` an address where it has none: typer's options have a value always or never."""
    words: list[str] = []
    for word, following in zip(args, [*args[1:], ""], strict=True):
        words.append(word)
        if word == "--ray" and "--" not in words and not re.fullmatch(r"auto|local|.+:\d+", following):
            words.append("local")
    return words


def _wrong_usage(error: TyperException) -> str:
    context = getattr(error, "ctx", None)  # only some of typer's errors know the command they are about
    command = "hpo" if context is None else context.command_path
    return f"{error.format_message().rstrip('.')} (see {command} --help)"


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"hpo: {' '.join(message.split())}", file=sys.stderr)
    return status


def _hush() -> int:
    """Whoever read stdout has gone: let the interpreter's last flush go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
