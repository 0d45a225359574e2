"""The commands that watch the queue and steer what is in it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import hpo
from hpo.cli.app import Name, StorageUrl, app, complete_study, say
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
    from hpo.cli.showing import shown

    with shown(json, once=not watch) as show:
        for seen in hpo.watch(name, storage=storage) if watch else [hpo.status(name, storage=storage)]:
            show(seen)


@app.command()
def pause(name: Name, storage: StorageUrl = None) -> None:
    """Hold up a study.

    What runs ends at its next epoch and goes back to the queue.
    """
    say(hpo.load(name, storage=storage).pause())


@app.command()
def resume(name: Name, storage: StorageUrl = None) -> None:
    """Go on with a study that was paused or stopped."""
    say(hpo.load(name, storage=storage).resume())


@app.command()
def stop(name: Name, storage: StorageUrl = None) -> None:
    """End a study early.

    What runs is finished, and nothing new begins.
    """
    say(hpo.load(name, storage=storage).stop())


@app.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    storage: StorageUrl = None,
) -> None:
    """Delete a study with all its trials.

    It asks before. What runs of the study ends at its next epoch.
    """
    study = hpo.load(name, storage=storage)
    asked = study.deletion_question()
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"{asked} Nobody is there to ask; say --yes")
        print(f"{asked} [y/N]: ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise typer.Exit(1)
    say(study.delete())
