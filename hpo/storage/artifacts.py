"""Artifacts: the folder with the files of studies and trials, and the records of checkpoint files.

The folder is next to the database file, or chosen by the user; it is created with the first file. A file is written
whole or not at all. Removing a missing file is no error, so that a study copied without its files can be deleted. Only
regular files are artifacts, because a link could point to any file of the machine.

Checkpoint files are artifacts as `optuna.artifacts` writes them, so the dashboard lists them: a file in the folder, and
a system attribute of the trial that names it. The file's id is derived from study and trial. So a repeated attempt
overwrites the file of the previous one, and a copy of a study has files of its own. A file is written before its trial
ends, and its attribute with the trial's result; a file is deleted before its attribute. So a file without an attribute
is overwritten or deleted later, whenever a process dies. Files with training states have no attributes: their ids are
derived likewise. This module knows nothing of the content of files.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
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
from hpo.storage.location import Location
from hpo.storage.sql.claim_conditions import identity
from hpo.storage.sql.retry import read_transaction, write_transaction
from hpo.storage.sql.rows import STUDY_SYSTEM_ATTRS, SYSTEM_ATTRS, TRIALS
from hpo.storage.storage import Storage
from hpo.storage.studies import StudySummary

ARTIFACTS_VARIABLE = "HPO_ARTIFACTS"
ARTIFACT = "artifacts:"  # the key prefix of Optuna's artifact attributes; the artifact's id follows
DASHBOARD_ARTIFACT = f"dashboard:{ARTIFACT}"  # the prefix in old versions of the dashboard, in study attributes
REMOVED_ARTIFACT = json.dumps("null")  # the value to which the dashboard sets the attribute of a removed artifact
SUFFIX = ".safetensors"
CHECKPOINT_NAMES = {keep: f"weights-{keep}{SUFFIX}" for keep in ("best", "last")}
"""The names of checkpoint files: weights of the epoch with the lowest validation loss, or of the last epoch."""
_NAMESPACE = uuid.UUID("5f1e7f0a-6f0c-4d0e-9a55-2b9a1f6f0c11")


class ArtifactFolder(FileSystemArtifactStore):
    """Optuna's artifact store in a folder, which is created with the first file."""

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write a file, replacing an existing one with the same id."""
        file = self._get_filepath(artifact_id)
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary_path(file.parent) as part:
            super().write(part.name, content_body)
            part.chmod(0o666 & ~UMASK)
            part.replace(file)

    @contextlib.contextmanager
    def batch(self) -> Iterator[Callable[[str, bytes], None]]:
        """Return a function that writes a file as `write` does, for many files: a fifth of the time of each."""
        self._base_path.mkdir(parents=True, exist_ok=True)
        with temporary_path(self._base_path, folder=True) as folder:

            def write(artifact_id: str, content: bytes) -> None:
                part = folder / "part"
                part.write_bytes(content)
                part.replace(self._get_filepath(artifact_id))

            yield write

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open a file. Raises ArtifactNotFound if it is missing, or is not a regular file."""
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
        """Delete a file, or a link in its place. A missing file and a folder are ignored."""
        with contextlib.suppress(ArtifactNotFound, IsADirectoryError):
            super().remove(artifact_id)


def artifact_folder(location: Location, folder: Path | None = None) -> Path:
    """Return the folder of a storage's artifacts: `folder`, else HPO_ARTIFACTS, else the storage's default.

    The default of a database file `runs/all.db` is `runs/all-artifacts`, that of a server a folder of this user.
    """
    if folder is None and os.environ.get(ARTIFACTS_VARIABLE):
        folder = Path(os.environ[ARTIFACTS_VARIABLE])
    if folder is not None:
        folder = folder.absolute()
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
    """A checkpoint file of a trial, from the attribute that names it."""

    trial_id: int
    number: int
    state: TrialState
    artifact_id: str
    filename: str


def checkpoint_id(identity: str, number: int) -> str:
    """Return the artifact id of a trial's checkpoint file, from the study's identity and the trial's number."""
    return str(uuid.uuid5(_NAMESPACE, f"{identity}/{number}"))


def state_file_id(identity: str, number: int) -> str:
    """Return the id of the file with a trial's training state, which no attribute names."""
    return str(uuid.uuid5(_NAMESPACE, f"{identity}/{number}/state"))


def checkpoint_attrs(artifact_id: str, filename: str) -> dict[str, Any]:
    """Return the system attribute that names a file, to be stored with the trial's result."""
    meta = ArtifactMeta(artifact_id, filename, "application/octet-stream", None)
    return {ARTIFACT + artifact_id: json.dumps(asdict(meta))}


def checkpoint_files(storage: Storage, study_id: int) -> list[CheckpointFile]:
    """Return the checkpoint files of a study, ordered by trial number."""
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
        meta = json.loads(json.loads(text) or "null")  # REMOVED_ARTIFACT is null
        if meta and meta["filename"] in CHECKPOINT_NAMES.values():
            found.append(CheckpointFile(trial_id, number, state, meta["artifact_id"], meta["filename"]))
    return found


def delete_checkpoint_records(storage: Storage, files: Iterable[CheckpointFile]) -> None:
    """Delete the attributes that name these files."""
    files = list(files)

    def work(connection: Connection, uncertain: bool) -> None:
        for file in files:
            key = ARTIFACT + file.artifact_id
            connection.execute(sa.delete(SYSTEM_ATTRS).filter_by(trial_id=file.trial_id, key=key))

    if files:
        write_transaction(storage.engine, work)


def delete_checkpoint_files(storage: Storage, study: StudySummary) -> None:
    """Delete the checkpoint files and the training states of a study, before the study itself."""
    study_identity = identity(study.user_attrs, study.name)
    checkpoints = [checkpoint_id(study_identity, file.number) for file in checkpoint_files(storage, study.study_id)]
    states = {state_file_id(study_identity, number) for number in range(sum(study.states.values()))}
    try:
        folder = artifact_folder(storage.location)
    except StorageError:
        if checkpoints:
            raise
        return
    try:
        for artifact_id in [*checkpoints, *sorted(states & _names_in(folder))]:
            ArtifactFolder(folder).remove(artifact_id)
    except OSError as error:
        raise StorageError(
            f"{folder}: the weights of study '{study.name}' cannot be deleted ({error.strerror or error}), so the "
            "study is not deleted; make the folder writable, or name another one in "
            f"{ARTIFACTS_VARIABLE} to leave the weights there"
        ) from error


def _names_in(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def artifacts_of_other_studies(storage: Storage, study_id: int) -> set[str]:
    """Return the ids of the artifacts of all other studies and their trials; a copy shares those of its source."""
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
