"""What is said when a launch ends: the best trials, a warning where the best lies at an edge, and what to type next.

It knows the study and the event that ended it; what happened in between it does not ask.
"""

from __future__ import annotations

import shlex

from hpo.results.lookup import metrics_of
from hpo.results.ranking import best_line, edge_warnings
from hpo.results.unranked import no_best
from hpo.search.events import StudyEnded
from hpo.storage import Storage, best_trials, mask, summary
from hpo.studyfile import AnyStudy, Study
from hpo.text import hpo_command, printable

SHOWN = 5  # best trials


def summary_lines(study: AnyStudy, storage: Storage, ended: StudyEnded | None) -> list[str]:
    """Return how a launch has ended, the best trials, and a warning where the best lies at an edge.

    Where it came to its end and has no best trial, a line says why; but not where all trials failed, which is an error.
    """
    lines = [] if ended is None else [printable(outcome_line(study, ended))]
    if ended is not None and ended.reason == "deleted":
        return lines
    best = best_trials(storage, study.name, SHOWN)
    metrics = metrics_of(summary(storage, study.name)) if best else ()
    lines += [best_line(rank, trial, metrics) for rank, trial in enumerate(best, start=1)]
    if not best and ended is not None and not ended.interrupted and not ended.all_failed:
        lines.append(str(no_best(storage, study.name)))
    if best and isinstance(study, Study):
        lines += [
            printable(f"warning: {line}") for line in edge_warnings(study, best if len(metrics) > 1 else best[:1])
        ]
    return lines


def next_lines(study: AnyStudy, storage: Storage, url: str | None) -> list[str]:
    """Return the commands to type next; `url` is the storage that they must name, None for the usual."""
    where = f"--storage {shlex.quote(mask(url))}" if url else ""
    commands = []
    if best_trials(storage, study.name, 1):
        commands.append(hpo_command(_after(study), study.name, where))
        file = "front.json" if len(study.search.all_minimized) > 1 else "best.json"
        commands.append(hpo_command("export", study.name, f"{where} -o {file}".lstrip()))
    commands.append(f"hpo dashboard {where}".rstrip())
    return [printable(f"{'next:' if number == 0 else '':6}{each}") for number, each in enumerate(commands)]


def _after(study: AnyStudy) -> str:
    """Return the command that goes on from a search."""
    if not isinstance(study, Study):
        return "plot"
    whole = study.search.sampler == "grid" or not study.parameters  # there is nothing to be lucky with
    return "compare" if whole else "confirm"


def outcome_line(study: AnyStudy, ended: StudyEnded) -> str:
    """Return how the work on a study ended, and what to do where it has not come to its end."""
    counts = f"{ended.completed} completed, {ended.pruned} pruned, {ended.failed} failed in {ended.seconds:.1f} s"
    match ended.reason:
        case "interrupted":
            return f"{study.name}: interrupted, {counts}; launch it again to go on"
        case "space exhausted":
            return f"{study.name}: every point of the search space is done, {counts}"
        case "timeout":
            return f"{study.name}: its time is over (search.timeout), {counts}"
        case "no improvement":
            return f"{study.name}: nothing has improved for {study.search.patience} trials (search.patience), {counts}"
        case "paused" | "stopped":
            return f"{study.name}: {ended.reason}, {counts}; go on with `{hpo_command('resume', study.name)}`"
        case "changed":
            return f"{study.name}: changed by another process, {counts}; launch what it is now"
        case "deleted":
            return f"{study.name}: deleted by another process"
        case _:
            return f"{study.name}: finished, {counts}"
