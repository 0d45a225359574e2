"""Work records: one for each process, written while it searches, and never an error."""

from __future__ import annotations

import optuna
from tiny import after_epochs, search, study_of

from hpo.storage import Storage, summary
from hpo.storage.work_records import WORK, WorkRecord, work_records


def test_each_launch_that_trains_leaves_a_record(storage: Storage) -> None:
    study = study_of(training={"epochs": 1}, search={"trials": 4, "population": 2})
    search(study, storage, stop_at=after_epochs(1))
    for launches in (1, 2, 2):  # the last launch has nothing to train
        found = work_records(summary(storage, "tiny").user_attrs)
        assert len(found) == launches
        search(study, storage)
    assert all(each["seconds"] > 0 and each["machine"]["cores"] >= 1 for each in found)
    assert {each["machine"]["device"] for each in found} == {"cpu"}
    assert {"hpo", "python", "torch"} <= found[0]["versions"].keys()


def test_a_record_is_written_after_the_first_population_and_once_a_minute(storage: Storage) -> None:
    study = optuna.create_study(storage=storage, study_name="plain")
    record = WorkRecord(storage, study._study_id)
    for _ in range(3):
        record.add(1.0)
    (stored,) = work_records(study.user_attrs)
    assert stored["seconds"] == 1.0
    record.write()
    (stored,) = work_records(study.user_attrs)
    assert stored["seconds"] == 3.0
    assert all(key.startswith(WORK) for key in study.user_attrs)


def test_a_deleted_study_gets_no_record_and_no_error(storage: Storage) -> None:
    study = optuna.create_study(storage=storage, study_name="plain")
    record = WorkRecord(storage, study._study_id)
    optuna.delete_study(study_name="plain", storage=storage)
    record.add(1.0)
