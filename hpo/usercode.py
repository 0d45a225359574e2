"""User code: Python files that a study file refers to as `my_net.py:Net`, imported and identified by content.

    load_reference       return the object that a reference names
    import_code          import the files of references; return the SHA-256 of each and of the modules that they import
                         from their own folder
    find_code_folder     find the folder of a study's code on this machine
    find_unchanged_code  find that folder; refuse code that has changed
    user_traceback       format an error's traceback with the user's frames only
    one_line_error       format an error in one line, with the last of the user's frames
    error_kind           return a text that is equal for errors of one type raised in one place
    reference_to         return the reference to a function or class

`memory:NAME` is the reference to an object of a notebook or the main program, which is in no file (memory_code.py).

The code that runs is the code that was hashed: both come from the same bytes, whatever `__pycache__` contains. A file
is imported once in a process, and again only after `import_code` found other content. Two files never share modules,
so studies of one process may have modules of the same name. Installed packages are not user code, even below its
folder.

This module knows nothing of studies, networks or storages.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from hpo import memory_code
from hpo.errors import CodeError, nearest
from hpo.memory_code import is_in_memory

LONGEST_TRACEBACK = 4000
"""Maximum length of a stored traceback, in characters from its end."""

_INSTALLED = tuple(Path(path).resolve() for path in {*sysconfig.get_paths().values(), sys.base_prefix + "/lib"})
_LOCK = threading.RLock()


@dataclass(frozen=True)
class UserCode:
    """Code files of a study: path, relative to a folder and with slashes -> SHA-256."""

    folder: Path
    files: Mapping[str, str]

    def record(self) -> dict[str, Any]:
        """Return the record of the code that is stored with a study."""
        return {"folder": str(self.folder), "files": dict(self.files)}

    def changed_since(self, record: Mapping[str, Any]) -> list[str]:
        """Return the files that differ from those of a stored record, or that only one of the two has."""
        before: Mapping[str, str] = record["files"]
        return [file for file in {**before, **self.files} if before.get(file) != self.files.get(file)]


@dataclass(frozen=True)
class _Imported:
    """An imported file: its module, and the SHA-256 of each file that the import executed, by absolute path."""

    module: ModuleType
    hashes: Mapping[Path, str]


_imported: dict[Path, _Imported] = {}


def split_reference(reference: str) -> tuple[str, str]:
    """Return the file and the name in a reference; an object in memory counts as a file of its own."""
    file, _, name = reference.rpartition(":")
    return (reference, name) if is_in_memory(reference) else (file, name)


def reference_to(value: Any, folder: Path) -> str:
    """Return the reference to a function or class: in a file relative to `folder`, or in memory.

    The main program, and modules of packages, cannot be imported by their file alone; their objects are in memory.
    Raises ValueError for an object that is no function or class, and for one without a name.
    """
    name = memory_code.reference_name(value)
    file = getattr(sys.modules.get(value.__module__), "__file__", None) or ""
    is_file = file.endswith(".py") and not any(_is_below(_real(file), other) for other in _INSTALLED)
    if not is_file or value.__module__ == "__main__" or "." in value.__module__ or "<" in value.__qualname__:
        return name
    return f"{os.path.relpath(_real(file), folder.resolve()).replace(os.sep, '/')}:{value.__qualname__}"


def load_reference(reference: str, folder: Path) -> Any:
    """Return the object that a reference names; its file is relative to `folder`.

    Raises CodeError if there is no such file or name, or if the import fails.
    """
    if is_in_memory(reference):
        return memory_code.find(reference).value
    file, name = split_reference(reference)
    module = _module(_path(file, folder), file).module
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            defined = [each for each in vars(module) if not each.startswith("_")]
            raise CodeError(f"{file} has no '{name}'{nearest(name, defined)}")
        found = getattr(found, part)
    return found


def import_code(references: Iterable[str], folder: Path) -> UserCode:
    """Import the files of references; return their current content and that of the modules they import."""
    hashes: dict[Path, str] = {}
    references = list(references)
    in_memory = {each: memory_code.find(each).sha256 for each in references if is_in_memory(each)}
    with _LOCK:
        for file in referenced_files(each for each in references if each not in in_memory):
            path = _path(file, folder)
            known = _imported.get(path)
            if known is not None and any(_hash(each) != content for each, content in known.hashes.items()):
                del _imported[path]
            hashes |= _module(path, file).hashes
    folder = folder.resolve()
    relative = {os.path.relpath(path, folder).replace(os.sep, "/"): content for path, content in hashes.items()}
    return UserCode(folder, dict(sorted((relative | in_memory).items())))


def is_imported(code: UserCode) -> bool:
    """Return whether this process last imported these files with this content."""
    with _LOCK:
        hashes = {path: content for each in _imported.values() for path, content in each.hashes.items()}
    return all(
        (memory_code.find(file).sha256 if is_in_memory(file) else hashes.get((code.folder / file).resolve())) == content
        for file, content in code.files.items()
    )


def find_code_folder(references: Iterable[str], record: Mapping[str, Any], *preferred: Path) -> Path:
    """Return the folder of a study's code on this machine, from the code's stored record.

    The first of these folders that has all recorded files, or else the referenced files: `preferred`, the recorded
    folder and the current folder. If none has them, the recorded folder.
    """
    recorded = Path(record["folder"])
    folders = (*preferred, recorded, Path.cwd())
    for files in (record["files"], referenced_files(references)):
        for folder in folders:
            if not missing_files(files, folder):
                return folder
    return recorded


def find_unchanged_code(references: Iterable[str], record: Mapping[str, Any], *preferred: Path) -> Path:
    """Return the same folder; raise CodeError if the code is missing or differs from the record.

    The record may include files of other references, which need not exist.
    """
    references = list(references)
    folder = find_code_folder(references, record, *preferred)
    recorded = Path(record["folder"])
    if missing := missing_files(referenced_files(references), folder):
        raise CodeError(f"needs {describe_missing(missing[0], *preferred, recorded)}")
    try:
        code = import_code(references, folder)
    except CodeError as error:
        if missing := missing_files(record["files"], folder):
            raise CodeError(f"needs {describe_missing(missing[0], *preferred, recorded)}") from error
        raise
    if changed := [file for file, content in code.files.items() if record["files"].get(file) != content]:
        raise CodeError(
            f"needs {', '.join(changed)} unchanged, but in {folder} the SHA-256 differs; restore the original there"
        )
    return folder


def referenced_files(references: Iterable[str]) -> list[str]:
    """Return the files of references without duplicates."""
    return list(dict.fromkeys(split_reference(reference)[0] for reference in references))


def missing_files(files: Iterable[str], folder: Path) -> list[str]:
    """Return the files that the folder does not have; no folder has objects in memory."""
    return [file for file in files if not is_in_memory(file) and not _is_file(folder / file)]


def describe_missing(file: str, *folders: Path) -> str:
    """Return the words for a file that none of the folders has: `my_net.py, which is neither in ... nor ...`."""
    searched = [f"in {folder}" for folder in dict.fromkeys(folders) if folder != Path.cwd()]
    if not searched:
        return f"{file}, which is not in {Path.cwd()}"
    return f"{file}, which is neither {' nor '.join([*searched, 'in the current folder'])}"


def user_traceback(error: BaseException, folder: Path) -> str:
    """Return the error's traceback with only the frames of user code, which is below `folder`.

    Without any such frame, return the whole traceback.
    """
    whole = traceback.TracebackException.from_exception(error)
    if not _frames(whole, folder):
        return "".join(whole.format())[-LONGEST_TRACEBACK:]
    each: traceback.TracebackException | None = whole
    while each is not None:  # the error and its causes
        each.stack = traceback.StackSummary.from_list(_frames(each, folder))
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return "".join(whole.format())[-LONGEST_TRACEBACK:]


def one_line_error(error: BaseException, folder: Path) -> str:
    """Return `RuntimeError: message (my_net.py, line 12, in forward)`, with the last frame of user code."""
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    frames = _frames(traceback.TracebackException.from_exception(error), folder)
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error}"  # its text has the file and line
    if not frames:
        return text
    return f"{text} ({_place(frames[-1], folder)})"


def error_kind(error: BaseException, folder: Path) -> str:
    """Return the error's type and the last frame of user code; error messages may contain numbers that vary."""
    frames = _frames(traceback.TracebackException.from_exception(error), folder)
    return f"{type(error).__name__} ({_place(frames[-1], folder)})" if frames else one_line_error(error, folder)


def _place(frame: traceback.FrameSummary, folder: Path) -> str:
    in_cell = memory_code.is_frame_file(frame.filename) and not os.path.exists(frame.filename)
    file = "a cell" if in_cell else os.path.relpath(frame.filename, folder.resolve())
    place = f"{file}, line {frame.lineno}"
    return place if frame.name == "<module>" else f"{place}, in {frame.name}"


def _frames(error: traceback.TracebackException, folder: Path) -> list[traceback.FrameSummary]:
    return [
        frame
        for frame in error.stack
        if memory_code.is_frame_file(frame.filename) or _is_user_code(frame.filename, folder.resolve())
    ]


def _is_user_code(file: str | None, folder: Path) -> bool:
    """Return whether a file is user code: below the folder, and not part of hpo or of an installed package."""
    if file is None or not os.path.isabs(file) or not _is_below(_real(file), folder):
        return False
    others = (*_INSTALLED, Path(__file__).parent)
    return not any(
        _is_below(_real(file), other) for other in others if other != folder and other.is_relative_to(folder)
    )


@functools.cache
def _real(file: str) -> str:
    """Return the file's real path; cached, because each import of user code needs it for thousands of modules."""
    real = os.path.join(_real_folder(os.path.dirname(file)), os.path.basename(file))
    return os.path.realpath(real) if os.path.islink(real) else real


_real_folder = functools.cache(os.path.realpath)  # modules are in few folders, and each part of a path is a system call


def _is_below(path: str, folder: Path) -> bool:
    return path.startswith(os.path.join(folder, ""))


def _path(file: str, folder: Path) -> Path:
    if not _is_file(folder / file):
        raise CodeError(f"{file}: no such file in {folder.resolve()}")
    return (folder / file).resolve()


def _is_file(path: Path) -> bool:
    """Return whether the file exists; Path.is_file would raise for a long name or a folder without access."""
    return os.path.isfile(path)


def _hash(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _module(path: Path, file: str) -> _Imported:
    with _LOCK:
        if path not in _imported:
            _imported[path] = _import(path, file)
        return _imported[path]


def _import(path: Path, file: str) -> _Imported:
    """Import a file like a script: modules beside it are importable and come first."""
    folder = path.parent
    others = _remove_modules(folder)
    name = path.stem if path.stem not in {*sys.modules, *sys.stdlib_module_names} else f"user_{path.stem}"
    finder = _Finder(folder)
    sys.meta_path.insert(0, finder)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # for imports inside functions; installed packages come first
    importlib.invalidate_caches()
    try:
        return _Imported(finder.run(name, path), finder.hashes)
    except (Exception, SystemExit) as error:
        raise CodeError(f"{file} cannot be imported: {one_line_error(error, folder)}") from error
    finally:
        sys.meta_path.remove(finder)
        sys.modules.update(others)


def _remove_modules(folder: Path) -> dict[str, ModuleType]:
    """Remove imported user code from sys.modules; return the folder's modules that other code imported, to restore."""
    others: dict[str, ModuleType] = {}
    for name, module in list(sys.modules.items()):
        ours = isinstance(getattr(getattr(module, "__spec__", None), "loader", None), _Loader)
        if ours or (name != "__main__" and _is_user_code(getattr(module, "__file__", None), folder)):
            del sys.modules[name]
            others |= {} if ours else {name: module}
    return others


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of a folder first, and records the hash of each file that is executed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.hashes: dict[Path, str] = {}

    def run(self, name: str, path: Path) -> ModuleType:
        """Import the file at `path`."""
        loader = _Loader(name, str(path), self.hashes)
        spec = importlib.util.spec_from_loader(name, loader)
        assert spec is not None, "it was made from a loader"
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        return module

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(fullname, [str(self._folder)] if path is None else path)
        if spec is None or not _is_user_code(spec.origin, self._folder):
            return None
        if isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path, self.hashes)
        else:  # compiled
            compiled = Path(str(spec.origin)).resolve()
            self.hashes[compiled] = str(_hash(compiled))
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    """Executes the current source: cached bytecode, checked by a time in seconds, would hide a quick change."""

    def __init__(self, fullname: str, path: str, hashes: dict[Path, str]) -> None:
        super().__init__(fullname, path)
        self._hashes = hashes

    def get_code(self, fullname: str) -> CodeType:
        content = self.get_data(self.path)
        self._hashes[Path(self.path).resolve()] = hashlib.sha256(content).hexdigest()
        compiled: CodeType = self.source_to_code(content, self.path)
        return compiled
