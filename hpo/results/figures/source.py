"""Source of the figures: the finished trials of a study, read once for all figures.

Learning curves are read for the best trials only, so that 20,000 trials take less than a second. For objective studies
and studies of other programs, the learning curves are the intermediate values of the trials. Knows nothing of plotly.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.results.no_best_trial import no_best_trial, trial_outcomes
from hpo.results.ranking import score
from hpo.results.study_facts import STEP, conditional_of, metrics_of
from hpo.search.space import contains
from hpo.search.study_records import CURVE, Curve
from hpo.storage import Storage, TrialFields, best_trials, summary
from hpo.storage.studies import MAX_TRIALS
from hpo.studyfile.objective import VALUE

BEST = 20
SCORES = {
    "val_accuracy": "validation accuracy",
    "val_balanced_accuracy": "balanced validation accuracy",
    "val_f1": "validation F1 score",
    "val_f1_weighted": "weighted validation F1 score",
    "val_auroc": "validation AUROC",
    "val_top_k": "top-k validation accuracy",
    "val_average_precision": "average validation precision",
    "val_rmse": "validation RMSE",
    "val_mae": "validation MAE",
    "val_r2": "validation R²",
    "val_loss": "validation loss",
    "seconds_per_epoch": "seconds an epoch",
}


@dataclass(frozen=True)
class Source:
    """Completed, pruned and failed trials of a study by number; the best trials, best first, with learning curves.

    `limit` is the largest number of points in a figure with one point for each trial; None for all trials.
    `conditional` are the conditional parameters. `outcomes` is the text of `trial_outcomes` where no trial is ranked,
    else "".
    """

    name: str
    metrics: tuple[str, ...]
    directions: tuple[StudyDirection, ...]
    trials: Sequence[FrozenTrial]
    best: Sequence[FrozenTrial] = ()
    curves: Mapping[int, Curve] = field(default_factory=dict)
    limit: int | None = None
    conditional: frozenset[str] = frozenset()
    outcomes: str = ""

    @property
    def metric(self) -> str:
        """The first metric, which every figure except the Pareto front shows."""
        return self.metrics[0]

    @property
    def maximized(self) -> bool:
        """True where a larger value of the first metric is better."""
        return self.directions[0] == StudyDirection.MAXIMIZE

    @property
    def score(self) -> str:
        """The name of the first metric for people."""
        return in_words(self.metric)

    def ended(self, state: TrialState) -> list[FrozenTrial]:
        """Return the trials in this state; completed and pruned ones only with a finite score."""
        found = [trial for trial in self.trials if trial.state == state]
        return found if state == TrialState.FAIL else [trial for trial in found if is_scored(trial)]


def read_source(storage: Storage, which: str | int, best: int = BEST, limit: int | None = None) -> Source:
    """Read the source of a study given by name or id. Raises HpoError where no trial has finished."""
    study = summary(storage, which)
    trials = storage.read_trials(study.study_id, -1, (), TrialFields(curves=False, user_attrs=False, system_attrs=None))
    ended = [trial for trial in trials if trial.state.is_finished()]
    if not ended:
        raise no_best_trial(storage, study.name, "there is nothing to draw")
    ranked = best_trials(storage, study.study_id, best)
    ids = [trial._trial_id for trial in ranked]
    with_curves = storage.read_trials(
        study.study_id, MAX_TRIALS, ids, TrialFields(user_attrs=False, system_attrs=CURVE)
    )
    curves = {
        trial.number: curve for trial in with_curves if (curve := trial.system_attrs.get(CURVE) or _reported(trial))
    }
    conditional = conditional_of(study.user_attrs, [trial for trial in ended if trial.state == TrialState.COMPLETE])
    outcomes = "" if ranked else trial_outcomes(storage, study)
    return Source(study.name, metrics_of(study), study.directions, ended, ranked, curves, limit, conditional, outcomes)


def _reported(trial: FrozenTrial) -> Curve:
    """Return the finite intermediate values of a trial as a learning curve."""
    values = {step: value for step, value in sorted(trial.intermediate_values.items()) if math.isfinite(value)}
    return {STEP: list(map(float, values)), VALUE: list(values.values())} if values else {}


def is_scored(trial: FrozenTrial) -> bool:
    """Return whether the trial has a finite score."""
    return trial.values is not None and math.isfinite(score(trial))


def in_words(metric: str) -> str:
    """Return the name of a metric for people."""
    return SCORES.get(metric) or (
        f"validation {label(metric.removeprefix('val_'))}" if metric.startswith("val_") else metric
    )


def label(parameter: str) -> str:
    """Return the label of a parameter."""
    return parameter.replace("_", " ")


def space(trials: Iterable[FrozenTrial]) -> dict[str, BaseDistribution]:
    """Return the smallest search space that contains all trials, whose ranges may differ.

    Where the kind or scale of a parameter has changed, the last one counts.
    """
    found: dict[str, list[BaseDistribution]] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            known = found.setdefault(name, [])
            if known[-1:] != [distribution]:  # comparing lists is faster: it tests identity first
                known.append(distribution)
    return {name: _joined(distributions) for name, distributions in found.items()}


def lies_in(
    trial: FrozenTrial, searched: Mapping[str, BaseDistribution], conditional: Container[str] = frozenset()
) -> bool:
    """Return whether a trial has a value of the right kind for each parameter; conditional ones may be missing.

    Trials from before a change of the study may not.
    """
    values = {name: trial.params[name] for name in searched if name in trial.params}
    required = {name: each for name, each in searched.items() if name in values or name not in conditional}
    return contains(required, values)


def spread(trials: Sequence[FrozenTrial], limit: int | None, always: Iterable[FrozenTrial] = ()) -> list[FrozenTrial]:
    """Return up to `limit` trials, evenly spread over the study, and those in `always`."""
    if limit is None or len(trials) <= limit:
        return list(trials)
    numbers = {trial.number for trial in always} | {
        trials[index * len(trials) // limit].number for index in range(limit)
    }
    return [trial for trial in trials if trial.number in numbers]


def _joined(distributions: Sequence[BaseDistribution]) -> BaseDistribution:
    last = distributions[-1]
    if isinstance(last, CategoricalDistribution):
        same = [each for each in distributions if isinstance(each, CategoricalDistribution)]
        return CategoricalDistribution(list(dict.fromkeys(choice for each in same for choice in each.choices)))
    if isinstance(last, FloatDistribution):
        ranges = [each for each in distributions if isinstance(each, FloatDistribution) and each.log == last.log]
        low, high = min(each.low for each in ranges), max(each.high for each in ranges)
        return FloatDistribution(low, high, log=last.log)
    if isinstance(last, IntDistribution):
        whole = [each for each in distributions if isinstance(each, IntDistribution) and each.log == last.log]
        return IntDistribution(min(each.low for each in whole), max(each.high for each in whole), log=last.log)
    raise TypeError(f"unknown distribution: {last!r}")
