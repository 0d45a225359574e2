"""What `hpo check` says of a study."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import DECAY, study_of

from hpo.errors import HpoError, StudyFileError, UsageError
from hpo.search.check import describe


def test_the_report_holds_the_resolved_file_the_space_and_the_sizes() -> None:
    study = study_of(
        network={"hidden": {"choices": [[8], [4, 4]]}, "dropout": {"low": 0.0, "high": 0.5, "step": 0.1}},
        optimizer={"weight_decay": DECAY},
        training={"batch_size": {"low": 20, "high": 60, "step": 20}, "epochs": {"low": 2, "high": 4, "log": True}},
    )
    report = describe(study, "cpu")
    assert report.startswith("studies/tiny.toml: sound\n")
    for line in (
        '"sampler": "random"',
        "search space (trials without end):",
        "  hidden: one of [8], [4, 4]",
        "  dropout: 0 to 0.5, step 0.1",
        "  lr: 0.001 to 1, log scale",
        "  weight_decay: 1e-06 to 0.01, log scale",
        "  batch_size: 20 to 60, step 20, whole numbers",
        "  epochs: 2 to 4, log scale, whole numbers",
        "data: digits, 120 training and 30 validation images of 1 x 8 x 8, 10 classes",
        f"network: {64 * 8 + 8 + 8 * 10 + 10} parameters (at the first value of each range)",
        "population: 4 members, ",
        "trials: 6 of at most 4 epochs",
    ):
        assert line in report


def test_finite_spaces_are_counted() -> None:
    assert "search space (1 different trial):" in describe(study_of(optimizer={"lr": 0.1}), "cpu")
    twelve = study_of(optimizer={"lr": {"choices": [0.1, 0.2, 0.4]}}, training={"batch_size": {"low": 7, "high": 10}})
    assert "search space (12 different trials):" in describe(twelve, "cpu")
    many = study_of(optimizer={"lr": 0.1}, network={"hidden": [{"low": 1, "high": 50}] * 200})
    assert "search space (more than 1,000,000,000,000,000 different trials):" in describe(many, "cpu")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"search": {"sampler": "cmaes"}}, StudyFileError),
        ({"data": {"train_size": 2000}}, StudyFileError),
        ({"optimizer": {"lr": {"low": 1e-3, "high": 1.0, "step": 1e-12}}}, StudyFileError),
        ({"network": {"kind": "cnn"}}, HpoError),
        ({"network": {"hidden": [10**6, 10**6]}}, StudyFileError),
        ({"network": {"hidden": [2**62]}}, StudyFileError),
        ({"training": {"shift": 8}}, StudyFileError),
        ({"training": {"shift": {"low": 0, "high": 8}}}, StudyFileError),
        ({"training": {"shift": {"choices": [0, 2, 9]}}}, StudyFileError),
    ],
)
def test_what_a_launch_refuses_is_refused_here(changes: dict[str, Any], error: type[HpoError]) -> None:
    with pytest.raises(error):
        describe(study_of(**changes), "cpu")
    with pytest.raises(UsageError):
        describe(study_of(), "cuda:99")
