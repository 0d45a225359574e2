"""Studies with an objective function: the user's function of `optuna.Trial` in place of data, network and training.

Only `hpo.studyfile.checks.checking.parse_any_study` creates an `ObjectiveStudy`, so its values are valid. The function
is not imported here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationError, ValidationInfo, field_validator

from hpo.errors import StudyFileError
from hpo.memory_code import is_in_memory
from hpo.studyfile.messages import dotted_key, study_file_error, validation_problems
from hpo.studyfile.models import NamedSettings, SearchSettings, StudySettings
from hpo.studyfile.trees import Path, first_path
from hpo.studyfile.values import CURRENT_FOLDER, AboveZero, Natural, Positive, Reference, Settings

Direction = Literal["minimize", "maximize"]

KEY = "objective"
"""The key that makes a study file an objective study."""

VALUE = "value"
"""The name of an objective function's value; several are `value 0`, `value 1`."""


def value_names(count: int) -> tuple[str, ...]:
    """Return the names of so many values of an objective function."""
    return (VALUE,) if count == 1 else tuple(f"{VALUE} {number}" for number in range(count))


def _suggested(value: Any) -> Any:
    """Return a value of a parameter unchanged; raise ValueError for one that a `suggest` call cannot return."""
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError("must be a number, a string, true or false")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Point = dict[str, Annotated[Any, AfterValidator(_suggested)]]
"""Values by parameter name, as Optuna stores them; JSON and Python may have None, for a choice that is None."""


class ObjectiveSearchSettings(Settings):
    """`[search]` of an objective study, with the defaults of Optuna."""

    trials: Positive
    direction: Annotated[
        Annotated[Direction, Tag("word")] | Annotated[list[Direction], Field(min_length=2), Tag("list")],
        Discriminator(lambda value: "list" if isinstance(value, list) else "word"),
        Field(description="minimize, maximize, or a list with one for each returned value"),
    ] = "minimize"
    sampler: Literal["random", "tpe", "gp", "cmaes", "nsga2", "qmc"] = "tpe"
    pruner: Literal["none", "median", "hyperband"] = "median"
    seed: Natural = 0
    points: list[Point] = []  # noqa: RUF012 - pydantic copies the default
    repeats: Positive = 1
    retries: Natural = 0
    trial_timeout: AboveZero | None = None
    timeout: AboveZero | None = None
    patience: Positive | None = None

    @field_validator("sampler")
    @classmethod
    def _check_sampler(cls, sampler: str, info: ValidationInfo) -> str:
        if sampler == "cmaes" and isinstance(info.data.get("direction"), list):
            raise ValueError("cmaes optimizes one direction only; use tpe, nsga2, gp, qmc or random")
        return sampler

    @field_validator("points")
    @classmethod
    def _check_points(cls, points: list[Point]) -> list[Point]:
        first: dict[str, int] = {}
        for index, point in enumerate(points):
            before = first.setdefault(json.dumps(point, sort_keys=True), index)
            if before != index:
                raise ValueError(f"points {before} and {index} are the same; remove one")
        return points

    @field_validator("repeats")
    @classmethod
    def _check_repeats(cls, repeats: int, info: ValidationInfo) -> int:
        points, trials = info.data.get("points"), info.data.get("trials")
        if repeats == 1 or points is None or trials is None:
            return repeats
        if not points:
            raise ValueError("repeats points only; give the configurations in search.points")
        if trials > len(points) * repeats:
            problem = f"allows only repeated points: search.trials must be at most {len(points) * repeats}"
            raise ValueError(f"{problem}, the points times the repeats (got {trials})")
        return repeats

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the returned values."""
        return value_names(len(self.all_minimized))

    @property
    def first_metric(self) -> str:
        """The name of the value by which trials are ranked."""
        return self.metrics[0]

    @property
    def minimized(self) -> bool:
        """True if lower first values are better."""
        return self.all_minimized[0]

    @property
    def all_minimized(self) -> tuple[bool, ...]:
        """For each returned value, True if lower values are better."""
        directions = [self.direction] if isinstance(self.direction, str) else self.direction
        return tuple(direction == "minimize" for direction in directions)


class ObjectiveStudySettings(NamedSettings):
    """The study file of an objective study; the fields in canonical order."""

    description: str = ""
    objective: Reference
    search: ObjectiveSearchSettings
    baseline: Point = {}  # noqa: RUF012 - pydantic copies the default


@dataclass(frozen=True)
class ObjectiveStudy:
    """A checked objective study. Two are equal if their resolved files are equal, wherever they were read."""

    source: str = field(compare=False)  # the file as the user named it
    settings: ObjectiveStudySettings
    folder: FilePath = field(default=CURRENT_FOLDER, compare=False)  # the folder of the objective's file

    @property
    def name(self) -> str:
        return self.settings.name

    def renamed(self, name: str) -> ObjectiveStudy:
        """Return the study under another name, which need not be valid in a file."""
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
        """The references to user code, each with its key in the study file."""
        return {self.objective: KEY}

    @property
    def keys_in_memory(self) -> list[str]:
        """The keys whose code is in the memory of a process, and in no file."""
        return [KEY] if is_in_memory(self.objective) else []

    @property
    def search(self) -> ObjectiveSearchSettings:
        return self.settings.search

    def used_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a trial's values: the function uses all that it suggests."""
        return dict(values)

    def resolved(self) -> dict[str, Any]:
        """Return the resolved file as a tree for JSON, without points, repeats and a baseline where there are none."""
        settings, search = self.settings, self.search
        tree = settings.model_dump(exclude_none=True, exclude={"baseline": True, "search": {"points", "repeats"}})
        tree["search"] |= {"points": [dict(point) for point in search.points]} if search.points else {}
        tree["search"] |= {"repeats": search.repeats} if search.repeats > 1 else {}
        return tree | ({"baseline": dict(settings.baseline)} if settings.baseline else {})

    def error(self, key: str, problem: str) -> StudyFileError:
        """Return an error about a key of this study, to raise."""
        return study_file_error(self.source, key, problem)


def parse_objective_study(tree: Mapping[str, Any], source: str, folder: FilePath) -> ObjectiveStudy:
    """Check the tree of an objective study; raise StudyFileError for its first problem."""
    problems = _unused(tree)
    rest = {key: value for key, value in tree.items() if (key,) not in problems}
    search = rest.get("search", {})  # its keys will be reported as missing
    if isinstance(search, Mapping):
        rest["search"] = {key: value for key, value in search.items() if ("search", key) not in problems}
    settings = None
    try:
        settings = ObjectiveStudySettings.model_validate(rest)
    except ValidationError as error:
        found = validation_problems(error, ObjectiveStudySettings, rest)
        problems |= {path: problem.text for path, problem in found.items()}
    if settings is None or problems:
        path = first_path(dict(tree), problems)
        raise study_file_error(source, dotted_key(path), problems[path])
    return ObjectiveStudy(source, settings, folder)


def _unused(tree: Mapping[str, Any]) -> dict[Path, str]:
    """Return the keys that only network studies have, with their problems."""
    why = f"cannot be used with {KEY}: the function itself defines data, network and training"
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
