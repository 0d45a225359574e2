"""Summary of a launch: how it ended, the best trials, warnings where the best lies at an edge, and the next commands.

Reads the storage and changes nothing.
"""

from __future__ import annotations

from hpo.results.confirm.result import runs_left
from hpo.results.confirm.study import confirmations
from hpo.results.edges import edge_warnings
from hpo.results.no_best_trial import no_best_trial
from hpo.results.ranking import best_line, score
from hpo.results.study_facts import metrics_of
from hpo.results.trivial_baseline import trivial_baseline_of
from hpo.search.events import StudyEnded
from hpo.search.study_records import DATA
from hpo.storage import Storage, StudySummary, best_trials, storage_option, summary
from hpo.storage.test_evaluations import completed, evaluations_of
from hpo.studyfile import AnyStudy, ObjectiveStudy, Study
from hpo.text import hpo_command, printable

BEST_TRIALS = 5


def summary_lines(study: AnyStudy, storage: Storage, ended: StudyEnded | None) -> list[str]:
    """Return how a launch has ended, the best trials, and warnings.

    There is a warning where the best trial is not better than the trivial baseline, and for each range with the best at
    its edge.
    For a search that ended without a best trial, a line says why; not where all trials failed, which is an error.
    """
    lines = [] if ended is None else [printable(ended_line(study, ended))]
    if ended is not None and ended.reason == "deleted":
        return lines
    best = best_trials(storage, study.name, BEST_TRIALS)
    found = summary(storage, study.name)
    metrics = metrics_of(found)
    lines += [best_line(rank, trial, metrics) for rank, trial in enumerate(best, start=1)]
    if not best and ended is not None and not ended.interrupted and not ended.all_failed:
        lines.append(str(no_best_trial(storage, study.name)))
    if best and isinstance(study, Study):
        trivial = trivial_baseline_of(study, found.user_attrs.get(DATA, {}))
        warnings = [trivial.warning(score(best[0]))] if trivial is not None else []
        warnings += edge_warnings(study, best if len(metrics) > 1 else best[:1])
        lines += [printable(f"warning: {line}") for line in filter(None, warnings)]
    return lines


def next_lines(study: AnyStudy, storage: Storage, url: str | None) -> list[str]:
    """Return the commands to run next; `url` is the storage that they name, None for the default storage."""
    commands = [*next_commands(study, storage, url), f"hpo dashboard {storage_option(url)}".rstrip()]
    return [printable(f"{'next:' if number == 0 else '':6}{each}") for number, each in enumerate(commands)]


def next_commands(study: AnyStudy, storage: Storage, url: str | None) -> list[str]:
    """Return the commands for the results of a finished search; none without a best trial."""
    option, commands = storage_option(url), []
    if best_trials(storage, study.name, 1):
        found, confirmed = summary(storage, study.name), _is_confirmed(storage, study.name)
        commands.append(hpo_command(_next_command(study, found, confirmed), study.name, option))
        file = "front.json" if len(study.search.all_minimized) > 1 else "best.json"
        export = f"{option}{' --confirmed' if confirmed else ''} -o {file}"
        commands.append(hpo_command("export", study.name, export.lstrip()))
    return commands


def _is_confirmed(storage: Storage, name: str) -> bool:
    """Return whether a confirmation of the study is finished."""
    return any(runs_left(each) == 0 for each in confirmations(storage, name))


def _next_command(study: AnyStudy, found: StudySummary, confirmed: bool) -> str:
    """Return the command that follows: confirm, then test, then report; compare for a grid."""
    if isinstance(study, ObjectiveStudy):
        if study.search.repeats > 1:
            return "compare"
        return "report" if confirmed else "confirm"
    if study.search.sampler == "grid" or not study.parameters:  # no best of many noisy scores was selected
        return "compare"
    if not confirmed:
        return "confirm"
    tested = completed(evaluations_of(found.user_attrs)) or found.user_attrs.get(DATA, {}).get("test") == 0
    return "report" if tested else "test"


def ended_line(study: AnyStudy, ended: StudyEnded) -> str:
    """Return how the work on a study ended, and how to continue it unless it is finished."""
    counts = f"{ended.completed} completed, {ended.pruned} pruned, {ended.failed} failed in {ended.seconds:.1f} s"
    match ended.reason:
        case "interrupted":
            return f"{study.name}: interrupted, {counts}; launch it again to continue"
        case "space exhausted":
            return f"{study.name}: every configuration of the search space has been tried, {counts}"
        case "timeout":
            return f"{study.name}: search.timeout has passed, {counts}"
        case "no improvement":
            return f"{study.name}: no improvement in {study.search.patience} trials (search.patience), {counts}"
        case "paused" | "stopped":
            return f"{study.name}: {ended.reason}, {counts}; continue with `{hpo_command('resume', study.name)}`"
        case "changed":
            return f"{study.name}: changed by another process, {counts}; launch it again to continue with the change"
        case "deleted":
            return f"{study.name}: deleted by another process"
        case _:
            return f"{study.name}: finished, {counts}"
