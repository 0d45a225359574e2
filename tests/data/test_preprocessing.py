"""Preprocessing: it equals scikit-learn's, is fitted on training rows only, and is restored from JSON to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from hpo.data import Split, load_split, load_test, load_whole
from hpo.data.preprocessing import FittedPreprocessing, Preprocessing
from hpo.data.table_rows import TableRows
from hpo.errors import DataError, SettingError, StudyFileError
from hpo.studyfile import PreprocessSettings, Study, parse_study


def some_rows(seed: int, count: int = 30, words: int = 4) -> TableRows:
    random = np.random.default_rng(seed)
    numbers = random.normal(3, [1, 100], (count, 2))
    numbers[random.random((count, 2)) < 0.2] = np.nan
    numbers[0] = 1
    texts = np.array([f"w{number}" for number in range(words)], object)[random.integers(0, words, (count, 2))]
    texts[random.random((count, 2)) < 0.2] = None
    texts[0] = "w0"
    return TableRows("some.csv", np.arange(2, count + 2), ("a", "b"), numbers, ("c", "d"), texts)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    impute=st.sampled_from(["median", "mean", "most_frequent"]),
    standardize=st.booleans(),
)
def test_it_equals_a_pipeline_of_scikit_learn(
    seed: int, impute: Literal["median", "mean", "most_frequent"], standardize: bool
) -> None:
    training, others = some_rows(seed), some_rows(seed + 1, words=6)
    chosen = PreprocessSettings(standardize=standardize, impute=impute, unknown="ignore")
    fitted = Preprocessing(chosen).fit(training)
    numbers = make_pipeline(SimpleImputer(strategy=impute), *([StandardScaler()] if standardize else []))
    words = make_pipeline(
        SimpleImputer(strategy="most_frequent", missing_values=None),
        OneHotEncoder(handle_unknown="ignore", sparse_output=False),
    )
    expected = ColumnTransformer([("numbers", numbers, [0, 1]), ("words", words, [2, 3])])
    expected.fit(joined(training))
    for rows in (training, others):
        np.testing.assert_allclose(
            fitted.apply(rows), expected.transform(joined(rows)).astype(float), rtol=1e-6, atol=1e-12
        )
    restored = FittedPreprocessing.model_validate_json(json.dumps(fitted.model_dump()))
    np.testing.assert_array_equal(restored.apply(others), fitted.apply(others))
    assert restored.fits((fitted.apply(others).shape[1],))


def joined(rows: TableRows) -> np.ndarray:
    return np.concatenate([rows.numbers.astype(object), rows.categories], 1)


def table(folder: Path, frame: pl.DataFrame, folds: int | None = None, **preprocess: Any) -> Study:
    frame.write_csv(folder / "some.csv")
    tree = {
        "name": "s",
        "data": {"dataset": "table:some.csv", "target": "y", "categorical": ["c"], "test": 0.2, "folds": folds},
        "network": {"kind": "mlp"},
        "optimizer": {"lr": 0.1},
        "training": {"epochs": 1},
        "search": {"trials": 1},
        "preprocess": {"standardize": True, "impute": "median", "unknown": "ignore", **preprocess},
    }
    return parse_study(tree, "x.toml", folder)


@pytest.mark.parametrize("impute", ["median", "mean", "most_frequent"])
def test_validation_and_test_rows_change_no_training_input(tmp_path: Path, impute: str) -> None:
    """They are made 1e6 times as large, or missing, or get categories of their own."""
    random = np.random.default_rng(0)
    count = 60
    frame = pl.DataFrame(
        {
            "number": np.arange(count),
            "a": random.normal(size=count),
            "b": random.integers(0, 5, count),
            "c": random.choice(["x", "y", "z"], count),
            "y": np.arange(count) % 2,
        }
    )
    study = table(tmp_path, frame, impute=impute)
    before = load_split(study)
    training = numbers_of(before)
    is_training = pl.col("number").is_in(training)
    assert len(training) == 38
    wild = frame.with_columns(
        pl.when(is_training).then("a").otherwise(pl.col("a") * 1e6).alias("a"),
        pl.when(is_training).then("b").otherwise(None).alias("b"),
        pl.when(is_training).then("c").otherwise(pl.lit("new")).alias("c"),
    )
    after = load_split(table(tmp_path, wild, impute=impute))
    assert after.preprocessing == before.preprocessing
    np.testing.assert_array_equal(after.train.inputs, before.train.inputs)
    np.testing.assert_array_equal(after.train.targets, before.train.targets)
    assert abs(after.validation.inputs).max() > 1e4
    assert abs(load_test(after).inputs).max() > 1e4
    whole = load_whole(study)  # of all rows outside the test set, in the order of the split
    assert len(whole.train) == 48
    assert whole.preprocessing != before.preprocessing
    np.testing.assert_array_equal(whole.train.targets[10:], before.train.targets)


def test_each_fold_has_a_preprocessing_of_its_own_and_inputs_of_the_same_width(tmp_path: Path) -> None:
    count = 60
    frame = pl.DataFrame(
        {
            "number": np.arange(count),
            "c": ["rare" if number == 30 else "xyz"[number % 3] for number in range(count)],
            "y": np.arange(count) % 2,
        }
    )
    study = table(tmp_path, frame, folds=3)
    split = load_split(study)
    assert len(split.folds) == 3
    paddings = []
    for fold in split.folds:
        assert fold.train.inputs.shape[1:] == fold.validation.inputs.shape[1:] == split.train.inputs.shape[1:]
        np.testing.assert_allclose(fold.train.inputs[:, 0].mean(), 0, atol=1e-6)
        paddings.append(fold.preprocessing.padding)
        assert (fold.validation.inputs[:, 1:].sum(1) == 0).sum() == paddings[-1]  # the row of the rare category
    whole = load_whole(study)
    assert (len(whole.train), len(whole.folds), whole.preprocessing.padding) == (48, 1, 0)
    assert sorted(paddings) in ([0, 0, 0], [0, 0, 1])  # the rare category may be sealed
    embedded = load_split(table(tmp_path, frame, folds=3, categorical="embedding"))
    counts = [len(fold.preprocessing.categories[0]) for fold in embedded.folds]
    assert sorted(counts) == [4 - max(paddings), 4, 4] if max(paddings) else [3, 3, 3]
    for fold in embedded.folds:
        assert (fold.preprocessing.indices, fold.train.inputs.shape[1]) == ([1 + max(counts)], 2)
        assert set(fold.train.inputs[:, 1].tolist()) == set(range(1, 1 + len(fold.preprocessing.categories[0])))


def numbers_of(split: Split) -> list[int]:
    """Return the column "number" of the training rows, which was standardized."""
    fitted = split.preprocessing
    assert fitted.mean is not None
    assert fitted.scale is not None
    column = split.train.inputs[:, 0].astype(float) * fitted.scale[0] + fitted.mean[0]
    return [round(number) for number in column]


def test_embedded_categories_have_the_indices_of_the_alphabet_from_1_and_0_for_all_others() -> None:
    training, others = some_rows(1, 60), some_rows(2, 60, words=6)
    chosen = PreprocessSettings(standardize=True, impute="mean", categorical="embedding", unknown="ignore")
    fitted = Preprocessing(chosen).fit(training)
    assert fitted.indices == [5, 5]
    for rows in (training, others):
        found = fitted.apply(rows)[:, 2:]
        for code, name in zip(found.ravel(), rows.categories.ravel(), strict=True):
            assert code == (0 if name in (None, "w4", "w5") else 1 + int(name[1:]))
    restored = FittedPreprocessing.model_validate_json(json.dumps(fitted.model_dump()))
    np.testing.assert_array_equal(restored.apply(others), fitted.apply(others))
    assert restored.fits((4,))
    whole = TableRows(others.file, others.lines, ("a", "b"), np.ones((60, 2)), ("c", "d"), others.categories)
    for update, problem in [({"unknown": "error"}, "the category 'w[45]' is"), ({"fill_numbers": None}, "is missing")]:
        with pytest.raises(DataError, match=rf"some\.csv: row \d+, column '[cd]': .*{problem}"):
            fitted.model_copy(update=update).apply(whole)
    rows = training.take(np.flatnonzero(~np.isnan(training.numbers).any(1)))
    with pytest.raises(DataError, match=r"column '[cd]': the value is missing: set preprocess\.impute"):
        Preprocessing(PreprocessSettings(categorical="embedding")).fit(rows)
    for change in ({"indices": [5, 4]}, {"indices": [5]}, {"padding": 1}):
        with pytest.raises(ValueError, match=r"more categories than indices|shorter|longer|padding after indices"):
            FittedPreprocessing.model_validate(fitted.model_dump() | change)


@pytest.mark.parametrize("categorical", ["onehot", "embedding"])
def test_a_column_with_too_many_categories_is_refused(
    categorical: Literal["onehot", "embedding"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.data.preprocessing.MAX_CATEGORIES", 3)
    monkeypatch.setattr("hpo.data.preprocessing.MAX_INDICES", 7)
    with pytest.raises(SettingError, match=r"^data\.categorical: .* 4 categories|columns have 8 categories, at most 7"):
        Preprocessing(PreprocessSettings(impute="mean", categorical=categorical)).fit(some_rows(0))


def test_rows_of_arrays_are_standardized_by_the_training_rows(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.normal(5, [1, 1000, 1e-3], (40, 3)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=x, y=np.arange(40) % 2, x_test=x[:4], y_test=[0, 1, 0, 1])
    plain, scaled = (load_split(array_study(tmp_path, "npz:rows.npz", standardize=s)) for s in (False, True))
    expected = StandardScaler().fit(plain.train.inputs.astype(np.float64))
    for one, other in ((scaled.train, plain.train), (scaled.validation, plain.validation)):
        np.testing.assert_array_equal(
            one.inputs, expected.transform(other.inputs.astype(np.float64)).astype(np.float32)
        )
    np.testing.assert_array_equal(load_test(scaled).inputs, expected.transform(x[:4].astype(float)).astype("f"))
    assert scaled.content_sha256 == plain.content_sha256
    assert plain.preprocessing.changes is False


def test_channels_of_images_are_standardized_by_the_training_images(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 3, 6, 5), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=x, y=np.arange(40) % 2)
    plain, scaled = (load_split(array_study(tmp_path, "npz:images.npz", image=i)) for i in ("none", "per-channel"))
    mean, std = (each(plain.train.inputs.astype(float), axis=(0, 2, 3))[:, None, None] for each in (np.mean, np.std))
    np.testing.assert_allclose(scaled.validation.inputs, (plain.validation.inputs - mean) / std, rtol=1e-5, atol=1e-6)


def test_settings_for_other_inputs_are_errors() -> None:
    rows, images = np.zeros((4, 3), np.float32), np.zeros((4, 1, 2, 3), np.float32)
    for inputs, chosen, problem in [
        (rows, PreprocessSettings(image="per-channel"), "preprocess.image: the examples are rows, not images"),
        (images, PreprocessSettings(standardize=True), "preprocess.standardize: the examples are images"),
        (some_rows(0), PreprocessSettings(image="per-channel"), "preprocess.image: the examples are rows"),
    ]:
        with pytest.raises(SettingError, match=problem):
            Preprocessing(chosen).fit(inputs)


def array_study(folder: Path, dataset: str, **preprocess: Any) -> Study:
    tree = {
        "name": "s",
        "data": {"dataset": dataset},
        "network": {"kind": "mlp"},
        "optimizer": {"lr": 0.1},
        "training": {"epochs": 1},
        "search": {"trials": 1},
        "preprocess": preprocess,
    }
    return parse_study(tree, "x.toml", folder)


def test_a_resolved_file_is_read_back_also_without_a_table(tmp_path: Path) -> None:
    study = array_study(tmp_path, "wine", standardize=True)
    assert study.resolved()["preprocess"] == {
        "standardize": True,
        "impute": "none",
        "categorical": "onehot",
        "unknown": "error",
        "image": "none",
    }
    assert parse_study(study.resolved(), "x.toml") == study
    with pytest.raises(StudyFileError, match=r"preprocess\.impute: is used only with a table"):
        array_study(tmp_path, "wine", impute="mean")
    with pytest.raises(StudyFileError, match=r"preprocess\.categorical: is used only with a table"):
        array_study(tmp_path, "wine", categorical="embedding")


def test_a_damaged_state_is_refused() -> None:
    fitted = Preprocessing(PreprocessSettings(standardize=True, impute="mean", unknown="ignore")).fit(some_rows(0))
    for change in [
        {"mean": [1.0]},
        {"scale": [0.0, 1.0]},
        {"scale": None},
        {"categories": [["a"]]},
        {"fill_numbers": ["a", "b"]},
        {"kind": "rows"},
    ]:
        with pytest.raises(ValueError, match="FittedPreprocessing"):
            FittedPreprocessing.model_validate(fitted.model_dump() | change)
