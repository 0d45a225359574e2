"""Figures and the note of a study, in the attributes that optuna-dashboard reads.

Promises: a note is stored whole or not at all; the figures of one call are stored together or not at all, and replace
all earlier figures of hpo; if several processes draw figures at the same time, those that show more trials win. The
dashboard's own functions write a figure or a note in pieces with a transaction each, so two processes could mix their
pieces, and a page could read half a figure; here it is one piece, which the dashboard reads as well. This module knows
nothing of the content of figures, and does not import optuna-dashboard, which takes half a second.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hpo.storage.sql.retry import read_transaction, write_transaction
from hpo.storage.sql.rows import STUDY_SYSTEM_ATTRS
from hpo.storage.sql.statements import lock_study, read_study_attr, set_study_attrs
from hpo.storage.storage import Storage

PLOT_DATA = "dashboard:plot_data:"
"""The key prefix of the system attributes with figures; the figure's id and the piece's number follow."""

NOTE, NOTE_VERSION = "dashboard:note_str:", "dashboard:note_ver"
"""The key prefix of the system attributes with a study's note, which the piece's number follows, and its version."""

OWN = "hpo-"
"""The prefix of the ids of hpo's figures."""

DRAWN = "hpo:drawn"
"""The system attribute of a study with the record of its stored figures."""


@dataclass(frozen=True)
class FiguresRecord:
    """The number of trials that had ended when figures were drawn, and the time, in seconds since 1970."""

    trials: int
    at: float


def figures_record(storage: Storage, study_id: int) -> FiguresRecord | None:
    """Return the record of the figures stored with a study, or None."""
    return read_transaction(storage.engine, lambda connection: _last(connection, study_id))


def save_figures(storage: Storage, study_id: int, figures: Mapping[str, str], trials: int) -> bool:
    """Store figures (id -> plotly JSON) that show `trials` ended trials; return whether they were stored.

    They are not stored if the study was deleted, or if the stored figures show more trials. Other figures whose ids
    start with `OWN`, such as those of an earlier version, are deleted.
    """
    now = FiguresRecord(trials, time.time())

    def work(connection: Connection, uncertain: bool) -> bool:
        if not lock_study(connection, study_id):
            return False
        last = _last(connection, study_id)
        if last is not None and last.trials > trials:
            return False
        values = {f"{PLOT_DATA}{figure}:0": text for figure, text in figures.items()}
        set_study_attrs(connection, study_id, {**values, DRAWN: asdict(now)}, STUDY_SYSTEM_ATTRS)
        key = STUDY_SYSTEM_ATTRS.c.key
        prefixes = [f"{PLOT_DATA}{OWN}", *(f"{PLOT_DATA}{figure}:" for figure in figures)]
        is_figure = sa.or_(*(key.startswith(prefix, autoescape=True) for prefix in prefixes))
        old_pieces = sa.delete(STUDY_SYSTEM_ATTRS).where(is_figure, key.not_in(list(values)))
        connection.execute(old_pieces.where(STUDY_SYSTEM_ATTRS.c.study_id == study_id))
        return True

    return write_transaction(storage.engine, work)


def save_note(storage: Storage, study_id: int, text: str) -> None:
    """Store the note of a study in place of an earlier one. Raises KeyError if there is no such study."""

    def work(connection: Connection, uncertain: bool) -> None:
        if not lock_study(connection, study_id):
            raise KeyError(study_id)
        version = read_study_attr(connection, study_id, NOTE_VERSION, STUDY_SYSTEM_ATTRS) or 0
        piece = f"{NOTE}0"
        set_study_attrs(connection, study_id, {NOTE_VERSION: version + 1, piece: text}, STUDY_SYSTEM_ATTRS)
        key = STUDY_SYSTEM_ATTRS.c.key
        old_pieces = sa.delete(STUDY_SYSTEM_ATTRS).where(key.startswith(NOTE, autoescape=True), key != piece)
        connection.execute(old_pieces.where(STUDY_SYSTEM_ATTRS.c.study_id == study_id))

    write_transaction(storage.engine, work)


def _last(connection: Connection, study_id: int) -> FiguresRecord | None:
    record = read_study_attr(connection, study_id, DRAWN, STUDY_SYSTEM_ATTRS)
    return None if record is None else FiguresRecord(**record)
