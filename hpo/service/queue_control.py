"""What a user does to a study of the queue: submit, pause, resume, stop, delete. The last four return a line.

The processes that work on the study need not be reached: they find out when they next ask the storage for something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from optuna.trial import TrialState

from hpo.errors import HpoError
from hpo.search.options import LaunchOptions
from hpo.search.study_records import foreign_study_error, trial_target
from hpo.service.status import status
from hpo.storage import STATE_REASON, Storage, StudyState, StudySummary, running_trials, set_state, state_of, summary
from hpo.storage.artifacts import delete_checkpoint_files
from hpo.studyfile import AnyStudy
from hpo.text import hpo_command, printable


def submit_all(
    studies: Sequence[AnyStudy], storage: Storage, options: LaunchOptions, say: Callable[[str], None]
) -> Iterator[str]:
    """Put studies into the queue; give the name of each when it is there. Raises what `submit` raises.

    `say` is told in a line what there is to say against its images.

    Whatever is wrong with a file or its data is found before the first is stored.
    """
    from hpo.search.driver import driver_of  # the other functions need no torch
    from hpo.search.launch import submit

    drivers = [driver_of(study, "cpu") for study in studies]
    for driver in drivers:
        submit(driver.study, storage, options, driver=driver)
        if driver.warning:
            say(driver.warning)
        yield driver.study.name


def queue_line(storage: Storage, name: str) -> str:
    """Return how the study stands in the queue."""
    study = _of_hpo(storage, name)
    state = state_of(study.user_attrs)
    if state == StudyState.ENDED:
        return printable(f"{name}: has ended before ({study.user_attrs.get(STATE_REASON)}), nothing is left to do")
    closed = f", {state.value}" if state != StudyState.OPEN else ""
    return printable(f"{name}: in the queue{closed}, {_trials(_left(study))} left")


def pause(storage: Storage, name: str) -> str:
    """Let nobody train the study; what runs ends at its next epoch, and goes back to the queue."""
    study = _not_ended(storage, name)
    back = set_state(storage, study.study_id, StudyState.PAUSED)
    said = f"{name}: paused, {_trials(back)} sent back to the queue; go on with `{hpo_command('resume', name)}`"
    return printable(said)


def stop(storage: Storage, name: str) -> str:
    """Let what runs be finished, and nothing new begin."""
    study = _not_ended(storage, name)
    set_state(storage, study.study_id, StudyState.STOPPED)
    running = len(running_trials(storage, study.study_id))
    said = f"{name}: stopped, {_trials(running)} still running; go on with `{hpo_command('resume', name)}`"
    return printable(said)


def resume(storage: Storage, name: str) -> str:
    """Let the study be worked on again that was paused or stopped, or that got new trials after its end."""
    study = _of_hpo(storage, name)
    if state_of(study.user_attrs) == StudyState.ENDED and not study.states.get(TrialState.WAITING):
        raise HpoError(
            f"study '{name}' has ended ({study.user_attrs.get(STATE_REASON)}); "
            "to go on, submit it with more to do and --extend"
        )
    set_state(storage, study.study_id, StudyState.OPEN)
    return printable(f"{name}: open, {_trials(_left(study))} left")


def delete(storage: Storage, name: str) -> str:
    """Delete the study with all its trials, and the weights that are kept of them."""
    study = summary(storage, name)
    delete_checkpoint_files(storage, study)
    try:
        storage.delete_study(study.study_id)
    except KeyError as error:
        raise HpoError(f"{storage.shown}: study '{name}' was deleted by another process") from error
    return printable(f"{name}: deleted, with {_trials(sum(study.states.values()))}")


def question(storage: Storage, name: str) -> str:
    """Return what to ask before a study is deleted."""
    study = summary(storage, name)
    running = study.states.get(TrialState.RUNNING, 0)
    at_work = f", {running} of them running" if running else ""
    return printable(f"Delete study '{name}' with {_trials(sum(study.states.values()))}{at_work}?")


def _left(study: StudySummary) -> int:
    done = sum(count for state, count in study.states.items() if state.is_finished())
    return max(0, (trial_target(study.user_attrs) or 0) - done)


def _of_hpo(storage: Storage, name: str) -> StudySummary:
    study = summary(storage, name)
    if trial_target(study.user_attrs) is None:
        raise foreign_study_error(name)
    return study


def _not_ended(storage: Storage, name: str) -> StudySummary:
    study = _of_hpo(storage, name)
    (seen,) = status(storage, name).studies
    if seen.state == StudyState.ENDED:
        raise HpoError(f"study '{name}' has ended ({seen.why}): there is nothing to hold up")
    return study


def _trials(count: int) -> str:
    return f"{count} {'trial' if count == 1 else 'trials'}"
