"""Narrowing and searching in turn: each round narrows the ranges of the one before, and searches what is left.

A round is an ordinary study: it can be interrupted, watched and shared. Promises: the same rounds asked for again go on
where they were, and train nothing twice, because a round that is there already is met by its name, and has to be the
very study that narrowing proposes; where it is another, nothing is trained.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from hpo.errors import HpoError
from hpo.results.display.progress import QuietProgress
from hpo.results.display.summary import outcome_line
from hpo.results.narrow.next_study import propose
from hpo.results.ranking import METRIC_LABELS, score
from hpo.results.unranked import no_best
from hpo.search.events import StudyEnded
from hpo.search.options import LaunchOptions
from hpo.search.study_records import stored_study
from hpo.service.launching import launch
from hpo.storage import Storage, best_trials, load_study, study_names
from hpo.studyfile import Study, differing_keys


class Round(NamedTuple):
    """A searched study, how its launch has ended, and whether that was before the search's own end."""

    name: str
    ended: StudyEnded | None
    interrupted: bool


def run_rounds(
    storage: Storage,
    name: str,
    rounds: int,
    *,
    new_name: str | None,
    options: LaunchOptions,
    display: Callable[[], QuietProgress],
    say: Callable[[str], None],
    stop: threading.Event,
) -> list[Round]:
    """Narrow the study of that name and search what is proposed, so many times, or until a round is interrupted.

    Each round is shown by a new `display`; `say` gets a line after it that compares it with the one before. Raises what
    `propose` and a launch raise, and HpoError where every trial of a round has failed.
    """
    searched: list[Round] = []
    for _ in range(rounds):
        proposed, reasons = propose(storage, name, new_name)
        _check_round(storage, name, proposed)
        with display() as shown:
            for line in reasons if shown.prints_notes else ():
                shown.line(line)
            called = launch(proposed, storage, options, on_event=shown, stop=stop)
        searching = proposed.named(called)
        if shown.ended is not None and shown.prints_notes:
            shown.line(outcome_line(searching, shown.ended))
        if shown.ended is not None and shown.ended.all_failed:
            raise no_best(storage, called)
        searched.append(Round(called, shown.ended, shown.interrupted))
        if shown.interrupted:
            break
        say(compared(storage, searching, name))
        name, new_name = called, None
    return searched


def compared(storage: Storage, study: Study, before: str) -> str:
    """Return a line that says how much better the best of a round is than the best of the one before."""
    label = METRIC_LABELS[study.search.first_metric]
    best, old = (next((score(trial) for trial in best_trials(storage, name, 1)), None) for name in (study.name, before))
    if best is None or old is None:
        return f"{study.name}: no completed trial, so there is nothing to compare with {before}"
    gain = old - best if study.search.minimized else best - old
    how = "as good as" if gain == 0 else f"{abs(gain):.4f} {'better' if gain > 0 else 'worse'} than"
    return f"{study.name}: best {label} {best:.4f}, {how} {before} ({old:.4f})"


def _check_round(storage: Storage, name: str, study: Study) -> None:
    """Raise HpoError where a study of the round's name is there that is not the round."""
    if study.name not in study_names(storage):
        return
    differences = differing_keys(stored_study(load_study(storage, study.name)), study)
    if differences:
        raise HpoError(
            f"study '{study.name}' is there already, and is not what narrowing '{name}' proposes now: it differs in "
            f"{'; '.join(differences)}; name the rounds otherwise with --name"
        )
