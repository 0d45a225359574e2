"""Stored studies as a launch leaves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial
from stored_studies import tree

from hpo.storage import Storage, open_storage
from hpo.studyfile import parse_study


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    opened = open_storage(f"sqlite:///{tmp_path}/hpo.db")
    yield opened
    opened.close()


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
        made.add_trials(trials)
        return made

    return store
