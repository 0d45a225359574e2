"""Figures and the note of a study: read by the dashboard, never mixed, deleted with the study."""

from __future__ import annotations

import threading

import plotly.graph_objects as go
import pytest
from optuna.study import StudyDirection
from optuna_dashboard import get_note, save_plotly_graph_object
from optuna_dashboard import save_note as save_note_in_pieces
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

from hpo.storage import Storage, copy_study, figures_record, load_study, open_storage, save_figures, save_note

FIGURE = go.Figure(go.Scatter(y=[float(each) for each in range(2000)], name='ü \\ "quoted" %'))


def shown(storage: Storage, study_id: int) -> dict[str, str]:
    """Return the figures as the dashboard reads them, by id."""
    return get_plotly_graph_objects(storage.get_study_system_attrs(study_id))


def test_the_dashboard_reads_the_figures_as_its_own(storage: Storage, study_id: int) -> None:
    save_plotly_graph_object(load_study(storage, "digits"), FIGURE, graph_object_id="theirs")
    assert save_figures(storage, study_id, {"ours": FIGURE.to_json()}, 3)
    found = shown(storage, study_id)
    assert found.keys() == {"theirs", "ours"}
    assert found["ours"] == found["theirs"] == FIGURE.to_json()


def test_a_figure_replaces_the_earlier_one(storage: Storage, study_id: int) -> None:
    study = load_study(storage, "digits")
    for name in ("ours", "ours_2", "ourss"):  # thirty pieces each
        save_plotly_graph_object(study, FIGURE, graph_object_id=name)
    assert figures_record(storage, study_id) is None
    for text in ('{"data": []}', "{}"):
        assert save_figures(storage, study_id, {"ours": text}, 3)
        assert shown(storage, study_id) == {"ours": text, "ours_2": FIGURE.to_json(), "ourss": FIGURE.to_json()}
    attrs = storage.get_study_system_attrs(study_id)
    assert [key for key in attrs if key.startswith("dashboard:plot_data:ours:")] == ["dashboard:plot_data:ours:0"]


def test_figures_of_an_earlier_version_are_deleted(storage: Storage, study_id: int) -> None:
    for name in ("hpo-history", "hpo-curves", "theirs"):
        save_plotly_graph_object(load_study(storage, "digits"), FIGURE, graph_object_id=name)
    assert save_figures(storage, study_id, {"hpo-curves": "{}"}, 3)
    assert shown(storage, study_id) == {"hpo-curves": "{}", "theirs": FIGURE.to_json()}


def test_figures_of_fewer_trials_are_not_stored(storage: Storage, other: Storage, study_id: int) -> None:
    assert save_figures(storage, study_id, {"a": "of 5"}, 5)
    assert not save_figures(other, study_id, {"a": "of 4"}, 4)
    assert shown(storage, study_id) == {"a": "of 5"}
    assert save_figures(other, study_id, {"a": "of 5, again"}, 5)
    drawn = figures_record(storage, study_id)
    assert drawn is not None
    assert drawn.trials == 5


def test_a_note_replaces_the_earlier_one(storage: Storage, study_id: int) -> None:
    study = load_study(storage, "digits")
    for note in ("short", "long " * 1000, "", "short again"):
        save_note(storage, study_id, note)
        assert get_note(study) == note
        save_note_in_pieces(study, f"changed in the dashboard {note}")
        assert get_note(study) == f"changed in the dashboard {note}"
    save_note(storage, study_id, "last")
    attrs = storage.get_study_system_attrs(study_id)
    assert attrs == {"dashboard:note_ver": 9, "dashboard:note_str:0": "last"}
    with pytest.raises(KeyError):
        save_note(storage, study_id + 1, "of no study")


def test_two_processes_that_store_figures_do_not_mix_them(storage: Storage, other: Storage, study_id: int) -> None:
    """Each thread stores a pair of figures repeatedly; a reader always sees a pair of one thread."""
    texts = {mark: mark * 50_000 for mark in "ab"}
    begin, errors = threading.Barrier(3), []

    def keep(mine: Storage, mark: str) -> None:
        begin.wait()
        try:
            for _ in range(20):
                assert save_figures(mine, study_id, {"x": texts[mark], "y": texts[mark]}, 1)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=keep, args=each) for each in ((storage, "a"), (other, "b"))]
    reader = open_storage(storage.location.full_url)
    for thread in threads:
        thread.start()
    begin.wait()
    while any(thread.is_alive() for thread in threads):
        found = shown(reader, study_id)
        assert not found or (found["x"] == found["y"] and found["x"] in texts.values())
    reader.close()
    for thread in threads:
        thread.join()
    assert not errors


def test_figures_of_a_deleted_study_are_not_stored(storage: Storage, study_id: int) -> None:
    save_figures(storage, study_id, {"a": "{}"}, 5)
    storage.delete_study(study_id)
    assert not save_figures(storage, study_id, {"a": "{}"}, 6)
    assert figures_record(storage, study_id) is None
    again = storage.create_new_study([StudyDirection.MAXIMIZE], "digits")
    assert shown(storage, again) == {}
    assert save_figures(storage, again, {"a": "{}"}, 1)


def test_figures_are_copied_with_their_study(storage: Storage, study_id: int) -> None:
    save_figures(storage, study_id, {"a": FIGURE.to_json()}, 5)
    copy_study(storage, "digits", storage, "again")
    copied = storage.get_study_id_from_name("again")
    assert shown(storage, copied) == {"a": FIGURE.to_json()}
    assert figures_record(storage, copied) == figures_record(storage, study_id)
