"""Changes of a study: of what its file says only while nobody trains for what it said before, of its name at any time.

Knows attributes, not what is in a study file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from optuna.exceptions import DuplicatedStudyError
from sqlalchemy.engine import Connection

from hpo.errors import StudyBusyError
from hpo.storage.heartbeats import seen_running
from hpo.storage.queue import STATE, WHY, StudyState
from hpo.storage.remedies import command
from hpo.storage.retry import transact
from hpo.storage.rows import STUDIES, STUDY_ATTRS
from hpo.storage.storage import Storage


def change_idle_study(storage: Storage, study_id: int, name: str, user_attrs: Mapping[str, Any]) -> None:
    """Set user attributes of a study, and reopen one that has ended.

    Raises StudyBusyError where a process holds trials of it, and KeyError where there is no such study.
    """

    def look(connection: Connection) -> dict[str, Any]:
        for trial in seen_running(connection, study_id):
            if trial.worker is not None and not trial.lost:
                raise StudyBusyError(
                    f"study '{name}' is being searched by {trial.worker}, which knows nothing of the change; "
                    f"wait for it, or `{command('pause', name)}` first"
                )
        found = sa.select(STUDY_ATTRS.c.value_json).filter_by(study_id=study_id, key=STATE)
        ended = connection.execute(found).scalar() == f'"{StudyState.ENDED}"'
        return {STATE: StudyState.OPEN, WHY: ""} if ended else {}

    storage.change_study(study_id, user_attrs, look)


def rename_study(storage: Storage, study_id: int, name: str) -> None:
    """Give a study another name. It stays the study that it is, and whoever searches it goes on.

    Raises DuplicatedStudyError where another study has the name, and KeyError where there is no such study.
    """

    def work(connection: Connection, uncertain: bool) -> None:
        try:
            renamed = connection.execute(sa.update(STUDIES).filter_by(study_id=study_id).values(study_name=name))
        except sa.exc.IntegrityError as error:
            raise DuplicatedStudyError(f"a study named {name!r} exists") from error
        if not renamed.rowcount:
            raise KeyError(f"no study has the id {study_id}")

    transact(storage.engine, work)
