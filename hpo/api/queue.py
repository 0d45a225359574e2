"""What a storage's queue is doing: how far its studies are, and who works on them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hpo.api.stored import existing

if TYPE_CHECKING:
    from hpo.service.status import Status


def status(name: str | None = None, *, storage: str | None = None) -> Status:
    """Return the studies, or only that one, and who works on them.

    Its `studies` and `workers` are records, its `text()` two tables, its `to_json()` a tree. Raises UnknownStudyError.
    """
    from hpo.service.status import status

    return status(existing(storage), name)


def watch(name: str | None = None, *, storage: str | None = None) -> Iterator[Status]:
    """Give the status again and again, every other second, without an end."""
    from hpo.service.status import WATCH_S, status

    opened = existing(storage)
    while True:
        yield status(opened, name)
        time.sleep(WATCH_S)


def studies_table(*, storage: str | None = None) -> str:
    """Return the table of `hpo studies`: name, data set, trials by state, best value, last activity."""
    from hpo.results.display.tables import studies_table

    return studies_table(existing(storage))
