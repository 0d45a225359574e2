"""Where the files lie that belong to studies and trials: a folder beside the database file, or the user's own.

The folder is made with the first file and not before; a file is written whole or not at all; removing one that is not
there is no error, so that a study copied without its files can be deleted. Only plain files are artifacts: a link that
somebody put in the place of one would show any file of this machine. What a file is to its study stands in Optuna's
tables, as `optuna.artifacts` writes it: this module knows only names and bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from hpo.errors import StorageError
from hpo.files import UMASK, temporary_path, user_folder
from hpo.storage.location import Location

FOLDER = "HPO_ARTIFACTS"


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
    named = given or (Path(os.environ[FOLDER]) if os.environ.get(FOLDER) else None)
    if named is not None:
        folder = named.absolute()
    elif location.file is not None:
        folder = location.file.with_name(location.file.name.removesuffix(".db") + "-artifacts")
    else:
        folder = user_folder("data", FOLDER, StorageError) / "artifacts"
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder}: is not a folder; name another one for artifacts with --artifacts or {FOLDER}")
    return folder
