"""What figures are drawn from: a study's trials that have ended, read once for all of them.

Of all trials what ranks them is read, and learning curves only of the best, so that 20,000 trials take less than a
second. A study that another program stored in the same tables can be drawn too, and one of the user's own objective;
their learning curves are what their trials reported.
Knows nothing of plotly.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.results.ranking import score
from hpo.results.study_facts import VALUE, conditional_of, metrics_of
from hpo.results.unranked import no_best_trial, trial_outcomes
from hpo.search.space import contains
from hpo.search.study_records import CURVE, Curve
from hpo.storage import Storage, TrialFields, best_trials, summary
from hpo.storage.studies import MAX_TRIALS

BEST = 20
STEP = "step"
"""Beside VALUE the part of a curve that was reported to Optuna."""
SCORES = {
    "val_accuracy": "validation accuracy",
    "val_loss": "validation loss",
    "seconds_per_epoch": "seconds an epoch",
}


@dataclass(frozen=True)
class Source:
    """A study's completed, pruned and failed trials, by number, and its best ones with their curves, best first.

    `metrics` are what the trials are scored by, `directions` what is better of each. `limit` is how many points a
    figure may have that has one a trial; None for all. `conditional` are the parameters that not every trial has.
    `became` says what became of the trials where none of them is among the best, else "".
    """

    name: str
    metrics: tuple[str, ...]
    directions: tuple[StudyDirection, ...]
    trials: Sequence[FrozenTrial]
    best: Sequence[FrozenTrial] = ()
    curves: Mapping[int, Curve] = field(default_factory=dict)
    limit: int | None = None
    conditional: frozenset[str] = frozenset()
    became: str = ""

    @property
    def metric(self) -> str:
        """The first metric, which all figures are of but the front."""
        return self.metrics[0]

    @property
    def maximized(self) -> bool:
        """Whether more of the first metric is better."""
        return self.directions[0] == StudyDirection.MAXIMIZE

    @property
    def score(self) -> str:
        """What the trials are scored by, in words."""
        return in_words(self.metric)

    def ended(self, state: TrialState) -> list[FrozenTrial]:
        """Return the trials that ended in this state; completed and pruned ones that have a finite value."""
        found = [trial for trial in self.trials if trial.state == state]
        return found if state == TrialState.FAIL else [trial for trial in found if is_scored(trial)]


def read_source(storage: Storage, which: str | int, best: int = BEST, limit: int | None = None) -> Source:
    """Read what the figures of the study of that name or id need. Raises HpoError where no trial has ended."""
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
    became = "" if ranked else trial_outcomes(storage, study)
    return Source(study.name, metrics_of(study), study.directions, ended, ranked, curves, limit, conditional, became)


def _reported(trial: FrozenTrial) -> Curve:
    """Return what a trial has told Optuna on its way: the curve of one that hpo's networks do not train."""
    values = {step: value for step, value in sorted(trial.intermediate_values.items()) if math.isfinite(value)}
    return {STEP: list(map(float, values)), VALUE: list(values.values())} if values else {}


def is_scored(trial: FrozenTrial) -> bool:
    """Whether the trial has a value that can be drawn."""
    return trial.values is not None and math.isfinite(score(trial))


def in_words(metric: str) -> str:
    """Return what a metric is, in words."""
    return SCORES.get(metric, metric)


def label(parameter: str) -> str:
    """Return a parameter's name as figures write it."""
    return parameter.replace("_", " ")


def space(trials: Iterable[FrozenTrial]) -> dict[str, BaseDistribution]:
    """Return the search space that holds them all: a study's ranges may have been changed on its way.

    Where a parameter's kind or scale has changed, what it is now counts.
    """
    found: dict[str, list[BaseDistribution]] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            seen = found.setdefault(name, [])
            if seen[-1:] != [distribution]:  # as lists, which ask first whether it is the same object, as it mostly is
                seen.append(distribution)
    return {name: _joined(distributions) for name, distributions in found.items()}


def lies_in(
    trial: FrozenTrial, searched: Mapping[str, BaseDistribution], conditional: Container[str] = frozenset()
) -> bool:
    """Whether a trial has all these parameters, and values of this kind: one from before a change may not.

    It need not have conditional ones.
    """
    values = {name: trial.params[name] for name in searched if name in trial.params}
    wanted = {name: each for name, each in searched.items() if name in values or name not in conditional}
    return contains(wanted, values)


def spread(trials: Sequence[FrozenTrial], limit: int | None, kept: Iterable[FrozenTrial] = ()) -> list[FrozenTrial]:
    """Return so many of the trials, evenly spread over the study, and `kept` in any case."""
    if limit is None or len(trials) <= limit:
        return list(trials)
    numbers = {trial.number for trial in kept} | {trials[index * len(trials) // limit].number for index in range(limit)}
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
    raise TypeError(f"no distribution of Optuna's: {last!r}")
