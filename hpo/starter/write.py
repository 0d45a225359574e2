"""Write a starter study file, and the JSON Schema beside it, after all that `hpo check` checks.

Nothing is written where an argument, the data or the user's code is wrong, or where a file is in the way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hpo.errors import HpoError, StudyFileError, UsageError
from hpo.files import write_atomically
from hpo.results.derived_names import file_stem
from hpo.search.plan import plan
from hpo.starter.data_keys import data_keys
from hpo.starter.module_arguments import argument_lines
from hpo.starter.schema_file import check_copy, write_copy
from hpo.starter.text import network_study_text, objective_study_text
from hpo.studyfile import user_data
from hpo.studyfile.reading import study_from_tree
from hpo.studyfile.values import checked_reference
from hpo.untrusted_files import parse_toml
from hpo.usercode import split_reference

OPTIONS = {
    "name": "--name",
    "data.dataset": "--data",
    "data.target": "--target",
    "task.kind": "--task",
    "network.module": "--module",
    "objective": "--objective",
}
"""Key of the study file -> the option that sets it."""


def write_starter(
    data: str | None,
    targets: Sequence[str],
    module: str | None,
    objective: str | None,
    task: str | None,
    name: str | None,
    output: Path | None,
) -> Path:
    """Write the study file, by default `NAME.toml` in the current folder; return its path. Raises HpoError."""
    _check_options(data, targets, module, objective, task)
    name = _default_name(data, module, objective) if name is None else name
    path = Path(f"{file_stem(name)}.toml") if output is None else output
    folder = path.absolute().parent
    if path.suffix.lower() != ".toml":
        raise UsageError(f"{path}: the study is written as TOML; use a file name that ends in .toml")
    if os.path.lexists(path):
        raise HpoError(f"{path}: exists already: name another file with -o, or move it")
    check_copy(folder)
    with _named_options():
        if objective is not None:
            text = objective_study_text(name, _reference(objective, folder))
        else:
            assert data is not None, "it was checked"
            keys = data_keys(_dataset(data, folder), targets, task, folder)
            code = None if module is None else _reference(module, folder)
            arguments = [] if code is None else argument_lines(code, folder)
            text = network_study_text(name, keys, code, arguments)
        plan(study_from_tree(parse_toml(text), str(path), folder), "auto")
    write_atomically(text, path)
    write_copy(folder)
    return path


def _check_options(
    data: str | None, targets: Sequence[str], module: str | None, objective: str | None, task: str | None
) -> None:
    others = {"--data": data, "--target": targets, "--module": module, "--task": task}
    if objective is not None:
        if given := [option for option, value in others.items() if value]:
            raise UsageError(f"--objective: cannot be combined with {given[0]}: the function itself reads and trains")
    elif data is None:
        raise UsageError("--data: missing: name the data, or a function of an optuna.Trial with --objective")
    for option, reference in (("--module", module), ("--objective", objective)):
        try:
            checked_reference("x.py:x" if reference is None else reference)
        except ValueError as error:
            raise UsageError(f"{option}: {error} (got {reference!r})") from error


def _default_name(data: str | None, module: str | None, objective: str | None) -> str:
    """Return `houses` for `table:data/houses.csv`, and `houses-net` for it and `net.py:Net`."""
    path = "" if data is None else (user_data(data) or ("", data))[1]
    references = [path if data is not None and ".py:" in data else "", module or "", objective or ""]
    stem = "" if data is None or references[0] else Path(path).absolute().name.partition(".")[0]
    stems = [stem, *(Path(split_reference(each)[0]).stem for each in references if each)]
    return "-".join(filter(None, stems))


def _dataset(data: str, folder: Path) -> str:
    """Return a data set with its path relative to the study file's folder."""
    kind, path = user_data(data) or ("", data)
    match kind:
        case "table" | "npz" | "folder":
            return f"{kind}:{_relative(path, folder)}"
        case "code":
            return _reference(data, folder)
    return data


def _reference(reference: str, folder: Path) -> str:
    file, name = split_reference(reference)
    return f"{_relative(file, folder)}:{name}" if file else reference


def _relative(path: str, folder: Path) -> str:
    """Return a path of the current folder relative to another folder; unchanged if the file is not there."""
    if os.path.isabs(path) or folder == Path.cwd() or not os.path.exists(path):
        return path
    return os.path.relpath(path, folder).replace(os.sep, "/")


@contextmanager
def _named_options() -> Iterator[None]:
    """Name the option, not the key of a file that is not written, in the errors about a value from an option."""
    try:
        yield
    except StudyFileError as error:
        option = OPTIONS.get(error.key.removesuffix(".0"))
        if option is None:
            raise
        raise UsageError(f"{option}: {error.problem}") from error
