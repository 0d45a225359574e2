"""Studies as Python objects: built from sections, read from a file, or parsed from a dictionary.

Every study is checked when it is built, with the same error messages as a file:
`hpo.Study: optimizer.lr.low: must be above 0 (got -1)`. This module uses no storage.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

from hpo import studyfile
from hpo.api.sections import (
    Code,
    Data,
    Keywords,
    Network,
    Optimizer,
    Preprocess,
    Search,
    Task,
    Training,
    UnnamedCodeError,
    plain,
)
from hpo.errors import StudyFileError
from hpo.memory_code import register
from hpo.studyfile.reading import base_folder, read_tree, study_from_tree

Table: TypeAlias = Mapping[str, Any]


class Study(Keywords):
    """A checked study, with the contents of a study file.

    `resolved()` is the resolved file as a tree for JSON, and `str()` the text of a study file. Studies with the same
    resolved file are equal. A section is an object such as `hpo.Network`, or a dictionary with its keys. An objective
    study has `objective`, a function of `optuna.Trial` or its name, such as "my_objective.py:objective", `search` and
    `baseline`, and no other section. Paths to user code and data are relative to `folder`, by default the current
    folder. Code, arrays and DataFrames that are in no file exist in this process only.

    Raises StudyFileError for the first invalid key, in the order of the arguments.
    """

    checked: studyfile.AnyStudy
    """The parsed study that other packages of hpo use."""
    memory: dict[str, Any]
    """The functions and classes that are in no file, by their references."""

    def __init__(
        self,
        *,
        name: str,
        description: str = "",
        objective: str | Code | None = None,
        data: Data | Table | None = None,
        task: Task | Table | None = None,
        network: Network | Table | None = None,
        optimizer: Optimizer | Table | None = None,
        training: Training | Table | None = None,
        search: Search | Table | None = None,
        preprocess: Preprocess | Table | None = None,
        baseline: Table | None = None,
        folder: str | os.PathLike[str] = ".",
    ) -> None:
        given = {
            "name": name,
            "description": description,
            "objective": objective,
            "data": data,
            "task": task,
            "network": network,
            "optimizer": optimizer,
            "training": training,
            "search": search,
            "preprocess": preprocess,
            "baseline": baseline,
        }
        base, self.memory = Path(folder).absolute(), {}
        tree: dict[str, Any] = {}
        for key, value in given.items():
            try:
                tree |= {} if value is None else plain({key: value}, base, self.memory)
            except UnnamedCodeError as error:
                raise StudyFileError("hpo.Study", key, str(error)) from error
        self.checked = studyfile.parse_any_study(tree, "hpo.Study", base)
        register(self.memory)

    @classmethod
    def of(cls, checked: studyfile.AnyStudy, memory: Mapping[str, Any] | None = None) -> Self:
        """Return the study with this parsed study, and its code that is in no file."""
        study = cls.__new__(cls)
        study.checked, study.memory = checked, dict(memory or {})
        return study

    def __eq__(self, other: object) -> bool:
        return self.checked == other.checked if isinstance(other, Study) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # a study contains lists, which have no hash

    def __repr__(self) -> str:
        return f"<study {self.name!r} of {self.checked.source}>"

    @property
    def name(self) -> str:
        """The study's name in the storage."""
        return self.checked.name

    @property
    def description(self) -> str:
        """The description, which the dashboard shows as a note."""
        return self.checked.description

    def resolved(self) -> dict[str, Any]:
        """Return the resolved file as a tree for JSON: every default filled in, without keys that no trial uses."""
        return copy.deepcopy(self.checked.resolved())  # a caller may change it

    def __str__(self) -> str:
        """Return the text of an equal study file, without keys at their defaults."""
        from hpo.studyfile.writing import study_text

        return study_text(self.checked)

    def check(
        self, device: str = "auto", *, resolved: bool = False, measure: bool = False, storage: str | None = None
    ) -> str:
        """Return the report of `hpo check`: the search space, the data, and the size of a population.

        With `measure`, it trains for some seconds; the speed of stacks and of single trials follows, in each precision.
        With `resolved` the text of the resolved file follows. A study that is stored at the URL `storage`, by default
        that of HPO_STORAGE or `sqlite:///hpo.db`, has the pruner that was chosen when it began. Raises what a launch
        raises before it trains: StudyFileError, UsageError and DataError.
        """
        from hpo.results.display.check import check_report

        register(self.memory)
        return check_report(self.checked, device, resolved, storage, measure)


Source: TypeAlias = Study | str | os.PathLike[str] | Mapping[str, Any]
"""A study, the path of its file, or a dictionary with the keys of a study file."""


def read(
    source: Source,
    overrides: Sequence[str] = (),
    *,
    trials: int | None = None,
    name: str | None = None,
    population: int | None = None,
) -> Study:
    """Return the study of a file (TOML, or JSON as `hpo export` writes it), of a dictionary, or of another study.

    `overrides` replace single keys, like `--set`: `["optimizer.lr.high=0.1"]`. `trials`, `name` and `population`
    replace the keys of these names. Raises StudyFileError for the first invalid key.
    """
    changes = {"trials": trials, "name": name, "population": population}
    memory: dict[str, Any] = {}
    if isinstance(source, Study):
        tree, source_name, folder = source.resolved(), source.checked.source, source.checked.folder
        memory = source.memory
    elif isinstance(source, Mapping):
        tree, source_name, folder = plain(source, Path.cwd(), memory), "study", Path.cwd()
    else:
        source_name = os.fspath(source)
        tree = read_tree(source_name)
        folder = base_folder(tree, Path(source_name))
    register(memory)
    return Study.of(study_from_tree(tree, source_name, folder, overrides, **changes), memory)


def init(
    *,
    data: str | None = None,
    target: str | Sequence[str] = (),
    module: str | None = None,
    objective: str | None = None,
    task: str | None = None,
    name: str | None = None,
    output: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a starter study file for these data, or for an objective function; return its path.

    `data` is a data set such as "digits" or "table:houses.csv", `target` the column or columns of a table to predict,
    `module` a network of the user, "net.py:Net", and `objective` a function of `optuna.Trial`, "script.py:objective".
    The kind of the task is guessed from the targets if `task` is None. `output` is by default `NAME.toml` in the
    current folder; a file there is never overwritten. The JSON Schema for editors is written beside the study file.

    Raises UsageError, DataError, CodeError or StudyFileError where a launch of the study would; nothing is written.
    """
    from hpo.starter.write import write_starter

    targets = [target] if isinstance(target, str) else list(target)
    return write_starter(data, targets, module, objective, task, name, None if output is None else Path(output))


def study_schema() -> str:
    """Return the JSON Schema of study files as JSON text, with which an editor completes and checks their keys."""
    from hpo.starter.schema_file import schema_text

    return schema_text()
