"""An objective function as users write it, and studies of objective functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpo.studyfile import ObjectiveStudy, parse_any_study

PLAIN = """
import optuna

def objective(trial):
    x = trial.suggest_float("x", -10, 10)
    kind = trial.suggest_categorical("kind", ["square", "shifted"])
    shift = trial.suggest_int("shift", 1, 5) if kind == "shifted" else 0
    trial.set_user_attr("shift", {"by": shift})
    for step in range(3):
        trial.report(x**2 + shift + 3 - step, step)
        if trial.should_prune():
            raise optuna.TrialPruned()
    return x**2 + shift
"""
"""An objective function of x in [-10, 10] with a conditional parameter; its trials differ from the first step on."""


def objective_study(folder: Path, code: str = PLAIN, **search: Any) -> ObjectiveStudy:
    """Write the code to `objective.py`; return a study of `objective.py:objective`."""
    (folder / "objective.py").write_text(code)
    tree = {"name": "own", "objective": "objective.py:objective", "search": {"trials": 4, **search}}
    study = parse_any_study(tree, "own.toml", folder)
    assert isinstance(study, ObjectiveStudy)
    return study
