"""A study: what its file says, the concrete settings of each of its trials, and the whole as a tree for JSON.

`hpo.studyfile.checking.parse_study` alone makes a `Study`, so what it holds has been checked. It knows nothing of
files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any, Protocol

from pydantic import ValidationError

from hpo.errors import StudyFileError
from hpo.studyfile.cases import Case, assembled, with_cases
from hpo.studyfile.keys import SEARCHABLE, conditional, is_used, unused_keys
from hpo.studyfile.messages import dotted, faults_of, shown, study_file_error
from hpo.studyfile.models import Config, DataSettings, SearchSettings, StudySettings, own_data
from hpo.studyfile.searched import Parameter, applicable, candidates
from hpo.studyfile.trees import MISSING, Path, replaced, same, value_at
from hpo.studyfile.values import HERE


@dataclass(frozen=True)
class Study:
    """A checked study. Two studies are equal when their files say the same, wherever they were read."""

    source: str = field(compare=False)  # the file as the user named it
    parameters: tuple[Parameter, ...]  # in the order of the models, whatever the file's, conditional ones last
    first: StudySettings  # the file with every searched value at its first: low, or the first choice
    plain: Mapping[str, Any]  # the same as a tree, but for keys that cases give: these are as they are in no case
    cases: tuple[Case, ...] = ()  # in the order of the models, with every searched value at its first
    folder: FilePath = field(default=HERE, compare=False)  # where the files that it refers to are looked for

    def __eq__(self, other: object) -> bool:
        return same(self.resolved(), other.resolved()) if isinstance(other, Study) else NotImplemented

    @property
    def name(self) -> str:
        """The name in the storage."""
        return self.first.name

    def named(self, name: str) -> Study:
        """Return the study under another name, which may be one that no file could give it."""
        return replace(self, first=self.first.model_copy(update={"name": name}), plain={**self.plain, "name": name})

    @property
    def description(self) -> str:
        """What is shown as its note in the dashboard."""
        return self.first.description

    @property
    def data(self) -> DataSettings:
        """`[data]`, with every default filled in."""
        return self.first.data

    @property
    def search(self) -> SearchSettings:
        """`[search]`, with every default filled in."""
        return self.first.search

    @property
    def modules(self) -> tuple[str, ...]:
        """The networks of the user's own that its trials may have, such as `my_net.py:Net`."""
        return tuple(each for each in self.possible(("network", "module")).values() if each is not None)

    @property
    def references(self) -> dict[str, str]:
        """The user's own code that it refers to, its images' function among it, each with the key that says so."""
        kind, data = own_data(self.data.dataset) or ("", "")
        images = {data: "data.dataset"} if kind == "code" else {}
        return images | dict.fromkeys(self.modules, "network.module")

    @property
    def first_config(self) -> Config:
        """The settings of a trial with every searched value at its first."""
        return Config.model_validate(self.first.model_dump(include=set(SEARCHABLE))).located(self.folder)

    def applying(self, params: Mapping[str, Any]) -> tuple[Parameter, ...]:
        """Return the parameters that a trial with these values has, as a study file means them or as they are stored.

        Whether a conditional one is among them depends on the values of unconditional ones alone.
        """
        return applicable(self.parameters, params)

    def config(self, params: Mapping[str, Any], whole: bool = False) -> Config:
        """Return the settings of the trial that has these values, by parameter name.

        Values outside the study's ranges are taken where the settings themselves allow them: the study may have been
        extended since. Keys that the trial's kind does not use are at their defaults, so that trials that train alike
        have equal settings; `whole`, they are as they are given.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        applying = self.applying(params)
        for parameter in applying:
            if parameter.name not in params:
                raise self.error(dotted(parameter.path), "the trial has no value for it")
        for name in params:
            if name not in known:
                raise self.error("", f"no parameter is called {shown(name)}; known: {', '.join(known) or 'none'}")
            if known[name] not in applying:
                raise self.error(dotted(known[name].path), "the trial has a value, but it is not searched there")
        tree = self._tree(params)
        try:
            return Config.model_validate(tree if whole else _without_unused(tree)).located(self.folder)
        except ValidationError as error:
            path, fault = next(iter(faults_of(error, Config, tree).items()))
            raise self.error(dotted(path), fault.sentence) from error

    def value(self, setting: Path, params: Mapping[str, Any]) -> Any:
        """Return what the trial with these values has for a setting of a searchable section, as its file says it."""
        return value_at(self._tree(params), setting)

    def used(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of a trial's values that its kind uses: trials that share these are trained alike.

        Values of parameters that the study does not know are among them.
        """
        own = [each for each in self.parameters if each.name in params and each.setting[:2] in conditional()]
        if not own:
            return dict(params)
        tree = self._tree(params)
        unused = {each.name for each in own if not is_used(each.setting, tree)}
        return {name: value for name, value in params.items() if name not in unused}

    def _tree(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the searchable sections with these values in them, as far as they are of the study's parameters."""
        tree: dict[str, Any] = {section: self.plain[section] for section in SEARCHABLE}
        given = [parameter for parameter in self.applying(params) if parameter.name in params]
        for parameter in given:
            if parameter.path == parameter.setting:
                tree = replaced(tree, parameter.path, params[parameter.name])
        tree = assembled(tree, self.cases)
        for parameter in given:
            if parameter.path != parameter.setting:
                tree = replaced(tree, parameter.setting, params[parameter.name])
        return tree

    def resolved(self) -> dict[str, Any]:
        """Return the whole file as a tree for JSON: every default filled in, keys that no kind uses left out."""
        tree = with_cases(dict(self.plain), self.cases)
        for parameter in self.parameters:
            tree = replaced(tree, parameter.path, parameter.searched.tree())
        return _without_unused(tree)

    def said(self, setting: Path) -> dict[Path, Any]:
        """Return all that the file says of a setting, fixed or searched, by its places in the resolved tree."""
        tree = self.resolved()
        places = [setting, *((*case.path, *setting[1:]) for case in self.cases if case.gives(setting))]
        found = {place: value_at(tree, place) for place in places}
        return {place: value for place, value in found.items() if value is not MISSING}

    def possible(self, setting: Path) -> dict[Path, Any]:
        """Return what trials may have for a setting: fixed values, choices, ends of ranges, by their places there."""
        found: dict[Path, Any] = {}
        for place, value in self.said(setting).items():
            inside = candidates(value) if isinstance(value, dict) else {(): value}
            found |= {(*place, *at): each for at, each in inside.items()}
        return found

    def error(self, key: str, problem: str) -> StudyFileError:
        """Return the error to raise for a key of this study that proves wrong later on."""
        return study_file_error(self.source, key, problem)


def _without_unused(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree without the keys that nothing a section may say uses."""
    kept = dict(tree)
    for section in SEARCHABLE:
        unused = unused_keys(section, tree[section])
        kept[section] = {key: value for key, value in tree[section].items() if key not in unused}
    return kept


class Resolved(Protocol):
    """A study of either kind."""

    def resolved(self) -> dict[str, Any]:
        """Return the whole file as a tree for JSON."""


def differing_keys(old: Resolved, new: Resolved) -> list[str]:
    """Return each key in which two studies differ, with both values: `optimizer.lr.high: 0.01 -> 0.1`."""
    return list(_differences(old.resolved(), new.resolved(), ()))


def _differences(old: Any, new: Any, path: Path) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            yield from _differences(old.get(key, MISSING), new.get(key, MISSING), (*path, key))
    elif not same(old, new):
        before, after = ("not set" if value is MISSING else shown(value) for value in (old, new))
        yield f"{dotted(path)}: {before} -> {after}"
