"""What a comparison says of curves whose numbers are known, and what it leaves out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import pytest
import scipy.stats
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from stored_studies import run, tree

from hpo.errors import UsageError
from hpo.results.compare.runs import groups
from hpo.results.compare.table import Row, compare, comparison_tree, text
from hpo.storage import Storage
from hpo.text import json_text

Store = Callable[..., optuna.Study]
RATES = CategoricalDistribution([0.0, 0.3, 0.5])
NORM = CategoricalDistribution([True, False])
REASON = "diverged: train_loss is nan after epoch 1"


def grid(**network: Any) -> dict[str, Any]:
    made = tree(network={"dropout": {"choices": [0.0, 0.3, 0.5]}, **network}, search={"sampler": "grid", "repeats": 3})
    made["optimizer"]["lr"] = 0.1
    return made


def rate(dropout: float, seed: int | None = 0, **curves: Any) -> FrozenTrial:
    return run({"dropout": dropout}, {"dropout": RATES}, seed=seed, **curves)


def final(by_rate: Mapping[float, Sequence[float]]) -> list[FrozenTrial]:
    """Runs that end with these accuracies, under the seeds 0, 1, 2 and so on."""
    return [
        rate(dropout, seed, val=[value]) for dropout, values in by_rate.items() for seed, value in enumerate(values)
    ]


def rows(storage: Storage, *names: str, by: str | None = None) -> list[Row]:
    return compare(groups(storage, names or ["digits"]), by)


def test_a_runs_numbers_by_hand(storage: Storage, stored: Store) -> None:
    made = rate(
        0.0,
        val=[0.1, 0.75, 0.76, 0.8, 0.7],
        val_loss=[2.0, 0.5, 0.25, 0.75, 1.0],
        train=[0.2, 0.8, 0.85, 0.9, 0.95],
        train_loss=[2.5, 1.5, 0.8, 0.4, 0.125],
    )
    stored([made], grid())
    (row,) = rows(storage)
    assert row.summary is not None
    assert {name: each.mean for name, each in row.summary.final.items()} == {
        "train_loss": 0.125,
        "train_accuracy": 0.95,
        "val_loss": 1.0,
        "val_accuracy": 0.7,
    }
    assert {name: each.mean for name, each in row.summary.best.items()} == {"val_accuracy": 0.8, "val_loss": 0.25}
    assert row.summary.gap.mean == pytest.approx(0.25)
    assert row.summary.epochs_to_95.mean == 3  # 0.95 x 0.8 = 0.76, which epoch 2 misses and epoch 3 reaches
    assert row.summary.gap.sd is None


def test_numbers_are_means_over_runs(storage: Storage, stored: Store) -> None:
    runs = [rate(0.0, 1, val=[0.9, 0.5], train=[0.5, 0.7]), rate(0.0, 2, val=[0.1, 0.7], train=[0.5, 0.9])]
    stored(runs, grid())
    (row,) = rows(storage)
    assert row.summary is not None
    accuracy = row.summary.final["val_accuracy"]
    assert (accuracy.mean, accuracy.n, accuracy.sd) == (pytest.approx(0.6), 2, pytest.approx(0.02**0.5))
    # each run has a best epoch and a 95% of its own: 0.9 in the first, 0.7 in the second
    assert row.summary.best["val_accuracy"].mean == pytest.approx(0.8)
    assert row.summary.epochs_to_95.mean == 1.5
    assert row.summary.gap.mean == pytest.approx(0.2)


def test_runs_are_paired_by_seed_with_the_first(storage: Storage, stored: Store) -> None:
    seeds = {0.0: [3, 1, 2, 9], 0.3: [2, 3, 1]}
    values = {0.0: [0.5, 0.6, 0.7, 0.1], 0.3: [0.8, 0.75, 0.65]}
    stored([rate(each, s, val=[v]) for each in seeds for s, v in zip(seeds[each], values[each], strict=True)], grid())
    first, second = rows(storage)
    assert (first.reference, first.paired, first.p) == (None, None, None)
    assert second.reference is first.group
    expected = scipy.stats.ttest_rel([0.65, 0.8, 0.75], [0.6, 0.7, 0.5])  # seeds 1, 2 and 3
    assert second.paired is not None
    assert second.paired.difference.mean == pytest.approx(0.4 / 3)
    assert second.paired.t == pytest.approx(expected.statistic)
    assert second.p == second.paired.p == pytest.approx(expected.pvalue)


def test_several_tests_are_corrected(storage: Storage, stored: Store) -> None:
    stored(final({0.0: [0.5, 0.6, 0.7], 0.3: [0.52, 0.64, 0.75], 0.5: [0.8, 0.85, 1.0]}), grid())
    _, second, third = rows(storage)
    raw = [row.paired.p for row in (second, third) if row.paired is not None and row.paired.p is not None]
    low, high = sorted(raw)
    corrected = {low: 2 * low, high: max(2 * low, high)}
    assert [second.p, third.p] == pytest.approx([corrected[p] for p in raw])


@pytest.mark.parametrize(
    ("seeds", "why"),
    [
        ([0, 5], "a test needs two common seeds, they have 1; set search.repeats"),
        ([5, 6], "a test needs two common seeds, they have none; set search.repeats"),
        ([None, None], "a test needs two common seeds, they have none; set search.repeats"),
    ],
)
def test_without_two_common_seeds_there_is_no_test(
    storage: Storage, stored: Store, seeds: list[int | None], why: str
) -> None:
    stored([*final({0.0: [0.5, 0.6]}), *(rate(0.3, seed, val=[0.7]) for seed in seeds)], grid())
    _, second = rows(storage)
    assert (second.paired, second.p, second.why) == (None, None, why)
    assert f"no test of dropout: 0.3 against dropout: 0.0: {why}" in text(rows(storage))


def test_runs_on_other_images_are_no_pairs(storage: Storage, stored: Store) -> None:
    stored(final({0.0: [0.5, 0.6]}), grid(), "one")
    other = stored(final({0.0: [0.6, 0.8]}), grid(), "two")
    assert rows(storage, "one", "two")[1].paired is not None
    other.set_user_attr("hpo:data", {**other.user_attrs["hpo:data"], "split_sha256": "e" * 64})
    assert rows(storage, "one", "two")[1].why == "their data or splits differ"


def test_each_facet_has_a_reference_of_its_own(storage: Storage, stored: Store) -> None:
    space = {"dropout": RATES, "batch_norm": NORM}
    places = [(0.0, True), (0.0, False), (0.3, True), (0.3, False)]
    values = {place: [0.1 * index, 0.1 * index + 0.01 * index**2] for index, place in enumerate(places, start=1)}
    trials = [
        run({"dropout": place[0], "batch_norm": place[1]}, space, seed=seed, val=[value])
        for place in places
        for seed, value in enumerate(values[place])
    ]
    stored(trials, grid(batch_norm={"choices": [True, False]}))
    found = rows(storage, by="dropout")
    assert [row.group.numbers for row in found] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    references = [row.reference and row.reference.numbers for row in found]
    assert references == [None, (0, 1), None, (4, 5)]
    by_norm = rows(storage, by="batch_norm")
    assert [row.group.numbers for row in by_norm] == [(0, 1), (4, 5), (2, 3), (6, 7)]
    with pytest.raises(UsageError, match="--by: 'lr' is not searched"):
        rows(storage, by="lr")


def test_the_table(storage: Storage, stored: Store) -> None:
    stored([*final({0.0: [0.5, 0.6], 0.3: [0.75, 0.8]}), rate(0.5, failed=REASON)], grid())
    heading, first, second, third, *rest = text(rows(storage)).splitlines()
    columns = "configuration trials val acc best val loss best train acc gap to 95% difference p"
    assert " ".join(heading.split()) == columns
    assert first.startswith("dropout: 0.0   0-1: 2 complete  0.5500 ± 0.0707  0.5500 ± 0.0707  1.0000 ± 0.0000")
    assert first.endswith("-0.0500 ± 0.0707  1.0     -                           -")
    difference, p = second.split("  ")[-2:]
    # differences 0.25 and 0.2: their mean 0.225 +- t(1; 0.975) x 0.025 = 12.7062 x 0.025
    assert (difference.strip(), p) == ("+0.2250 [-0.0927, +0.5427]", "0.0704")
    assert third.startswith("dropout: 0.5   4: 1 failed      -  ")
    assert rest[0].startswith("mean ± standard deviation over runs; gap: ")
    assert rest[1].startswith("difference: val acc minus that of the first")
    assert rest[2:] == [f"dropout: 0.5: failed: {REASON}"]


def test_a_single_configuration_is_named_below(storage: Storage, stored: Store) -> None:
    stored([rate(0.3, val=[0.5, 0.75])], grid())
    _, row, legend, which = text(rows(storage)).splitlines()
    cells = [cell.strip() for cell in row.split("  ") if cell]
    assert cells[:2] == ["digits", "0: 1 complete"]
    assert cells[2:] == ["0.7500", "0.7500", "1.0000", "1.0000", "0.5000", "-0.2500", "2", "-", "-"]
    assert legend.startswith("mean ")
    assert which == "digits: dropout: 0.3"


def test_what_was_compared_with_nothing_says_so(storage: Storage, stored: Store) -> None:
    stored([rate(0.0, failed=REASON), *final({0.3: [0.5, 0.6]})], grid())
    lines = text(rows(storage)).splitlines()
    assert lines[-2:] == [
        f"dropout: 0.0: failed: {REASON}",
        "no test of dropout: 0.3 against dropout: 0.0: no run of the reference has completed",
    ]


def test_a_configuration_that_exceeds_a_limit_says_why_it_was_not_trained(storage: Storage, stored: Store) -> None:
    made = rate(0.5, failed="9,000 parameters, more than search.limits.parameters = 8,000")
    made.state = TrialState.PRUNED
    stored([*final({0.3: [0.5, 0.6]}), made], grid())
    line = "dropout: 0.5: not trained: 9,000 parameters, more than search.limits.parameters = 8,000"
    assert text(rows(storage)).splitlines()[-1] == line


def test_the_numbers_as_json(storage: Storage, stored: Store) -> None:
    values = {0.0: [0.5, 0.6], 0.3: [0.75, 0.8 + 1e-9]}
    stored([*final(values), rate(0.5, failed=REASON)], grid())
    first, second, third = json.loads(json_text(comparison_tree(rows(storage))))["groups"]
    assert (first["study"], first["label"], first["params"]) == ("digits", "dropout: 0.0", {"dropout": 0.0})
    assert (first["trials"], first["seeds"]) == ([0, 1], [0, 1])
    assert (first["test"], first["reference"], first["no_test_because"]) == (None, None, None)
    assert second["summary"]["final"]["val_accuracy"]["mean"] == np.mean(values[0.3])
    assert second["reference"] == "dropout: 0.0"
    assert second["test"]["difference"]["mean"] == pytest.approx(0.225 + 5e-10, abs=1e-12)
    assert second["test"]["p"] == second["test"]["p_corrected"]
    assert third["summary"] is None
    assert third["states"]["failed"] == 1
    assert third["reasons"] == [REASON]


def test_what_is_not_finite_is_a_word_and_what_is_not_there_null(storage: Storage, stored: Store) -> None:
    stored([rate(0.0, val_loss=[float("inf")]), rate(0.0, 1)], grid())
    (only,) = json.loads(json_text(comparison_tree(rows(storage))))["groups"]
    assert only["summary"]["final"]["val_loss"] == {"mean": "Infinity", "sd": None, "n": 2, "low": None, "high": None}


def test_a_completed_trial_without_a_curve_is_left_out_and_named(storage: Storage, stored: Store) -> None:
    bare = rate(0.0, 1)
    bare.system_attrs = {}
    stored([rate(0.0, 0, val=[0.75]), bare], grid())
    (row,) = rows(storage)
    assert row.summary is not None
    assert row.summary.final["val_accuracy"].n == 1
    assert "digits: completed trials without a learning curve are left out" in text([row]).splitlines()
