"""Groups of runs to compare: the trials of one configuration, which differ only in their seed, with learning curves.

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
from hpo.search.space import decode, identity
from hpo.search.study_records import CURVE, DATA, stored_study
from hpo.storage import FAILURE_REASON, Storage, TrialFields, load_study, study_names, summary
from hpo.storage.studies import MAX_TRIALS
from hpo.studyfile import Study


@dataclass(frozen=True, eq=False)  # arrays cannot be compared with ==
class Run:
    """A completed trial: number, seed, and learning curve (metric -> one value per epoch)."""

    number: int
    seed: int | None
    curve: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Group:
    """The trials of one configuration of a study; `runs` are the completed ones, by number.

    `texts` are its searched parameters as text, `dropout: 0.3`; `distinguishing` names those in which it differs from
    the study's other groups. `heading` is the study's name where several studies are compared, else "". `reasons` are
    those of failed and of not trained trials. Groups with equal `split_sha256` have the same training and validation
    data. `metric` is the study's first metric, of which, with `minimized`, lower values are better;
    `task` is the kind of its task.
    """

    study: str
    heading: str
    params: Mapping[str, Any]
    texts: Mapping[str, str]
    distinguishing: tuple[str, ...]
    numbers: tuple[int, ...]
    states: Mapping[TrialState, int]
    reasons: tuple[str, ...]
    runs: tuple[Run, ...]
    split_sha256: str
    metric: str
    minimized: bool
    task: str

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
    read: dict[tuple[str, str], Group] = {}
    for name, stored in studies.items():
        keys = [key for study, key in selected if study == name]
        read |= {(name, group_key): group for group_key, group in stored.read(keys, len(studies) > 1).items()}
    return [read[place] for place in selected]


def tested_metric(found: Sequence[Group]) -> str:
    """Return the metric in which groups are compared: that of their studies.

    Where it is the loss or differs, it is the accuracy for classifications, else the loss.
    """
    metrics, tasks = {group.metric for group in found}, {group.task for group in found}
    if len(metrics) == 1 and metrics != {"val_loss"}:
        return next(iter(metrics))
    return "val_accuracy" if tasks == {"classification"} else "val_loss"


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
        self._file: Study = stored_study(load_study(storage, name))
        self._split_sha256 = str(known.user_attrs.get(DATA, {}).get("split_sha256"))
        parts = TrialFields(curves=False, system_attrs=None)
        trials = sorted(storage.read_trials(self._study_id, -1, (), parts), key=lambda trial: trial.number)
        self._configurations = by_configuration(self._file, trials)
        if not self._configurations:
            raise no_best_trial(storage, name, "there is nothing to compare")

    def main(self) -> list[str]:
        """Return the configurations to compare: all of a fixed set, the best of a sampled search."""
        search = self._file.search
        given = len(search.points) * search.repeats
        if search.sampler == "grid" or not self._file.parameters or given >= search.trials:
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
        parts = TrialFields(curves=False, user_attrs=False, system_attrs=CURVE)
        found = self._storage.read_trials(self._study_id, MAX_TRIALS, completed, parts)
        curves = {trial.number: trial.system_attrs[CURVE] for trial in found if trial.system_attrs.get(CURVE)}
        distinguishing = _differing([self._file.used_values(trials[0].params) for trials in chosen])
        return {key: self._group(self._configurations[key], curves, distinguishing, among_others) for key in keys}

    def _group(
        self,
        trials: Sequence[FrozenTrial],
        curves: Mapping[int, Mapping[str, Sequence[float]]],
        distinguishing: Sequence[str],
        among_others: bool,
    ) -> Group:
        first, used = trials[0], self._file.used_values(trials[0].params)
        runs = [
            Run(
                trial.number,
                trial.user_attrs.get("seed"),
                {metric: np.array(values, dtype=np.float64) for metric, values in curves[trial.number].items()},
            )
            for trial in trials
            if trial.number in curves
        ]
        known = {parameter.name: parameter for parameter in self._file.parameters}
        unknown = {TrialState.FAIL: "no reason is stored"}
        reasons = [trial.user_attrs.get(FAILURE_REASON, unknown.get(trial.state)) for trial in trials]
        return Group(
            study=self._name,
            heading=self._name if among_others else "",
            params={name: decode(known[name], value) if name in known else value for name, value in used.items()},
            texts={name: params_line({name: value}, first.distributions) for name, value in used.items()},
            distinguishing=tuple(name for name in distinguishing if name in used),
            numbers=tuple(trial.number for trial in trials),
            states=Counter(trial.state for trial in trials),
            reasons=tuple(dict.fromkeys(str(reason) for reason in reasons if reason is not None)),
            runs=tuple(runs),
            split_sha256=self._split_sha256,
            metric=self._file.search.first_metric,
            minimized=self._file.search.minimized,
            task=self._file.task.kind,
        )


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
