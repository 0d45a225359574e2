"""Targets: the text after `--track` and `--to`, checked, and the tracker that it names.

    mlflow[:URI]          a tracking URI of MLflow [default: MLFLOW_TRACKING_URI, else http://127.0.0.1:5000]
    tensorboard[:FOLDER]  a log folder [default: runs]
    wandb[:PROJECT]       a project of Weights & Biases [default: the study's name]
    trackio[:PROJECT]     a project of Trackio [default: the study's name]

Each tracker is a package of its own, which is imported when the tracker is used. Passwords in URIs are never shown.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hpo.errors import HpoError, UsageError, nearest
from hpo.storage import mask

if TYPE_CHECKING:
    from hpo.tracking.tracker import Tracker

KINDS = ("mlflow", "tensorboard", "wandb", "trackio")
DEFAULT_PLACES = {"mlflow": "http://127.0.0.1:5000", "tensorboard": "runs"}


@dataclass(frozen=True)
class Target:
    """A tracker and its place. `shown` is the user's text without passwords."""

    kind: str
    place: str = field(repr=False)
    shown: str

    def open(self) -> Tracker:
        """Import the tracker's package and return the tracker. Raises HpoError where it cannot be imported."""
        try:
            if self.kind == "mlflow":
                from hpo.tracking.mlflow_runs import MlflowRuns

                return MlflowRuns(self.place)
            if self.kind == "tensorboard":
                from hpo.tracking.tensorboard_files import TensorboardFiles

                return TensorboardFiles(self.place)
            if self.kind == "wandb":
                from hpo.tracking.wandb_runs import WandbRuns

                return WandbRuns(self.place)
            from hpo.tracking.trackio_runs import TrackioRuns

            return TrackioRuns(self.place)
        except ImportError as error:
            raise HpoError(f"{self.kind}: cannot be imported ({error}); {_install(self.kind)}") from error


def parse_targets(texts: Sequence[str], option: str) -> tuple[Target, ...]:
    """Return the targets of an option's texts. Raises UsageError, or HpoError where a tracker is not installed."""
    targets = tuple(_parse(text, option) for text in texts)
    for index, target in enumerate(targets):
        if (target.kind, target.place) in [(other.kind, other.place) for other in targets[:index]]:
            raise UsageError(f"{option}: {target.shown} is given twice; give it once")
    return targets


def _parse(text: str, option: str) -> Target:
    kind, _, place = text.partition(":")
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise UsageError(f"{option}: unknown tracker '{mask(kind)}'{nearest(kind, KINDS)}; known: {known}")
    if find_spec(kind) is None:
        raise HpoError(f"{option}: {kind} is not installed; {_install(kind)}")
    if kind == "mlflow":
        place = place or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not place:
        place = DEFAULT_PLACES.get(kind, "")
    if kind == "tensorboard" and Path(place).exists() and not Path(place).is_dir():
        raise UsageError(f"{option}: {mask(place)} is not a folder; name a folder for the event files")
    return Target(kind, place, mask(text))


def _install(kind: str) -> str:
    return f"install it with `pip install 'hpo[{kind}]'`"
