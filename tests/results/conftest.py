"""Stored studies as a launch leaves them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial
from stored_studies import tree
from tiny import search

from hpo.storage import Storage, open_storage
from hpo.studyfile import parse_study


@pytest.fixture(scope="module")
def searched_db(request: pytest.FixtureRequest, blank_db: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the module's STUDY, searched: once for all tests, each of which has a copy."""
    file = Path(shutil.copy(blank_db, tmp_path_factory.mktemp("searched")))
    with closing(open_storage(f"sqlite:///{file}")) as storage:
        search(request.module.STUDY, storage)
    return file


@pytest.fixture
def storage(request: pytest.FixtureRequest, blank_db: Path, tmp_path: Path) -> Iterator[Storage]:
    """A storage; for a test that asks for what is `searched`, with the module's STUDY in it."""
    file = request.getfixturevalue("searched_db") if "searched" in request.fixturenames else blank_db
    with closing(open_storage(f"sqlite:///{shutil.copy(file, tmp_path / 'hpo.db')}")) as opened:
        yield opened


@pytest.fixture
def stored(storage: Storage) -> Callable[..., optuna.Study]:
    """Store a study with these trials, and what a launch keeps with it."""

    def store(
        trials: Sequence[FrozenTrial], written: dict[str, Any] | None = None, name: str = "digits"
    ) -> optuna.Study:
        study = parse_study({**(written or tree()), "name": name}, "studies/digits.toml")
        direction = "maximize" if study.search.metric == "val_accuracy" else "minimize"
        made = optuna.create_study(storage=storage, study_name=name, direction=direction)
        made.set_user_attr("hpo:study", json.dumps(study.resolved()))
        made.set_user_attr("hpo:run", {"precision": "float32", "device": "cpu"})
        made.set_user_attr(
            "hpo:data",
            {
                "name": study.data.dataset,
                "sha256": "0" * 64,
                "split_sha256": "f" * 64,
                "train": 1150,
                "validation": 287,
                "test": 360,
            },
        )
        storage.create_trials(made._study_id, trials)
        return made

    return store
