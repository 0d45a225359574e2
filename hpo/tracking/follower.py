"""Process that follows a study in the storage and writes its news to trackers, until the launch ends.

The launch starts it as `python -m hpo.tracking.follower`, sends a line of JSON on stdin, and the line `end` when the
search is over. Messages for the user are lines of JSON on stdout. It is a process of its own so
that no library of a tracker can slow down, block or end the training. It has a lower priority than the training, and
reads what other processes have stored, so a launch by several workers has one. A tracker that fails costs one warning;
its trials are written when it can be reached again.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpo.errors import HpoError, StorageError, UnknownStudyError
from hpo.storage import open_storage
from hpo.text import hpo_command
from hpo.tracking.content import StudyContent
from hpo.tracking.live import TOO_LATE
from hpo.tracking.sync import Sync, problem
from hpo.tracking.targets import parse_targets

POLL_S = 2.0
"""Seconds between two reads of the storage; more where reading and writing take long: see `TIME_FRACTION`."""

RUNNING_S = 20.0
"""Seconds between two writes of running trials, whose curves grow with every epoch; ended ones are written at once."""

TIME_FRACTION = 0.25
"""The fraction of its time that the process spends at most on reading and writing, before the search has ended."""

RETRY_S = 15.0
"""Seconds after which a tracker that has failed is tried again; it doubles up to `LONGEST_RETRY_S`."""

LONGEST_RETRY_S = 240.0

NICENESS = 10

Say = Callable[[str, str], None]
"""Function that is called with the level and the text of a message for the user."""


@dataclass
class _Followed:
    """A tracker, when to try it next (by the monotonic clock), and how often in a row it has failed."""

    sync: Sync
    due: float = 0.0
    failures: int = 0
    warned: bool = False

    def write(self, name: str, say: Say, last: bool) -> None:
        """Write the news, unless the tracker has failed a short time ago; `last` writes the weights too."""
        if not last and (time.monotonic() < self.due or not self.sync.pending):
            return
        try:
            with contextlib.ExitStack() as closing:
                if last:
                    closing.callback(self.sync.close)
                self.sync.write(last=last)
        except (UnknownStudyError, StorageError):
            raise
        except Exception as error:  # noqa: BLE001 - any exception of a tracker's library costs a warning
            self._failed(name, error, say)
        else:
            self.failures = 0

    def _failed(self, name: str, error: Exception, say: Say) -> None:
        self.due = time.monotonic() + min(LONGEST_RETRY_S, RETRY_S * 2**self.failures)
        self.failures += 1
        if not self.warned:  # once, however often it fails
            target = self.sync.target
            what = str(error) if isinstance(error, HpoError) else problem(target, error)
            later = hpo_command("export", name, f"--to {target.shown}")
            say("warning", f"{what}; the search goes on, and `{later}` writes what is missing")
            self.warned = True


def follow(url: str, study: str, targets: Sequence[str], say: Say, wait: Callable[[float], bool]) -> None:
    """Write the news of a study until `wait`, which waits for so many seconds, returns True; then all that is left."""
    storage = open_storage(url)
    try:
        content, pause_s, is_last, running_due = StudyContent(storage, study), 0.0, False, 0.0
        followed = [_Followed(Sync(storage, content, target)) for target in parse_targets(targets, "--track")]
        while not is_last:
            is_last = wait(pause_s)
            start = time.monotonic()
            news = content.news()
            if not is_last and start < running_due:
                news = [trial for trial in news if trial.has_ended]
            else:
                running_due = start + RUNNING_S
            for each in followed:
                each.sync.add(news)
                each.write(study, say, is_last)
            pause_s = max(POLL_S, (time.monotonic() - start) / TIME_FRACTION)
    except UnknownStudyError:
        pass  # the study was deleted: the launch says so
    finally:
        storage.close()


def main() -> None:
    """Run the process: see the module's docstring."""
    messages = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no message
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    first = json.loads(_read_line())

    def say(level: str, text: str) -> None:
        print(json.dumps({"level": level, "text": text}), file=messages, flush=True)

    def wait(seconds: float) -> bool:
        if not _can_read(seconds):
            return False
        # stdin has the line `end`, or is closed: the launch is gone
        timer = threading.Timer(first["flush_s"], os._exit, (TOO_LATE,))
        timer.daemon = True
        timer.start()
        return True

    try:
        follow(first["storage"], first["study"], first["targets"], say, wait)
    except HpoError as error:
        say("warning", f"tracking has ended: {error}")
    except Exception as error:  # noqa: BLE001 - the process's outermost edge: the launch shows the error
        say("warning", f"tracking has ended: {type(error).__name__}: {error} (a defect in hpo)")
    messages.flush()
    os._exit(0)  # libraries of trackers have threads and exit handlers that could wait for a server


def _read_line() -> bytes:
    """Return the first line of stdin, without reading more than it."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1) or b"\n"
    return line


def _can_read(seconds: float) -> bool:
    """Return whether stdin has a line or is closed within so many seconds."""
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        return bool(selector.select(seconds))


if __name__ == "__main__":
    main()
