"""Ranges narrowed around the best trials: what a person would choose, and what must hold whatever the trials are."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial
from stored_studies import tree

from hpo.errors import HpoError
from hpo.results.edges import edge_of
from hpo.results.narrow.next_study import changed_study
from hpo.results.narrow.ranges import best_configurations, changes
from hpo.search.space import belongs, candidate, check_space, count, distributions
from hpo.studyfile import Choices, Parameter, Range, Study, parse_study

LR = {"low": 1e-6, "high": 1e-2, "log": True}


def study_of(**changed: dict[str, Any]) -> Study:
    return parse_study(tree(**changed), "studies/digits.toml")


def lr_study(lr: dict[str, Any] | None = None, **search: Any) -> Study:
    return study_of(network={"dropout": 0.0}, optimizer={"lr": lr or LR}, search={"trials": 8, **search})


def trials_at(study: Study, points: list[dict[str, Any]], values: list[float] | None = None) -> list[FrozenTrial]:
    """Completed trials of the study, each worse than the one before, unless values are given."""
    space = distributions(study)
    reached = values or [0.9 - 0.01 * place for place in range(len(points))]
    return [
        create_trial(value=value, params=params, distributions=space)
        for params, value in zip(points, reached, strict=True)
    ]


def pruned_at(study: Study, lr: float, **values: float) -> FrozenTrial:
    """A trial pruned by halving; `values` are those at its rungs: `rung_3=0.5`."""
    return create_trial(
        state=TrialState.PRUNED,
        value=list(values.values())[-1],
        params={"lr": lr},
        distributions=distributions(study),
        system_attrs={f"hpo:rung:{key.removeprefix('rung_')}": [value] for key, value in values.items()},
    )


def test_configurations_that_halving_has_pruned_follow_the_completed_ones() -> None:
    study = lr_study(trials=60)
    completed = trials_at(study, [{"lr": 1e-3}, {"lr": 2e-3}], [0.9, 0.8])
    late = [pruned_at(study, 3e-3, rung_3=0.1, rung_9=0.70), pruned_at(study, 4e-3, rung_3=0.2, rung_9=0.75)]
    early = [pruned_at(study, 1e-5 * number, rung_3=0.99 - 0.01 * number) for number in range(1, 10)]
    again = [pruned_at(study, 1e-3, rung_3=0.99)]  # the configuration has a completed trial
    best = best_configurations(study, [*early, *late, *again, *completed])
    assert [each["lr"] for each in best.params] == [1e-3, 2e-3, 4e-3]
    assert (best.of, best.threshold, best.pruned) == (13, 0.8, 1)
    assert best_configurations(study, [*early, *completed[:1]]).params[1] == {"lr": 1e-5}
    other_pruner = [replace_attrs(trial) for trial in early]
    with pytest.raises(HpoError, match="has 2 different completed configurations, and narrowing needs 6"):
        best_configurations(study, [*other_pruner, *completed])
    with pytest.raises(HpoError, match="has 4 different configurations, 2 of them completed, and narrowing needs 6"):
        best_configurations(study, [*late, *completed])
    with pytest.raises(HpoError, match="has 0 different completed configurations"):
        best_configurations(study, early)


def replace_attrs(trial: FrozenTrial) -> FrozenTrial:
    """Return the trial as another pruner would have left it."""
    return create_trial(state=trial.state, value=trial.value, params=trial.params, distributions=trial.distributions)


def lines(study: Study, *lrs: float, name: str = "lr") -> list[str]:
    """What becomes of the range around these, of a study of which they are the best."""
    few = best_configurations(study, trials_at(study, [{name: lr} for lr in lrs])).params
    return [change.line() for change in changes(study, few)]


FILLER = (1.1e-6, 1.2e-6, 1.3e-6)  # the worst trials, so that there are enough


def test_a_log_range_shrinks_to_the_powers_of_ten_around_the_best() -> None:
    assert lines(lr_study(), 2e-4, 5e-5, 4e-4, *FILLER) == ["lr: 1e-06..0.01 -> 1e-05..0.001"]


def test_a_range_within_a_decade_shrinks_to_half_decades() -> None:
    study = lr_study({"low": 1e-3, "high": 1e-2, "log": True})
    assert lines(study, 4e-3, 5e-3, 6e-3, 1.1e-3, 1.2e-3, 1.3e-3) == ["lr: 0.001..0.01 -> 0.003..0.01"]


def test_the_best_at_an_edge_widens_that_side_and_says_so() -> None:
    assert lines(lr_study(), 9.3e-3, 5e-3, 2e-3, *FILLER) == [
        "lr: 1e-06..0.01 -> 0.001..0.1 (widened: the best value, 9.3e-03, lies at the upper edge)"
    ]
    assert lines(lr_study(), 1.2e-6, 2e-6, 3e-6, 1e-3, 2e-3, 3e-3) == [
        "lr: 1e-06..0.01 -> 1e-07..1e-05 (widened: the best value, 1.2e-06, lies at the lower edge)"
    ]


def test_a_bound_is_not_drawn_right_beside_the_best() -> None:
    assert lines(lr_study(), 9.9e-4, 5e-4, 6e-4, *FILLER) == ["lr: 1e-06..0.01 -> 0.0001..0.01"]


def test_a_range_over_which_the_best_are_spread_stays() -> None:
    assert lines(lr_study(), 1e-4, 2e-6, 5e-3, *FILLER) == []


def test_a_linear_range_shrinks_to_the_best_and_a_margin() -> None:
    study = study_of(optimizer={"lr": 0.1})
    assert lines(study, 0.212, 0.25, 0.301, 0.5, 0.51, 0.52, name="dropout") == ["dropout: 0..0.6 -> 0.15..0.37"]


def test_an_edge_that_cannot_be_moved_out_stays() -> None:
    study = study_of(optimizer={"lr": 0.1})
    assert lines(study, 0.0, 0.01, 0.1, 0.5, 0.51, 0.52, name="dropout") == ["dropout: 0..0.6 -> 0..0.16"]


def test_steps_are_kept_and_whole() -> None:
    written = {"low": 0.1, "high": 0.9, "step": 0.1}
    study = study_of(network={"dropout": written}, optimizer={"lr": 0.1})
    (change,) = changes(study, [{"dropout": 0.4}, {"dropout": 0.3}, {"dropout": 0.5}])
    assert change.new == Range(0.2, 0.6, step=0.1)
    study = study_of(network={"dropout": 0.0}, optimizer={"lr": 0.1}, training={"batch_size": {"low": 10, "high": 98}})
    (change,) = changes(study, [{"batch_size": 40}, {"batch_size": 30}, {"batch_size": 50}])
    assert change.new == Range(22, 58)
    assert isinstance(change.new.low, int)
    assert isinstance(change.new.high, int)


def test_a_widened_range_continues_the_steps_of_one_with_many_digits() -> None:
    written = {"low": 0.12345678, "high": 0.92345678, "step": 0.1}
    study = study_of(network={"dropout": 0.0}, optimizer={"lr": 0.1, "weight_decay": written})
    few = [{"weight_decay": value} for value in (0.12345678, 0.22345678, 0.32345678)]
    (change,) = changes(study, few)
    assert change.line() == (
        "weight_decay: 0.12345678..0.92345678 -> 0.02345678..0.42345678 "
        "(widened: the best value, 0.123457, lies at the lower edge)"
    )
    after = changed_study(study, [change], "digits-2", ["digits"])
    assert all(belongs(after, distributions(after), each) for each in few)


def test_the_best_tenth_decides_at_least_three_and_at_most_twenty() -> None:
    study = lr_study()
    for trials, few in ((6, 3), (30, 3), (31, 4), (100, 10), (400, 20)):
        points = [{"lr": 1e-6 * 1.02**place} for place in range(trials)]
        best = best_configurations(study, trials_at(study, points))
        assert best.of == trials
        assert best.params == points[:few]


def test_the_loss_is_best_where_it_is_lowest() -> None:
    study = lr_study(metric="val_loss")
    points = [{"lr": 10.0**-place} for place in (2, 3, 4, 5, 6)] + [{"lr": 2e-3}]
    best = best_configurations(study, trials_at(study, points))
    assert best.params == points[:-4:-1]
    assert best.threshold == pytest.approx(0.87)


def test_a_configuration_counts_once_by_its_mean() -> None:
    study = lr_study()
    points = [{"lr": lr} for lr in (1e-3, 1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3)]
    best = best_configurations(study, trials_at(study, points, [0.99, 0.01, 0.8, 0.7, 0.6, 0.5, 0.4]))
    assert best.of == 6
    assert [params["lr"] for params in best.params] == [2e-3, 3e-3, 4e-3]


def test_only_completed_trials_inside_the_ranges_count() -> None:
    study, wider = lr_study(), lr_study({"low": 1e-9, "high": 1.0, "log": True})
    outside = trials_at(wider, [{"lr": 0.5}, {"lr": 1e-8}], [0.99, 0.98])
    space = distributions(study)
    others = [
        create_trial(state=state, value=value, params={"lr": 1e-5}, distributions=space)
        for state, value in ((TrialState.PRUNED, 0.97), (TrialState.FAIL, None), (TrialState.COMPLETE, math.inf))
    ]
    inside = trials_at(study, [{"lr": 1e-3 + 1e-4 * place} for place in range(5)])
    with pytest.raises(
        HpoError, match=r"^study 'digits': has 5 different completed configurations, and narrowing needs 6"
    ):
        best_configurations(study, [*outside, *others, *inside])
    more = trials_at(study, [{"lr": 9e-3}], [0.1])
    assert best_configurations(study, [*outside, *others, *inside, *more]).of == 6


def test_of_a_space_with_too_few_trials_no_more_are_asked_for() -> None:
    study = lr_study({"low": 0.1, "high": 0.3, "step": 0.1})
    with pytest.raises(HpoError, match="needs 6; its space holds 3 different trials, so try all of them"):
        best_configurations(study, trials_at(study, [{"lr": 0.1}, {"lr": 0.2}]))


def test_choices_stay_and_a_study_of_choices_has_nothing_to_narrow() -> None:
    study = study_of(network={"dropout": {"choices": [0.0, 0.5]}}, optimizer={"lr": LR})
    few = [{"dropout": 0.5, "lr": lr} for lr in (2e-4, 5e-5, 4e-4)]
    (change,) = changes(study, few)
    assert change.parameter.name == "lr"
    study = study_of(network={"dropout": {"choices": [0.0, 0.5]}}, optimizer={"lr": 0.1})
    with pytest.raises(HpoError, match=r"^study 'digits': searches no range, so there is nothing to narrow$"):
        changes(study, [{"dropout": 0.5}])


@st.composite
def ranges(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """A study's changes: ranges of every kind, with ends that somebody may have typed."""

    def table(lows: st.SearchStrategy[float], factors: st.SearchStrategy[float], log: bool) -> dict[str, Any]:
        low = draw(lows)
        return {"low": float(f"{low:.3g}"), "high": float(f"{low * draw(factors):.3g}"), "log": log}

    small, apart = st.floats(1e-8, 1e-2), st.floats(1.2, 1e6)
    step = draw(st.sampled_from([0.01, 0.025, 0.05, 0.1]))
    first, steps = draw(st.integers(0, 3)), draw(st.integers(1, 6))
    whole = draw(st.integers(1, 200))
    return {
        "network": {"dropout": {"low": round(first * step, 3), "high": round((first + steps) * step, 3), "step": step}},
        "optimizer": {
            "kind": "momentum",
            "lr": table(small, apart, True),
            "weight_decay": table(st.sampled_from([1e-4, 0.02, 3.0]), st.floats(1.2, 50), False),
        },
        "training": {
            "epochs": {"low": whole, "high": whole + draw(st.integers(1, 5000)), "log": True},
            "batch_size": {
                "low": whole,
                "high": whole + draw(st.integers(7, 300)),
                **draw(st.sampled_from([{}, {"step": 3}, {"step": 7}])),
            },
        },
    }


def value_of(parameter: Parameter, share: float) -> float:
    """The value of a parameter so far along its range."""
    searched = parameter.searched
    assert isinstance(searched, Range)
    number = count(parameter)
    if number is not None:
        return float(candidate(parameter, min(number - 1, int(share * number))))
    if searched.log:
        return min(searched.high, max(searched.low, searched.low * (searched.high / searched.low) ** share))
    return min(searched.high, searched.low + share * (searched.high - searched.low))


def test_whatever_the_best_are_the_next_study_is_sound(times: int) -> None:
    @settings(max_examples=12 * times)
    @given(changed=ranges(), rows=st.lists(st.lists(st.floats(0, 1), min_size=5, max_size=5), min_size=3, max_size=8))
    def sound(changed: dict[str, Any], rows: list[list[float]]) -> None:
        study = study_of(**changed)
        few = [
            {p.name: value_of(p, share) for p, share in zip(study.parameters, shares, strict=True)} for shares in rows
        ]
        found = changes(study, few)
        after = changed_study(study, found, "digits-2", ["digits"])
        check_space(after)
        assert parse_study(after.resolved(), "again.toml") == after
        assert changes(study, few) == found
        for old, new in zip(study.parameters, after.parameters, strict=True):
            assert (new.name, new.integer) == (old.name, old.integer)
            check_range(old, new, few[0][old.name])

    sound()


def check_range(old: Parameter, new: Parameter, best: float) -> None:
    before, after = old.searched, new.searched
    assert not isinstance(before, Choices)
    assert not isinstance(after, Choices)
    assert (after.log, after.step) == (before.log, before.step)
    assert after.low < after.high
    assert after.low <= best <= after.high
    edge = edge_of(before, best)
    assert after.low >= before.low or edge == "low"
    assert after.high <= before.high or edge == "high"
    if after.low > before.low:
        assert edge_of(after, best) != "low"
    if after.high < before.high:
        assert edge_of(after, best) != "high"
    if old.integer:
        assert isinstance(after.low, int)
        assert isinstance(after.high, int)
    if before.step and after.low >= before.low:  # the steps fall where they fell
        steps = (after.low - before.low) / before.step
        assert steps == pytest.approx(round(steps), abs=1e-9)
