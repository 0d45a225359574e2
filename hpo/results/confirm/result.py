"""What a confirming study found: each configuration's mean over fresh seeds, and how far they differ.

Configurations are ranked by the mean of their runs; the winner is the best of those that the search chose. All were
trained under the same seeds and on the same batches, so differences are paired, and p values are corrected (by Holm's
method) for the number of comparisons: the winner was itself chosen by these runs. Reads studies and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from hpo.errors import HpoError
from hpo.results.compare.statistics import Estimate, Paired, estimate, holm, paired
from hpo.results.confirm.study import CONFIRMS, Candidate, confirmations, original_name
from hpo.results.ranking import score
from hpo.results.unranked import what_became
from hpo.search.space import settings
from hpo.search.study_records import stored_study, trial_target
from hpo.storage import Storage, StudyState, StudySummary, load_study, state_of, summary
from hpo.studyfile import Study
from hpo.text import hpo_command

FAILED = "every run of the configurations that the search chose has failed"


@dataclass(frozen=True)
class Confirmed:
    """A configuration's runs: the score by seed, their mean, and how many runs failed (those have no score)."""

    candidate: Candidate
    scores: Mapping[int, float]
    failed: int
    estimate: Estimate

    @property
    def optimism(self) -> float | None:
        """Its score in the search less its mean under fresh seeds."""
        return None if self.candidate.score is None else self.candidate.score - self.estimate.mean


@dataclass(frozen=True)
class Difference:
    """The winner's scores less another configuration's, over the seeds that both have; `p` is the corrected one."""

    pairs: Paired
    p: float | None


@dataclass(frozen=True)
class Confirmation:
    """The configurations of study `original`, best mean first, but for those in `lost`: none of their runs has a score.

    `left` is how many runs are not finished, `foreign` how many another program has added, which are left out. `gain`
    is the winner's difference to the baseline, None where that has no run or is the winner; `others` are its
    differences to the other configurations that the search chose, by title. For a loss, less is better.
    """

    study: Study
    original: str
    seeds: int
    left: int
    foreign: int
    ranked: tuple[Confirmed, ...]
    winner: Confirmed
    gain: Difference | None
    others: Mapping[str, Difference]
    lost: tuple[Candidate, ...]

    @property
    def baseline(self) -> Confirmed | None:
        """The configuration to beat, unless all of its runs failed."""
        return next((each for each in self.ranked if each.candidate.baseline), None)


def find_confirmation(storage: Storage, name: str) -> Confirmation | None:
    """Return the last finished confirmation of a study; None where it has not been confirmed.

    Raises HpoError where a confirmation has begun and none is finished.
    """
    confirming = confirmations(storage, name)
    finished = [each for each in confirming if runs_left(each) == 0]
    if not confirming:
        return None
    last = (finished or confirming)[-1]
    check_finished(last, name)
    return of_study(storage, last.name)


def check_finished(confirming: StudySummary, original: str) -> None:
    """Raise HpoError with what to do, where the study that confirms the one called `original` has runs left."""
    if left := runs_left(confirming):
        name, state = confirming.name, state_of(confirming.user_attrs)
        whose = f"study '{original}': its confirmation '{name}'"
        if state in (StudyState.PAUSED, StudyState.STOPPED):
            advice = f"is {state.value} with {left} runs left; `{hpo_command('resume', name)}`, then `hpo confirm`"
            raise HpoError(f"{whose} {advice} again, goes on with it")
        raise HpoError(f"{whose} is not finished; `hpo confirm` goes on with it")


def runs_left(confirming: StudySummary) -> int:
    """Return how many runs of a confirming study are not finished."""
    done = sum(count for state, count in confirming.states.items() if state.is_finished())
    return max(0, (trial_target(confirming.user_attrs) or 0) - done)


def of_study(storage: Storage, confirming: str) -> Confirmation:
    """Return what the confirming study of that name has found, so far where it has runs left.

    Raises HpoError where no run of the configurations that the search chose has a score.
    """
    stored = load_study(storage, confirming)
    study, held = stored_study(stored), summary(storage, confirming)
    record, left = held.user_attrs[CONFIRMS], runs_left(held)
    candidates = [Candidate(**fields) for fields in record["candidates"]]
    trials = stored.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    own = [trial for trial in trials if trial.state == TrialState.FAIL or "seed" in trial.user_attrs]
    runs = _runs(study, candidates, own)
    kept = {each.candidate.label for each in runs}
    sign = 1.0 if study.search.minimized else -1.0
    ranked = sorted(runs, key=lambda each: (each.failed > 0, sign * each.estimate.mean))
    searched = [each for each in ranked if each.candidate.score is not None]
    if not searched:
        what = "no run of the configurations that the search chose is finished" if left else FAILED
        raise HpoError(f"study '{confirming}': {what}: {what_became(storage, held)}")
    winner, baseline = searched[0], next((each for each in ranked if each.candidate.baseline), None)
    others = _differences([(winner, each) for each in searched[1:]])
    gains: list[Difference] = []
    if baseline is not None and baseline is not winner:
        gains = _differences([(each, baseline) for each in searched if each is not baseline])  # the winner's is first
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
        lost=tuple(candidate for candidate in candidates if candidate.label not in kept),
    )


def _runs(study: Study, candidates: Sequence[Candidate], trials: Sequence[FrozenTrial]) -> list[Confirmed]:
    """Return the candidates that have a run with a score, with all of theirs."""
    runs: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        runs.setdefault(settings(study, trial.params), []).append(trial)
    found = []
    for candidate in candidates:
        own = runs.get(settings(study, candidate.params), [])
        known = {trial.user_attrs["seed"]: score(trial) for trial in own if trial.state == TrialState.COMPLETE}
        if known:
            found.append(Confirmed(candidate, known, len(own) - len(known), estimate(list(known.values()))))
    return found


def _differences(pairs: Sequence[tuple[Confirmed, Confirmed]]) -> list[Difference]:
    """Return the differences of each pair, the first less the second, with p values corrected for their number."""
    compared = [_paired(*pair) for pair in pairs]
    return [Difference(each, p) for each, p in zip(compared, holm([each.p for each in compared]), strict=True)]


def _paired(first: Confirmed, second: Confirmed) -> Paired:
    common = sorted(first.scores.keys() & second.scores.keys())
    if not common:
        nothing = Estimate(first.estimate.mean - second.estimate.mean, 0, None, None)
        return Paired(nothing, None, None, "no seed has a run of both")
    return paired([first.scores[seed] for seed in common], [second.scores[seed] for seed in common])
