"""Comparison of groups: final and best values, generalization gap, epochs to 95%, and paired tests.

Each number is a mean over the group's runs. Runs of two groups with equal seeds are pairs (same initial random numbers,
same batches), so the paired differences of the final metric are tested: the metric of the groups' network studies, or
the first value of an objective function. Where that metric is the loss or differs, it is the validation accuracy; the
loss for tasks without one. Each group is compared with the first one, or with the first one of the same `by` value, and
p values are corrected for their number. Knows nothing of storages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from optuna.trial import TrialState

from hpo.results.compare.runs import ACCURACY, LOSS, Group, groups_by_value, tested_metric
from hpo.results.compare.statistics import Estimate, Paired, estimate, holm, paired
from hpo.results.ranking import metric_label
from hpo.results.study_facts import counts_by_state, states_line
from hpo.studyfile.metrics import SUMS
from hpo.studyfile.objective import VALUE
from hpo.text import columns, number_ranges, printable

SHARE_OF_BEST = 0.95
HEADING = ("configuration", "trials")
NETWORK_HEADING = ("{metric}", "best", "val loss", "best", "{train}", "gap", "to 95%")
BEST_REPORTED = "best reported"
TEST_HEADING = ("difference", "p")
RUNS_LEGEND = "mean ± standard deviation over runs; "
NETWORK_LEGEND = "gap: {gap} at the end{epochs}"
OBJECTIVE_LEGEND = f"{BEST_REPORTED}: the best value of trial.report in a run"
TEST_LEGEND = (
    "difference: {metric} minus that of the first with the same seed, with its 95% interval; p: paired t-test, "
    "corrected by Holm's method for the number of tests"
)


WORDS = {
    True: {
        "train": "train acc",
        "gap": "training minus validation accuracy",
        "epochs": "; to 95%: epochs until 95% of the run's best accuracy",
    },
    False: {"train": "train loss", "gap": "validation minus training loss", "epochs": ""},
}
"""Words of heading and legend: for classifications, which have an accuracy, and for other tasks."""


@dataclass(frozen=True)
class Summary:
    """Statistics of a group's runs: accuracies as fractions, losses in nats, or the values of an objective function.

    `metric` is the one that is tested. `gap` is that of the accuracy, else of the loss. Epochs to 95% of the best
    accuracy are known where there is one. `best` has the best values of the learning curves; that of an objective
    function is empty unless every run has reported values, and it has no gap.
    """

    metric: str
    final: Mapping[str, Estimate]
    best: Mapping[str, Estimate]
    gap: Estimate | None = None
    epochs_to_95: Estimate | None = None


@dataclass(frozen=True)
class Row:
    """A group, its statistics, and its test against a reference group.

    A group without runs has no summary; a reference has no reference. `p` is corrected. Where there is no test, `why`
    is the reason.
    """

    group: Group
    summary: Summary | None
    reference: Group | None = None
    paired: Paired | None = None
    p: float | None = None
    why: str = ""


def compare(groups: Sequence[Group], by: str | None = None) -> list[Row]:
    """Return a row for each group, compared with the first group, or the first one with the same value of `by`."""
    parts = [groups] if by is None else list(groups_by_value(groups, by).values())
    metric = tested_metric(groups)
    rows = [_row(group, None if group is part[0] else part[0], metric) for part in parts for group in part]
    corrected = holm([None if row.paired is None else row.paired.p for row in rows])
    return [
        Row(row.group, row.summary, row.reference, row.paired, p, row.why)
        for row, p in zip(rows, corrected, strict=True)
    ]


def text(rows: Sequence[Row]) -> str:
    """Return the table, what its columns mean, and what it has to leave out, with the reasons."""
    heading, legend = _heading(rows), _legend(rows)
    cells = [_cells(row, heading) for row in rows]
    return "\n".join([columns([heading, *cells]), *legend, *map(printable, _notes(rows))])


def _words(rows: Sequence[Row]) -> dict[str, str]:
    """Return the words of heading and legend."""
    groups = [row.group for row in rows]
    words = WORDS[all(group.is_classification for group in groups)]
    return {"metric": metric_label(tested_metric(groups)), **words}


def _heading(rows: Sequence[Row]) -> tuple[str, ...]:
    group = rows[0].group
    if not group.objective:
        words = _words(rows)
        return (*HEADING, *(cell.format_map(words) for cell in NETWORK_HEADING), *TEST_HEADING)
    reported = any(row.summary is not None and row.summary.best for row in rows)
    return (*HEADING, *group.metrics, *([BEST_REPORTED] if reported else []), *TEST_HEADING)


def _legend(rows: Sequence[Row]) -> list[str]:
    """Return the meaning of the columns."""
    objective, words = rows[0].group.objective, _words(rows)
    what = OBJECTIVE_LEGEND if BEST_REPORTED in _heading(rows) else "" if objective else NETWORK_LEGEND
    lines = [(RUNS_LEGEND + what).removesuffix("; "), *([TEST_LEGEND] if len(rows) > 1 else [])]
    return [line.format_map(words) for line in lines]


def comparison_tree(rows: Sequence[Row]) -> dict[str, Any]:
    """Return all numbers, unrounded, as dictionaries and lists; None where there is none."""
    return {"groups": [_tree(row) for row in rows]}


def summarize(group: Group, metric: str) -> Summary | None:
    """Return the statistics of the group's runs and of the metric to test; None where no run has completed."""
    if not group.runs:
        return None
    if group.objective:
        final = {each: estimate([run.final[each] for run in group.runs]) for each in group.metrics}
        return Summary(metric, final, _best_reported(group))
    classes = group.is_classification
    known = SUMS["classification" if classes else "regression"]
    curves = {key: group.curves(key) for key in dict.fromkeys((*known, metric))}
    lower = metric == LOSS or (group.minimized and metric == group.metrics[0])
    best = {LOSS: estimate(curves[LOSS].min(axis=1))}
    if classes:
        accuracy = curves[ACCURACY]
        soon_enough = accuracy >= SHARE_OF_BEST * accuracy.max(axis=1, keepdims=True)
        best = {ACCURACY: estimate(accuracy.max(axis=1)), **best}
        gap = curves["train_accuracy"][:, -1] - accuracy[:, -1]
    else:
        gap = curves[LOSS][:, -1] - curves["train_loss"][:, -1]
    return Summary(
        metric=metric,
        final={key: estimate(values[:, -1]) for key, values in curves.items()},
        best={**best, metric: estimate((curves[metric].min if lower else curves[metric].max)(axis=1))},
        gap=estimate(gap),
        epochs_to_95=estimate(1 + soon_enough.argmax(axis=1)) if classes else None,
    )


def _best_reported(group: Group) -> dict[str, Estimate]:
    """Return the best of the reported values; {} where a run has reported none, or NaN only."""
    best = min if group.minimized else max
    values = [[value for value in run.curve.get(VALUE, ()) if not math.isnan(value)] for run in group.runs]
    return {VALUE: estimate([best(each) for each in values])} if all(values) else {}


def _row(group: Group, reference: Group | None, metric: str) -> Row:
    summary = summarize(group, metric)
    if reference is None:
        return Row(group, summary)
    if group.split_sha256 != reference.split_sha256:
        return Row(group, summary, reference, why="their data or splits differ")
    if not reference.runs:
        return Row(group, summary, reference, why="no run of the reference has completed")
    seeds = [_final_by_seed(each, metric) for each in (group, reference)]
    common = sorted(seeds[0].keys() & seeds[1].keys())
    if len(common) < 2:
        advice = "set search.points and search.repeats" if group.objective else "set search.repeats"
        why = f"a test needs two common seeds, they have {len(common) or 'none'}; {advice}"
        return Row(group, summary, reference, why=why)
    first, second = ([of[seed] for seed in common] for of in seeds)
    found = paired(first, second, group.overlap)
    return Row(group, summary, reference, found, why=found.why)


def _final_by_seed(group: Group, metric: str) -> dict[int, float]:
    """Return the final value of a metric by seed; of several runs with one seed, that of the first."""
    return {run.seed: run.final[metric] for run in reversed(group.runs) if run.seed is not None}


def _cells(row: Row, heading: Sequence[str]) -> list[str]:
    group, found = row.group, row.summary
    head = [group.label(), f"{number_ranges(group.numbers)}: {states_line(group.states)}"]
    if found is None:
        return [*head, *["-"] * (len(heading) - len(head))]
    p = "-" if row.p is None else "<0.0001" if row.p < 1e-4 else f"{row.p:.4f}"
    return [*head, *_statistics(group, found, heading), _difference(row.paired), p]


def _statistics(group: Group, found: Summary, heading: Sequence[str]) -> list[str]:
    if found.gap is None:
        best = [_mean(found.best[VALUE]) if found.best else "-"] if BEST_REPORTED in heading else []
        return [*(_mean(found.final[metric]) for metric in group.metrics), *best]
    pairs = [(found.final[metric], found.best[metric]) for metric in (found.metric, LOSS)]
    train = found.final["train_accuracy" if WORDS[True]["train"] in heading else "train_loss"]
    means = [_mean(each) for pair in pairs for each in pair]
    epochs = found.epochs_to_95
    to_95 = "-" if epochs is None else f"{epochs.mean:.1f}" if epochs.n > 1 else f"{epochs.mean:.0f}"
    return [*means, _mean(train), _mean(found.gap, "+"), to_95]


def _mean(found: Estimate, sign: str = "") -> str:
    mean = f"{found.mean:{sign}.4f}"
    return mean if found.sd is None else f"{mean} ± {found.sd:.4f}"


def _difference(found: Paired | None) -> str:
    if found is None:
        return "-"
    difference = f"{found.difference.mean:+.4f}"
    interval = found.difference.interval
    return difference if interval is None else f"{difference} [{interval.low:+.4f}, {interval.high:+.4f}]"


def _notes(rows: Sequence[Row]) -> list[str]:
    # the label of a study's only group does not contain its parameters
    single = [row.group for row in rows if row.group.texts and not row.group.distinguishing]
    which = [f"{group.label()}: {', '.join(group.texts.values())}" for group in single]
    failed = [
        f"{row.group.label()}: {'failed' if TrialState.FAIL in row.group.states else 'not trained'}: {reason}"
        for row in rows
        for reason in row.group.reasons
    ]
    bare = [row.group for row in rows if row.group.states.get(TrialState.COMPLETE, 0) > len(row.group.runs)]
    missing = [f"{group.label()}: completed trials without a learning curve are left out" for group in bare]
    untested = [row for row in rows if row.why and row.summary is not None]
    notes = []
    for (reference, why), same in groupby(untested, key=lambda row: (row.reference, row.why)):
        names = "; ".join(row.group.label() for row in same)
        notes.append(f"no test of {names} against {'' if reference is None else reference.label()}: {why}")
    return which + failed + missing + notes


def _tree(row: Row) -> dict[str, Any]:
    group = row.group
    return {
        "study": group.study,
        "label": group.label(),
        "params": dict(group.params),
        "trials": list(group.numbers),
        "states": counts_by_state(group.states),
        "reasons": list(group.reasons),
        "seeds": [run.seed for run in group.runs],
        "summary": None if row.summary is None else _summary(row.summary),
        "reference": None if row.reference is None else row.reference.label(),
        "test": None if row.paired is None else {**_test(row.paired), "p_corrected": row.p},
        "no_test_because": row.why or None,
    }


def _summary(found: Summary) -> dict[str, Any]:
    return {
        "final": {metric: _estimate(value) for metric, value in found.final.items()},
        "best": {metric: _estimate(value) for metric, value in found.best.items()},
        "gap": None if found.gap is None else _estimate(found.gap),
        "epochs_to_95": None if found.epochs_to_95 is None else _estimate(found.epochs_to_95),
    }


def _test(found: Paired) -> dict[str, Any]:
    return {"difference": _estimate(found.difference), "t": found.t, "p": found.p}


def _estimate(found: Estimate) -> dict[str, float | None]:
    interval = found.interval
    return {
        "mean": found.mean,
        "sd": found.sd,
        "n": found.n,
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
    }
