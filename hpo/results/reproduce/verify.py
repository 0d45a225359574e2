"""The certificate of a study is made here: some of its trials are trained again, each alone, outside a population."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from optuna.trial import FrozenTrial, TrialState

from hpo.errors import HpoError
from hpo.results.certificate import VERIFIED, Certificate
from hpo.results.ranking import score
from hpo.results.reproduce.retrain import Repeated, Stored, repeat
from hpo.results.unranked import no_best_trial
from hpo.search.plan import plan_stored
from hpo.search.space import config_of
from hpo.search.study_records import CURVE, RUN, precision_of, stored_study, user_attrs_of
from hpo.storage import IDENTITY, Storage, best_trials, load_study
from hpo.studyfile import Study
from hpo.text import utc_text
from hpo.training.devices import describe_device
from hpo.training.stack import Member
from hpo.versions import versions


def verify(
    storage: Storage, name: str, count: int, device: str, stop: threading.Event, say: Callable[[str], None]
) -> Certificate:
    """Train `count` of the study's completed trials again, the best and others at even distances, and keep the result.

    Raises HpoError where no trial has completed, and InterruptionError, with nothing kept, where `stop` is set.
    """
    found = load_study(storage, name)
    study, identity = stored_study(found), user_attrs_of(found).get(IDENTITY)
    complete = found.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    own = [trial for trial in complete if "seed" in trial.user_attrs]  # others than hpo may have added theirs
    trials = _chosen(storage, found._study_id, own, count)
    if not trials:
        raise no_best_trial(storage, name, "there is nothing to verify")
    planned = plan_stored(study, found, device)
    precision = str(found.user_attrs[RUN]["precision"])
    given = [_stored(study, trial) for trial in trials]
    repeated = repeat(study, planned, precision, given, stop, say)
    trained_in = {each.member.number: precision_of(each.member.config, precision) for each in given}
    certificate = _certificate(study, repeated, describe_device(planned.device), trained_in)
    try:
        storage.set_study_attrs(found._study_id, {VERIFIED: certificate}, identity=identity)
    except KeyError as error:
        raise HpoError(f"study '{name}': was deleted meanwhile, so its certificate is kept nowhere") from error
    return certificate


def _chosen(storage: Storage, study_id: int, complete: Sequence[FrozenTrial], count: int) -> list[FrozenTrial]:
    """Return the best trial, and as many others as are still asked for, evenly spread over the study."""
    best = {trial.number for trial in best_trials(storage, study_id, 1)} & {trial.number for trial in complete}
    others = [trial for trial in complete if trial.number not in best]
    wanted = min(count - len(best), len(others))
    spread = {others[index * len(others) // wanted].number for index in range(wanted)}
    return [trial for trial in complete if trial.number in best | spread]


def _stored(study: Study, trial: FrozenTrial) -> Stored:
    member = Member(trial.number, config_of(study, trial.params), trial.user_attrs["seed"])
    return Stored(member, score(trial), trial.system_attrs.get(CURVE, {}))


def _certificate(study: Study, repeated: Sequence[Repeated], device: str, trained_in: Mapping[int, str]) -> Certificate:
    metrics = dict.fromkeys(metric for each in repeated for metric in each.largest)
    return {
        "study": study.name,
        "metric": study.search.first_metric,
        "at": utc_text(datetime.now(UTC)),
        "device": device,
        "precision": ", ".join(dict.fromkeys(trained_in.values())),
        "score": max(abs(each.difference) for each in repeated),
        "largest": {metric: max(each.largest.get(metric, 0.0) for each in repeated) for metric in metrics},
        "trials": [
            {
                "trial": each.number,
                "precision": trained_in[each.number],
                "stored": each.stored,
                "score": each.score,
                "largest": dict(each.largest),
            }
            for each in repeated
        ],
        "versions": versions(),
    }
