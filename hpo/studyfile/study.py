"""A checked study of networks: its parameters, the settings of each trial, and the resolved file.

Only `hpo.studyfile.checks.checking.parse_study` creates a `Study`, so its values are valid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any, Literal, Protocol

from pydantic import ValidationError

from hpo.errors import StudyFileError
from hpo.memory_code import is_in_memory
from hpo.studyfile.conditions import ConditionalTable, insert_conditional, with_values
from hpo.studyfile.data_settings import DataSettings, PreprocessSettings, user_data
from hpo.studyfile.keys import SEARCHABLE, conditionally_used, is_used, unused_keys
from hpo.studyfile.messages import dotted_key, format_value, study_file_error, validation_problems
from hpo.studyfile.metrics import curve_keys, is_user_defined
from hpo.studyfile.models import Config, SearchSettings, StudySettings
from hpo.studyfile.searched import Parameter, applicable_parameters, candidates
from hpo.studyfile.task_settings import TaskSettings
from hpo.studyfile.trees import MISSING, Path, equal_json, replaced, value_at
from hpo.studyfile.values import CURRENT_FOLDER

_DEFAULT_TASK = TaskSettings().model_dump(exclude_none=True)


@dataclass(frozen=True)
class Study:
    """A checked study. Two studies are equal if their resolved files are equal, wherever they were read."""

    source: str = field(compare=False)  # the file as the user named it
    parameters: tuple[Parameter, ...]  # in the order of the models, conditional ones last
    first_settings: StudySettings  # each searched value is at its first candidate: low, or the first choice
    unconditional: Mapping[str, Any]  # the same as a tree; keys of conditional tables have their values outside these
    conditional_tables: tuple[ConditionalTable, ...] = ()  # in the order of the models, at first candidates
    folder: FilePath = field(default=CURRENT_FOLDER, compare=False)  # the folder of the files that it refers to

    def __eq__(self, other: object) -> bool:
        return equal_json(self.resolved(), other.resolved()) if isinstance(other, Study) else NotImplemented

    @property
    def name(self) -> str:
        """The study's name in the storage."""
        return self.first_settings.name

    def renamed(self, name: str) -> Study:
        """Return the study under another name, which need not be valid in a file."""
        settings = self.first_settings.model_copy(update={"name": name})
        return replace(self, first_settings=settings, unconditional={**self.unconditional, "name": name})

    def with_value(self, section: Literal["data", "search"], key: str, value: Any) -> Study:
        """Return the study with another value of a key; the caller knows that it is valid."""
        table = getattr(self.first_settings, section).model_copy(update={key: value})
        settings = self.first_settings.model_copy(update={section: table})
        return replace(self, first_settings=settings, unconditional=replaced(self.unconditional, (section, key), value))

    @property
    def description(self) -> str:
        """The study's note in the dashboard."""
        return self.first_settings.description

    @property
    def data(self) -> DataSettings:
        """`[data]`, with every default filled in."""
        return self.first_settings.data

    @property
    def preprocess(self) -> PreprocessSettings:
        """`[preprocess]`, with every default filled in."""
        return self.first_settings.preprocess

    @property
    def task(self) -> TaskSettings:
        """`[task]`, with every default filled in."""
        return self.first_settings.task

    @property
    def curve_keys(self) -> tuple[str, ...]:
        """The metrics of each trial's learning curve, with `data.folds` also those of each fold."""
        keys = curve_keys(self.task.kind, self.search.named_metrics)
        folds = range(1, (self.data.folds or 0) + 1)
        return (*keys, *(f"{key}/{fold}" for key in keys for fold in folds))

    @property
    def search(self) -> SearchSettings:
        """`[search]`, with every default filled in."""
        return self.first_settings.search

    @property
    def modules(self) -> tuple[str, ...]:
        """The references to user-defined networks, such as `my_net.py:Net`."""
        return tuple(each for each in self.possible_values(("network", "module")).values() if each is not None)

    @property
    def references(self) -> dict[str, str]:
        """The references to user code (network, data, loss, metric), each with its key in the study file."""
        kind, data = user_data(self.data.dataset) or ("", "")
        data_function = {data: "data.dataset"} if kind == "code" else {}
        metrics = dict.fromkeys(filter(is_user_defined, self.search.named_metrics), "search.metric")
        loss = self.task.loss
        losses = {} if loss is None or not is_user_defined(loss) else {loss: "task.loss"}
        return data_function | dict.fromkeys(self.modules, "network.module") | losses | metrics

    @property
    def keys_in_memory(self) -> list[str]:
        """The keys whose data or code are in the memory of a process, and in no file."""
        code = [key for reference, key in self.references.items() if is_in_memory(reference)]
        return list(dict.fromkeys([*(["data.dataset"] if self.data.is_in_memory else []), *code]))

    @property
    def first_config(self) -> Config:
        """The settings of a trial with each searched value at its first candidate."""
        settings = self.first_settings.model_dump(include=set(SEARCHABLE))
        return Config.model_validate(settings).with_folder(self.folder)

    def applicable_parameters(self, params: Mapping[str, Any]) -> tuple[Parameter, ...]:
        """Return the parameters of a trial with these values, decoded or as stored.

        Whether a conditional parameter is among them depends only on values of unconditional ones.
        """
        return applicable_parameters(self.parameters, params)

    def config(self, params: Mapping[str, Any], with_unused: bool = False) -> Config:
        """Return the settings of the trial with these values by parameter name.

        Values outside the study's ranges are accepted if the settings allow them, because the study may have been
        extended since. Unused keys have their defaults, so that trials that train alike have equal settings; with
        `with_unused` they have their given values.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        applicable = self.applicable_parameters(params)
        for parameter in applicable:
            if parameter.name not in params:
                raise self.error(dotted_key(parameter.path), "the trial has no value for it")
        for name in params:
            if name not in known:
                raise self.error("", f"unknown parameter {format_value(name)}; known: {', '.join(known) or 'none'}")
            if known[name] not in applicable:
                raise self.error(dotted_key(known[name].path), "the trial has a value, but it is not searched there")
        tree = self._tree(params)
        try:
            return Config.model_validate(tree if with_unused else _without_unused(tree)).with_folder(self.folder)
        except ValidationError as error:
            path, problem = next(iter(validation_problems(error, Config, tree).items()))
            raise self.error(dotted_key(path), problem.text) from error

    def value(self, setting: Path, params: Mapping[str, Any]) -> Any:
        """Return the value of a setting in a searchable section for the trial with these values."""
        return value_at(self._tree(params), setting)

    def used_values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that affect training: trials with equal used values train alike.

        Values of unknown parameters are included.
        """
        conditional = [
            each for each in self.parameters if each.name in params and each.setting[:2] in conditionally_used()
        ]
        if not conditional:
            return dict(params)
        tree = self._tree(params)
        unused = {each.name for each in conditional if not is_used(each.setting, tree)}
        return {name: value for name, value in params.items() if name not in unused}

    def _tree(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the searchable sections with these values; unknown parameters are ignored."""
        tree: dict[str, Any] = {section: self.unconditional[section] for section in SEARCHABLE}
        applicable = self.applicable_parameters(params)
        given = {each.path: params[each.name] for each in applicable if each.name in params}
        return with_values(tree, self.conditional_tables, given)

    def resolved(self) -> dict[str, Any]:
        """Return the resolved file as a tree for JSON: every default filled in, without unused keys.

        A `[preprocess]` of defaults alone is left out.
        """
        tree = insert_conditional(dict(self.unconditional), self.conditional_tables)
        if self.preprocess == PreprocessSettings():
            del tree["preprocess"]
        for parameter in self.parameters:
            tree = replaced(tree, parameter.path, parameter.searched.tree())
        return _without_unused(tree)

    def definitions(self, setting: Path) -> dict[Path, Any]:
        """Return all values, fixed or searched, that the resolved file has for a setting, by path."""
        tree = self.resolved()
        tables = [table for table in self.conditional_tables if table.defines(setting)]
        found = {path: value_at(tree, path) for path in (setting, *((*table.path, *setting[1:]) for table in tables))}
        return {path: value for path, value in found.items() if value is not MISSING}

    def possible_values(self, setting: Path) -> dict[Path, Any]:
        """Return a setting's fixed values, choices and ends of ranges, by path in the resolved file."""
        found: dict[Path, Any] = {}
        for path, value in self.definitions(setting).items():
            inner = candidates(value) if isinstance(value, dict) else {(): value}
            found |= {(*path, *at): each for at, each in inner.items()}
        return found

    def error(self, key: str, problem: str) -> StudyFileError:
        """Return an error about a key of this study, to raise."""
        return study_file_error(self.source, key, problem)


def _without_unused(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree without the keys that are unused with all possible values of their section.

    A task at its defaults is left out: files of studies without `[task]` stay as they were.
    """
    used = {key: value for key, value in tree.items() if key != "task" or value != _DEFAULT_TASK}
    for section in SEARCHABLE:
        unused = unused_keys(section, tree[section])
        used[section] = {key: value for key, value in tree[section].items() if key not in unused}
    return used


class Resolved(Protocol):
    """A study of either kind."""

    def resolved(self) -> dict[str, Any]:
        """Return the resolved file as a tree for JSON."""


def differing_keys(old: Resolved, new: Resolved) -> list[str]:
    """Return each key in which two resolved files differ: `optimizer.lr.high: 0.01 -> 0.1`."""
    return list(_differences(old.resolved(), new.resolved(), ()))


def _differences(old: Any, new: Any, path: Path) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            yield from _differences(old.get(key, MISSING), new.get(key, MISSING), (*path, key))
    elif not equal_json(old, new):
        before, after = ("not set" if value is MISSING else format_value(value) for value in (old, new))
        yield f"{dotted_key(path)}: {before} -> {after}"
