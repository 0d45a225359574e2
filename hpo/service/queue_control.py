"""Queue control: submit, pause, resume, stop and delete studies. The last four return a line for the user.

Only the storage is changed: the processes that train the study notice when they next access it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from optuna.trial import TrialState

from hpo.errors import HpoError, UsageError
from hpo.search.options import LaunchOptions
from hpo.search.study_records import foreign_study_error, trial_target, with_stored_defaults
from hpo.service.status import status
from hpo.storage import STATE_REASON, Storage, StudyState, StudySummary, running_trials, set_state, state_of, summary
from hpo.storage.artifacts import delete_checkpoint_files
from hpo.studyfile import AnyStudy
from hpo.text import hpo_command, join_and, printable


def submit_all(
    studies: Sequence[AnyStudy], storage: Storage, options: LaunchOptions, say: Callable[[str], None]
) -> Iterator[str]:
    """Put studies into the queue; yield the name of each as soon as it is stored. Raises what `submit` raises.

    All files and their data are checked before the first study is stored. `say` is called with each warning, and with
    a line on the trials that an extension of the number of epochs continues.
    """
    from hpo.search.driver import driver_of  # imports torch, which the other commands do not need
    from hpo.search.launch import submit

    for study in studies:
        require_files(study, "submit")
    drivers = [driver_of(with_stored_defaults(study, storage), "cpu") for study in studies]
    for driver in drivers:
        submit(driver.study, storage, options, driver=driver, say=say)
        if driver.warning:
            say(driver.warning)
        yield driver.study.name


def require_files(study: AnyStudy, option: str) -> None:
    """Raise UsageError where data or code of the study are in no file, so that no other process could train it."""
    if keys := study.keys_in_memory:
        are = "is" if len(keys) == 1 else "are"
        raise UsageError(
            f"{option}: {join_and(keys)} of study '{study.name}' {are} in the memory of this process, and workers need "
            'files: move classes and functions to one ("FILE.py:NAME") and save the data ("npz:FILE", "table:FILE")'
        )


def queue_line(storage: Storage, name: str) -> str:
    """Return a line with the study's state and the number of trials left."""
    study = _own_study(storage, name)
    state = state_of(study.user_attrs)
    if state == StudyState.ENDED:
        return printable(f"{name}: already ended ({study.user_attrs.get(STATE_REASON)}), nothing is left to do")
    closed = f", {state.value}" if state != StudyState.OPEN else ""
    return printable(f"{name}: in the queue{closed}, {_trials(_left(study))} left")


def pause(storage: Storage, name: str) -> str:
    """Pause the study: running trials are requeued at the end of the epoch, and no trial starts."""
    study = _unfinished_study(storage, name, "pause")
    requeued = set_state(storage, study.study_id, StudyState.PAUSED)
    return printable(f"{name}: paused, {_trials(requeued)} requeued; go on with `{hpo_command('resume', name)}`")


def stop(storage: Storage, name: str) -> str:
    """Stop the study: running trials are finished, and no trial starts."""
    study = _unfinished_study(storage, name, "stop")
    set_state(storage, study.study_id, StudyState.STOPPED)
    trials = running_trials(storage, study.study_id)
    frozen = sum(trial.frozen is not None for trial in trials)
    running = f"{_trials(len(trials) - frozen)} still running{f', {frozen} frozen' if frozen else ''}"
    return printable(f"{name}: stopped, {running}; go on with `{hpo_command('resume', name)}`")


def resume(storage: Storage, name: str) -> str:
    """Open a study again that was paused or stopped, or that got new trials after its end."""
    study = _own_study(storage, name)
    if state_of(study.user_attrs) == StudyState.ENDED and not study.states.get(TrialState.WAITING):
        raise HpoError(
            f"study '{name}' already ended ({study.user_attrs.get(STATE_REASON)}): "
            "to go on, submit it with more trials and --extend"
        )
    set_state(storage, study.study_id, StudyState.OPEN)
    return printable(f"{name}: open, {_trials(_left(study))} left")


def delete(storage: Storage, name: str) -> str:
    """Delete the study with all its trials and their saved checkpoints."""
    study = summary(storage, name)
    delete_checkpoint_files(storage, study)
    try:
        storage.delete_study(study.study_id)
    except KeyError as error:
        raise HpoError(f"{storage.shown}: study '{name}' was deleted by another process") from error
    return printable(f"{name}: deleted, with {_trials(sum(study.states.values()))}")


def question(storage: Storage, name: str) -> str:
    """Return the question to ask the user before a study is deleted."""
    study = summary(storage, name)
    frozen = sum(study.frozen.values())
    counts = {"running": study.states.get(TrialState.RUNNING, 0) - frozen, "frozen": frozen}
    parts = [f"{count} of them {word}" for word, count in counts.items() if count > 0]
    of_them = "".join(f", {part}" for part in parts)
    return printable(f"Delete study '{name}' with {_trials(sum(study.states.values()))}{of_them}?")


def _left(study: StudySummary) -> int:
    done = sum(count for state, count in study.states.items() if state.is_finished())
    return max(0, (trial_target(study.user_attrs) or 0) - done)


def _own_study(storage: Storage, name: str) -> StudySummary:
    study = summary(storage, name)
    if trial_target(study.user_attrs) is None:
        raise foreign_study_error(name)
    return study


def _unfinished_study(storage: Storage, name: str, action: str) -> StudySummary:
    """Return the study. Raises HpoError if it has ended, with the `action` that is refused."""
    study = _own_study(storage, name)
    (found,) = status(storage, name).studies
    if found.state == StudyState.ENDED:
        raise HpoError(f"study '{name}' already ended ({found.why}); cannot {action} it")
    return study


def _trials(count: int) -> str:
    return f"{count} {'trial' if count == 1 else 'trials'}"
