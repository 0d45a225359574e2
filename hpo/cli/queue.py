"""The commands that watch the queue and steer what is in it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hpo.cli.app import Name, StorageUrl, app, complete_study, storage_at
from hpo.errors import UsageError


@app.command()
def status(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only this study.", autocompletion=complete_study)
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

    opened = storage_at(storage)
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

    print(hold_up(storage_at(storage), name))


@app.command()
def resume(name: Name, storage: StorageUrl = None) -> None:
    """Go on with a study that was paused or stopped."""
    from hpo.service.control import resume as go_on

    print(go_on(storage_at(storage), name))


@app.command()
def stop(name: Name, storage: StorageUrl = None) -> None:
    """End a study early.

    What runs is finished, and nothing new begins.
    """
    from hpo.service.control import stop as end

    print(end(storage_at(storage), name))


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

    opened = storage_at(storage)
    asked = question(opened, name)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"{asked} Nobody is there to ask; say --yes")
        print(f"{asked} [y/N]: ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise typer.Exit(1)
    print(remove(opened, name))
