"""Groups of runs to compare: the trials of one configuration, which differ only in their seed, with learning curves.

Runs of an objective study have the values that the function returned, and as a curve those that it reported. They are
not compared with runs of networks, nor with those of a study of other directions.

A study with a fixed set of configurations (`sampler = "grid"`, nothing searched, or no trial beyond its `points`) gives
all of them; a sampled search gives the one with the best mean score. `NAME#12` selects the configuration of one trial.
Trials are grouped by the settings that they use. A configuration whose trials all failed is a group without runs.
Reads studies and changes nothing; knows nothing of statistics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import UsageError, nearest
from hpo.results.no_best_trial import no_best_trial
from hpo.results.ranking import by_configuration, params_line, score
from hpo.results.study_facts import STEP, overlap, reported_curve
from hpo.search.points import FIXED, SEED
from hpo.search.space import decode, identity
from hpo.search.study_records import CURVE, DATA, any_stored_study
from hpo.storage import FAILURE_REASON, Storage, TrialFields, load_study, study_names, summary
from hpo.storage.studies import MAX_TRIALS
from hpo.studyfile import ObjectiveStudy, Study
from hpo.studyfile.objective import VALUE
from hpo.text import join_and

ACCURACY, LOSS = "val_accuracy", "val_loss"
"""The tested metric of classifications without a common one of their own, and the loss that every table has."""

CLASSIFICATION = "classification"


@dataclass(frozen=True, eq=False)  # arrays cannot be compared with ==
class Run:
    """A completed trial: number, seed, final value of each metric, and learning curve (metric -> one value per epoch).

    In the curve of an objective function, STEP and VALUE have the reported values; it is empty without any.
    """

    number: int
    seed: int | None
    final: Mapping[str, float]
    curve: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Group:
    """The trials of one configuration of a study; `runs` are the completed ones, by number.

    `texts` are its searched parameters as text, `dropout: 0.3`; `distinguishing` names those in which it differs from
    the study's other groups. `heading` is the study's name where several studies are compared, else "". `reasons` are
    those of failed and of not trained trials. Groups with equal `split_sha256` have the same training and validation
    data; `overlap` is that of their splits (`statistics.paired`). `task` is the kind of a network study's task, None
    for an objective function. `metrics` are the compared ones: the metric of a network study, or accuracy where that is
    the loss of a classification, and the validation loss; or the values that the function returns. The first one is
    tested; of it, with `minimized`, lower values are better.
    """

    study: str
    heading: str
    task: str | None
    metrics: tuple[str, ...]
    minimized: bool
    params: Mapping[str, Any]
    texts: Mapping[str, str]
    distinguishing: tuple[str, ...]
    numbers: tuple[int, ...]
    states: Mapping[TrialState, int]
    reasons: tuple[str, ...]
    runs: tuple[Run, ...]
    split_sha256: tuple[str | None, ...]
    overlap: float

    @property
    def objective(self) -> bool:
        """True for the configurations of an objective function."""
        return self.task is None

    @property
    def is_classification(self) -> bool:
        return self.task == CLASSIFICATION

    def label(self, without: str | None = None) -> str:
        """Return the name of the group, `mnist-dropout (dropout: 0.3)`; the parameter `without` is left out."""
        values = ", ".join(self.texts[name] for name in self.distinguishing if name != without)
        if values and self.heading:
            return f"{self.heading} ({values})"
        return values or self.study

    def curves(self, metric: str) -> NDArray[np.float64]:
        """Return a metric's learning curves, [runs, epochs]; a shorter curve is padded with its last value."""
        curves = [run.curve[metric] for run in self.runs]
        longest = max(map(len, curves), default=0)
        return np.array([np.pad(each, (0, longest - len(each)), mode="edge") for each in curves], dtype=np.float64)

    def reported(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the steps at which an objective function has reported, and its values there, [runs, steps].

        A run that has not reported at a step has its last value before it, or its first one. Runs without a report are
        left out.
        """
        curves = [run.curve for run in self.runs if run.curve]
        steps = np.unique(np.concatenate([curve[STEP] for curve in curves])) if curves else np.empty(0)
        places = [np.maximum(np.searchsorted(curve[STEP], steps, side="right") - 1, 0) for curve in curves]
        values = [curve[VALUE][place] for curve, place in zip(curves, places, strict=True)]
        return steps, np.array(values, dtype=np.float64).reshape(len(curves), len(steps))


def groups(storage: Storage, selectors: Sequence[str]) -> list[Group]:
    """Return the groups of each `NAME` or `NAME#NUMBER`, in that order.

    Raises UsageError for a configuration selected twice, and HpoError for a study without trials.
    """
    names = study_names(storage)
    studies: dict[str, _StudyGroups] = {}
    selected: dict[tuple[str, str], str] = {}
    for selector in selectors:
        name, number = _parsed(selector, names)
        stored = studies.setdefault(name, _StudyGroups(storage, name))
        for key in stored.main() if number is None else [stored.configuration_of(number)]:
            if (name, key) in selected:
                raise UsageError(
                    f"{selector}: the same configuration as {selected[name, key]}; name each configuration once"
                )
            selected[name, key] = selector
    _check_comparable(studies)
    read: dict[tuple[str, str], Group] = {}
    for name, stored in studies.items():
        keys = [key for study, key in selected if study == name]
        read |= {(name, group_key): group for group_key, group in stored.read(keys, len(studies) > 1).items()}
    return [read[place] for place in selected]


def tested_metric(found: Sequence[Group]) -> str:
    """Return the metric in which groups are compared: the first one of all groups.

    Where they have different ones, it is the accuracy for classifications, else the loss. Groups of objective studies
    have the same ones.
    """
    (first, *others) = {(group.metrics[0], group.minimized) for group in found}
    if not others:
        return first[0]
    return ACCURACY if all(group.is_classification for group in found) else LOSS


def groups_by_value(found: Sequence[Group], by: str) -> dict[str, list[Group]]:
    """Return the groups by their value of a searched parameter, as text: `dropout: 0.3`."""
    names = dict.fromkeys(name for group in found for name in group.texts)
    if by not in names:
        advice = nearest(by, names) or f"; searched parameters: {', '.join(names) or 'none'}"
        raise UsageError(f"--by: {by!r} is not searched{advice}")
    searching = {group.study for group in found if by in group.texts}
    for group in found:
        if group.study not in searching:
            raise UsageError(f"--by: {by!r} is not searched by {group.study!r}; compare only studies that search it")
    unused = f"{by.replace('_', ' ')}: none"
    texts = [group.texts.get(by, unused) for group in found]
    values = dict.fromkeys(texts)
    return {value: [group for group, text in zip(found, texts, strict=True) if text == value] for value in values}


class _StudyGroups:
    """The trials of a study by configuration, in the order of the first trials."""

    def __init__(self, storage: Storage, name: str) -> None:
        known = summary(storage, name)
        self._storage, self._name, self._study_id = storage, name, known.study_id
        self._maximized = known.directions[0] == StudyDirection.MAXIMIZE
        self._file = any_stored_study(load_study(storage, name))
        self._data = known.user_attrs.get(DATA, {})
        parts = TrialFields(curves=False, system_attrs=FIXED if isinstance(self._file, ObjectiveStudy) else None)
        trials = sorted(storage.read_trials(self._study_id, -1, (), parts), key=lambda trial: trial.number)
        self._configurations = by_configuration(self._file, trials)
        if not self._configurations:
            raise no_best_trial(storage, name, "there is nothing to compare")

    @property
    def values(self) -> str:
        """The values of the study's trials in words: only those of studies with the same ones are compared."""
        if isinstance(self._file, Study):
            return "trains networks"
        search = self._file.search
        goals = zip(search.metrics, search.all_minimized, strict=True)
        words = [f"{'minimizes' if minimized else 'maximizes'} {value}" for value, minimized in goals]
        return f"has an objective function and {join_and(words)}"

    def main(self) -> list[str]:
        """Return the configurations to compare: all of a fixed set, the best of a sampled search."""
        search = self._file.search
        all_given = len(search.points) * search.repeats >= search.trials
        if isinstance(self._file, Study):
            all_given = all_given or self._file.search.sampler == "grid" or not self._file.parameters
        if all_given:
            return list(self._configurations)
        means = {key: mean for key, trials in self._configurations.items() if (mean := _mean_score(trials)) is not None}
        if not means:
            raise no_best_trial(self._storage, self._name, "there is nothing to compare")
        return [(max if self._maximized else min)(means, key=lambda key: means[key])]

    def configuration_of(self, number: int) -> str:
        """Return the configuration of a trial."""
        for key, trials in self._configurations.items():
            if any(trial.number == number for trial in trials):
                return key
        last = max(trial.number for trials in self._configurations.values() for trial in trials)
        raise UsageError(
            f"{self._name}#{number}: study {self._name!r} has no trial {number}; trials are numbered 0 to {last}"
        )

    def read(self, keys: Sequence[str], among_others: bool) -> dict[str, Group]:
        """Return the groups of these configurations, with the learning curves of completed trials."""
        chosen = [self._configurations[key] for key in keys]
        completed = [trial._trial_id for trials in chosen for trial in trials if trial.state == TrialState.COMPLETE]
        parts = TrialFields(isinstance(self._file, ObjectiveStudy), user_attrs=False, system_attrs=CURVE)
        found = self._storage.read_trials(self._study_id, MAX_TRIALS, completed, parts)
        curves = {trial.number: self._curve(trial) for trial in found}
        distinguishing = _differing([self._file.used_values(_whole(trials).params) for trials in chosen])
        return {key: self._group(self._configurations[key], curves, distinguishing, among_others) for key in keys}

    def _group(
        self,
        trials: Sequence[FrozenTrial],
        curves: Mapping[int, Mapping[str, NDArray[np.float64]]],
        distinguishing: Sequence[str],
        among_others: bool,
    ) -> Group:
        first = _whole(trials)
        used = self._file.used_values(first.params)
        needs_curve = isinstance(self._file, Study)
        runs = [
            Run(trial.number, trial.user_attrs.get(SEED), self._final(trial, curve), curve)
            for trial in trials
            if (curve := curves.get(trial.number)) is not None and (curve or not needs_curve)
        ]
        known = {each.name: each for each in self._file.parameters} if isinstance(self._file, Study) else {}
        unknown = {TrialState.FAIL: "no reason is stored"}
        reasons = [trial.user_attrs.get(FAILURE_REASON, unknown.get(trial.state)) for trial in trials]
        return Group(
            study=self._name,
            heading=self._name if among_others else "",
            task=self._file.task.kind if isinstance(self._file, Study) else None,
            metrics=self._metrics,
            minimized=self._file.search.minimized and self._metrics[0] == self._file.search.first_metric,
            params={name: decode(known[name], value) if name in known else value for name, value in used.items()},
            texts={name: params_line({name: value}, first.distributions) for name, value in used.items()},
            distinguishing=tuple(name for name in distinguishing if name in used),
            numbers=tuple(trial.number for trial in trials),
            states=Counter(trial.state for trial in trials),
            reasons=tuple(dict.fromkeys(str(reason) for reason in reasons if reason is not None)),
            runs=tuple(runs),
            split_sha256=(self._data.get("split_sha256"), *self._data.get("other_splits_sha256", ())),
            overlap=overlap(self._data),
        )

    @property
    def _metrics(self) -> tuple[str, ...]:
        search = self._file.search
        if isinstance(self._file, ObjectiveStudy):
            return search.metrics
        accuracy = search.first_metric == LOSS and self._file.task.kind == CLASSIFICATION
        return tuple(dict.fromkeys((ACCURACY if accuracy else search.first_metric, LOSS)))

    def _curve(self, trial: FrozenTrial) -> dict[str, NDArray[np.float64]]:
        """Return the learning curve of a trial, or the values that its function reported."""
        networks = isinstance(self._file, Study)
        curve = trial.system_attrs.get(CURVE, {}) if networks else reported_curve(trial)
        return {metric: np.array(values, dtype=np.float64) for metric, values in curve.items()}

    def _final(self, trial: FrozenTrial, curve: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
        """Return the last values of the learning curve, or those that the function returned."""
        if isinstance(self._file, Study):
            return {metric: float(values[-1]) for metric, values in curve.items()}
        return dict(zip(self._metrics, map(float, trial.values or ()), strict=True))


def _whole(trials: Sequence[FrozenTrial]) -> FrozenTrial:
    """Return the first trial with all parameters: an objective function may fail before it has suggested them."""
    return max(trials, key=lambda trial: len(trial.params))


def _check_comparable(studies: Mapping[str, _StudyGroups]) -> None:
    """Raise UsageError for studies whose values mean something else."""
    (first, values), *others = ((name, each.values) for name, each in studies.items())
    for name, other in others:
        if other != values:
            raise UsageError(f"study {name!r} {other}, and study {first!r} {values}: they cannot be compared")


def _parsed(selector: str, names: Sequence[str]) -> tuple[str, int | None]:
    """Return the study's name and the trial's number; a name may contain a `#`."""
    name, mark, number = selector.rpartition("#")
    if selector in names or not mark or not (number.isascii() and number.isdecimal()):
        return selector, None
    return name, int(number)


def _mean_score(trials: Sequence[FrozenTrial]) -> float | None:
    scores = [score(trial) for trial in trials if trial.state == TrialState.COMPLETE]
    return sum(scores) / len(scores) if scores else None


def _differing(params: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for each in params for name in each)
    return [name for name in names if len({identity({name: each.get(name)}) for each in params}) > 1]
