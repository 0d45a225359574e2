"""Studies as Python objects: made of sections, read from a file, or taken from a dictionary.

However a study is made, the same check is made at once, and what is wrong is said in the same sentence:
`hpo.Study: optimizer.lr.low: must be above 0 (got -1)`. Knows nothing of storages.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

from hpo import studyfile
from hpo.api.sections import Data, Keywords, Network, Optimizer, Search, Training, plain
from hpo.studyfile.reading import base_folder, read_tree, study_from_tree

Table: TypeAlias = Mapping[str, Any]


class Study(Keywords):
    """A checked study: what a study file says, whole.

    `resolved()` is the whole as a tree for JSON, every default filled in, and `str()` the text of a study file. Two
    studies are equal where they say the same, wherever they come from. A section is one of `hpo`'s own, or a dictionary
    with its keys; `objective`, such as "my_objective.py:objective", takes the place of all of them but `search`.
    `folder` is where the files that it refers to are looked for, by default the current one.

    Raises StudyFileError for the first thing that is wrong, in the order of the arguments.
    """

    checked: studyfile.AnyStudy
    """The study as the rest of hpo has it."""

    def __init__(
        self,
        *,
        name: str,
        description: str = "",
        objective: str | None = None,
        data: Data | Table | None = None,
        network: Network | Table | None = None,
        optimizer: Optimizer | Table | None = None,
        training: Training | Table | None = None,
        search: Search | Table | None = None,
        baseline: Table | None = None,
        folder: str | os.PathLike[str] = ".",
    ) -> None:
        given = {
            "name": name,
            "description": description,
            "objective": objective,
            "data": data,
            "network": network,
            "optimizer": optimizer,
            "training": training,
            "search": search,
            "baseline": baseline,
        }
        tree = {key: plain(value) for key, value in given.items() if value is not None}
        self.checked = studyfile.parse_any_study(tree, "hpo.Study", Path(folder).absolute())

    @classmethod
    def of(cls, checked: studyfile.AnyStudy) -> Self:
        """Return a study that has been checked, as one of this class."""
        study = cls.__new__(cls)
        study.checked = checked
        return study

    def __eq__(self, other: object) -> bool:
        return self.checked == other.checked if isinstance(other, Study) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # lists among its values have none either

    def __repr__(self) -> str:
        return f"<study {self.name!r} of {self.checked.source}>"

    @property
    def name(self) -> str:
        """Its name in the storage."""
        return self.checked.name

    @property
    def description(self) -> str:
        """What the dashboard shows as its note."""
        return self.checked.description

    def resolved(self) -> dict[str, Any]:
        """Return the whole as a tree for JSON, every default filled in; keys that no trial uses are left out."""
        return copy.deepcopy(self.checked.resolved())  # whoever changes it changes no study

    def __str__(self) -> str:
        """Return the text of a study file that says the same; what has its default is left out."""
        from hpo.studyfile.writing import study_text

        return study_text(self.checked)

    def check(self, device: str = "auto", *, resolved: bool = False) -> str:
        """Return the report of `hpo check`: the search space, the data, and the size of a population.

        With `resolved` the text of the resolved file follows. Raises what a launch raises before it trains:
        StudyFileError, UsageError and DataError.
        """
        from hpo.search.check import check_report

        return check_report(self.checked, device, resolved)


Source: TypeAlias = Study | str | os.PathLike[str] | Mapping[str, Any]
"""What names a study: one that is made, a file's path, or a dictionary with the keys of a study file."""


def read(
    source: Source,
    overrides: Sequence[str] = (),
    *,
    trials: int | None = None,
    name: str | None = None,
    population: int | None = None,
) -> Study:
    """Return the study of a file (TOML, or JSON as `hpo export` writes it), of a dictionary, or of another study.

    `overrides` change single keys, as `--set` does: `["optimizer.lr.high=0.1"]`. `trials`, `name` and `population`
    take the place of what is said of them there. Raises StudyFileError for the first thing that is wrong.
    """
    changes = {"trials": trials, "name": name, "population": population}
    if isinstance(source, Study):
        tree, said, folder = source.resolved(), source.checked.source, source.checked.folder
    elif isinstance(source, Mapping):
        tree, said, folder = plain(source), "study", Path.cwd()
    else:
        said = os.fspath(source)
        tree = read_tree(said)
        folder = base_folder(tree, Path(said))
    return Study.of(study_from_tree(tree, said, folder, overrides, **changes))
