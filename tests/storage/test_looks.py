"""Looks at the test set: each is stored before it is taken, and of many at once one is the first. On both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from optuna.study import StudyDirection

from hpo.errors import HpoError
from hpo.storage import IDENTITY, Storage, load_study
from hpo.storage.looks import TESTS, Look, Looking, begin_look, check_unseen, end_look, looks


@pytest.fixture
def study(storage: Storage) -> Looking:
    study_id = storage.create_study("seen", [StudyDirection.MAXIMIZE], {"other": 1, IDENTITY: "this one"})
    return Looking(study_id, "seen", "this one")


def attrs(storage: Storage) -> dict[str, Any]:
    return load_study(storage, "seen").user_attrs


def test_a_look_is_there_from_its_beginning_and_filled_in_at_its_end(storage: Storage, study: Looking) -> None:
    begun = begin_look(storage, study, False, {"trial": 3})
    (stored,) = looks(attrs(storage))
    assert (stored["look"], stored["trial"], stored["result"]) == (1, 3, None)
    assert stored == begun
    assert end_look(storage, study, begun, {"accuracy": 0.5}) == 1
    assert looks(attrs(storage)) == [{**begun, "result": {"accuracy": 0.5}}]
    assert attrs(storage)["other"] == 1


def test_another_one_has_to_be_asked_for_and_counts(storage: Storage, study: Looking) -> None:
    first = begin_look(storage, study, False, {"trial": 3})
    with pytest.raises(
        HpoError, match=r"seen its test set once \(last with trial 3 at .*: it did not get to a result\)"
    ):
        begin_look(storage, study, False, {"trial": 4})
    second = begin_look(storage, study, True, {"trial": 4})
    assert (first["look"], second["look"]) == (1, 2)
    assert end_look(storage, study, second, {"accuracy": 0.25}) == 2
    assert end_look(storage, study, first, {"accuracy": 0.5}) == 2
    assert [look["result"] for look in looks(attrs(storage))] == [{"accuracy": 0.5}, {"accuracy": 0.25}]
    with pytest.raises(HpoError, match=r"seen its test set 2 times \(last with trial 4 at .*: accuracy 0\.2500\)"):
        check_unseen(attrs(storage), "seen", again=False)
    check_unseen(attrs(storage), "seen", again=True)


def test_of_many_at_once_one_has_the_first(storage: Storage, other: Storage, study: Looking) -> None:
    def begin(number: int) -> Look | None:
        try:
            return begin_look((storage, other)[number % 2], study, False, {"trial": number})
        except HpoError:
            return None

    with ThreadPoolExecutor(8) as pool:
        begun = [look for look in pool.map(begin, range(8)) if look is not None]
    assert len(begun) == 1
    assert looks(attrs(storage)) == begun


def test_looks_that_are_asked_for_at_once_are_all_counted(storage: Storage, other: Storage, study: Looking) -> None:
    def see(number: int) -> int:
        opened = (storage, other)[number % 2]
        look = begin_look(opened, study, True, {"trial": number})
        end_look(opened, study, look, {"accuracy": number / 10})
        return int(look["look"])

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(see, range(8))) == list(range(1, 9))
    assert all(look["result"]["accuracy"] == look["trial"] / 10 for look in looks(attrs(storage)))


def test_a_study_that_has_been_deleted_has_none(storage: Storage, study: Looking) -> None:
    storage.delete_study(study.study_id)
    with pytest.raises(HpoError, match="study 'seen': was deleted meanwhile; no test file was opened"):
        begin_look(storage, study, False, {"trial": 0})


def test_a_study_that_is_begun_anew_under_its_id_has_not_looked(storage: Storage, study: Looking) -> None:
    begun = begin_look(storage, study, False, {"trial": 0})
    storage.change_study(study.study_id, {IDENTITY: "another", TESTS: []})
    with pytest.raises(HpoError, match="study 'seen': was deleted meanwhile; the look was taken, and is kept nowhere"):
        end_look(storage, study, begun, {"accuracy": 0.5})
    with pytest.raises(HpoError, match="no test file was opened"):
        begin_look(storage, study, True, {"trial": 0})
    assert looks(attrs(storage)) == []
