"""Answers for a paper's checklist: runs, selection rule, variance, seeds, splits, test set, hardware and software.

The questions are those of the NeurIPS Paper Checklist, the ACL Responsible NLP Checklist, and J. Dodge et al., "Show
your work: improved reporting of experimental results", EMNLP 2019. What was not done or not recorded is stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.trial import TrialState

from hpo.results.confirm.result import Confirmation
from hpo.results.confirm.text import runs_text, winner_line
from hpo.results.effort import UNKNOWN, Effort
from hpo.results.figures.source import Source, in_words
from hpo.results.ranking import score
from hpo.results.study_facts import states_line
from hpo.storage import StudySummary
from hpo.storage.test_evaluations import completed, evaluations_of
from hpo.studyfile import AnyStudy, ObjectiveStudy, Study

SCORED = {"last": "after the last epoch", "best": "after its best epoch"}
INTERVALS = "95% intervals by Student's t, simultaneous by Bonferroni; paired t-tests, corrected by Holm's method"
RESAMPLED = "; with the correction of Nadeau and Bengio (2003) for splits that share training examples"


def checklist(
    study: AnyStudy,
    found: StudySummary,
    confirmation: Confirmation | None,
    data: dict[str, Any],
    efforts: Sequence[Effort],
) -> list[tuple[str, str]]:
    """Return questions and answers; `efforts` are those of the search and of its confirmations."""
    machines = dict.fromkeys(machine for effort in efforts for machine in effort.machines)
    programs = dict.fromkeys(versions for effort in efforts for versions in effort.versions)
    return [
        ("number of runs", _runs(study, found, confirmation)),
        ("selection rule", _selection(study, confirmation)),
        ("variance", _variance(study, confirmation)),
        ("seeds", _seeds(study, confirmation)),
        ("splits", _splits(study, confirmation)),
        *([] if isinstance(study, ObjectiveStudy) else [("test set", _test(found, data))]),
        ("hardware", "; ".join(machines) or UNKNOWN),
        ("software", "; ".join(programs) or UNKNOWN),
    ]


def expected_best(study: AnyStudy, source: Source) -> list[tuple[str, str]]:
    """Return the expected best score of n trials, for some n (Dodge et al. 2019).

    Empty where the estimate does not hold: it needs configurations drawn at random, each trained to the end.
    """
    trials = source.ended(TrialState.COMPLETE)
    if study.search.sampler != "random" or study.search.repeats > 1 or len(trials) < max(2, len(source.trials)):
        return []
    scores = sorted(map(score, trials), reverse=study.search.minimized)  # the best one last
    count, sizes = len(scores), [1]
    while 2 * sizes[-1] < count:
        sizes.append(2 * sizes[-1])
    return [
        (str(n), f"{sum(value * ((i / count) ** n - ((i - 1) / count) ** n) for i, value in enumerate(scores, 1)):.4f}")
        for n in [*sizes, count]
    ]


def _runs(study: AnyStudy, found: StudySummary, confirmation: Confirmation | None) -> str:
    search = f"search: {states_line(found.states, found.frozen)} of {study.search.trials} trials"
    if study.search.repeats > 1:
        search += f", {study.search.repeats} of each configuration"
    if confirmation is None:
        return search
    configurations = len(confirmation.ranked) + len(confirmation.lost)
    runs = sum(len(each.scores) for each in confirmation.ranked)
    return f"{search}; confirmation: {runs} completed runs of {configurations} configurations"


def _selection(study: AnyStudy, confirmation: Confirmation | None) -> str:
    after = f" {SCORED[study.search.score]}" if isinstance(study, Study) else ""
    metric = f"{in_words(study.search.first_metric)}{after}"
    if confirmation is None:
        return f"the best trial by {metric}; not confirmed, so its score is optimistic"
    could_win = sum(each.candidate.can_win for each in confirmation.ranked)
    could_win += sum(each.can_win for each in confirmation.lost)
    return (
        f"the best mean {metric} over {runs_text(confirmation)}, among the {could_win} best configurations of the "
        "search by the same metric"
    )


def _variance(study: AnyStudy, confirmation: Confirmation | None) -> str:
    if confirmation is not None:
        spread = "" if (sd := confirmation.winner.estimate.sd) is None else f", standard deviation {sd:.4f}"
        return f"{winner_line(confirmation)}{spread}. {INTERVALS}{RESAMPLED if confirmation.splits else ''}"
    if study.search.repeats > 1:
        return f"{study.search.repeats} runs of each configuration: hpo compare has their intervals"
    if isinstance(study, Study) and study.data.folds is not None:
        return f"over the {study.data.folds} folds of a trial; of seeds none: each configuration was trained once"
    return "none: each configuration was trained once"


def _seeds(study: AnyStudy, confirmation: Confirmation | None) -> str:
    used = f"search.seed = {study.search.seed}, from which each trial's seed follows by its number"
    if confirmation is None:
        return used
    return f"{used}; confirmation: {confirmation.seeds} fresh seeds, the same for each configuration"


def _splits(study: AnyStudy, confirmation: Confirmation | None) -> str:
    if isinstance(study, ObjectiveStudy):
        return "chosen by the objective function"
    data = study.data
    if data.folds is not None:
        split = f"{data.folds} folds of the training data"
    elif data.order is not None:
        split = f"the last {data.fraction:.0%} of the training data in time order validate"
    else:
        split = f"a validation split of the training data ({data.fraction:.0%}), or the validation set of the data"
    by_group = f", by groups of {data.groups}" if data.groups is not None else ""
    confirmed = "" if confirmation is None else f"; confirmation: {runs_text(confirmation)}"
    return f"{split}{by_group}, data.split_seed = {data.split_seed}{confirmed}"


def _test(found: StudySummary, data: dict[str, Any]) -> str:
    if data.get("test") == 0:
        return "none: the data have no test set"
    evaluations = len(completed(evaluations_of(found.user_attrs)))
    times = {0: "not evaluated", 1: "evaluated once"}.get(evaluations, f"evaluated {evaluations} times")
    return f"sealed: no part of the search and the confirmation reads it; {times} by hpo test"
