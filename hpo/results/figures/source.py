"""What figures are drawn from: a study's trials that have ended, read once for all of them.

Of all trials what ranks them is read, and learning curves only of the best, so that 20,000 trials take less than a
second. A study that another program stored in the same tables can be drawn too, and one of the user's own objective;
their learning curves are what their trials reported.
Knows nothing of plotly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import HpoError
from hpo.results.lookup import conditional_of, metric_of
from hpo.search.records import CURVE, Curve
from hpo.search.space import contains
from hpo.storage import Parts, Storage, best_trials, summary
from hpo.storage.studies import MOST_TRIALS

BEST = 20
STEP, VALUE = "step", "value"
"""The parts of a curve that was reported to Optuna."""
SCORES = {"val_accuracy": "validation accuracy", "val_loss": "validation loss"}


@dataclass(frozen=True)
class Source:
    """A study's completed, pruned and failed trials, by number, and its best ones with their curves, best first.

    `limit` is how many points a figure may have that has one a trial; None for all. `conditional` are the parameters
    that not every trial has.
    """

    name: str
    metric: str | None
    maximized: bool
    trials: Sequence[FrozenTrial]
    best: Sequence[FrozenTrial] = ()
    curves: Mapping[int, Curve] = field(default_factory=dict)
    limit: int | None = None
    conditional: frozenset[str] = frozenset()

    @property
    def score(self) -> str:
        """What the trials are scored by, in words."""
        return SCORES.get(self.metric or "", self.metric or "value")

    def ended(self, state: TrialState) -> list[FrozenTrial]:
        """Return the trials that ended in this state; completed and pruned ones that have a finite value."""
        found = [trial for trial in self.trials if trial.state == state]
        return found if state == TrialState.FAIL else [trial for trial in found if is_scored(trial)]


def read_source(storage: Storage, name: str, best: int = BEST, limit: int | None = None) -> Source:
    """Read what the figures of the study of that name need. Raises HpoError where no trial has ended."""
    study = summary(storage, name)
    if len(study.directions) != 1:
        raise HpoError(f"study {name!r}: has several objectives, so its trials have no one order")
    trials = storage.read(study.study_id, -1, (), Parts(curves=False, user_attrs=False, system_attrs=None))
    ended = [trial for trial in trials if trial.state.is_finished()]
    if not ended:
        raise HpoError(f"study {name!r}: no finished trial yet; launch it to go on")
    ranked = best_trials(storage, name, best)
    ids = [trial._trial_id for trial in ranked]
    with_curves = storage.read(study.study_id, MOST_TRIALS, ids, Parts(user_attrs=False, system_attrs=CURVE))
    curves = {
        trial.number: curve for trial in with_curves if (curve := trial.system_attrs.get(CURVE) or _reported(trial))
    }
    maximized = study.directions[0] == StudyDirection.MAXIMIZE
    return Source(
        name, metric_of(study.user_attrs), maximized, ended, ranked, curves, limit, conditional_of(study.user_attrs)
    )


def _reported(trial: FrozenTrial) -> Curve:
    """Return what a trial has told Optuna on its way: the curve of one that hpo's networks do not train."""
    values = {step: value for step, value in sorted(trial.intermediate_values.items()) if math.isfinite(value)}
    return {STEP: list(map(float, values)), VALUE: list(values.values())} if values else {}


def is_scored(trial: FrozenTrial) -> bool:
    """Whether the trial has a value that can be drawn."""
    return trial.values is not None and len(trial.values) == 1 and math.isfinite(trial.values[0])


def score(trial: FrozenTrial) -> float:
    """Return the value of a trial that `is_scored`."""
    value = trial.value
    assert value is not None
    return value


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
            if not seen or seen[-1] != distribution:
                seen.append(distribution)
    return {name: _joined(distributions) for name, distributions in found.items()}


def lies_in(trial: FrozenTrial, searched: Mapping[str, BaseDistribution]) -> bool:
    """Whether a trial has all these parameters, and values of this kind: one from before a change may not."""
    return contains(searched, {name: trial.params[name] for name in searched if name in trial.params})


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
