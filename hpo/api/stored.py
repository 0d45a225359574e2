"""A stored study in hand, and what is done with it after a search: confirmed, narrowed, tested, held up, deleted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpo.api.answers import Say, on_stderr, warn
from hpo.api.displays import Progress, display
from hpo.api.stopping import stopping
from hpo.api.study import Study
from hpo.api.view import StudyView, confirmed
from hpo.text import printable

if TYPE_CHECKING:
    from hpo.results.certificate import Certificate
    from hpo.results.confirm.result import Confirmation
    from hpo.results.final_test.result import Tested
    from hpo.results.result import Result
    from hpo.search.events import StudyEnded
    from hpo.storage import Storage


@dataclass(frozen=True)
class Proposal:
    """The study that follows another one, and why its ranges are what they are, in lines."""

    study: Study
    lines: tuple[str, ...]

    def write(self, path: str | Path | None = None) -> Path:
        """Write the study to a file, by default `NAME.toml` in the current folder; return the path.

        Raises HpoError where there is a file that says something else.
        """
        from hpo import studyfile
        from hpo.results.narrow import next_study

        checked = self.study.checked
        assert isinstance(checked, studyfile.Study)
        proposal = next_study.Proposal(checked, self.lines)
        return next_study.write_study(proposal, None if path is None else Path(path))


class StoredStudy(StudyView):
    """A study in a storage, as `load` and `launch` return it.

    `ended` is how the launch that returned it has ended, `interrupted` whether that was before the search's own end;
    None and False for one that was loaded. What trains can be stopped by Ctrl-C, a notebook's "interrupt" or `stop`.
    `device` is auto, cpu, cuda, cuda:1 or mps.
    """

    def __init__(
        self,
        storage: Storage,
        name: str,
        ended: StudyEnded | None = None,
        interrupted: bool = False,
        launched: Study | None = None,
    ) -> None:
        super().__init__(storage, name)
        self.ended, self.interrupted = ended, interrupted
        self._launched = launched  # the study may have been deleted meanwhile

    def confirm(
        self,
        *,
        top: int = 5,
        seeds: int = 10,
        device: str = "auto",
        workers: int | None = None,
        progress: Progress = "auto",
        on_found: Callable[[Result[Confirmation]], None] = lambda found: None,
        stop: threading.Event | None = None,
    ) -> Result[Confirmation]:
        """Train the `top` best configurations and the baseline again, each under so many fresh seeds (2 or more).

        A confirmation that is finished is returned without training. `on_found` gets what was found, too. Raises
        HpoError where there is nothing to confirm, or, after `on_found` got what was found so far, where the confirming
        study is paused or stopped; and InterruptionError when stopped: the same call goes on.
        """
        from hpo.search.options import LaunchOptions
        from hpo.service.confirming import confirm

        with stopping(stop) as asked:
            found = confirm(
                self._storage,
                self.name,
                top=top,
                seeds=seeds,
                options=LaunchOptions(device=device, workers=workers),
                display=lambda: display(progress, asked),
                say=lambda found: on_found(confirmed(found)),
                stop=asked,
            )
        return confirmed(found)

    def narrow(self, name: str | None = None) -> Proposal:
        """Propose the next study, with ranges around the best trials; `name` is the new one's, by default NAME-2.

        The proposal's `study` is what to launch, its `lines` say why, and its `write` makes a study file of it. Raises
        HpoError where too little is known.
        """
        from hpo.results.narrow.next_study import propose

        proposal = propose(self._storage, self.name, name)
        return Proposal(Study.of(proposal.study), tuple(map(printable, proposal.lines)))

    def rounds(
        self,
        rounds: int,
        *,
        name: str | None = None,
        device: str = "auto",
        workers: int | None = None,
        progress: Progress = "auto",
        say: Say = print,
        stop: threading.Event | None = None,
    ) -> list[StoredStudy]:
        """Narrow and search what is proposed, so many times; return the searched studies, in their order.

        `say` is told after each how it compares with the one before. Stopped, the last study's `interrupted` is true,
        and the same call goes on. Raises what `narrow` and `launch` raise.
        """
        from hpo.search.options import LaunchOptions
        from hpo.service.narrowing_rounds import run_rounds

        with stopping(stop) as asked:
            searched = run_rounds(
                self._storage,
                self.name,
                rounds,
                new_name=name,
                options=LaunchOptions(device=device, workers=workers),
                display=lambda: display(progress, asked),
                say=say,
                stop=asked,
            )
        return [StoredStudy(self._storage, *each) for each in searched]

    def verify(
        self, trials: int = 5, *, device: str = "auto", say: Say = warn, stop: threading.Event | None = None
    ) -> Result[Certificate]:
        """Train so many completed trials again, each alone; return how far they are from what was stored.

        The certificate is kept with the study, and exports carry it. Raises HpoError where no trial has completed, and
        InterruptionError, with nothing kept, when stopped.
        """
        from hpo.results.certificate import VerificationResult
        from hpo.results.reproduce.verify import verify

        with stopping(stop) as asked:
            return VerificationResult(verify(self._storage, self.name, trials, device, asked, say))

    def test(
        self,
        *,
        again: bool = False,
        from_checkpoint: bool = False,
        trial: int | None = None,
        subnetworks: int | None = None,
        device: str = "auto",
        folder: str | Path | None = None,
        say: Say = on_stderr,
        stop: threading.Event | None = None,
    ) -> Result[Tested]:
        """Look at the sealed test set, once: train the chosen configuration on all other images, and test it.

        A further look takes `again`. `from_checkpoint` tests the weights that the search has kept, `trial` that trial's
        configuration, `subnetworks` also the mean of so many networks of random dropout. The new `folder`, by default
        NAME-test, holds the result and the weights, for `hpo.predict`. Raises HpoError, before the test set is opened,
        for whatever would keep it from a result, and InterruptionError when stopped.
        """
        from hpo.results.final_test.evaluate import Wanted, look
        from hpo.results.final_test.result import SealedTestResult

        wanted = Wanted(again, from_checkpoint, trial, subnetworks, device, None if folder is None else Path(folder))
        with stopping(stop) as asked:
            return SealedTestResult(look(self._storage, self.name, wanted, asked, say))

    def pause(self) -> str:
        """Let nobody train it; what runs ends at its next epoch and goes back to the queue. Return a line that says so.

        Raises HpoError where it has ended.
        """
        from hpo.service.queue_control import pause

        return pause(self._storage, self.name)

    def stop(self) -> str:
        """End it early: what runs is finished, and nothing new begins. Return a line that says so.

        Raises HpoError where it has ended.
        """
        from hpo.service.queue_control import stop

        return stop(self._storage, self.name)

    def resume(self) -> str:
        """Let it be worked on again that was paused or stopped; return a line that says so.

        It is trained by whoever works on the queue, or by launching it. Raises HpoError where it has ended.
        """
        from hpo.service.queue_control import resume

        return resume(self._storage, self.name)

    def delete(self) -> str:
        """Delete it with all its trials and the weights that are kept of them; return a line that says so.

        Nobody is asked. Afterwards every call of this object raises UnknownStudyError.
        """
        from hpo.service.queue_control import delete

        return delete(self._storage, self.name)

    def deletion_question(self) -> str:
        """Return what to ask somebody before it is deleted."""
        from hpo.service.queue_control import question

        return question(self._storage, self.name)

    def copy(self, to: str, name: str | None = None) -> str:
        """Copy it, whole, to the storage at the URL `to`, under another `name` if given; return a line that says so.

        A file may be new. Trials that run wait in the copy. Raises HpoError where a study of that name is there.
        """
        from hpo.results.copy import copy_line

        return copy_line(self._storage, self.name, to, name)

    def queue_line(self) -> str:
        """Return how it stands in the queue: open or held up, with how many trials left, or why it has ended."""
        from hpo.service.queue_control import queue_line

        return queue_line(self._storage, self.name)

    def summary_lines(self) -> list[str]:
        """Return what a launch says at its end: how it ended, the best trials, and where these lie at an edge."""
        from hpo.results.display.summary import summary_lines

        return summary_lines((self._launched or self.study).checked.named(self.name), self._storage, self.ended)

    def next_lines(self, storage: str | None = None) -> list[str]:
        """Return the commands to type next, which name this storage if it is not the usual one."""
        from hpo.results.display.summary import next_lines

        if self.ended is not None and self.ended.reason == "deleted":
            return []
        return next_lines(self.study.checked, self._storage, storage)


def load(name: str, *, storage: str | None = None) -> StoredStudy:
    """Return the study of that name.

    `storage` is a URL, `sqlite:///FILE` or `postgresql://HOST/NAME`, None for that of HPO_STORAGE or
    `sqlite:///hpo.db`. Raises StorageError where there is none, and UnknownStudyError.
    """
    from hpo.storage import summary

    opened = existing(storage)
    summary(opened, name)
    return StoredStudy(opened, name)


def studies(*, storage: str | None = None) -> list[StoredStudy]:
    """Return the studies of a storage, oldest first. Raises StorageError where there is no storage."""
    from hpo.storage import study_names

    opened = existing(storage)
    return [StoredStudy(opened, name) for name in study_names(opened)]


def existing(url: str | None) -> Storage:
    """Open the storage at that URL, which has to exist."""
    from hpo.results.lookup import open_existing

    return open_existing(url)
