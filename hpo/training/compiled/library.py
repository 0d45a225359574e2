"""Compile C code for this processor with the user's compiler, once, and load it.

The compiler is the command in CC, else `cc`. Libraries are in the user's cache folder, in a folder that nobody else may
write to; a library's name has the hash of its source, its flags and the compiler's macros, which tell its version and
the processor's instructions. Several processes may compile at the same time.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hpo.errors import HpoError
from hpo.files import temporary_path, user_folder

FLAGS = (
    "-O3",
    "-march=native",
    "-fassociative-math",  # sums in several parts, for vector instructions, which needs the next two
    "-fno-signed-zeros",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-fPIC",
    "-shared",
)
TIMEOUT_S = 120
"""Seconds after which a compiler is thought to hang; a slow machine needs some."""


class CompilationError(HpoError):
    """A library could not be compiled or loaded; the message says why."""


def load_library(source: Path, definitions: Sequence[str]) -> ctypes.CDLL:
    """Return the library of a C file, compiled with macros `NAME=VALUE`. Raises CompilationError."""
    compiler, text = _compiler(), source.read_bytes()
    options = [*FLAGS, *(f"-D{each}" for each in definitions)]
    macros = _run([*compiler, *options, "-dM", "-E", "-x", "c", os.devnull])
    name = hashlib.sha256(b"\0".join([text, *map(str.encode, options), macros])).hexdigest()
    try:
        library = _own_folder() / f"{source.stem}-{name[:32]}.so"
        if not library.exists():
            with temporary_path(library.parent, folder=True) as folder:
                part = folder / library.name
                _run([*compiler, *options, "-o", str(part), str(source), "-lm"])
                with open(part, "rb") as file:
                    os.fsync(file.fileno())  # to load a part of a library would kill the process
                part.replace(library)
    except OSError as error:
        raise CompilationError(f"the compiled library cannot be written ({error})") from error
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise CompilationError(f"{library}: cannot be loaded ({error})") from error


def _compiler() -> list[str]:
    """Return the words of the command in CC, or `cc`."""
    command = os.environ.get("CC", "")
    try:
        return [word for word in shlex.split(command) if word] or ["cc"]
    except ValueError as error:
        raise CompilationError(f"CC is {command!r}, which is no command ({error})") from error


def _own_folder() -> Path:
    """Return the folder of libraries. Raises CompilationError where others may write to it: a library is a program."""
    folder = user_folder("cache", "XDG_CACHE_HOME", CompilationError) / "compiled"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CompilationError(f"{folder} belongs to another user, or others may write to it")
    return folder


def _run(command: Sequence[str]) -> bytes:
    """Return the output of a compiler."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise CompilationError(f"there is no C compiler '{command[0]}'") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilationError(f"the C compiler '{command[0]}' failed ({error})") from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        reason = next((line for line in lines if "error" in line), lines[0])
        raise CompilationError(f"the C compiler '{command[0]}' failed ({reason})")
    return done.stdout
