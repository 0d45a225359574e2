"""Confirm an ensemble: train its members again under fresh seeds, and score their mean prediction.

A run of the ensemble belongs to one seed of the confirmation, and has its split. Each member is trained under a seed of
its own, made from that seed, so members with the same configuration differ too. The members of several runs train in
the same stacks. The runs are stored with the confirming study after every few of them, so a later call continues.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hpo.errors import HpoError, InterruptionError
from hpo.results.completed_trial import completed_trial
from hpo.results.confirm.confirmed_ensemble import ENSEMBLE_RUNS
from hpo.results.ensemble.greedy import mean_of
from hpo.results.ensemble.members import validation_outputs
from hpo.results.ensemble.record import Ensemble, ensemble_from_json, stored_ensemble
from hpo.results.ensemble.scoring import make_scorer
from hpo.results.weights.new_training import NewTraining, train_anew
from hpo.search.plan import NetworkPlan, plan_stored, task_of
from hpo.search.points import trial_seed, trial_split
from hpo.search.study_records import RUN, config_as_trained, stored_study, user_attrs_of
from hpo.storage import IDENTITY, Storage, load_study
from hpo.studyfile import Study
from hpo.training.seeds import derive_seed


def confirm_ensemble(
    storage: Storage,
    name: str,
    confirming: str,
    device: str,
    stop: threading.Event,
    say: Callable[[str], None],
) -> None:
    """Train the ensemble of the study `name` under the seeds and splits of its `confirming` study; store the scores.

    `say` gets a line before training, and warnings. Raises HpoError where every run fails, and InterruptionError
    where `stop` is set: the same call continues.
    """
    original, stored = load_study(storage, name), load_study(storage, confirming)
    study, runs_study = stored_study(original), stored_study(stored)
    found = stored_ensemble(user_attrs_of(original), name)
    configs = [config_as_trained(study, completed_trial(storage, name, each.trial)) for each in found.members]
    before = user_attrs_of(stored).get(ENSEMBLE_RUNS)
    runs: list[dict[str, Any]] = []
    if before is not None and ensemble_from_json(name, before["ensemble"]).has_same_members(found):
        runs = before["runs"]
    done = {each["seed"] for each in runs}
    missing = [each for each in _seeds_and_splits(runs_study) if each[0] not in done]
    if not missing:
        return
    count = len(found.members)
    say(f"{confirming}: {found.title}, {count * len(missing)} trainings under {len(missing)} fresh seeds")
    planned = plan_stored(runs_study, stored, device)
    precision = str(user_attrs_of(original)[RUN]["precision"])
    at_once = max(1, planned.population // count)
    for start in range(0, len(missing), at_once):
        some = missing[start : start + at_once]
        trainings = [
            NewTraining(index * count + number, config, each.epochs, derive_seed("ensemble", seed, number), split)
            for index, (seed, split) in enumerate(some)
            for number, (each, config) in enumerate(zip(found.members, configs, strict=True))
        ]
        runs = [*runs, *_scored(runs_study, planned, precision, found, some, trainings, stop, say)]
        _store(storage, stored._study_id, user_attrs_of(stored).get(IDENTITY), found, runs, confirming)
    if all(each["score"] is None for each in runs):
        raise HpoError(f"study '{confirming}': in every run of the {found.title}, a member has failed")


def _scored(
    study: Study,
    planned: NetworkPlan,
    precision: str,
    found: Ensemble,
    runs: Sequence[tuple[int, int]],
    trainings: Sequence[NewTraining],
    stop: threading.Event,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Train the members of some runs; return the score of each run, None where a member has failed."""
    try:
        outcomes = train_anew(study, planned, precision, trainings, stop, say)
    except InterruptionError as error:
        raise InterruptionError(f"{study.name}: interrupted; confirm the ensemble again to go on") from error
    scored = []
    for index, (seed, at) in enumerate(runs):
        of_run = trainings[index * len(found.members) : (index + 1) * len(found.members)]
        split, outputs, score = planned.splits[at], [], None
        for each, member in zip(of_run, found.members, strict=True):
            if (state := outcomes[each.number].state) is None:
                break
            outputs.append(validation_outputs(study, split, each.config.network, state, planned.device, member.trial))
        else:
            picks = [number for number, member in enumerate(found.members) for _ in range(member.picks)]
            task = task_of(study, split).to(torch.device("cpu"))
            mean, targets = mean_of(task, outputs, picks), torch.from_numpy(split.validation.targets)
            score = make_scorer(study, task).score(mean, targets)
        scored.append({"seed": seed, "split": at, "score": score})
    return scored


def _seeds_and_splits(study: Study) -> list[tuple[int, int]]:
    """Return the seed of each run of a configuration, and the index of its split."""
    return [(trial_seed(study, number), trial_split(study, number)) for number in range(study.search.repeats)]


def _store(
    storage: Storage,
    study_id: int,
    identity: str | None,
    found: Ensemble,
    runs: Sequence[Mapping[str, Any]],
    name: str,
) -> None:
    record = {"ensemble": found.to_json(), "runs": list(runs)}
    try:
        storage.set_study_attrs(study_id, {ENSEMBLE_RUNS: record}, identity=identity)
    except KeyError as error:
        raise HpoError(f"study '{name}' was deleted by another process: the ensemble's runs are not stored") from error
