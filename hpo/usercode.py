"""The user's own code: Python files that a study file refers to as `my_net.py:Net`, imported and known by content.

    load        what a reference names
    code_of     the contents of the files behind references: each one's SHA-256, and that of whatever it imports from
                its own folder while it is imported
    folder_of   where the code of a study lies on this machine
    found       the same, where it has to be that very code
    shortened   the traceback of an error, with the user's own frames only
    in_a_line   the same error in one line, with the last of these frames
    kind_of     what errors have in common that are raised in one place

Promises: what runs is what was hashed, for both come from the same bytes, whatever `__pycache__` holds. A file is
imported once in a process, and again only after `code_of` found other contents. Two files never see each other's
modules, so that studies of one process may have modules of the same name. Installed packages are not the user's own,
even where they lie beneath the folder.

Knows nothing of studies, networks or storages.
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

from hpo.errors import CodeError, nearest

LONGEST_TRACEBACK = 4000
"""Characters of a traceback, from its end, that are kept."""

_INSTALLED = tuple(Path(path).resolve() for path in {*sysconfig.get_paths().values(), sys.base_prefix + "/lib"})
_LOCK = threading.RLock()


@dataclass(frozen=True)
class Code:
    """Files by their content: path, relative to a folder and with slashes -> SHA-256."""

    folder: Path
    files: Mapping[str, str]

    def record(self) -> dict[str, Any]:
        """Return what a study keeps of its code."""
        return {"folder": str(self.folder), "files": dict(self.files)}

    def changed_since(self, record: Mapping[str, Any]) -> list[str]:
        """Return the files whose contents are not those of a study's record, or that only one of the two has."""
        before: Mapping[str, str] = record["files"]
        return [file for file in {**before, **self.files} if before.get(file) != self.files.get(file)]


@dataclass(frozen=True)
class _Imported:
    """An imported file: its module, and the SHA-256 of every file that its import has run, by absolute path."""

    module: ModuleType
    hashes: Mapping[Path, str]


_imported: dict[Path, _Imported] = {}


def split(reference: str) -> tuple[str, str]:
    """Return the file and the name of a reference."""
    file, _, name = reference.rpartition(":")
    return file, name


def load(reference: str, folder: Path) -> Any:
    """Return what a reference names; its file is relative to `folder`.

    Raises CodeError, of one line, where there is no such file or name, or where the file cannot be imported.
    """
    file, name = split(reference)
    module = _module(_path(file, folder), file).module
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            defined = [each for each in vars(module) if not each.startswith("_")]
            raise CodeError(f"{file} has no '{name}'{nearest(name, defined)}")
        found = getattr(found, part)
    return found


def code_of(references: Iterable[str], folder: Path) -> Code:
    """Return the contents of the files behind references, as they are now; they are imported for that."""
    hashes: dict[Path, str] = {}
    with _LOCK:
        for file in files_of(references):
            path = _path(file, folder)
            known = _imported.get(path)
            if known is not None and any(_hash(each) != content for each, content in known.hashes.items()):
                del _imported[path]
            hashes |= _module(path, file).hashes
    folder = folder.resolve()
    relative = {os.path.relpath(path, folder).replace(os.sep, "/"): content for path, content in hashes.items()}
    return Code(folder, dict(sorted(relative.items())))


def is_imported(code: Code) -> bool:
    """Return whether what was imported last of these files is what they were then."""
    with _LOCK:
        hashes = {path: content for each in _imported.values() for path, content in each.hashes.items()}
    return all(hashes.get((code.folder / file).resolve()) == content for file, content in code.files.items())


def folder_of(references: Iterable[str], record: Mapping[str, Any], *before: Path) -> Path:
    """Return where the code of a study's record lies on this machine.

    That is the first of these folders that has its files, or else the files that are referred to: `before`, the folder
    that it was in, and the current one. Where none has them, it is the one that it was in.
    """
    kept = Path(record["folder"])
    folders = (*before, kept, Path.cwd())
    for files in (record["files"], files_of(references)):
        for folder in folders:
            if not missing(files, folder):
                return folder
    return kept


def found(references: Iterable[str], record: Mapping[str, Any], *before: Path) -> Path:
    """Return the same; raise CodeError where the code is not there, or is not that of the record.

    The record may have files of other references, which need not be there.
    """
    references = list(references)
    folder = folder_of(references, record, *before)
    kept = Path(record["folder"])
    if absent := missing(files_of(references), folder):
        raise CodeError(f"needs {nowhere(absent[0], *before, kept)}")
    try:
        code = code_of(references, folder)
    except CodeError as error:
        if absent := missing(record["files"], folder):
            raise CodeError(f"needs {nowhere(absent[0], *before, kept)}") from error
        raise
    if changed := [file for file, content in code.files.items() if record["files"].get(file) != content]:
        raise CodeError(f"needs {', '.join(changed)} as it was, and in {folder} it has another SHA-256; bring it back")
    return folder


def files_of(references: Iterable[str]) -> list[str]:
    """Return the files of references, each once."""
    return list(dict.fromkeys(split(reference)[0] for reference in references))


def missing(files: Iterable[str], folder: Path) -> list[str]:
    """Return those of the files that are not in the folder."""
    return [file for file in files if not _is_file(folder / file)]


def nowhere(file: str, *folders: Path) -> str:
    """Return the words for a file that is in none of these folders: `my_net.py, which is neither in ... nor ...`."""
    looked = [f"in {folder}" for folder in dict.fromkeys(folders) if folder != Path.cwd()]
    if not looked:
        return f"{file}, which is not in {Path.cwd()}"
    return f"{file}, which is neither {' nor '.join([*looked, 'in the current folder'])}"


def shortened(error: BaseException, folder: Path) -> str:
    """Return the error's traceback with the frames of the user's files, those beneath `folder`, only.

    An error that went through none of them keeps the traceback that it has.
    """
    whole = traceback.TracebackException.from_exception(error)
    if not _frames(whole, folder):
        return "".join(whole.format())[-LONGEST_TRACEBACK:]
    each: traceback.TracebackException | None = whole
    while each is not None:  # what led to it, too
        each.stack = traceback.StackSummary.from_list(_frames(each, folder))
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return "".join(whole.format())[-LONGEST_TRACEBACK:]


def in_a_line(error: BaseException, folder: Path) -> str:
    """Return `RuntimeError: what it says (my_net.py, line 12, in forward)`, with the last of the user's frames."""
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    frames = _frames(traceback.TracebackException.from_exception(error), folder)
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error}"  # which says where
    if not frames:
        return text
    return f"{text} ({_place(frames[-1], folder)})"


def kind_of(error: BaseException, folder: Path) -> str:
    """Return the error's type and the last of the user's frames: its text may hold numbers that differ each time."""
    frames = _frames(traceback.TracebackException.from_exception(error), folder)
    return f"{type(error).__name__} ({_place(frames[-1], folder)})" if frames else in_a_line(error, folder)


def _place(frame: traceback.FrameSummary, folder: Path) -> str:
    place = f"{os.path.relpath(frame.filename, folder.resolve())}, line {frame.lineno}"
    return place if frame.name == "<module>" else f"{place}, in {frame.name}"


def _frames(error: traceback.TracebackException, folder: Path) -> list[traceback.FrameSummary]:
    return [frame for frame in error.stack if _is_own(frame.filename, folder.resolve())]


def _is_own(file: str | None, folder: Path) -> bool:
    """Whether a file is the user's: beneath the folder, and no part of hpo or of an installed package."""
    if file is None or not os.path.isabs(file):
        return False
    path = _real(file)
    others = (*_INSTALLED, Path(__file__).parent)
    return _is_beneath(path, folder) and not any(
        _is_beneath(path, other) for other in others if other != folder and other.is_relative_to(folder)
    )


@functools.cache
def _real(file: str) -> str:
    """The file without links. Asked of all modules at each import of the user's code: thousands, whose files stay."""
    return os.path.realpath(file)


def _is_beneath(path: str, folder: Path) -> bool:
    return path.startswith(os.path.join(folder, ""))


def _path(file: str, folder: Path) -> Path:
    if not _is_file(folder / file):
        raise CodeError(f"{file}: no such file in {folder.resolve()}")
    return (folder / file).resolve()


def _is_file(path: Path) -> bool:
    """Whether there is such a file; Path.is_file raises for a name that is too long, or a folder that is closed."""
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
    """Import a file as Python runs a script: what lies beside it is importable, and comes before all else."""
    folder = path.parent
    others = _take_out(folder)
    name = path.stem if path.stem not in {*sys.modules, *sys.stdlib_module_names} else f"user_{path.stem}"
    finder = _Finder(folder)
    sys.meta_path.insert(0, finder)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # for what functions import when they run, after everything that is installed
    importlib.invalidate_caches()
    try:
        return _Imported(finder.run(name, path), finder.hashes)
    except (Exception, SystemExit) as error:
        raise CodeError(f"{file} cannot be imported: {in_a_line(error, folder)}") from error
    finally:
        sys.meta_path.remove(finder)
        sys.modules.update(others)


def _take_out(folder: Path) -> dict[str, ModuleType]:
    """Forget what was imported here before; return the folder's modules that others have imported, to be put back."""
    others: dict[str, ModuleType] = {}
    for name, module in list(sys.modules.items()):
        ours = isinstance(getattr(getattr(module, "__spec__", None), "loader", None), _Loader)
        if ours or (name != "__main__" and _is_own(getattr(module, "__file__", None), folder)):
            del sys.modules[name]
            others |= {} if ours else {name: module}
    return others


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of a folder before all others, and notes the content of each file that runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.hashes: dict[Path, str] = {}

    def run(self, name: str, path: Path) -> ModuleType:
        """Import the file itself."""
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
        if spec is None or not _is_own(spec.origin, self._folder):
            return None
        if isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path, self.hashes)
        else:  # compiled
            compiled = Path(str(spec.origin)).resolve()
            self.hashes[compiled] = str(_hash(compiled))
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    """Runs what the file says now: bytecode of before is kept by a time in seconds, and would hide a quick change."""

    def __init__(self, fullname: str, path: str, hashes: dict[Path, str]) -> None:
        super().__init__(fullname, path)
        self._hashes = hashes

    def get_code(self, fullname: str) -> CodeType:
        content = self.get_data(self.path)
        self._hashes[Path(self.path).resolve()] = hashlib.sha256(content).hexdigest()
        compiled: CodeType = self.source_to_code(content, self.path)
        return compiled
