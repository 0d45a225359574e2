"""What a user does to a study of the queue: submitted, held up, gone on with, stopped and deleted, and what is said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from tiny import check_whole, search, states, study_of, trials_of
from worker_threads import work_here

from hpo.errors import HpoError, StudyBusyError, UnknownStudyError, UsageError
from hpo.search.options import LaunchOptions
from hpo.service import queue_control as control
from hpo.service.status import status
from hpo.storage import Storage, StudyState, TrialResult, open_storage, running_trials, state_of, summary

pytestmark = pytest.mark.usefixtures("no_figures")

CHANGES = [control.pause, control.resume, control.stop]


@pytest.fixture
def other(storage: Storage) -> Iterator[Storage]:
    """The same storage, as another worker has it."""
    opened = open_storage(storage.location.full_url)
    yield opened
    opened.close()


def submit(storage: Storage, *, extend: bool = False, priority: int | None = None, **changes: Any) -> str:
    (name,) = control.submit_all([study_of(**changes)], storage, LaunchOptions(extend=extend, priority=priority), print)
    return control.queue_line(storage, name)


def hold(storage: Storage, count: int) -> list[int]:
    template = create_trial(
        state=TrialState.RUNNING,
        params={"lr": 0.1},
        distributions={"lr": FloatDistribution(1e-3, 1.0, log=True)},
        user_attrs={"seed": 1},
    )
    created = storage.create_trials(summary(storage, "tiny").study_id, [template] * count)
    return [trial._trial_id for trial in created]


def state(storage: Storage) -> StudyState:
    return state_of(summary(storage, "tiny").user_attrs)


def test_a_submitted_study_is_in_the_queue(storage: Storage) -> None:
    assert submit(storage) == "tiny: in the queue, 6 trials left"
    assert submit(storage, priority=3) == "tiny: in the queue, 6 trials left"
    assert status(storage).studies[0].priority == 3
    assert submit(storage) == "tiny: in the queue, 6 trials left"
    assert status(storage).studies[0].priority == 3, "without --priority it stays as it is"
    assert submit(storage, name="one", search={"trials": 1}) == "one: in the queue, 1 trial left"


def test_a_class_without_validation_images_is_said_as_a_study_is_submitted(storage: Storage) -> None:
    said: list[str] = []
    studies = [study_of(data={"validation": share}, name=f"of {share}") for share in (0.2, 0.01)]
    list(control.submit_all(studies, storage, LaunchOptions(), said.append))
    assert [text.split(";")[0].partition(" (")[0] for text in said] == ["digits: no validation example of 8 classes"]


def test_a_study_that_has_its_trials_is_not_said_to_be_in_the_queue(storage: Storage) -> None:
    submit(storage)
    work_here(storage)
    said = submit(storage)
    assert "in the queue" not in said
    assert "tiny" in said


def test_a_submitted_study_that_differs_is_refused_and_extended_on_purpose(storage: Storage) -> None:
    submit(storage)
    with pytest.raises(UsageError, match=r"search\.trials: 6 -> 8"):
        submit(storage, search={"trials": 8})
    assert submit(storage, extend=True, search={"trials": 8}) == "tiny: in the queue, 8 trials left"
    work_here(storage)
    check_whole(trials_of(storage), 8)
    assert submit(storage, extend=True, search={"trials": 9}) == "tiny: in the queue, 1 trial left"
    assert state(storage) == StudyState.OPEN


def test_a_refused_submission_changes_nothing_not_even_the_priority(storage: Storage) -> None:
    submit(storage, priority=1)
    with pytest.raises(UsageError):
        submit(storage, priority=9, search={"trials": 8})
    assert status(storage).studies[0].priority == 1


def test_a_study_that_is_trained_can_be_extended_after_a_pause(storage: Storage, other: Storage) -> None:
    submit(storage)
    hold(other, 2)
    with pytest.raises(StudyBusyError, match="hpo pause tiny"):
        submit(storage, extend=True, search={"trials": 8})
    assert control.pause(storage, "tiny").startswith("tiny: paused, 2 trials requeued")
    assert submit(storage, extend=True, search={"trials": 8}) == "tiny: in the queue, paused, 8 trials left"
    assert control.resume(storage, "tiny") == "tiny: open, 8 trials left"


def test_a_pause_sends_back_what_runs_and_a_late_worker_cannot_end_it(storage: Storage, other: Storage) -> None:
    submit(storage)
    ids = hold(other, 1)
    said = control.pause(storage, "tiny")
    assert said == "tiny: paused, 1 trial requeued; go on with `hpo resume tiny`"
    assert states(trials_of(storage)) == [TrialState.WAITING]
    assert other.finish([TrialResult(ids[0], TrialState.COMPLETE, (0.5,))]) == set(ids)
    assert control.pause(storage, "tiny").startswith("tiny: paused, 0 trials requeued")
    assert work_here(storage) == []
    assert control.resume(storage, "tiny") == "tiny: open, 6 trials left"
    work_here(storage)
    assert states(trials_of(storage)) == [TrialState.COMPLETE] * 6


def test_a_stop_lets_what_runs_be_finished(storage: Storage, other: Storage) -> None:
    submit(storage)
    ids = hold(other, 2)
    assert control.stop(storage, "tiny") == "tiny: stopped, 2 trials still running; go on with `hpo resume tiny`"
    assert len(running_trials(storage)) == 2
    assert other.finish([TrialResult(trial_id, TrialState.COMPLETE, (0.5,)) for trial_id in ids]) == set()
    assert work_here(storage) == []
    assert control.resume(storage, "tiny") == "tiny: open, 4 trials left"


def test_a_stopped_study_can_be_paused_and_a_paused_one_stopped(storage: Storage, other: Storage) -> None:
    submit(storage)
    hold(other, 2)
    control.stop(storage, "tiny")
    assert "2 trials requeued" in control.pause(storage, "tiny")
    assert "0 trials still running" in control.stop(storage, "tiny")
    assert state(storage) == StudyState.STOPPED


@pytest.mark.parametrize("change", [control.pause, control.stop])
def test_a_study_that_has_ended_is_neither_paused_nor_stopped(storage: Storage, change: Any) -> None:
    submit(storage)
    work_here(storage)
    with pytest.raises(HpoError, match="already ended"):
        change(storage, "tiny")
    assert state(storage) == StudyState.ENDED


@pytest.mark.parametrize("change", [control.pause, control.stop])
def test_nor_is_one_whose_end_was_not_stored(storage: Storage, other: Storage, change: Any) -> None:
    submit(storage, search={"trials": 2})
    other.finish([TrialResult(trial_id, TrialState.COMPLETE, (0.5,)) for trial_id in hold(other, 2)])
    assert status(storage).studies[0].state == "ended"
    with pytest.raises(HpoError, match="already ended"):
        change(storage, "tiny")


def test_resuming_a_finished_study_does_not_pretend_that_it_goes_on(storage: Storage) -> None:
    submit(storage)
    work_here(storage)
    with pytest.raises(HpoError, match="extend"):
        control.resume(storage, "tiny")


def test_resuming_a_study_whose_limit_is_reached_does_not_pretend_that_it_goes_on(storage: Storage) -> None:
    submit(storage, search={"timeout": 1e-3})
    work_here(storage)
    assert status(storage).studies[0].why == "timeout"
    with pytest.raises(HpoError, match=r"search\.timeout|extend"):
        control.resume(storage, "tiny")


@pytest.mark.parametrize("change", [*CHANGES, control.delete, control.question])
def test_an_unknown_study_is_refused(storage: Storage, change: Any) -> None:
    submit(storage)
    with pytest.raises(UnknownStudyError, match=r"no study named 'tinny'.*did you mean 'tiny'"):
        change(storage, "tinny")


@pytest.mark.parametrize("change", CHANGES)
def test_plain_optuna_studies_are_refused(storage: Storage, change: Any) -> None:
    optuna.create_study(storage=storage, study_name="plain").ask()
    before = summary(storage, "plain")
    with pytest.raises(HpoError, match="was not created by hpo"):
        change(storage, "plain")
    assert summary(storage, "plain") == before


def test_plain_optuna_studies_can_be_deleted(storage: Storage) -> None:
    optuna.create_study(storage=storage, study_name="plain").ask()
    assert control.question(storage, "plain") == "Delete study 'plain' with 1 trial, 1 of them running?"
    assert control.delete(storage, "plain") == "plain: deleted, with 1 trial"


def test_a_deleted_study_is_gone_and_its_worker_cannot_bring_it_back(storage: Storage, other: Storage) -> None:
    submit(storage)
    ids = hold(other, 3)
    assert control.question(storage, "tiny") == "Delete study 'tiny' with 3 trials, 3 of them running?"
    assert control.delete(storage, "tiny") == "tiny: deleted, with 3 trials"
    assert other.report(1, dict.fromkeys(ids, 0.5)) == set(ids)
    other.refresh_heartbeats()
    with pytest.raises(UnknownStudyError):
        summary(storage, "tiny")
    with storage.engine.connect() as connection:
        for table in ("trials", "trial_heartbeats", "trial_intermediate_values", "study_user_attributes"):
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() == 0


def test_messages_quote_a_name_for_the_shell_and_print_no_control_characters(storage: Storage) -> None:
    submit(storage, name="it's two words")
    assert control.pause(storage, "it's two words").endswith("""`hpo resume 'it'"'"'s two words'`""")
    evil = "up\x1b[1A"
    optuna.create_study(storage=storage, study_name=evil)
    assert control.question(storage, evil).isprintable()
    assert control.delete(storage, evil).isprintable()


def test_errors_of_a_closed_study_quote_its_name_for_the_shell(storage: Storage) -> None:
    submit(storage, name="two words")
    control.pause(storage, "two words")
    with pytest.raises(HpoError, match="hpo resume 'two words'"):
        search(study_of(name="two words"), storage)
