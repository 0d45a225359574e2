"""Raise `training.epochs` of a stored study (`--extend`): which completed trials continue from their training states.

A completed trial continues where this machine has a valid training state of it: see `keep = "last"` in
checkpoints.py. The other completed trials keep their results, at the number of epochs that they were trained for. A
trial that ended by early stopping has ended at any number of epochs. Changes nothing itself.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.data import Split
from hpo.errors import UsageError
from hpo.search.checkpoints.training_checkpoints import TrainingCheckpoints
from hpo.search.comparability import raises_epochs
from hpo.search.plan import member_of
from hpo.search.sampling.pruners import choose_pruner
from hpo.search.space import config_of
from hpo.search.study_records import (
    CURVE,
    PRUNER,
    RUN,
    any_stored_study,
    claim_conditions,
    directions,
    epochs_trained,
    user_attrs_of,
)
from hpo.storage import ReopenedTrials, Storage, TrialFields
from hpo.storage.pareto import trials_since_best
from hpo.studyfile import Study
from hpo.text import join_and
from hpo.training.early_stopping import has_stopped_improving
from hpo.usercode import UserCode

RESULT_FIELDS = TrialFields(curves=False, system_attrs=CURVE)


@dataclass(frozen=True)
class EpochExtension:
    """The completed trials that continue, and a note for the user; nothing where the number of epochs stays."""

    reopened: ReopenedTrials | None = None
    note: str = ""


def epoch_extension(
    study: Study, stored: optuna.Study, storage: Storage, splits: Sequence[Split], code: UserCode
) -> EpochExtension:
    """Return which completed trials of the stored study continue, where `study` has a higher number of epochs.

    Raises UsageError where trials would continue, but a limit of the study has been reached: they would wait, without
    results.
    """
    before = any_stored_study(stored)
    if not isinstance(before, Study) or not raises_epochs(before, study):
        return EpochExtension()
    run = user_attrs_of(stored).get(RUN)
    trials = storage.read_trials(stored._study_id, -1, (), RESULT_FIELDS)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and CURVE in trial.system_attrs]
    if run is None or not complete:
        return EpochExtension()
    conditions, metric = claim_conditions(before, stored), study.search.first_metric
    checkpoints = TrainingCheckpoints(
        study, conditions, storage, lambda event: None, code=code, splits=splits, precision=str(run["precision"])
    )
    continued, staying, ended_early = [], [], 0
    for trial in complete:
        config, curve = config_of(study, trial.params), trial.system_attrs[CURVE]
        member = member_of(study, trial.number, config)
        if has_stopped_improving(config.training.patience, curve.get(metric, ()), study.search.minimized):
            ended_early += 1
        elif checkpoints.peek(member) is not None:
            continued.append(trial)
        else:
            staying.append(trial)
    if continued:
        count_pruned = choose_pruner(study, user_attrs_of(stored).get(PRUNER)).name != "halving"
        _check_limits(study, trials, continued, datetime.datetime.fromisoformat(run["began"]), count_pruned)
    epochs = {trial._trial_id: epochs_trained(trial) for trial in continued}
    reopened = ReopenedTrials(epochs, (CURVE,), ("score_epoch", "fold_scores"))
    return EpochExtension(reopened, _note(continued, staying, ended_early))


def _all_epochs(trials: Sequence[FrozenTrial]) -> str:
    """Return the numbers of epochs that trials have trained, as text."""
    return join_and([str(each) for each in sorted({epochs_trained(trial) for trial in trials})])


def _check_limits(
    study: Study,
    trials: Sequence[FrozenTrial],
    continued: Sequence[FrozenTrial],
    began: datetime.datetime,
    count_pruned: bool,
) -> None:
    """Raise UsageError where `search.timeout` or `search.patience`, which may count pruned trials, is reached."""
    search, reached = study.search, ""
    age_s = (datetime.datetime.now(datetime.UTC) - began).total_seconds()
    numbers = {trial.number for trial in continued}
    ended = [trial for trial in trials if trial.number not in numbers]
    if search.timeout is not None and age_s >= search.timeout:
        reached = "timeout"
    elif search.patience is not None:
        since_best = trials_since_best(ended, directions(study), count_pruned=count_pruned)
        reached = "patience" if since_best >= search.patience else ""
    if reached:
        raise UsageError(
            f"{study.source}: training.epochs: search.{reached} = {getattr(search, reached):g} has been reached, so "
            f"completed trials could not continue; raise it too (--set search.{reached}=...)"
        )


def _note(continued: Sequence[FrozenTrial], staying: Sequence[FrozenTrial], ended_early: int) -> str:
    parts = []
    if continued:
        count = len(continued)
        from_epochs = _all_epochs(continued)
        parts.append(f"{count} completed trial{'s continue' if count > 1 else ' continues'} from epoch {from_epochs}")
    if staying:
        at = _all_epochs(staying)
        what = "" if continued else f" completed trial{'s' if len(staying) > 1 else ''}"
        stay = "stay" if len(staying) > 1 else "stays"
        parts.append(f"{len(staying)}{what} without a training state {stay} at {at} epochs")
    if ended_early:
        parts.append(f"{ended_early} ended early (training.patience)")
    return "; ".join(parts)
