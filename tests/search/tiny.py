"""A study small enough to be searched hundreds of times, and helpers that search it and compare its trials."""

from __future__ import annotations

import itertools
import json
import math
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from hpo.data import SealedExamples, load_split, load_test
from hpo.search.events import EpochEnded, Event
from hpo.search.launch import launch
from hpo.search.options import LaunchOptions
from hpo.search.populations.population_run import CURVE
from hpo.storage import Storage, load_study
from hpo.studyfile import Study, parse_study

LR = {"low": 1e-3, "high": 1.0, "log": True}
DECAY = {"low": 1e-6, "high": 1e-2, "log": True}
DROPOUT = {"low": 0.0, "high": 0.5, "step": 0.1}


def tree(**changes: dict[str, Any] | str) -> dict[str, Any]:
    """Return the tree of a study file that searches the learning rate, with some keys of its sections replaced."""
    study_tree: dict[str, Any] = {
        "name": "tiny",
        "description": "a study of the tests",
        "data": {"dataset": "digits", "train_size": 150},
        "network": {"kind": "mlp", "hidden": [8]},
        "optimizer": {"kind": "sgd", "lr": LR},
        "training": {"epochs": 2, "batch_size": 60, "precision": "float64"},
        "search": {"trials": 6, "sampler": "random", "population": 4},
    }
    for section, values in changes.items():
        study_tree[section] = {**study_tree.get(section, {}), **values} if isinstance(values, dict) else values
    return study_tree


def study_of(**changes: dict[str, Any] | str) -> Study:
    return parse_study(tree(**changes), "studies/tiny.toml")


STUDY = study_of(
    network={"dropout": {"low": 0.0, "high": 0.4}, "hidden": {"choices": [[8], [5, 5]]}},
    training={"epochs": 3},
    search={"trials": 10, "population": 4},
)
"""A study of two architectures and three populations: a disturbance shows in its trials or their learning curves."""


def sealed_digits() -> SealedExamples:
    return load_test(load_split(study_of()))


def search(
    study: Study,
    storage: Storage,
    *,
    stop_at: Callable[[Event], bool] | None = None,
    device: str = "cpu",
    **options: Any,
) -> list[Event]:
    """Launch the study and return its events; stop at the first event for which `stop_at` is true."""
    events: list[Event] = []
    stop = threading.Event()

    def record(event: Event) -> None:
        events.append(event)
        json.dumps(event.to_json(), allow_nan=False)
        if stop_at is not None and stop_at(event):
            stop.set()

    launch(study, storage, LaunchOptions(device=device, **options), on_event=record, stop=stop)
    return events


class StopAfter(threading.Event):
    """A stop event that counts as set after `checks` calls of `is_set`."""

    def __init__(self, checks: float) -> None:
        super().__init__()
        self.left = checks

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def after_epochs(count: int) -> Callable[[Event], bool]:
    """Return a condition that is true at the end of the `count`-th epoch of the launch, over all populations."""
    left = itertools.count(count - 1, -1)
    return lambda event: isinstance(event, EpochEnded) and next(left) == 0


def trials_of(storage: Storage, name: str = "tiny") -> list[FrozenTrial]:
    return load_study(storage, name).get_trials()


def states(trials: Iterable[FrozenTrial]) -> list[TrialState]:
    return [trial.state for trial in trials]


def params(trials: Iterable[FrozenTrial]) -> list[dict[str, Any]]:
    return [trial.params for trial in trials]


def curves(trials: Iterable[FrozenTrial]) -> list[dict[str, list[float]]]:
    return [trial.system_attrs[CURVE] for trial in trials]


def are_close(some: Sequence[dict[str, list[float]]], others: Sequence[dict[str, list[float]]]) -> bool:
    """Return whether learning curves agree within the tolerance for trials of different populations."""
    assert len(some) == len(others)
    return all(
        one.keys() == other.keys()
        and all(
            len(one[metric]) == len(other[metric])
            and all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(one[metric], other[metric], strict=True))
            for metric in one
        )
        for one, other in zip(some, others, strict=True)
    )


def check_whole(trials: Sequence[FrozenTrial], count: int) -> None:
    """Check that the study has `count` finished trials, numbered without gaps, each with other parameters."""
    assert [trial.number for trial in trials] == list(range(count))
    assert all(trial.state.is_finished() for trial in trials)
    assert len({json.dumps(trial.params, sort_keys=True) for trial in trials}) == count


def check_same_trials(trials: Sequence[FrozenTrial], uninterrupted: Sequence[FrozenTrial]) -> None:
    """Check that parameters and learning curves are those of a search without interruption."""
    check_whole(trials, len(uninterrupted))
    assert params(trials) == params(uninterrupted)
    assert are_close(curves(trials), curves(uninterrupted))


def write_mnist(folder: Path, seed: int = 0, count: int = 60) -> None:
    """Write the training files of MNIST, with random pixels and all ten labels."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, count, 28, 28) + pixels.tobytes())
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + labels.tobytes())
