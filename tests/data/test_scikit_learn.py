"""The tables inside scikit-learn: all rows, of which a fifth is sealed."""

from __future__ import annotations

import numpy as np
import pytest
from data_files import study_of
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

from hpo.data import check_test, load_split, load_test
from hpo.errors import DataError
from hpo.studyfile import Study, parse_study


@pytest.mark.parametrize(
    ("name", "load", "test_size"), [("breast_cancer", load_breast_cancer, 114), ("wine", load_wine, 36)]
)
def test_a_table_has_the_rows_that_scikit_learn_returns(name: str, load: object, test_size: int) -> None:
    assert callable(load)
    expected = load()
    study = study_of(name)
    check_test(study)
    split = load_split(study)
    test = load_test(split)
    assert (split.names, split.test_size, len(test)) == (tuple(expected.target_names), test_size, test_size)
    assert (split.white, split.folder) == (None, None)
    parts = (split.train, split.validation, test)
    inputs = np.concatenate([part.inputs for part in parts])
    targets = np.concatenate([part.targets for part in parts])
    order, known = np.lexsort(inputs.T), np.lexsort(expected.data.astype(np.float32).T)
    np.testing.assert_array_equal(inputs[order], expected.data.astype(np.float32)[known])
    np.testing.assert_array_equal(targets[order], expected.target[known])
    other = load_test(load_split(study_of(name, split_seed=1)))
    assert other.content_sha256 == test.content_sha256


def regression(dataset: str) -> Study:
    tree = study_of(dataset).resolved()
    return parse_study({**tree, "task": {"kind": "regression"}, "search": {"trials": 1}}, "studies/x.toml")


def test_diabetes_has_numbers_as_targets() -> None:
    expected = load_diabetes(scaled=False)
    study = regression("diabetes")
    split = load_split(study)
    parts = (split.train, split.validation, load_test(split))
    assert (split.names, split.columns, [len(part) for part in parts]) == ((), 1, [283, 71, 88])
    inputs, targets = (np.concatenate([getattr(part, key) for part in parts]) for key in ("inputs", "targets"))
    order, known = np.lexsort(inputs.T), np.lexsort(expected.data.astype(np.float32).T)
    np.testing.assert_array_equal(inputs[order], expected.data.astype(np.float32)[known])
    np.testing.assert_array_equal(targets[order, 0], expected.target[known])
    with pytest.raises(DataError, match=r'diabetes: has numbers as targets; set task\.kind = "regression"'):
        load_split(study_of("diabetes"))
