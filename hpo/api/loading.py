"""Studies of a storage, by name or all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo.api.stored_study import StoredStudy

if TYPE_CHECKING:
    from hpo.storage import Storage


def load(name: str, *, storage: str | None = None) -> StoredStudy:
    """Return the study of that name.

    `storage` is a URL, `sqlite:///FILE` or `postgresql://HOST/NAME`; None means HPO_STORAGE, or `sqlite:///hpo.db`.
    Raises StorageError where there is no storage, and UnknownStudyError.
    """
    from hpo.storage import summary

    opened = open_existing(storage)
    summary(opened, name)
    return StoredStudy(opened, name)


def studies(*, storage: str | None = None) -> list[StoredStudy]:
    """Return the studies of a storage, oldest first. Raises StorageError where there is no storage."""
    from hpo.storage import study_names

    opened = open_existing(storage)
    return [StoredStudy(opened, name) for name in study_names(opened)]


def open_existing(url: str | None) -> Storage:
    """Return the storage at the URL. Raises StorageError where there is none."""
    from hpo.results.study_facts import open_existing

    return open_existing(url)
