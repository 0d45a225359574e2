"""Which configuration of a study is the one to test, to keep and to name: the confirmed winner, else the best trial.

Reads studies and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from hpo.results.confirm.result import find_confirmation
from hpo.results.export.best import completed_trial, params_of
from hpo.results.ranking import score
from hpo.results.unranked import no_best
from hpo.search.study_records import CURVE, stored_study
from hpo.storage import Storage, best_trials, load_study
from hpo.studyfile import Config, Study


@dataclass(frozen=True)
class Choice:
    """A chosen configuration: the trial that has it, its parameters as a study file means them, and why it was chosen.

    `epochs` is for how many it is to be trained: as it was itself, or with `score = "best"` up to its best one. `score`
    is the trial's own.
    """

    trial: int
    score: float
    params: dict[str, Any]
    config: Config
    epochs: int
    why: str


def chosen(storage: Storage, name: str, trial: int | None = None) -> Choice:
    """Return the configuration of a study that is chosen, or that of the trial of that number.

    Raises HpoError where no trial, or not that one, has completed, and where a confirmation is not finished.
    """
    study = stored_study(load_study(storage, name))
    if trial is not None:
        return _choice(study, completed_trial(storage, name, trial), "asked for by its number")
    confirmation = find_confirmation(storage, name)
    if confirmation is not None and confirmation.winner.candidate.trial is not None:
        number = confirmation.winner.candidate.trial
        seeds = f"the winner of its confirmation over {confirmation.seeds} seeds"
        return _choice(study, completed_trial(storage, name, number), seeds)
    best = best_trials(storage, name, 1)
    if not best:
        raise no_best(storage, name, "there is nothing to choose")
    several = f", by its first metric, {study.search.first_metric}" if len(study.search.metrics) > 1 else ""
    why = f"the best trial of the search{several}, not confirmed"
    return _choice(study, storage.get_trial(best[0]._trial_id), why)


def _choice(study: Study, trial: FrozenTrial, why: str) -> Choice:
    params = params_of(study, trial)
    config = study.config(params)
    best_epoch = trial.user_attrs.get("score_epoch") if study.search.score == "best" else None
    trained = max(map(len, trial.system_attrs.get(CURVE, {}).values()), default=config.training.epochs)
    return Choice(trial.number, score(trial), params, config, best_epoch or trained, why)
