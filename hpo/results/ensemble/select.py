"""`hpo ensemble`: select an ensemble among the trials with stored weights, and store it with the study.

Its validation score is optimistic, because it was selected on the same examples. So ensembles are also selected on
halves of the validation split and scored on the other halves, as is the best member of each half. Members were trained
without any of these examples, but are among the best trials by all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from hpo.errors import HpoError
from hpo.results.ensemble.greedy import greedy_picks, mean_of
from hpo.results.ensemble.members import CandidateOutputs, candidate_outputs, stored_trials
from hpo.results.ensemble.record import ENSEMBLE, Ensemble, EnsembleMember, HalfScores
from hpo.results.ensemble.scoring import Scorer, make_scorer
from hpo.search.plan import plan_stored, task_of
from hpo.search.study_records import stored_study, user_attrs_of
from hpo.storage import IDENTITY, Storage, load_study
from hpo.text import utc_text
from hpo.training.tasks.task import Task

HALVINGS = 5
"""Random halvings of the validation split, each of which gives two halves to select on."""


def select_ensemble(storage: Storage, name: str, size: int, device: str) -> Ensemble:
    """Select an ensemble of at most `size` picks; store and return it. An earlier one is replaced.

    Raises HpoError where too few trials have stored weights, or their weights are not on this machine, and DataError
    where the data are missing or have changed.
    """
    stored = load_study(storage, name)
    study, identity = stored_study(stored), user_attrs_of(stored).get(IDENTITY)
    trials = stored_trials(storage, study, stored)
    planned = plan_stored(study, stored, device)
    task = task_of(study, planned.split).to(torch.device("cpu"))
    scorer, targets = make_scorer(study, task), torch.from_numpy(planned.split.validation.targets)
    candidates = candidate_outputs(storage, study, stored, planned, trials)
    candidates.sort(key=lambda each: scorer.losses(each.outputs, targets))  # stable: of equal ones the first trial
    if math.isnan(scorer.score(candidates[0].outputs, targets)):
        raise HpoError(
            f"study '{name}': {study.search.first_metric} is undefined for the stored weights of every trial"
        )
    outputs = [each.outputs for each in candidates]
    picks = greedy_picks(task, outputs, partial(scorer.losses, targets=targets), size)
    found = Ensemble(
        study=name,
        metric=study.search.first_metric,
        score=scorer.score(mean_of(task, outputs, picks), targets),
        members=tuple(_member(candidates[pick], picks.count(pick), scorer, targets) for pick in dict.fromkeys(picks)),
        candidates=len(candidates),
        size=size,
        validation=len(targets),
        halves=_half_scores(task, outputs, targets, scorer, size),
        at=utc_text(datetime.now(UTC)),
    )
    try:
        storage.set_study_attrs(stored._study_id, {ENSEMBLE: found.to_json()}, identity=identity)
    except KeyError as error:
        raise HpoError(f"study '{name}' was deleted by another process: its ensemble is not stored") from error
    return found


def _member(candidate: CandidateOutputs, picks: int, scorer: Scorer, targets: Tensor) -> EnsembleMember:
    return EnsembleMember(candidate.trial, picks, candidate.epochs, scorer.score(candidate.outputs, targets))


def _half_scores(
    task: Task, outputs: Sequence[Tensor], targets: Tensor, scorer: Scorer, size: int
) -> HalfScores | None:
    """Select on halves of the examples, score on the other halves; None where that is undefined for every half."""
    generator, scores = np.random.Generator(np.random.PCG64(0)), list[tuple[float, float]]()
    middle = len(targets) // 2
    for _ in range(HALVINGS if middle else 0):
        rows = torch.from_numpy(generator.permutation(len(targets)))
        for half, rest in ((rows[:middle], rows[middle:]), (rows[middle:], rows[:middle])):
            parts = [each[half] for each in outputs]
            picks = greedy_picks(task, parts, partial(scorer.losses, targets=targets[half]), size)
            others = [each[rest] for each in outputs]
            ensemble = scorer.score(mean_of(task, others, picks), targets[rest])
            scores.append((ensemble, scorer.score(others[picks[0]], targets[rest])))
    defined = [each for each in scores if all(map(math.isfinite, each))]
    if not defined:
        return None
    return HalfScores(fmean(each[0] for each in defined), fmean(each[1] for each in defined), len(defined))
