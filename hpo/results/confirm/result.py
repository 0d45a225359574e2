"""The result of a confirmation, read from its stored study: the runs of each configuration, and their ranking.

`inference` has the statistics. Reads studies and changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from hpo.errors import HpoError
from hpo.results.confirm.confirmed_ensemble import ConfirmedEnsemble, confirmed_ensemble
from hpo.results.confirm.inference import ConfirmedConfiguration, Difference, Part, Ranking, Runs, rank
from hpo.results.confirm.study import CONFIRMS, Candidate, confirmations, original_name
from hpo.results.no_best_trial import trial_outcomes
from hpo.results.ranking import by_configuration, score
from hpo.results.study_facts import overlap
from hpo.results.trivial_baseline import TrivialBaseline, trivial_baseline_of
from hpo.search.points import SEED, trial_split
from hpo.search.space import config_of, settings
from hpo.search.study_records import DATA, any_stored_study, trial_target
from hpo.storage import Storage, StudyState, StudySummary, load_study, state_of, summary
from hpo.studyfile import AnyStudy, ObjectiveStudy, Study
from hpo.text import hpo_command

FAILED = "every run of the search's configurations has failed"


@dataclass(frozen=True)
class Confirmation:
    """A confirmation of the study `original`: its configurations, best mean first.

    `lost` are the configurations whose runs all failed. `left` runs are not finished; `foreign` runs were added by
    another program and are ignored. `trivial` is the trivial baseline of its data, `splits_why` the reason for its
    splits, "" where it is unknown. `ensemble` is the ensemble that was confirmed with it, if any.
    """

    study: AnyStudy
    original: str
    seeds: int
    left: int
    foreign: int
    ranking: Ranking
    lost: tuple[Candidate, ...]
    trivial: TrivialBaseline | None
    splits_why: str = ""
    ensemble: ConfirmedEnsemble | None = None

    @property
    def ranked(self) -> tuple[ConfirmedConfiguration, ...]:
        """All configurations with a score, best mean first."""
        return self.ranking.configurations

    @property
    def winner(self) -> ConfirmedConfiguration:
        """The winner: the configuration with the best mean of those that the search ranked best."""
        return self.ranking.winner

    @property
    def gain(self) -> Difference | None:
        """The winner minus the baseline; None where the baseline has no run or is the winner."""
        return self.ranking.gain

    @property
    def first_gain(self) -> Difference | None:
        """The winner minus the first trial; None where that is unknown, has no run, or is the winner or baseline."""
        return self.ranking.first_gain

    @property
    def others(self) -> Mapping[str, Difference]:
        """The winner minus each other of the best configurations of the search, by title."""
        return self.ranking.others

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

    def is_better(self, first: ConfirmedConfiguration, second: ConfirmedConfiguration) -> bool:
        """Return whether the mean of the first is better."""
        one, other = first.estimate.mean, second.estimate.mean
        return one < other if self.study.search.minimized else one > other

    @property
    def baseline(self) -> ConfirmedConfiguration | None:
        """The baseline, None where all of its runs failed."""
        return next((each for each in self.ranked if each.candidate.baseline), None)

    @property
    def first(self) -> ConfirmedConfiguration | None:
        """The configuration of the first trial, None where all of its runs failed, or it was not confirmed."""
        return next((each for each in self.ranked if each.candidate.first), None)


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
    runs = _runs(study, candidates, own)
    found_labels = {each.candidate.label for each in runs}
    shared = overlap(found.user_attrs.get(DATA, {}))
    ranking = rank(runs, study.search.minimized, shared)
    if ranking is None:
        problem = "no run of the search's configurations is finished" if left else FAILED
        raise HpoError(f"study '{confirming}': {problem}: {trial_outcomes(storage, found)}")
    original = original_name(storage, record)
    has_splits = isinstance(study, Study) and study.data.splits is not None
    return Confirmation(
        study=study,
        original=original,
        seeds=record["seeds"],
        left=left,
        foreign=len(trials) - len(own),
        ranking=ranking,
        lost=tuple(candidate for candidate in candidates if candidate.label not in found_labels),
        trivial=trivial_baseline_of(study, found.user_attrs.get(DATA, {})),
        splits_why=record.get("splits_why", ""),
        ensemble=confirmed_ensemble(found.user_attrs, original, ranking, shared, has_splits),
    )


def _parts(study: AnyStudy, trial: FrozenTrial) -> dict[Part, float]:
    """Return the score of a run on each part of the data."""
    if not isinstance(study, Study) or study.data.splits is None:
        return {(trial.user_attrs[SEED],): score(trial)}
    split, folds = trial_split(study, trial.number), trial.user_attrs.get("fold_scores")
    return {(split,): score(trial)} if not folds else {(split, fold): each for fold, each in enumerate(folds)}


def _runs(study: AnyStudy, candidates: Sequence[Candidate], trials: Sequence[FrozenTrial]) -> list[Runs]:
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
            found.append(Runs(candidate, known, parts, len(own) - len(known), first.distributions))
    return found
