"""Comparison of the incremental pruners with Optuna's: the same decision at every epoch of every member."""

from __future__ import annotations

import random

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner
from optuna.study import StudyDirection
from optuna.trial import TrialState

from hpo.search.sampling.in_memory_study import STUDY, InMemoryStudy
from hpo.search.sampling.pruners import IncrementalHyperbandPruner, IncrementalMedianPruner

optuna.logging.set_verbosity(optuna.logging.WARNING)
EPOCHS = 27


def compare_decisions(
    optuna_pruner: BasePruner, hpo_pruner: BasePruner, direction: StudyDirection, rng: random.Random
) -> list[bool]:
    """Search in populations, check that both pruners decide the same, and return the decisions."""
    mirrors = InMemoryStudy(), InMemoryStudy()  # two, because hyperband writes into the trials
    studies = [optuna.create_study(study_name="s", storage=mirror, direction=direction) for mirror in mirrors]
    decisions = []
    for _ in range(6):
        members = {mirror.create_new_trial(STUDY) for mirror in mirrors for _ in range(5)}
        qualities = {number: rng.random() for number in members}
        for epoch in range(1, EPOCHS + 1):
            for number in sorted(members):
                value = rng.choice([qualities[number], rng.random(), 0.5])
                results = []
                for mirror, study, pruner in zip(mirrors, studies, (optuna_pruner, hpo_pruner), strict=True):
                    mirror.set_trial_intermediate_value(number, epoch, value)
                    results.append(pruner.prune(study, mirror.get_trial(number)))
                assert results[0] == results[1]
                decisions += results[:1]
                end_state = TrialState.PRUNED if results[0] else TrialState.FAIL if rng.random() < 0.01 else None
                if epoch == EPOCHS:
                    end_state = TrialState.COMPLETE
                if end_state is not None:
                    members.remove(number)
                    for mirror in mirrors:
                        mirror.set_trial_state_values(
                            number, end_state, [value] if end_state == TrialState.COMPLETE else None
                        )
                    if isinstance(hpo_pruner, IncrementalMedianPruner):
                        hpo_pruner.add(mirrors[1].get_trial(number))
    return decisions


@pytest.mark.parametrize("direction", [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE])
@pytest.mark.parametrize("kind", ["median", "hyperband"])
def test_pruners_decide_as_in_optuna(kind: str, direction: StudyDirection) -> None:
    @settings(max_examples=15)
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        if kind == "median":
            decisions = compare_decisions(MedianPruner(), IncrementalMedianPruner(), direction, random.Random(seed))
        else:
            optuna_pruner = HyperbandPruner(min_resource=1, max_resource=EPOCHS, reduction_factor=3)
            decisions = compare_decisions(
                optuna_pruner, IncrementalHyperbandPruner(EPOCHS), direction, random.Random(seed)
            )
        assert {True, False} == set(decisions)

    check()
