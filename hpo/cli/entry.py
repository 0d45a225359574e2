"""Entry point of the command line: run a command, print an error as one line, return the exit status.

The status is 0 for success, 1 for a failure the user can act on (no traceback unless --debug), 2 for wrong usage, 130
after Ctrl-C and 143 after SIGTERM.
"""

from __future__ import annotations

import codecs
import errno
import functools
import io
import itertools
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from typer.exceptions import TyperException
from typer.main import get_command

from hpo import garbage_collection, stdout
from hpo.cli.app import app
from hpo.errors import HpoError
from hpo.text import printable

DEFECT = "a defect in hpo; `hpo --debug` shows where"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status. `argv` defaults to the arguments of this process."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the stream was closed, so nobody reads it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open until the process ends
    garbage_collection.delay()
    if argv is None:
        garbage_collection.begin_startup()
    status = _run(argv)
    if argv is None:
        stdout.redirect_to_stderr()  # the output is complete: what user code prints at exit must not follow it
    return status


def _run(argv: Sequence[str] | None) -> int:
    _escape_unencodable()
    args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    args = with_ray_address(args)
    debug = "--debug" in itertools.takewhile(lambda word: word.startswith("-"), args)
    try:
        status = _command().main(args, prog_name="hpo", standalone_mode=False)
        sys.stdout.flush()
    except TyperException as error:
        return _fail(_usage_message(error), error.exit_code, debug)
    except HpoError as error:
        return _fail(str(error), error.exit_status, debug)
    except BrokenPipeError:
        return _discard_output()
    except Exception as error:  # noqa: BLE001 - nothing above catches it, and --debug shows the traceback
        return _fail(_resource_message(error) or f"{type(error).__name__}: {error} ({DEFECT})", 1, debug)
    return status if isinstance(status, int) else 0


@functools.cache  # for programs and tests that run many commands in one process
def _command() -> Any:
    """Return the command line, built from the signatures of all commands."""
    return get_command(app)


def _resource_message(error: Exception) -> str:
    """Return a message for an error that means a lack of memory, disk, files or threads; "" for any other."""
    match error:
        case OSError(errno=errno.EMFILE | errno.ENFILE):
            return "too many open files: raise the limit with `ulimit -n`"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG | errno.EIO, filename=None):
            return f"stdout or stderr cannot be written ({error.strerror}): redirect them to a disk with free space"
        case OSError():
            return str(error)
        case MemoryError():
            return "out of memory: free some, or raise the limit with `ulimit -v`"
        case ImportError():
            return f"a package cannot be imported ({error}): reinstall hpo, or free some memory"
        case RuntimeError(args=("can't start new thread",)):
            return "no thread can be started: raise the limit with `ulimit -u`, or free some memory"
    return ""


def _escape_unencodable() -> None:
    """Write characters that stdout's encoding lacks as JSON escapes, so that JSON output stays valid."""
    codecs.register_error("hpo", _json_escape)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="hpo")


def _json_escape(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def with_ray_address(args: list[str]) -> list[str]:
    """Return the arguments with `--ray local` for a bare `--ray`: typer has no options with an optional value."""
    words: list[str] = []
    for word, following in zip(args, [*args[1:], ""], strict=True):
        words.append(word)
        if word == "--ray" and "--" not in words and not re.fullmatch(r"auto|local|.+:\d+", following):
            words.append("local")
    return words


def _usage_message(error: TyperException) -> str:
    context = getattr(error, "ctx", None)  # only some of typer's errors have a context
    command = "hpo" if context is None else context.command_path
    return f"{error.format_message().rstrip('.')} (see {command} --help)"


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"hpo: {printable(' '.join(message.split()))}", file=sys.stderr)
    return status


def _discard_output() -> int:
    """Discard what the interpreter flushes at exit: the reader of stdout has closed the pipe. Return the status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
