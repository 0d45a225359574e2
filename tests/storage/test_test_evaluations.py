"""Records of test evaluations: each counts once it has a result; of concurrent ones, one is the first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from optuna.study import StudyDirection

from hpo.errors import HpoError
from hpo.storage import IDENTITY, Storage, load_study
from hpo.storage.test_evaluations import (
    TESTS,
    Evaluation,
    StudyRef,
    check_untested,
    complete_evaluation,
    completed,
    evaluations_of,
    fail_evaluation,
    start_evaluation,
)


@pytest.fixture
def study(storage: Storage) -> StudyRef:
    study_id = storage.create_study("seen", [StudyDirection.MAXIMIZE], {"other": 1, IDENTITY: "this one"})
    return StudyRef(study_id, "seen", "this one")


def attrs(storage: Storage) -> dict[str, Any]:
    return load_study(storage, "seen").user_attrs


def test_an_evaluation_is_stored_at_its_start_and_counts_from_its_end(storage: Storage, study: StudyRef) -> None:
    begun = start_evaluation(storage, study, False, {"trial": 3})
    assert evaluations_of(attrs(storage)) == [begun]
    assert (begun["look"], begun["trial"], begun["result"]) == (None, 3, None)
    check_untested(attrs(storage), "seen", again=False)
    ended = complete_evaluation(storage, study, begun, False, {"accuracy": 0.5})
    assert evaluations_of(attrs(storage)) == [ended] == [{**begun, "look": 1, "result": {"accuracy": 0.5}}]
    assert attrs(storage)["other"] == 1


def test_a_further_evaluation_needs_again_and_counts(storage: Storage, study: StudyRef) -> None:
    first, second = (start_evaluation(storage, study, False, {"trial": trial}) for trial in (3, 4))
    assert complete_evaluation(storage, study, second, False, {"accuracy": 0.25})["look"] == 1
    for late in (
        lambda: start_evaluation(storage, study, False, {"trial": 5}),
        lambda: end(storage, study, first, False),
    ):
        with pytest.raises(
            HpoError, match=r"evaluated on its test set once \(last with trial 4 at .*: accuracy 0\.2500\)"
        ):
            late()
    assert [look["result"] for look in evaluations_of(attrs(storage))] == [None, {"accuracy": 0.25}]
    assert end(storage, study, first, True)["look"] == 2
    with pytest.raises(
        HpoError, match=r"evaluated on its test set 2 times \(last with trial 3 at .*: accuracy 0\.5000\)"
    ):
        check_untested(attrs(storage), "seen", again=False)
    check_untested(attrs(storage), "seen", again=True)


def end(storage: Storage, study: StudyRef, begun: Evaluation, again: bool) -> Evaluation:
    return complete_evaluation(storage, study, begun, again, {"accuracy": 0.5})


def test_a_failed_evaluation_has_a_reason_and_does_not_count(storage: Storage, study: StudyRef) -> None:
    fail_evaluation(storage, study, start_evaluation(storage, study, False, {"trial": 3}), "it is too large")
    (failed,) = evaluations_of(attrs(storage))
    assert (failed["look"], failed["result"], failed["failed"]) == (None, None, "it is too large")
    assert completed([failed]) == []
    assert end(storage, study, start_evaluation(storage, study, False, {"trial": 3}), False)["look"] == 1


def test_of_concurrent_evaluations_one_is_the_first(storage: Storage, other: Storage, study: StudyRef) -> None:
    def see(number: int) -> Evaluation | None:
        opened = (storage, other)[number % 2]
        try:
            return end(opened, study, start_evaluation(opened, study, False, {"trial": number}), False)
        except HpoError:
            return None

    with ThreadPoolExecutor(8) as pool:
        ended = [look for look in pool.map(see, range(8)) if look is not None]
    assert len(ended) == 1
    assert completed(evaluations_of(attrs(storage))) == ended


def test_concurrent_evaluations_with_again_all_count(storage: Storage, other: Storage, study: StudyRef) -> None:
    def see(number: int) -> int:
        opened = (storage, other)[number % 2]
        begun = start_evaluation(opened, study, True, {"trial": number})
        return int(complete_evaluation(opened, study, begun, True, {"accuracy": number / 10})["look"])

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(see, range(8))) == list(range(1, 9))
    assert all(look["result"]["accuracy"] == look["trial"] / 10 for look in evaluations_of(attrs(storage)))
    assert [look["look"] for look in evaluations_of(attrs(storage))] == list(range(1, 9))


def test_a_deleted_study_cannot_be_evaluated(storage: Storage, study: StudyRef) -> None:
    storage.delete_study(study.study_id)
    with pytest.raises(HpoError, match="study 'seen' was deleted by another process; its test set was not evaluated"):
        start_evaluation(storage, study, False, {"trial": 0})


def test_another_study_with_the_id_gets_no_evaluation(storage: Storage, study: StudyRef) -> None:
    begun = start_evaluation(storage, study, False, {"trial": 0})
    storage.set_study_attrs(study.study_id, {IDENTITY: "another", TESTS: []})
    with pytest.raises(
        HpoError, match="study 'seen' was deleted by another process; the result of the test evaluation is not stored"
    ):
        end(storage, study, begun, False)
    with pytest.raises(HpoError, match="its test set was not evaluated"):
        start_evaluation(storage, study, True, {"trial": 0})
    assert evaluations_of(attrs(storage)) == []
