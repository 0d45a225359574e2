"""`hpo verify`: train some trials of a study again, each alone, and store the certificate with the study."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from optuna.trial import FrozenTrial, TrialState

from hpo.errors import HpoError
from hpo.results.certificate import VERIFIED, Certificate
from hpo.results.no_best_trial import no_best_trial
from hpo.results.ranking import score
from hpo.results.reproduce.retrain import Retrained, StoredTrial, retrain
from hpo.search.plan import member_of, plan_stored
from hpo.search.study_records import CURVE, RUN, config_as_trained, precision_of, stored_study, user_attrs_of
from hpo.storage import IDENTITY, Storage, best_trials, load_study
from hpo.studyfile import Study
from hpo.text import utc_text
from hpo.training.devices import describe_device
from hpo.versions import versions


def verify(
    storage: Storage, name: str, count: int, device: str, stop: threading.Event, say: Callable[[str], None]
) -> Certificate:
    """Train `count` completed trials again, the best one and others evenly spread; store and return the certificate.

    Raises HpoError where no trial has completed, and InterruptionError, with nothing stored, where `stop` is set.
    """
    stored = load_study(storage, name)
    study, identity = stored_study(stored), user_attrs_of(stored).get(IDENTITY)
    complete = stored.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    with_seed = [trial for trial in complete if "seed" in trial.user_attrs]  # without trials of other programs
    selected = _spread(storage, stored._study_id, with_seed, count)
    if not selected:
        raise no_best_trial(storage, name, "there is nothing to verify")
    planned = plan_stored(study, stored, device)
    precision = str(stored.user_attrs[RUN]["precision"])
    trials = [_stored(study, trial) for trial in selected]
    retrained = retrain(study, planned, precision, trials, stop, say)
    precisions = {each.member.number: precision_of(each.member.config, precision) for each in trials}
    certificate = _certificate(study, retrained, describe_device(planned.device), precisions)
    try:
        storage.set_study_attrs(stored._study_id, {VERIFIED: certificate}, identity=identity)
    except KeyError as error:
        raise HpoError(f"study '{name}' was deleted by another process: its certificate is not stored") from error
    return certificate


def _spread(storage: Storage, study_id: int, complete: Sequence[FrozenTrial], count: int) -> list[FrozenTrial]:
    """Return the best trial and others evenly spread over the study, `count` in all."""
    best = {trial.number for trial in best_trials(storage, study_id, 1)} & {trial.number for trial in complete}
    others = [trial for trial in complete if trial.number not in best]
    missing = min(count - len(best), len(others))
    spread = {others[index * len(others) // missing].number for index in range(missing)}
    return [trial for trial in complete if trial.number in best | spread]


def _stored(study: Study, trial: FrozenTrial) -> StoredTrial:
    member = member_of(study, trial.number, config_as_trained(study, trial), trial.user_attrs["seed"])
    return StoredTrial(member, score(trial), trial.system_attrs.get(CURVE, {}))


def _certificate(
    study: Study, retrained: Sequence[Retrained], device: str, precisions: Mapping[int, str]
) -> Certificate:
    metrics = dict.fromkeys(metric for each in retrained for metric in each.largest)
    return {
        "study": study.name,
        "metric": study.search.first_metric,
        "at": utc_text(datetime.now(UTC)),
        "device": device,
        "precision": ", ".join(dict.fromkeys(precisions.values())),
        "score": max(abs(each.difference) for each in retrained),
        "largest": {metric: max(each.largest.get(metric, 0.0) for each in retrained) for metric in metrics},
        "trials": [
            {
                "trial": each.number,
                "precision": precisions[each.number],
                "stored": each.stored,
                "score": each.score,
                "largest": dict(each.largest),
            }
            for each in retrained
        ],
        "versions": versions(),
    }
