"""The result of a confirmation: the mean of each configuration over fresh seeds, and paired differences.

Configurations are ranked by the mean of their runs; the winner is the best one of the search. All are run under the
same seeds, networks on the same batches, so their differences are paired. The p values are corrected by Holm's method
for the number of comparisons, because the winner was selected by the same runs. Reads studies and changes nothing.

Where the runs have several splits, a value is the mean of the runs on one split, or on one fold of it, and intervals
and tests allow for training examples that the splits share (`statistics.estimate`).
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import HpoError
from hpo.results.compare.statistics import Estimate, Paired, estimate, holm, paired
from hpo.results.confirm.study import CONFIRMS, Candidate, confirmations, original_name
from hpo.results.no_best_trial import trial_outcomes
from hpo.results.ranking import by_configuration, score
from hpo.results.study_facts import overlap
from hpo.search.points import SEED, trial_split
from hpo.search.space import config_of, settings
from hpo.search.study_records import DATA, any_stored_study, trial_target
from hpo.storage import Storage, StudyState, StudySummary, load_study, state_of, summary
from hpo.studyfile import AnyStudy, ObjectiveStudy, Study
from hpo.text import hpo_command

FAILED = "every run of the search's configurations has failed"


Part = tuple[int, ...]
"""The seed of a run on the common split; else the number of its split, with folds also that of the fold."""


@dataclass(frozen=True)
class ConfirmedConfiguration:
    """The runs of a configuration: the scores by seed, their mean, and the number of failed and pruned runs.

    `parts` are the scores by seed on each split and fold: split and fold number -> score. `distributions` are those of
    the parameters that a run has.
    """

    candidate: Candidate
    scores: Mapping[int, float]
    parts: Mapping[int, Mapping[Part, float]]
    failed: int
    estimate: Estimate
    distributions: Mapping[str, BaseDistribution]

    @property
    def optimism(self) -> float | None:
        """Its score in the search minus its mean under fresh seeds."""
        return None if self.candidate.score is None else self.candidate.score - self.estimate.mean


@dataclass(frozen=True)
class Difference:
    """The winner's scores minus those of another configuration, over the seeds of both; `p` is the corrected one."""

    pairs: Paired
    p: float | None


@dataclass(frozen=True)
class Confirmation:
    """A confirmation of the study `original`: its configurations, best mean first.

    `lost` are the configurations whose runs all failed. `left` runs are not finished; `foreign` runs were added by
    another program and are ignored. `gain` is the winner minus the baseline, None where the baseline has no run or is
    the winner; `others` are the differences to the other configurations of the search, by title.
    """

    study: AnyStudy
    original: str
    seeds: int
    left: int
    foreign: int
    ranked: tuple[ConfirmedConfiguration, ...]
    winner: ConfirmedConfiguration
    gain: Difference | None
    others: Mapping[str, Difference]
    lost: tuple[Candidate, ...]

    @property
    def splits(self) -> int | None:
        """The number of splits of the runs; None for the split of the search, or an objective function."""
        return self.study.data.splits if isinstance(self.study, Study) else None

    def split_seeds(self, each: ConfirmedConfiguration) -> dict[int, int]:
        """Return the seed of the split of each run of a configuration, by the seed of the run; empty for one split."""
        if self.splits is None:
            return {}
        assert isinstance(self.study, Study), "an objective function has no splits"
        first = self.study.data.split_seed
        return {seed: first + next(iter(parts))[0] for seed, parts in each.parts.items()}

    @property
    def winner_epochs(self) -> int:
        """The number of epochs of the winner's runs: that of the original study when it was confirmed."""
        assert isinstance(self.study, Study), "an objective function has no epochs"
        return config_of(self.study, self.winner.candidate.params).training.epochs

    @property
    def ignores_seeds(self) -> bool:
        """Whether an objective function gave the same value under all seeds, for each configuration."""
        constant = all(len(each.scores) > 1 and len({*each.scores.values()}) == 1 for each in self.ranked)
        return constant and isinstance(self.study, ObjectiveStudy)

    @property
    def baseline(self) -> ConfirmedConfiguration | None:
        """The baseline, None where all of its runs failed."""
        return next((each for each in self.ranked if each.candidate.baseline), None)


def find_confirmation(storage: Storage, name: str) -> Confirmation | None:
    """Return the last finished confirmation of a study; None where it has not been confirmed.

    Raises HpoError where a confirmation has started and none is finished.
    """
    confirming = confirmations(storage, name)
    finished = [each for each in confirming if runs_left(each) == 0]
    if not confirming:
        return None
    last = (finished or confirming)[-1]
    check_finished(last, name)
    return read_confirmation(storage, last.name)


def check_finished(confirming: StudySummary, original: str) -> None:
    """Raise HpoError with the command to continue, where the confirmation of `original` has runs left."""
    if left := runs_left(confirming):
        name, state = confirming.name, state_of(confirming.user_attrs)
        confirmation = f"study '{original}': its confirmation '{name}' is"
        if state in (StudyState.PAUSED, StudyState.STOPPED):
            commands = f"`{hpo_command('resume', name)}`, then `hpo confirm` again"
            raise HpoError(f"{confirmation} {state.value} with {left} runs left: continue it with {commands}")
        raise HpoError(f"{confirmation} not finished: continue it with `hpo confirm`")


def runs_left(confirming: StudySummary) -> int:
    """Return the number of unfinished runs of a confirming study."""
    done = sum(count for state, count in confirming.states.items() if state.is_finished())
    return max(0, (trial_target(confirming.user_attrs) or 0) - done)


def read_confirmation(storage: Storage, confirming: str) -> Confirmation:
    """Return the result of the confirming study of that name: a preliminary one where runs are left.

    Raises HpoError where no run of the search's configurations has a score.
    """
    stored = load_study(storage, confirming)
    study, found = any_stored_study(stored), summary(storage, confirming)
    record, left = found.user_attrs[CONFIRMS], runs_left(found)
    candidates = [Candidate(**fields) for fields in record["candidates"]]
    ended = (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)
    trials = stored.get_trials(deepcopy=False, states=ended)
    own = [trial for trial in trials if trial.state == TrialState.FAIL or SEED in trial.user_attrs]
    shared = overlap(found.user_attrs.get(DATA, {}))
    runs = _runs(study, candidates, own, shared)
    found_labels = {each.candidate.label for each in runs}
    sign = 1.0 if study.search.minimized else -1.0
    ranked = sorted(runs, key=lambda each: (each.failed > 0, sign * each.estimate.mean))
    searched = [each for each in ranked if each.candidate.score is not None]
    if not searched:
        problem = "no run of the search's configurations is finished" if left else FAILED
        raise HpoError(f"study '{confirming}': {problem}: {trial_outcomes(storage, found)}")
    winner, baseline = searched[0], next((each for each in ranked if each.candidate.baseline), None)
    others = _differences([(winner, each) for each in searched[1:]], shared)
    gains: list[Difference] = []
    if baseline is not None and baseline is not winner:
        # the winner's is first
        gains = _differences([(each, baseline) for each in searched if each is not baseline], shared)
    return Confirmation(
        study=study,
        original=original_name(storage, record),
        seeds=record["seeds"],
        left=left,
        foreign=len(trials) - len(own),
        ranked=tuple(ranked),
        winner=winner,
        gain=gains[0] if gains else None,
        others={each.candidate.title: other for each, other in zip(searched[1:], others, strict=True)},
        lost=tuple(candidate for candidate in candidates if candidate.label not in found_labels),
    )


def _parts(study: AnyStudy, trial: FrozenTrial) -> dict[Part, float]:
    """Return the score of a run on each part of the data."""
    if not isinstance(study, Study) or study.data.splits is None:
        return {(trial.user_attrs[SEED],): score(trial)}
    split, folds = trial_split(study, trial.number), trial.user_attrs.get("fold_scores")
    return {(split,): score(trial)} if not folds else {(split, fold): each for fold, each in enumerate(folds)}


def _part_means(runs: Iterable[Mapping[Part, float]]) -> dict[Part, float]:
    """Return the mean score of the runs on each part."""
    found: dict[Part, list[float]] = {}
    for part, value in (item for run in runs for item in run.items()):
        found.setdefault(part, []).append(value)
    return {part: statistics.fmean(values) for part, values in found.items()}


def _runs(
    study: AnyStudy, candidates: Sequence[Candidate], trials: Sequence[FrozenTrial], shared: float
) -> list[ConfirmedConfiguration]:
    """Return the candidates with a score, each with its runs."""
    runs, found = by_configuration(study, trials), []
    for candidate in candidates:
        own = runs.get(settings(study, candidate.params), [])
        completed = [trial for trial in own if trial.state == TrialState.COMPLETE]
        if completed:
            known, first = {trial.user_attrs[SEED]: score(trial) for trial in completed}, completed[0]
            if candidate.trial is None and isinstance(study, ObjectiveStudy):
                # the run has chosen the values that `[baseline]` does not name
                candidate = dataclasses.replace(candidate, params=dict(first.params))
            parts = {trial.user_attrs[SEED]: _parts(study, trial) for trial in completed}
            failed = len(own) - len(known)
            mean = estimate(list(_part_means(parts.values()).values()), shared)
            found.append(ConfirmedConfiguration(candidate, known, parts, failed, mean, first.distributions))
    return found


def _differences(
    pairs: Sequence[tuple[ConfirmedConfiguration, ConfirmedConfiguration]], shared: float
) -> list[Difference]:
    """Return the difference of each pair, first minus second, with p values corrected for the number of pairs."""
    compared = [_paired(*pair, shared) for pair in pairs]
    return [Difference(each, p) for each, p in zip(compared, holm([each.p for each in compared]), strict=True)]


def _paired(first: ConfirmedConfiguration, second: ConfirmedConfiguration, shared: float) -> Paired:
    common = sorted(first.scores.keys() & second.scores.keys())
    if not common:
        nothing = Estimate(first.estimate.mean - second.estimate.mean, 0, None, None)
        return Paired(nothing, None, None, "no seed has a run of each")
    means, others = (_part_means(each.parts[seed] for seed in common) for each in (first, second))
    return paired(list(means.values()), [others[part] for part in means], shared)
