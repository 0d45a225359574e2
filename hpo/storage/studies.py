"""Studies by name: which there are, and one of them as an Optuna study.

The study returned reads through Optuna's cache: what has finished is read once, what is new or unfinished each time.
Knows nothing of what hpo keeps with a study.
"""

from __future__ import annotations

import optuna
import sqlalchemy as sa

from hpo.errors import UnknownStudyError, nearest
from hpo.storage.connections import read
from hpo.storage.rows import STUDIES
from hpo.storage.storage import Storage


def study_names(storage: Storage) -> list[str]:
    """Return the names of the studies in the storage, oldest first."""
    with read(storage.engine) as connection:
        return list(connection.execute(sa.select(STUDIES.c.study_name).order_by(STUDIES.c.study_id)).scalars())


def load_study(storage: Storage, name: str) -> optuna.Study:
    """Return the study of that name."""
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError as error:
        names = study_names(storage)
        if not names:
            advice = "; it holds no study yet: start one with `hpo launch FILE`"
        else:
            advice = nearest(name, names) or f"; it holds {_few(names)}"
        raise UnknownStudyError(f"{storage.shown}: no study named {name!r}{advice}") from error


def _few(names: list[str], shown: int = 5) -> str:
    listed = ", ".join(repr(name) for name in names[:shown])
    return listed if len(names) <= shown else f"{listed} and {len(names) - shown} more (see `hpo studies`)"
