"""Figures kept with a study, where optuna-dashboard looks for them.

Promises: the figures that one call keeps are there together or not at all, in the place of those before; of several
processes that draw at once, the one that has seen more trials wins. optuna-dashboard's own call writes a figure in
pieces, a transaction each, so that two processes would mix theirs, and a page read in between would have half of one;
here a figure is one piece, which the dashboard reads just as well. Knows nothing of what is in a figure.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hpo.storage.retry import read_transaction, write_transaction
from hpo.storage.rows import STUDY_SYSTEM_ATTRS
from hpo.storage.statements import lock_study, upsert
from hpo.storage.storage import Storage

PIECES = "dashboard:plot_data:"
"""The beginning of the attributes that hold figures: then the figure's id, and the piece's number."""

DRAWN = "hpo:drawn"
"""The system attribute that says of a study's figures what they show, and when they were drawn."""


@dataclass(frozen=True)
class FiguresRecord:
    """How many trials had ended when a study's figures were drawn, and when that was, in seconds since 1970."""

    trials: int
    at: float


def figures_record(storage: Storage, study_id: int) -> FiguresRecord | None:
    """Return what the figures kept with the study show, None where none are kept."""
    return read_transaction(storage.engine, lambda connection: _last(connection, study_id))


def save_figures(storage: Storage, study_id: int, figures: Mapping[str, str], trials: int) -> bool:
    """Keep figures, by id, as plotly's JSON, drawn when so many trials had ended; return whether these are kept now.

    They are not where the study is gone, or others have drawn more trials.
    """
    now = FiguresRecord(trials, time.time())

    def work(connection: Connection, uncertain: bool) -> bool:
        if not lock_study(connection, study_id):
            return False
        last = _last(connection, study_id)
        if last is not None and last.trials > trials:
            return False
        values = {f"{PIECES}{figure}:0": text for figure, text in figures.items()}
        rows = [{"study_id": study_id, "key": key, "value_json": json.dumps(value)} for key, value in values.items()]
        rows.append({"study_id": study_id, "key": DRAWN, "value_json": json.dumps(asdict(now))})
        upsert(connection, STUDY_SYSTEM_ATTRS, rows)
        key = STUDY_SYSTEM_ATTRS.c.key
        old = [key.startswith(f"{PIECES}{figure}:", autoescape=True) for figure in figures]
        further = sa.delete(STUDY_SYSTEM_ATTRS).where(sa.or_(*old), key.not_in(list(values)))
        connection.execute(further.where(STUDY_SYSTEM_ATTRS.c.study_id == study_id))
        return True

    return write_transaction(storage.engine, work)


def _last(connection: Connection, study_id: int) -> FiguresRecord | None:
    found = sa.select(STUDY_SYSTEM_ATTRS.c.value_json).filter_by(study_id=study_id, key=DRAWN)
    text = connection.execute(found).scalar()
    return None if text is None else FiguresRecord(**json.loads(text))
