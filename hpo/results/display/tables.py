"""Tables of `hpo studies` and `hpo data list`: the same text on a terminal and in a pipe.

No cell is truncated, and no character of a name can move the cursor. Studies of other programs have a row too, without
the facts that only hpo stores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpo.data import Listing
from hpo.results.ranking import metric_label, score_text
from hpo.results.study_facts import metrics_of, objective_of, states_line
from hpo.search.study_records import DATA
from hpo.storage import Storage, StudySummary, summaries
from hpo.text import columns


def studies_table(storage: Storage) -> str:
    """Return one row for each study: name, data set or objective, trials by state, best value, last activity."""
    rows = [("study", "data set", "trials", "best", "last activity")]
    for study in sorted(summaries(storage), key=lambda study: study.name):
        activity = "-" if study.last_activity is None else f"{study.last_activity:%Y-%m-%d %H:%M:%S}"
        rows.append(
            (study.name, _dataset(study.user_attrs), states_line(study.states, study.frozen), _best(study), activity)
        )
    return columns(rows)


def datasets_table(listings: Sequence[Listing]) -> str:
    """Return one row a data set: where it is, in what form, how many training images, and what to know of it."""
    rows = [("data set", "place", "kind", "train images", "note")]
    for listing in listings:
        place = "-" if listing.place is None else str(listing.place)
        images = "-" if listing.train_images is None else f"{listing.train_images:,}"
        rows.append((listing.name, place, listing.kind, images, listing.note))
    return columns(rows)


def _dataset(user_attrs: Mapping[str, Any]) -> str:
    data = user_attrs.get(DATA)
    return str(data["name"]) if isinstance(data, dict) and "name" in data else objective_of(user_attrs) or "-"


def _best(study: StudySummary) -> str:
    if study.best is None:
        return "-"
    metric = metrics_of(study)[0]
    return score_text(metric, study.best) + (f" {metric_label(metric)}" if metric.startswith("val_") else "")
