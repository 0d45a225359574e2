"""Export of a study's ensemble, `hpo.ensemble/1`: its scores, and its members as exported trials.

See ensemble.schema.json. Each member is an `hpo.best/3` with its picks and its weight. The predictions of the ensemble
are the weighted mean of the members' predictions: probabilities of classes or labels, or numbers.
"""

from __future__ import annotations

from typing import Any

from hpo.errors import HpoError
from hpo.results.confirm.confirmed_ensemble import ensemble_tree
from hpo.results.confirm.result import find_confirmation
from hpo.results.ensemble.record import Ensemble, stored_ensemble
from hpo.results.export.best import export
from hpo.search.study_records import stored_study, user_attrs_of
from hpo.storage import Storage, load_study
from hpo.text import encode_non_finite
from hpo.versions import provenance

SCHEMA = "hpo.ensemble/1"


def export_ensemble(storage: Storage, name: str) -> dict[str, Any]:
    """Return the export of a study's ensemble. Raises HpoError where it has none, or a member is not complete."""
    stored = load_study(storage, name)
    study, found = stored_study(stored), stored_ensemble(user_attrs_of(stored), name)
    members = [
        {
            "picks": each.picks,
            "weight": found.weight(each),
            "epochs": each.epochs,
            "score": each.score,
            "trial": export(storage, name, trial=each.trial),
        }
        for each in found.members
    ]
    tree: dict[str, Any] = encode_non_finite(
        {
            "schema": SCHEMA,
            "study": name,
            "metric": found.metric,
            "direction": "minimize" if study.search.minimized else "maximize",
            **{key: value for key, value in found.to_json().items() if key not in ("metric", "members")},
            "best": found.best.score,
            "members": members,
            "confirmed": _confirmed(storage, name, found),
            **provenance(),
        }
    )
    return tree


def _confirmed(storage: Storage, name: str, found: Ensemble) -> dict[str, Any] | None:
    """Return the confirmation of this ensemble; None where it has none that is finished."""
    try:
        confirmation = find_confirmation(storage, name)
    except HpoError:
        return None
    confirmed = None if confirmation is None else confirmation.ensemble
    if confirmation is None or confirmed is None or not confirmed.ensemble.has_same_members(found):
        return None
    repeated = ("members", "metric", "candidates", "size", "validation", "halves", "at")
    numbers = {key: value for key, value in ensemble_tree(confirmed).items() if key not in repeated}
    return {"study": confirmation.study.name, **numbers}
