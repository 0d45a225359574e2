"""Studies by name: summaries, best trials, and other programs that read a study."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.exceptions import DuplicatedStudyError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.errors import StorageError, UnknownStudyError
from hpo.storage import Storage, TrialResult, best_trials, load_study, rename_study, study_names, summaries, summary

MINIMIZE, MAXIMIZE = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
RUNNING, WAITING = TrialState.RUNNING, TrialState.WAITING
MIDSUMMER = datetime(2026, 6, 21, 12)  # no daylight saving change in the hours after
NAMES = map("study {}".format, itertools.count())


def unknown(storage: Storage, name: str) -> str:
    said = set()
    for call in (load_study, summary, lambda store, asked: best_trials(store, asked, 1)):
        with pytest.raises(UnknownStudyError) as caught:
            call(storage, name)
        said.add(str(caught.value))
    (one,) = said
    assert one.isprintable()
    return one


def trial(*values: float, state: TrialState = COMPLETE, start: int = 0, end: int = 0) -> FrozenTrial:
    """Return a trial with data of every kind, its start and end in minutes after midsummer's noon."""
    made = create_trial(
        state=state,
        values=values or None,
        params={"lr": 0.5},
        distributions={"lr": optuna.distributions.FloatDistribution(0.0, 1.0)},
        user_attrs={"seed": start},
        system_attrs={"hpo:curve": {"val_loss": [2.0]}},
        intermediate_values={1: 0.5},
    )
    made.datetime_start = MIDSUMMER + timedelta(minutes=start) if state != WAITING else None
    made.datetime_complete = MIDSUMMER + timedelta(minutes=end) if state.is_finished() else None
    return made


def filled(storage: Storage, trials: list[FrozenTrial], *directions: StudyDirection) -> str:
    """Store a study of these trials, and return its name."""
    name = next(NAMES)
    storage.create_trials(storage.create_new_study(directions or [MAXIMIZE], name), trials)
    return name


def numbers(storage: Storage, name: str, n: int = 99) -> list[int]:
    return [best.number for best in best_trials(storage, name, n)]


@st.composite
def trials(draw: st.DrawFn, objectives: int) -> FrozenTrial:
    state = draw(st.sampled_from(TrialState))
    value = st.sampled_from([0.0, 0.25, -1.5, math.inf, -math.inf]) | st.floats(allow_nan=False)
    values = draw(st.lists(value, min_size=objectives, max_size=objectives))
    has_values = state == COMPLETE or (state == PRUNED and draw(st.booleans()))
    minutes = st.integers(0, 60)
    return trial(*(values if has_values else ()), state=state, start=draw(minutes), end=draw(minutes))


@st.composite
def studies(draw: st.DrawFn) -> tuple[list[StudyDirection], list[FrozenTrial]]:
    directions = draw(st.lists(st.sampled_from([MINIMIZE, MAXIMIZE]), min_size=1, max_size=2))
    return directions, draw(st.lists(trials(len(directions)), max_size=12))


def test_study_names_are_sorted_oldest_first(storage: Storage) -> None:
    assert study_names(storage) == []
    for name in ("mnist", "digits", "cifar"):
        storage.create_new_study([StudyDirection.MAXIMIZE], name)
    assert study_names(storage) == ["mnist", "digits", "cifar"]


def test_a_study_is_renamed_unless_another_has_the_name(storage: Storage, study_id: int) -> None:
    other = storage.create_new_study([MINIMIZE], "other")
    with pytest.raises(DuplicatedStudyError):
        rename_study(storage, other, "digits")
    with pytest.raises(KeyError):
        rename_study(storage, other + 1, "new")
    rename_study(storage, study_id, "new")
    rename_study(storage, study_id, "new")
    assert study_names(storage) == ["new", "other"]
    assert (summary(storage, "new"), summary(storage, study_id).name) == (summary(storage, study_id), "new")
    with pytest.raises(UnknownStudyError, match="the study was deleted"):
        best_trials(storage, other + 1, 1)


def test_an_unknown_study_error_suggests_the_nearest_name(storage: Storage, study_id: int) -> None:
    assert unknown(storage, "digit").endswith(": no study named 'digit' (did you mean 'digits'?)")
    assert unknown(storage, "a\nb").endswith(r": no study named 'a\nb'; the storage has 'digits'")
    for k in range(6):
        storage.create_new_study([StudyDirection.MAXIMIZE], f"s{k}")
    assert unknown(storage, "mnist").endswith("'s3' and 2 more (see `hpo studies`)")


def test_a_name_that_is_not_utf8_is_refused(storage: Storage) -> None:
    for find in (summary, load_study):
        with pytest.raises(StorageError, match=r"'\\udcff' is not valid UTF-8; correct it"):
            find(storage, "\udcff")  # as Python decodes a byte of a command line that is not UTF-8


def test_the_error_of_an_empty_storage_says_how_to_start(storage: Storage) -> None:
    assert unknown(storage, "digits").endswith("the storage has no study yet: start one with `hpo launch FILE`")


def test_a_summary_has_the_facts_of_its_study(storage: Storage, study_id: int) -> None:
    storage.set_study_user_attr(study_id, "hpo:study", "{}")
    study = load_study(storage, "digits")
    assert isinstance(study, optuna.Study)
    assert (study.study_name, study.direction) == ("digits", StudyDirection.MAXIMIZE)
    assert study.user_attrs == {"hpo:study": "{}"}


def test_the_best_are_the_highest_or_the_lowest(storage: Storage) -> None:
    some = [trial(0.5), trial(0.9), trial(0.7)]
    assert numbers(storage, filled(storage, some, MAXIMIZE), 2) == [1, 2]
    assert numbers(storage, filled(storage, some, MINIMIZE), 2) == [0, 2]


def test_equal_values_keep_the_order_of_their_numbers(storage: Storage) -> None:
    some = [trial(0.5), trial(0.9), trial(0.5), trial(0.9)]
    assert numbers(storage, filled(storage, some, MAXIMIZE)) == [1, 3, 0, 2]
    assert numbers(storage, filled(storage, some, MINIMIZE)) == [0, 2, 1, 3]


def test_only_completed_trials_with_a_finite_value_are_ranked(storage: Storage) -> None:
    others = [trial(0.99, state=PRUNED), trial(state=FAIL), trial(state=RUNNING), trial(state=WAITING)]
    name = filled(storage, [*others, trial(math.inf), trial(0.4), trial(-math.inf)])
    assert numbers(storage, name) == [5]
    assert summary(storage, name).best == 0.4


def test_the_best_of_several_objectives_are_on_the_front(storage: Storage) -> None:
    ended = [trial(0.5, 1.0), trial(0.5, 0.9), trial(0.2, 0.1), trial(0.1, math.inf), trial(0.5, 1.0), trial(0.9, 2.0)]
    name = filled(storage, [*ended, trial(0.0, 3.0, state=PRUNED)], MINIMIZE, MAXIMIZE)
    assert numbers(storage, name) == [2, 0, 4, 5]
    assert numbers(storage, name, 2) == [2, 0]
    found = summary(storage, name)
    assert (found.directions, found.best, found.states) == ((MINIMIZE, MAXIMIZE), 0.1, {COMPLETE: 6, PRUNED: 1})


def test_any_number_of_best_trials_can_be_asked_for(storage: Storage) -> None:
    name = filled(storage, [trial(0.5), trial(0.9)])
    assert numbers(storage, name, 0) == []
    assert numbers(storage, name, 10**30) == [1, 0]


def test_trials_of_other_studies_do_not_count(storage: Storage) -> None:
    one, two = filled(storage, [trial(0.5)]), filled(storage, [trial(0.9), trial(state=FAIL)])
    assert [(found.name, found.best, found.states) for found in summaries(storage)] == [
        (one, 0.5, {COMPLETE: 1}),
        (two, 0.9, {COMPLETE: 1, FAIL: 1}),
    ]
    assert [best.value for best in best_trials(storage, one, 9)] == [0.5]


def test_a_summary_has_the_attributes_of_its_study(storage: Storage, study_id: int) -> None:
    storage.set_study_user_attr(study_id, "hpo:data", {"name": "mnist"})
    found = summary(storage, "digits")
    assert found.user_attrs == {"hpo:data": {"name": "mnist"}}
    assert (found.states, found.best, found.last_activity) == ({}, None, None)


def test_the_last_activity_is_a_start_or_an_end(storage: Storage) -> None:
    late_end = filled(storage, [trial(0.5, end=5), trial(state=RUNNING, start=3), trial(state=WAITING)])
    late_start = filled(storage, [trial(0.5, end=5), trial(state=RUNNING, start=7)])
    assert summary(storage, late_end).last_activity == MIDSUMMER + timedelta(minutes=5)
    assert summary(storage, late_start).last_activity == MIDSUMMER + timedelta(minutes=7)


def test_no_curve_is_read_to_rank_and_to_count(storage: Storage) -> None:
    name = filled(storage, [trial(0.5), trial(0.9)])
    read: list[str] = []
    sa.event.listen(storage.engine, "before_cursor_execute", lambda *args: read.append(args[2]))
    (best,) = best_trials(storage, name, 1)
    summaries(storage)
    assert (best.params, best.user_attrs) == ({"lr": 0.5}, {"seed": 0})
    assert (best.intermediate_values, best.system_attrs) == ({}, {})
    assert read
    assert not any(table in text for text in read for table in ("trial_intermediate_values", "trial_system_attributes"))


def dominates(one: list[float], other: list[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def test_counting_and_ranking_agree_with_reading_every_trial(storage: Storage, times: int) -> None:
    @settings(max_examples=10 * times)
    @given(some=st.lists(studies(), min_size=1, max_size=3), n=st.integers(0, 15))
    def agree(some: list[tuple[list[StudyDirection], list[FrozenTrial]]], n: int) -> None:
        names = [filled(storage, of_study, *directions) for directions, of_study in some]
        try:
            counted_and_ranked(storage, names, [directions for directions, _ in some], n)
        finally:
            for name in names:
                storage.delete_study(storage.get_study_id_from_name(name))

    agree()


def counted_and_ranked(storage: Storage, names: list[str], ways: list[list[StudyDirection]], n: int) -> None:
    found = {each.name: each for each in summaries(storage)}
    for name, directions in zip(names, ways, strict=True):
        every = load_study(storage, name).get_trials()
        complete = [each for each in every if each.state == COMPLETE]
        losses = {
            each.number: [-v if way == MAXIMIZE else v for v, way in zip(each.values, directions, strict=True)]
            for each in complete
            if all(map(math.isfinite, each.values))
        }
        ranked = [every[number] for number in sorted(losses, key=lambda number: (losses[number], number))]
        if len(directions) > 1:
            ranked = [each for each in ranked if not any(dominates(a, losses[each.number]) for a in losses.values())]
        times = [time for each in every for time in (each.datetime_start, each.datetime_complete) if time]
        shown = [(best.number, best.values, best.params, best.user_attrs) for best in best_trials(storage, name, n)]
        assert shown == [(best.number, best.values, best.params, best.user_attrs) for best in ranked[:n]]
        firsts = [each.values[0] for each in complete if math.isfinite(each.values[0])]
        assert found[name] == summary(storage, name)
        assert found[name].directions == tuple(directions)
        assert found[name].states == Counter(each.state for each in every)
        assert found[name].best == (max if directions[0] == MAXIMIZE else min)(firsts, default=None)
        assert found[name].last_activity == max(times, default=None)


def test_the_dashboard_reads_a_study(storage: Storage, study_id: int) -> None:
    optuna_dashboard = pytest.importorskip("optuna_dashboard")
    template = create_trial(
        state=TrialState.RUNNING,
        params={"lr": 1e-3},
        distributions={"lr": optuna.distributions.FloatDistribution(1e-6, 1e-2, log=True)},
    )
    (trial,) = storage.create_trials(study_id, [template])
    storage.report(1, {trial._trial_id: 0.25})
    storage.finish(
        [TrialResult(trial._trial_id, TrialState.COMPLETE, (0.25,), {"seed": 7}, {"hpo:curve": {"val_loss": [2]}})]
    )
    answer = get(optuna_dashboard.wsgi(storage), f"/api/studies/{study_id}")
    (shown,) = answer["trials"]
    assert (shown["number"], shown["state"], shown["values"]) == (0, "Complete", [0.25])
    assert shown["intermediate_values"] == [{"step": 1, "value": 0.25}]
    assert [(param["name"], float(param["param_internal_value"])) for param in shown["params"]] == [("lr", 1e-3)]


def get(app: Any, path: str) -> Any:
    """Return the answer of a WSGI application to a GET request."""
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "", "wsgi.input": io.BytesIO()}
    environ |= {
        "wsgi.errors": io.StringIO(),
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
    }
    status: list[str] = []
    body = b"".join(app(environ, lambda line, headers, exc_info=None: status.append(line)))
    assert status == ["200 OK"], body
    return json.loads(body)
