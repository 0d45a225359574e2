"""Where the files lie that belong to studies and trials: a folder beside the database file, or the user's own.

The folder is made with the first file and not before; a file is written whole or not at all; removing one that is not
there is no error, so that a study copied without its files can be deleted. Only plain files are artifacts: a link that
somebody put in the place of one would show any file of this machine. What a file is to its study stands in Optuna's
tables, as `optuna.artifacts` writes it: this module knows only names and bytes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa
from optuna.artifacts import ArtifactMeta, FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from hpo.errors import StorageError
from hpo.files import UMASK, temporary_path, user_folder
from hpo.storage.claim_conditions import identity
from hpo.storage.location import Location
from hpo.storage.retry import read_transaction, write_transaction
from hpo.storage.rows import STUDY_SYSTEM_ATTRS, SYSTEM_ATTRS, TRIALS
from hpo.storage.storage import Storage
from hpo.storage.studies import StudySummary

ARTIFACTS_VARIABLE = "HPO_ARTIFACTS"
ARTIFACT = "artifacts:"  # the beginning of Optuna's own attributes of artifacts, which end with the artifact's id
DASHBOARD_ARTIFACT = (
    f"dashboard:{ARTIFACT}"  # the same, of a trial, as old versions of its dashboard kept it with the study
)
REMOVED_ARTIFACT = json.dumps("null")  # what the dashboard makes of the attribute of an artifact that it has removed
SUFFIX = ".safetensors"
CHECKPOINT_NAMES = {keep: f"weights-{keep}{SUFFIX}" for keep in ("best", "last")}
"""The name of a trial's file: its weights of the epoch with the lowest validation loss, or of the last."""
_NAMESPACE = uuid.UUID("5f1e7f0a-6f0c-4d0e-9a55-2b9a1f6f0c11")


class ArtifactFolder(FileSystemArtifactStore):
    """Optuna's artifact store in a folder that need not exist yet."""

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Keep a file under that id, replacing what was there."""
        file = self._get_filepath(artifact_id)
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary_path(file.parent) as part:
            super().write(part.name, content_body)
            part.chmod(0o666 & ~UMASK)
            part.replace(file)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open a file; raise ArtifactNotFound where there is none, or a link, a folder or a pipe in its place."""
        try:
            number = os.open(self._get_filepath(artifact_id), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                raise
            raise ArtifactNotFound("not found") from error
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise ArtifactNotFound("not a file")
        return open(number, "rb")

    def remove(self, artifact_id: str) -> None:
        """Remove a file, or a link in its place; it is fine where there is none, and a folder stays."""
        with contextlib.suppress(ArtifactNotFound, IsADirectoryError):
            super().remove(artifact_id)


def artifact_folder(location: Location, given: Path | None = None) -> Path:
    """Return where the artifacts of a storage are: `given`, else HPO_ARTIFACTS, else by the storage.

    A database file `runs/all.db` has `runs/all-artifacts`; a server has a folder of this user, on this machine.
    """
    named = given or (Path(os.environ[ARTIFACTS_VARIABLE]) if os.environ.get(ARTIFACTS_VARIABLE) else None)
    if named is not None:
        folder = named.absolute()
    elif location.file is not None:
        folder = location.file.with_name(location.file.name.removesuffix(".db") + "-artifacts")
    else:
        folder = user_folder("data", ARTIFACTS_VARIABLE, StorageError) / "artifacts"
    if folder.exists() and not folder.is_dir():
        raise StorageError(
            f"{folder}: is not a folder; name another one for artifacts with --artifacts or {ARTIFACTS_VARIABLE}"
        )
    return folder


@dataclass(frozen=True)
class CheckpointFile:
    """A trial's file, as its attribute names it."""

    trial_id: int
    number: int
    state: TrialState
    artifact_id: str
    filename: str


def checkpoint_id(identity: str, number: int) -> str:
    """Return the id of the file of a study's trial; `identity` tells the study from all others."""
    return str(uuid.uuid5(_NAMESPACE, f"{identity}/{number}"))


def checkpoint_attrs(artifact_id: str, filename: str) -> dict[str, Any]:
    """Return the system attribute that names a file, for the ending of its trial."""
    meta = ArtifactMeta(artifact_id, filename, "application/octet-stream", None)
    return {ARTIFACT + artifact_id: json.dumps(asdict(meta))}


def checkpoint_files(storage: Storage, study_id: int) -> list[CheckpointFile]:
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
    for trial_id, number, state, text in read_transaction(
        storage.engine, lambda connection: connection.execute(rows).all()
    ):
        meta = json.loads(json.loads(text) or "null")  # the dashboard removes an artifact by setting it to null
        if meta and meta["filename"] in CHECKPOINT_NAMES.values():
            found.append(CheckpointFile(trial_id, number, state, meta["artifact_id"], meta["filename"]))
    return found


def delete_checkpoint_records(storage: Storage, files: Iterable[CheckpointFile]) -> None:
    """Remove the attributes that name these files."""
    gone = list(files)

    def work(connection: Connection, uncertain: bool) -> None:
        for file in gone:
            key = ARTIFACT + file.artifact_id
            connection.execute(sa.delete(SYSTEM_ATTRS).filter_by(trial_id=file.trial_id, key=key))

    if gone:
        write_transaction(storage.engine, work)


def delete_checkpoint_files(storage: Storage, study: StudySummary) -> None:
    """Remove the files of a study that is about to be deleted."""
    own = identity(study.user_attrs, study.name)
    for file in checkpoint_files(storage, study.study_id):
        folder = artifact_folder(storage.location)
        try:
            ArtifactFolder(folder).remove(checkpoint_id(own, file.number))
        except OSError as error:
            raise StorageError(
                f"{folder}: the weights of study '{study.name}' cannot be deleted ({error.strerror or error}), so the "
                "study is not deleted; make the folder writable, or name another one in "
                f"{ARTIFACTS_VARIABLE} to leave the weights there"
            ) from error


def artifacts_of_other_studies(storage: Storage, study_id: int) -> set[str]:
    """Return the ids of the artifacts that other studies and their trials name; a copy names those of its source."""
    of_trials = (
        sa.select(SYSTEM_ATTRS.c.key)
        .join(TRIALS, SYSTEM_ATTRS.c.trial_id == TRIALS.c.trial_id)
        .where(TRIALS.c.study_id != study_id, SYSTEM_ATTRS.c.key.startswith(ARTIFACT, autoescape=True))
        .where(SYSTEM_ATTRS.c.value_json != REMOVED_ARTIFACT)
    )
    key = STUDY_SYSTEM_ATTRS.c.key
    of_studies = sa.select(key).where(
        STUDY_SYSTEM_ATTRS.c.study_id != study_id,
        key.startswith(ARTIFACT, autoescape=True) | key.startswith(DASHBOARD_ARTIFACT, autoescape=True),
        STUDY_SYSTEM_ATTRS.c.value_json != REMOVED_ARTIFACT,
    )
    keys = read_transaction(
        storage.engine, lambda connection: connection.execute(of_trials.union(of_studies)).scalars().all()
    )
    return {key.rpartition(":")[2] for key in keys}
