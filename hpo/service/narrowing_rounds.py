"""Search and narrow in turn: each round searches the ranges narrowed from the round before.

A round is an ordinary study: it can be interrupted, watched and shared. Repeating the command continues the rounds and
trains no trial twice: a stored study with the round's name is reused if it equals the proposed one, or else an error.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from hpo.errors import HpoError
from hpo.results.display.progress import QuietProgress
from hpo.results.display.summary import ended_line
from hpo.results.narrow.next_study import propose
from hpo.results.no_best_trial import no_best_trial
from hpo.results.ranking import metric_label, score
from hpo.search.events import StudyEnded
from hpo.search.options import LaunchOptions
from hpo.search.study_records import stored_study
from hpo.service.launching import launch
from hpo.storage import Storage, best_trials, load_study, study_names
from hpo.studyfile import Study, differing_keys


class Round(NamedTuple):
    """A searched study: its name, the event that ended its launch, and whether the launch was interrupted."""

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
    """Narrow the study of that name and search the proposed study, `rounds` times or until a round is interrupted.

    `display` makes what shows a round; `say` is called after it with a line that compares it with the round before.
    Raises what `propose` and a launch raise, and HpoError if every trial of a round failed.
    """
    searched: list[Round] = []
    for _ in range(rounds):
        proposed, reasons = propose(storage, name, new_name)
        _check_round(storage, name, proposed)
        with display() as shown:
            for line in reasons if shown.prints_notes else ():
                shown.line(line)
            launched = launch(proposed, storage, options, on_event=shown, stop=stop)
        study = proposed.renamed(launched)
        if shown.ended is not None and shown.prints_notes:
            shown.line(ended_line(study, shown.ended))
        if shown.ended is not None and shown.ended.all_failed:
            raise no_best_trial(storage, launched)
        searched.append(Round(launched, shown.ended, shown.interrupted))
        if shown.interrupted:
            break
        say(comparison_line(storage, study, name))
        name, new_name = launched, None
    return searched


def comparison_line(storage: Storage, study: Study, before: str) -> str:
    """Return a line that compares the best score of a round with that of the study `before`."""
    label = metric_label(study.search.first_metric)
    best, old = (next((score(trial) for trial in best_trials(storage, name, 1)), None) for name in (study.name, before))
    if best is None or old is None:
        return f"{study.name}: no completed trial to compare with {before}"
    gain = old - best if study.search.minimized else best - old
    how = "as good as" if gain == 0 else f"{abs(gain):.4f} {'better' if gain > 0 else 'worse'} than"
    return f"{study.name}: best {label} {best:.4f}, {how} {before} ({old:.4f})"


def _check_round(storage: Storage, name: str, study: Study) -> None:
    """Raise HpoError if another study than the proposed one is stored under the round's name."""
    if study.name not in study_names(storage):
        return
    differences = differing_keys(stored_study(load_study(storage, study.name)), study)
    if differences:
        raise HpoError(
            f"study '{study.name}' already exists and differs from the study that narrowing '{name}' proposes in "
            f"{'; '.join(differences)}; choose another name with --name"
        )
