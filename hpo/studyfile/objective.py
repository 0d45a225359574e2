"""A study of the user's own objective: a function of `optuna.Trial` in place of data, network, optimizer, training.

`hpo.studyfile.checking.parse_any_study` alone makes an `ObjectiveStudy`, so what it holds has been checked. The
function itself is not looked for here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, ValidationInfo, field_validator

from hpo.errors import StudyFileError
from hpo.studyfile.messages import dotted, faults_of, study_file_error
from hpo.studyfile.models import Named, SearchSettings, Settings, StudySettings
from hpo.studyfile.trees import Path, first_in_order
from hpo.studyfile.values import HERE, AboveZero, Natural, Positive, Reference

Direction = Literal["minimize", "maximize"]

KEY = "objective"
"""The key that tells such a study from one of hpo's networks."""


class ObjectiveSearchSettings(Settings):
    """`[search]` of an objective: how many trials, chosen and judged how; the defaults are Optuna's own."""

    trials: Positive
    direction: Annotated[
        Annotated[Direction, Tag("word")] | Annotated[list[Direction], Field(min_length=2), Tag("list")],
        Discriminator(lambda value: "list" if isinstance(value, list) else "word"),
        Field(description="minimize, maximize, or a list of one for each value that it returns"),
    ] = "minimize"
    sampler: Literal["random", "tpe", "gp", "cmaes", "nsga2", "qmc"] = "tpe"
    pruner: Literal["none", "median", "hyperband"] = "median"
    seed: Natural = 0
    retries: Natural = 0
    trial_timeout: AboveZero | None = None
    timeout: AboveZero | None = None
    patience: Positive | None = None

    @field_validator("sampler")
    @classmethod
    def _samples_for_all(cls, sampler: str, info: ValidationInfo) -> str:
        if sampler == "cmaes" and isinstance(info.data.get("direction"), list):
            raise ValueError("cmaes knows one direction only; use tpe, nsga2, gp, qmc or random")
        return sampler

    @property
    def minimized(self) -> bool:
        """Whether less of the first value is better."""
        return self.all_minimized[0]

    @property
    def all_minimized(self) -> tuple[bool, ...]:
        """The same of each value that it returns."""
        directions = [self.direction] if isinstance(self.direction, str) else self.direction
        return tuple(direction == "minimize" for direction in directions)


class ObjectiveStudySettings(Named):
    """A whole study file of an objective; the fields in canonical order."""

    description: str = ""
    objective: Reference
    search: ObjectiveSearchSettings


@dataclass(frozen=True)
class ObjectiveStudy:
    """A checked study of an objective. Two are equal when their files say the same, wherever they were read."""

    source: str = field(compare=False)  # the file as the user named it
    settings: ObjectiveStudySettings
    folder: FilePath = field(default=HERE, compare=False)  # where the objective's file is looked for

    @property
    def name(self) -> str:
        return self.settings.name

    def named(self, name: str) -> ObjectiveStudy:
        """Return the study under another name, which may be one that no file could give it."""
        return replace(self, settings=self.settings.model_copy(update={"name": name}))

    @property
    def description(self) -> str:
        return self.settings.description

    @property
    def objective(self) -> str:
        """The reference to the function: `my_objective.py:objective`."""
        return self.settings.objective

    @property
    def references(self) -> dict[str, str]:
        """What the file refers to of the user's own code, each with the key that says so."""
        return {self.objective: KEY}

    @property
    def search(self) -> ObjectiveSearchSettings:
        return self.settings.search

    def resolved(self) -> dict[str, Any]:
        """Return the whole file as a tree for JSON, every default filled in."""
        return self.settings.model_dump(exclude_none=True)

    def error(self, key: str, problem: str) -> StudyFileError:
        """Return the error to raise for a key of this study that proves wrong later on."""
        return study_file_error(self.source, key, problem)


def parse_objective_study(tree: Mapping[str, Any], source: str, folder: FilePath) -> ObjectiveStudy:
    """Check the tree of a study that has an objective; raise StudyFileError for its first problem."""
    problems = _not_used(tree)
    rest = {key: value for key, value in tree.items() if (key,) not in problems}
    search = rest.get("search", {})  # its keys will be missing
    if isinstance(search, Mapping):
        rest["search"] = {key: value for key, value in search.items() if ("search", key) not in problems}
    settings = None
    try:
        settings = ObjectiveStudySettings.model_validate(rest)
    except ValidationError as error:
        problems |= {path: fault.sentence for path, fault in faults_of(error, ObjectiveStudySettings, rest).items()}
    if settings is None or problems:
        path = first_in_order(dict(tree), problems)
        raise study_file_error(source, dotted(path), problems[path])
    return ObjectiveStudy(source, settings, folder)


def _not_used(tree: Mapping[str, Any]) -> dict[Path, str]:
    """Return what is given that only studies of hpo's networks have."""
    why = f"cannot be given beside {KEY}, whose function does all that"
    found: dict[Path, str] = {
        (key,): why
        for key in tree
        if key in StudySettings.model_fields and key not in ObjectiveStudySettings.model_fields
    }
    search = tree.get("search")
    known = ObjectiveSearchSettings.model_fields
    for key in search if isinstance(search, Mapping) else ():
        if key in SearchSettings.model_fields and key not in known:
            found["search", key] = f"not used with {KEY}; known: {', '.join(known)}"
    return found
