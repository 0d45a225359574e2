"""Study files and trials that the tests of results store: made directly, so that their values are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

LR = FloatDistribution(1e-6, 1e-1, log=True)
DROPOUT = FloatDistribution(0.0, 0.6)


OWN = {"name": "digits", "objective": "objective.py:objective", "search": {"trials": 4, "pruner": "median"}}
"""The tree of a study of the user's own objective."""


def tree(**changes: dict[str, Any]) -> dict[str, Any]:
    """A study file's tree that searches lr and dropout, with some sections' keys replaced."""
    written: dict[str, Any] = {
        "name": "digits",
        "description": "a study of the tests",
        "data": {"dataset": "digits"},
        "network": {"kind": "mlp", "hidden": [8], "dropout": {"low": 0.0, "high": 0.6}},
        "optimizer": {"kind": "sgd", "lr": {"low": 1e-6, "high": 1e-1, "log": True}},
        "training": {"epochs": 3},
        "search": {"trials": 8},
    }
    for section, values in changes.items():
        written[section] = {**written[section], **values}
    return written


def trial(
    value: float | None = None,
    *,
    state: TrialState = TrialState.COMPLETE,
    params: dict[str, Any] | None = None,
    distributions: dict[str, BaseDistribution] | None = None,
) -> FrozenTrial:
    """A trial as a search would have finished it."""
    return optuna.trial.create_trial(
        state=state,
        value=value,
        params={"lr": 1e-3, "dropout": 0.25} if params is None else params,
        distributions={"lr": LR, "dropout": DROPOUT} if distributions is None else distributions,
        user_attrs={"seed": 1234},
    )


def run(
    params: dict[str, Any],
    distributions: dict[str, BaseDistribution],
    *,
    seed: int | None = 0,
    val: Sequence[float] = (0.5,),
    train: Sequence[float] = (0.5,),
    val_loss: Sequence[float] | None = None,
    train_loss: Sequence[float] | None = None,
    failed: str = "",
) -> FrozenTrial:
    """A trial with these learning curves, scored by its last accuracy, or one that failed for that reason."""
    made = trial(
        None if failed else val[-1],
        state=TrialState.FAIL if failed else TrialState.COMPLETE,
        params=params,
        distributions=distributions,
    )
    made.user_attrs = {} if seed is None else {"seed": seed}
    if failed:
        made.user_attrs["reason"] = failed
    losses = {"val_loss": val_loss or [1.0] * len(val), "train_loss": train_loss or [1.0] * len(train)}
    curve = {**losses, "val_accuracy": val, "train_accuracy": train}
    made.system_attrs = {"hpo:curve": {metric: list(values) for metric, values in curve.items()}}
    return made
