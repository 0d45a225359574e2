"""The lean pruners decide what Optuna's own decide, at every epoch of every member."""

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


def decisions(theirs: BasePruner, ours: BasePruner, direction: StudyDirection, draw: random.Random) -> list[bool]:
    """Search in populations; check that both decide alike, and return what they decided."""
    mirrors = InMemoryStudy(), InMemoryStudy()  # hyperband writes into the trials that it judges
    studies = [optuna.create_study(study_name="s", storage=mirror, direction=direction) for mirror in mirrors]
    decided = []
    for _ in range(6):
        members = {mirror.create_new_trial(STUDY) for mirror in mirrors for _ in range(5)}
        qualities = {number: draw.random() for number in members}
        for epoch in range(1, EPOCHS + 1):
            for number in sorted(members):
                value = draw.choice([qualities[number], draw.random(), 0.5])
                answers = []
                for mirror, study, pruner in zip(mirrors, studies, (theirs, ours), strict=True):
                    mirror.set_trial_intermediate_value(number, epoch, value)
                    answers.append(pruner.prune(study, mirror.get_trial(number)))
                assert answers[0] == answers[1]
                decided += answers[:1]
                ends = TrialState.PRUNED if answers[0] else TrialState.FAIL if draw.random() < 0.01 else None
                if epoch == EPOCHS:
                    ends = TrialState.COMPLETE
                if ends is not None:
                    members.remove(number)
                    for mirror in mirrors:
                        mirror.set_trial_state_values(number, ends, [value] if ends == TrialState.COMPLETE else None)
                    if isinstance(ours, IncrementalMedianPruner):
                        ours.add(mirrors[1].get_trial(number))
    return decided


@pytest.mark.parametrize("direction", [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE])
@pytest.mark.parametrize("kind", ["median", "hyperband"])
def test_the_decisions_are_those_of_optuna(kind: str, direction: StudyDirection) -> None:
    @settings(max_examples=15)
    @given(st.integers(0, 2**32))
    def alike(seed: int) -> None:
        if kind == "median":
            decided = decisions(MedianPruner(), IncrementalMedianPruner(), direction, random.Random(seed))
        else:
            theirs = HyperbandPruner(min_resource=1, max_resource=EPOCHS, reduction_factor=3)
            decided = decisions(theirs, IncrementalHyperbandPruner(EPOCHS), direction, random.Random(seed))
        assert {True, False} == set(decided)

    alike()
