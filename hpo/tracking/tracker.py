"""Protocol of a tracker, and helpers that several trackers share.

A tracker writes what `content` has rendered. Its methods raise any exception of its library: the caller decides what
that means. A tracker finds the runs that an earlier process has written by the study's identity and the trial's number.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from hpo.tracking.content import Model, TrackedStudy, TrackedTrial

PREFIX = "hpo."
"""The prefix of the names of tags."""


class Tracker(Protocol):
    """A place for the runs of one study."""

    follows_running: bool
    """Whether runs of running trials are written too; otherwise a run is written when its trial has ended."""

    def open(self, study: TrackedStudy) -> Mapping[int, str]:
        """Find or create the study's experiment and update its tags; return the digest of each ended run by trial."""

    def write(self, trial: TrackedTrial) -> None:
        """Write a run. A run of the same trial is replaced."""

    def extend(self, trial: TrackedTrial, before: TrackedTrial) -> None:
        """Append to the run of a trial that this object wrote as `before`."""

    def write_model(self, model: Model) -> None:
        """Add the weights of a trial to its run, unless the run has them."""

    def close(self) -> None:
        """Write what is buffered."""


def tags_of(trial: TrackedTrial) -> dict[str, str]:
    """Return the tags of a run, with prefix."""
    return {f"{PREFIX}{name}": value for name, value in trial.tags.items()}


def plain_params(trial: TrackedTrial) -> dict[str, str | int | float | bool]:
    """Return the parameters, with lists and other values as text."""
    return {
        name: value if isinstance(value, str | int | float | bool) else _text(value)
        for name, value in trial.params.items()
    }


def rows_by_step(trial: TrackedTrial) -> dict[int, dict[str, float]]:
    """Return the values of all metrics at each step, by step."""
    rows: dict[int, dict[str, float]] = {}
    for name, curve in trial.curves.items():
        for step, value in curve:
            rows.setdefault(step, {})[name] = value
    return dict(sorted(rows.items()))


@contextmanager
def named_file(model: Model) -> Iterator[Path]:
    """Return a path to the weights whose last part is their file name: in hpo's folder it is an id."""
    with tempfile.TemporaryDirectory(prefix="hpo-model-") as folder:
        path = Path(folder) / model.filename
        path.symlink_to(model.path.absolute())
        yield path


def _text(value: Any) -> str:
    return "" if value is None else str(value)
