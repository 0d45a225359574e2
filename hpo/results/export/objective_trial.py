"""The best trial of the user's own objective as one object: `hpo.objective/1`.

It says which parameters, what they scored, and by which code: the objective's reference, and the SHA-256 of its file
and of what that imports from its own folder. There is nothing in it to launch: the parameters are for the user's code.
objective.schema.json beside this module describes it.
"""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import FrozenTrial

from hpo.results.lookup import metrics_of
from hpo.results.ranking import score, values_of
from hpo.results.states import by_word
from hpo.search.study_records import CODE, user_attrs_of
from hpo.storage import Storage, summary
from hpo.studyfile import ObjectiveStudy
from hpo.versions import provenance

SCHEMA = "hpo.objective/1"


def objective_record(storage: Storage, study: ObjectiveStudy, found: optuna.Study, best: FrozenTrial) -> dict[str, Any]:
    """Return the export of a trial."""
    held = summary(storage, found._study_id)
    return {
        "schema": SCHEMA,
        "study": study.name,
        "trial": best.number,
        "direction": found.directions[0].name.lower(),
        "value": score(best),
        **values_of(metrics_of(held), best),
        "params": best.params,
        "objective": study.objective,
        "code": user_attrs_of(found)[CODE],
        "config": study.resolved(),
        "curve": reported(best),
        "user_attrs": best.user_attrs,
        "trials": by_word(held.states),
        **provenance(),
    }


def reported(trial: FrozenTrial) -> dict[str, list[Any]]:
    """Return what a trial reported: its steps, and the value at each."""
    steps = sorted(trial.intermediate_values)
    return {"step": steps, "value": [trial.intermediate_values[step] for step in steps]} if steps else {}
