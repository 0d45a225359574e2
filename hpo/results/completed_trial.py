"""A completed trial of a study, by its number."""

from __future__ import annotations

from optuna.trial import FrozenTrial, TrialState

from hpo.errors import HpoError
from hpo.results.study_facts import STATES
from hpo.storage import Storage, load_study


def completed_trial(storage: Storage, name: str, number: int) -> FrozenTrial:
    """Return the trial of that number. Raises HpoError where it does not exist or is not complete."""
    stored = load_study(storage, name)
    try:
        trial = storage.get_trial(storage.get_trial_id_from_study_id_trial_number(stored._study_id, number))
    except KeyError as error:
        raise HpoError(f"study '{name}' has no trial {number}: `hpo top` lists the best") from error
    if trial.state != TrialState.COMPLETE:
        raise HpoError(f"study '{name}': trial {number} is {STATES[trial.state]}: select a complete one")
    return trial
