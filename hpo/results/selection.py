"""The selected configuration of a study: that of the confirmed winner, else that of the best trial.

It is the one that `hpo test` evaluates. Reads studies and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from hpo.results.completed_trial import completed_trial
from hpo.results.confirm.result import find_confirmation
from hpo.results.no_best_trial import no_best_trial
from hpo.results.ranking import rank_label, score
from hpo.search.space import decode
from hpo.search.study_records import CURVE, config_as_trained, epochs_trained, stored_study, with_epochs
from hpo.storage import Storage, best_trials, load_study
from hpo.studyfile import Config, Study


@dataclass(frozen=True)
class Selection:
    """A selected configuration: its trial, its parameters in study file values, and the reason for the selection.

    `epochs` is the number of epochs to train it for: those of the trial, or with `score = "best"` up to its best epoch.
    A confirmed winner is trained for the epochs of its confirmation, where the trial did not end early. `score` is the
    score of the trial, `val_losses` are its validation losses.
    """

    trial: int
    score: float
    params: dict[str, Any]
    config: Config
    epochs: int
    why: str
    val_losses: tuple[float, ...] = ()


def select(storage: Storage, name: str, trial: int | None = None) -> Selection:
    """Return the selected configuration of a study, or that of the trial of that number.

    Raises HpoError where no trial, or not that one, has completed, and where a confirmation is not finished.
    """
    study = stored_study(load_study(storage, name))
    if trial is not None:
        return _selection(study, completed_trial(storage, name, trial), f"trial {trial}, selected by its number")
    confirmation = find_confirmation(storage, name)
    if confirmation is not None and (winner := confirmation.winner.candidate).trial is not None:
        why = f"{winner.title} of the search, the winner of its confirmation over {confirmation.seeds} seeds"
        trial_of_winner = completed_trial(storage, name, winner.trial)
        return _selection(study, trial_of_winner, why, confirmation.winner_epochs)
    best = best_trials(storage, name, 1)
    if not best:
        raise no_best_trial(storage, name, "there is nothing to select")
    several = f" by its first metric, {study.search.first_metric}," if len(study.search.metrics) > 1 else ","
    why = f"{rank_label(1, best[0].number, study.search.metrics)} of the search{several} not confirmed"
    return _selection(study, storage.get_trial(best[0]._trial_id), why)


def _selection(study: Study, trial: FrozenTrial, why: str, confirmed_epochs: int | None = None) -> Selection:
    params, config = params_of(study, trial), config_as_trained(study, trial)
    best_epoch = trial.user_attrs.get("score_epoch") if study.search.score == "best" else None
    trained = epochs_trained(trial) or config.training.epochs
    if confirmed_epochs is not None:
        trained = confirmed_epochs if trained == config.training.epochs else min(trained, confirmed_epochs)
        config = with_epochs(config, confirmed_epochs)
    epochs = min(best_epoch or trained, config.training.epochs)
    losses = tuple(trial.system_attrs.get(CURVE, {}).get("val_loss", ()))
    return Selection(trial.number, score(trial), params, config, epochs, why, losses)


def params_of(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's parameters as values of the study file."""
    known = [parameter for parameter in study.parameters if parameter.name in trial.params]
    return {parameter.name: decode(parameter, trial.params[parameter.name]) for parameter in known}
