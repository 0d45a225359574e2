"""What the shipped studies are to show, at small size: on scikit-learn's digits, with fewer images, epochs or seeds.

What is compared are means over several seeds, and each bound leaves a margin to what was seen over 20 other seeds of the
study and its split, which stands beside it. The findings at full size are in docs/experiments.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState
from tiny import search, trials_of

from hpo.search.run import CURVE
from hpo.storage import Storage
from hpo.studyfile import read_study

STUDIES = Path(__file__).parents[2] / "studies"
CHANCE = 0.1


def run(storage: Storage, name: str, *changes: str) -> list[FrozenTrial]:
    """Search a shipped study on the digits, with some of its settings changed, and return its trials."""
    study = read_study(STUDIES / f"{name}.toml", ["data.dataset=digits", *changes])
    search(study, storage)
    return trials_of(storage, name)


def curves(trials: Sequence[FrozenTrial], metric: str, **params: Any) -> NDArray[np.float64]:
    """Return the learning curves of the completed trials with these parameters, [repeats, epochs]."""
    found = [
        trial.system_attrs[CURVE][metric]
        for trial in trials
        if trial.state == TrialState.COMPLETE and params.items() <= trial.params.items()
    ]
    assert found
    return np.array(found)


def last(trials: Sequence[FrozenTrial], metric: str, **params: Any) -> float:
    """Return the mean over seeds of the metric after the last epoch."""
    return float(curves(trials, metric, **params)[:, -1].mean())


def gap(trials: Sequence[FrozenTrial], **params: Any) -> float:
    """Return how much better the network is on its training images, in accuracy, at the end."""
    return last(trials, "train_accuracy", **params) - last(trials, "val_accuracy", **params)
