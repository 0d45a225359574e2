"""SQL that puts a storage right, and commands of hpo, as text for whoever is to run it: hpo runs none of it.

Promises: the same statement for both databases; only what is named is touched. SQL is to be run while nobody else works
on the storage. What is wrong, `hpo.storage.health` finds.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from hpo.optuna_internals import models
from hpo.storage.rows import TRIALS

TABLES = models.BaseModel.metadata.tables
DIALECT = sqlite.dialect()  # what is written here is standard SQL


def deletion(orphans: Iterable[tuple[str, str]]) -> str:
    """Return the SQL that deletes the rows of these tables that belong to nothing in the other ones."""
    statements = []
    for name, parent in orphans:
        (key,) = TABLES[parent].primary_key
        statements.append(_text(sa.delete(TABLES[name]).where(TABLES[name].c[key.name].not_in(sa.select(key)))))
    return "; ".join(statements)


def renumbering(study_ids: Iterable[int]) -> str:
    """Return the SQL that numbers the trials of these studies anew, in the order of their ids. They keep all else."""
    earlier = TRIALS.alias("earlier")
    before = (earlier.c.study_id == TRIALS.c.study_id) & (earlier.c.trial_id < TRIALS.c.trial_id)
    number = sa.select(sa.func.count()).select_from(earlier).where(before).scalar_subquery()
    return _text(sa.update(TRIALS).where(TRIALS.c.study_id.in_(list(study_ids))).values(number=number))


def _text(statement: sa.Delete | sa.Update) -> str:
    return " ".join(str(statement.compile(dialect=DIALECT, compile_kwargs={"literal_binds": True})).split())


def command(verb: str, name: str, options: str = "") -> str:
    """Return `hpo VERB NAME OPTIONS` as a shell takes it; a name that begins with a dash stands after `--`."""
    words = [shlex.quote(name), options] if not name.startswith("-") else [options, "--", shlex.quote(name)]
    return " ".join(word for word in ["hpo", verb, *words] if word)
