"""Records of checkpoint files: listed by the attributes that name them, and deleted. On both databases."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from hpo.errors import StorageError
from hpo.storage import Storage, identity, load_study, summary
from hpo.storage.artifacts import (
    CHECKPOINT_NAMES,
    artifacts_of_other_studies,
    checkpoint_attrs,
    checkpoint_files,
    checkpoint_id,
    delete_checkpoint_files,
    delete_checkpoint_records,
)


def study_with(storage: Storage, name: str, numbers: set[int]) -> int:
    """Create a study of four trials: these have checkpoints, one a user's artifact, one a removed artifact."""
    study_id = storage.create_study(name, [StudyDirection.MAXIMIZE], {})
    ids = {number: checkpoint_id(name, number) for number in range(4)}
    own = checkpoint_attrs("5f1e7f0a", "notes.txt")
    attrs = {number: checkpoint_attrs(ids[number], CHECKPOINT_NAMES["best"]) for number in numbers}
    attrs[0] = {**attrs.get(0, {}), **own, "artifacts_": 1}
    attrs[1] = {**attrs.get(1, {}), "artifacts:gone": json.dumps(None)}  # as the dashboard removes one
    storage.create_trials(
        study_id,
        [create_trial(state=TrialState.COMPLETE, value=0.5, system_attrs=attrs.get(number, {})) for number in range(4)],
    )
    return study_id


def test_checkpoint_files_are_those_of_the_study(storage: Storage) -> None:
    study_with(storage, "other", {0, 1, 2, 3})
    study_id = study_with(storage, "kept", {0, 2})
    files = checkpoint_files(storage, study_id)
    assert [(file.number, file.state, file.filename) for file in files] == [
        (0, TrialState.COMPLETE, "weights-best.safetensors"),
        (2, TrialState.COMPLETE, "weights-best.safetensors"),
    ]
    trials = load_study(storage, "kept").get_trials()
    for file in files:
        named = {meta.artifact_id for meta in get_all_artifact_meta(trials[file.number], storage=storage)}
        assert file.artifact_id == checkpoint_id("kept", file.number)
        assert file.artifact_id in named


def test_deleted_records_are_not_listed(storage: Storage, other: Storage) -> None:
    study_id = study_with(storage, "kept", {0, 2, 3})
    delete_checkpoint_records(storage, checkpoint_files(storage, study_id)[:2])
    assert [file.number for file in checkpoint_files(other, study_id)] == [3]
    first = optuna.load_study(study_name="kept", storage=other).get_trials()[0]
    assert [meta.filename for meta in get_all_artifact_meta(first, storage=other)] == ["notes.txt"]
    delete_checkpoint_records(storage, [])
    assert [file.number for file in checkpoint_files(storage, study_id)] == [3]


def test_a_checkpoint_id_depends_on_study_and_trial() -> None:
    own, numbers = [identity({"hpo:identity": each}, "x") for each in "ab"], (0, 1)
    ids = {checkpoint_id(each, number) for each in [*own, identity({}, "x"), identity({}, "y")] for number in numbers}
    assert len(ids) == 8
    assert checkpoint_id(identity({"hpo:identity": "a"}, "renamed"), 1) in ids


def test_artifacts_of_other_studies(storage: Storage) -> None:
    one, other = study_with(storage, "one", {0, 1}), study_with(storage, "other", {3})
    storage.set_study_system_attr(one, "artifacts:of-study", json.dumps({"artifact_id": "of-study"}))
    storage.set_study_system_attr(one, f"dashboard:artifacts:{one}:old", json.dumps({"artifact_id": "old"}))
    assert artifacts_of_other_studies(storage, one) == {checkpoint_id("other", 3), "5f1e7f0a"}
    assert artifacts_of_other_studies(storage, other) == {
        checkpoint_id("one", 0), checkpoint_id("one", 1), "5f1e7f0a", "of-study", "old"
    }  # fmt: skip


def test_a_study_is_not_deleted_if_its_files_cannot_be_deleted(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HPO_ARTIFACTS", str(tmp_path / "file" / "folder"))
    study_with(storage, "stays", {2})
    with pytest.raises(StorageError, match=r"file/folder: the weights of study 'stays' cannot be deleted \(Not a dir"):
        delete_checkpoint_files(storage, summary(storage, "stays"))
