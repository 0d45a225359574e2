"""The weights that are kept with the best trials: which files belong to whom, and their removal.

And which artifacts of any kind other studies name.

They are artifacts as `optuna.artifacts` writes them, so that the dashboard lists them: a file in the folder of
artifacts, and a system attribute of the trial that names it. The file's id follows from study and trial, so a trial
that is trained again writes over what an attempt before it left, and a copy has files of its own.
A file is written before its trial ends, and the attribute with the ending; it is removed before the attribute is. So
each file is named by a trial, or overwritten or removed in time, whenever a process dies.

Knows nothing of what is in the files.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from optuna.artifacts import ArtifactMeta
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from hpo.errors import StorageError
from hpo.storage.artifacts import FOLDER, ArtifactFolder, artifact_folder
from hpo.storage.claim_conditions import identity
from hpo.storage.retry import consult, transact
from hpo.storage.rows import STUDY_SYSTEM_ATTRS, SYSTEM_ATTRS, TRIALS
from hpo.storage.storage import Storage
from hpo.storage.studies import StudySummary

ARTIFACT = "artifacts:"  # the beginning of Optuna's own attributes of artifacts, which end with the artifact's id
OF_DASHBOARD = f"dashboard:{ARTIFACT}"  # the same, of a trial, as old versions of its dashboard kept it with the study
REMOVED = json.dumps("null")  # what the dashboard makes of the attribute of an artifact that it has removed
SUFFIX = ".safetensors"
FILES = {keep: f"weights-{keep}{SUFFIX}" for keep in ("best", "last")}
"""The name of a trial's file: its weights of the epoch with the lowest validation loss, or of the last."""
_NAMESPACE = uuid.UUID("5f1e7f0a-6f0c-4d0e-9a55-2b9a1f6f0c11")


@dataclass(frozen=True)
class Kept:
    """A trial's file, as its attribute names it."""

    trial_id: int
    number: int
    state: TrialState
    artifact_id: str
    filename: str


def file_id(identity: str, number: int) -> str:
    """Return the id of the file of a study's trial; `identity` tells the study from all others."""
    return str(uuid.uuid5(_NAMESPACE, f"{identity}/{number}"))


def file_attrs(artifact_id: str, filename: str) -> dict[str, Any]:
    """Return the system attribute that names a file, for the ending of its trial."""
    meta = ArtifactMeta(artifact_id, filename, "application/octet-stream", None)
    return {ARTIFACT + artifact_id: json.dumps(asdict(meta))}


def kept_files(storage: Storage, study_id: int) -> list[Kept]:
    """Return the files of the study's trials, by trial."""
    columns = (TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.state, SYSTEM_ATTRS.c.value_json)
    artifacts = SYSTEM_ATTRS.c.key.startswith(ARTIFACT, autoescape=True)
    rows = (
        sa.select(*columns)
        .select_from(TRIALS.join(SYSTEM_ATTRS, SYSTEM_ATTRS.c.trial_id == TRIALS.c.trial_id))
        .where(TRIALS.c.study_id == study_id, artifacts)
        .order_by(TRIALS.c.number)
    )
    found = []
    for trial_id, number, state, text in consult(storage.engine, lambda connection: connection.execute(rows).all()):
        meta = json.loads(json.loads(text) or "null")  # the dashboard removes an artifact by setting it to null
        if meta and meta["filename"] in FILES.values():
            found.append(Kept(trial_id, number, state, meta["artifact_id"], meta["filename"]))
    return found


def forget_files(storage: Storage, files: Iterable[Kept]) -> None:
    """Remove the attributes that name these files."""
    gone = list(files)

    def work(connection: Connection, uncertain: bool) -> None:
        for file in gone:
            key = ARTIFACT + file.artifact_id
            connection.execute(sa.delete(SYSTEM_ATTRS).filter_by(trial_id=file.trial_id, key=key))

    if gone:
        transact(storage.engine, work)


def remove_files(storage: Storage, study: StudySummary) -> None:
    """Remove the files of a study that is about to be deleted."""
    own = identity(study.user_attrs, study.name)
    for file in kept_files(storage, study.study_id):
        folder = artifact_folder(storage.location)
        try:
            ArtifactFolder(folder).remove(file_id(own, file.number))
        except OSError as error:
            raise StorageError(
                f"{folder}: the weights of study '{study.name}' cannot be removed ({error.strerror or error}), and so "
                f"the study stays; make the folder writable, or name another one in {FOLDER} to leave the weights there"
            ) from error


def artifacts_of_others(storage: Storage, study_id: int) -> set[str]:
    """Return the ids of the artifacts that other studies and their trials name; a copy names those of its source."""
    of_trials = (
        sa.select(SYSTEM_ATTRS.c.key)
        .join(TRIALS, SYSTEM_ATTRS.c.trial_id == TRIALS.c.trial_id)
        .where(TRIALS.c.study_id != study_id, SYSTEM_ATTRS.c.key.startswith(ARTIFACT, autoescape=True))
        .where(SYSTEM_ATTRS.c.value_json != REMOVED)
    )
    key = STUDY_SYSTEM_ATTRS.c.key
    of_studies = sa.select(key).where(
        STUDY_SYSTEM_ATTRS.c.study_id != study_id,
        key.startswith(ARTIFACT, autoescape=True) | key.startswith(OF_DASHBOARD, autoescape=True),
        STUDY_SYSTEM_ATTRS.c.value_json != REMOVED,
    )
    keys = consult(storage.engine, lambda connection: connection.execute(of_trials.union(of_studies)).scalars().all())
    return {key.rpartition(":")[2] for key in keys}
