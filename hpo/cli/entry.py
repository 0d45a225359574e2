"""From a command line's words to its exit status: the outermost edge, where an error becomes one line.

The status is 0 for done, 1 for a failure the user can act on (one line, no traceback unless --debug), 2 for wrong
usage, 130 after Ctrl-C and 143 after SIGTERM.
"""

from __future__ import annotations

import atexit
import codecs
import errno
import gc
import io
import itertools
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence

from typer.exceptions import TyperException
from typer.main import get_command

from hpo import stdout
from hpo.cli.app import app
from hpo.errors import HpoError
from hpo.text import printable

DEFECT = "a defect in hpo; `hpo --debug` shows where"

NET_OBJECTS = 10_000
"""So many new objects begin a search for cycles among them, in place of Python's 700."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status. Without `argv` it is this process's own."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed: nobody reads what is said there
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
    status = _status(argv)
    if argv is None:
        stdout.redirect_to_stderr()  # what the user's own code prints while the process ends is none of the output
    return status


def _status(argv: Sequence[str] | None) -> int:
    spare_what_is_imported()
    print_in_any_encoding()
    args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    args = with_ray_address(args)
    debug = "--debug" in itertools.takewhile(lambda word: word.startswith("-"), args)
    try:
        status = get_command(app).main(args, prog_name="hpo", standalone_mode=False)
        sys.stdout.flush()
    except TyperException as error:
        return _fail(_wrong_usage(error), error.exit_code, debug)
    except HpoError as error:
        return _fail(str(error), error.exit_status, debug)
    except BrokenPipeError:
        return _hush()
    except Exception as error:  # noqa: BLE001 - the outermost edge: a defect is one line too, and --debug shows it
        return _fail(_lacking(error) or f"{type(error).__name__}: {error} ({DEFECT})", 1, debug)
    return status if isinstance(status, int) else 0


def _lacking(error: Exception) -> str:
    """Return what this machine lacks, where an error says that it lacks something; else ""."""
    match error:
        case OSError(errno=errno.EMFILE | errno.ENFILE):
            return "too many open files; allow more with `ulimit -n`"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG | errno.EIO, filename=None):
            return f"stdout or stderr cannot be written ({error.strerror}); send them where there is room"
        case OSError():
            return str(error)
        case MemoryError():
            return "out of memory; free some, or allow more with `ulimit -v`"
        case ImportError():
            return f"a package cannot be loaded ({error}); install hpo anew, or free some memory"
        case RuntimeError(args=("can't start new thread",)):
            return "no thread can be started; allow more of them with `ulimit -u`, or free some memory"
    return ""


def spare_what_is_imported() -> None:
    """Keep the garbage collector from what torch brings: 250,000 objects that live as long as the process.

    Searched again and again while it is imported, and taken apart one by one at the end, they cost a short command
    half of its time.
    """
    gc.set_threshold(NET_OBJECTS)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


def print_in_any_encoding() -> None:
    """Let stdout write what its encoding lacks as JSON escapes it, so that JSON stays JSON; stderr has Python's way."""
    codecs.register_error("hpo", _escaped)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="hpo")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def with_ray_address(args: list[str]) -> list[str]:
    """Give `--ray` an address where it has none: typer's options have a value always or never."""
    words: list[str] = []
    for word, following in zip(args, [*args[1:], ""], strict=True):
        words.append(word)
        if word == "--ray" and "--" not in words and not re.fullmatch(r"auto|local|.+:\d+", following):
            words.append("local")
    return words


def _wrong_usage(error: TyperException) -> str:
    context = getattr(error, "ctx", None)  # only some of typer's errors know the command they are about
    command = "hpo" if context is None else context.command_path
    return f"{error.format_message().rstrip('.')} (see {command} --help)"


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"hpo: {printable(' '.join(message.split()))}", file=sys.stderr)
    return status


def _hush() -> int:
    """Whoever read stdout has gone: let the interpreter's last flush go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
