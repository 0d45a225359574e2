"""Early stopping: the epoch in which a trial ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.training.trainer import has_stopped_improving


@pytest.mark.parametrize(
    ("values", "over"),
    [
        ([], False),
        ([0.5], False),
        ([0.5, 0.5], False),
        ([0.5, 0.4, 0.4], True),
        ([0.5, 0.5, 0.5], True),  # an equal value is no improvement
        ([0.5, 0.4, 0.6], False),
        ([0.5, 0.6, 0.55], False),
        ([0.5, 0.6, 0.55, 0.6], True),
        ([0.5, 0.4, 0.45, 0.49], True),  # better than the last value, but not than the best
    ],
)
def test_two_epochs_without_improvement(values: list[float], over: bool) -> None:
    assert has_stopped_improving(2, values, "val_accuracy") == over
    assert has_stopped_improving(2, [-value for value in values], "val_loss") == over
    assert not has_stopped_improving(None, values, "val_accuracy")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(1, 6))
def test_a_trial_ends_patience_epochs_after_its_first_best_value(values: list[int], patience: int) -> None:
    best = values.index(max(values))
    assert has_stopped_improving(patience, values, "val_accuracy") == (len(values) - 1 - best >= patience)
