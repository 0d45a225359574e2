"""A study of a table, from the search to predictions: its preprocessing is that of the rows that the network saw."""

from __future__ import annotations

import csv
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import root_mean_squared_error
from tiny import search, tree

from hpo.data import load_split, load_test, load_whole
from hpo.data.sources import source_of
from hpo.errors import HpoError, UsageError
from hpo.results.export.best import export
from hpo.results.final_test.evaluate import EvaluationOptions, evaluate_test_set
from hpo.results.final_test.model_card import CARD_FILE
from hpo.results.final_test.predict import TargetPredictions, predictions
from hpo.results.reproduce.replay import replay
from hpo.results.reproduce.verify import verify
from hpo.search.study_records import stored_study
from hpo.storage import Storage, load_study, open_storage
from hpo.studyfile import Study, parse_study


def write_table(path: Path, count: int = 120) -> None:
    random = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("age,city,income,answer\n")
        for number in range(count):
            age, city = random.integers(10, 90), random.choice(["Bonn", "Köln", "Ulm"])
            answer = "yes" if age + 20 * (city == "Ulm") > 55 else "no"
            file.write(f"{'' if number % 17 == 5 else age},{city},{random.normal(scale=1e4):.2f},{answer}\n")


def table_study(folder: Path, **preprocess: Any) -> Study:
    data = {"target": "answer", "categorical": ["city"], "test": 0.25}
    made = tree(preprocess={"standardize": True, "impute": "median", **preprocess}, training={"keep": "best"})
    return parse_study({**made, "data": {"dataset": "table:people.csv", **data}}, "people.toml", folder)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a searched study of a table, its test by training again, and one by its checkpoint."""
    folder = tmp_path_factory.mktemp("table")
    write_table(folder / "people.csv")
    storage = open_storage(f"sqlite:///{folder}/hpo.db")
    search(table_study(folder), storage)
    for name in ("trained", "checkpoint"):
        options = EvaluationOptions(
            device="cpu", folder=folder / name, again=name == "checkpoint", from_checkpoint=name == "checkpoint"
        )
        evaluate_test_set(storage, "tiny", options, threading.Event(), lambda text: None)
    storage.close()
    return folder


def sealed_rows(study: Study) -> list[int]:
    """Return the numbers in the file of the sealed rows."""
    raw: Any = source_of(study.data, study.folder, study.task.kind).read_test(("no", "yes"), 1)
    return list(raw.inputs.lines)


@pytest.mark.parametrize("name", ["trained", "checkpoint"])
def test_predictions_are_those_of_the_test(searched: Path, name: str, tmp_path: Path) -> None:
    """The file has the columns in another order, and no target."""
    lines = (searched / "people.csv").read_text().splitlines()
    cells = [lines[row - 1].split(",") for row in sealed_rows(table_study(searched))]
    new = tmp_path / "new.csv"
    new.write_text(
        "\n".join(["extra,income,age,city", *(f"x,{income},{age},{city}" for age, city, income, _ in cells)])
    )
    rows = list(csv.DictReader(io.StringIO(str(predictions(searched / name, new, "cpu")))))
    assert [int(row["row"]) for row in rows] == list(range(2, 32))
    right = [row["class"] == answer for row, (*_, answer) in zip(rows, cells, strict=True)]
    result = json.loads((searched / name / "result.json").read_text())
    assert np.mean(right) == result["test"]["accuracy"]


def test_numbers_predicted_for_a_table_have_the_numbers_of_its_rows() -> None:
    values = np.array([[1.5], [2.0]])
    found = TargetPredictions("row", np.array([2, 4]), values, ("value",))
    assert str(found) == "row,value\n2,1.5\n4,2\n"
    assert found.tree() == {"predictions": [{"row": 2, "value": 1.5}, {"row": 4, "value": 2.0}]}
    assert str(TargetPredictions("example", None, values, ("value",))) == "example,value\n0,1.5\n1,2\n"


def test_the_model_card_has_the_preprocessing_of_the_rows_that_the_network_saw(searched: Path) -> None:
    study = table_study(searched)
    for name, split, count in (("trained", load_whole(study), 90), ("checkpoint", load_split(study), 72)):
        card = json.loads((searched / name / CARD_FILE).read_text())
        assert (card["schema"], card["weights"]["images"]) == ("hpo.card/2", count)
        assert card["preprocess"] == split.preprocessing.model_dump()
        assert card["data"]["test_sha256"] == load_test(split).content_sha256


def test_tables_without_a_feature_column_and_other_files_are_refused(searched: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.csv"
    for text, problem in [
        ("age,city\n3,Ulm\n", r"new\.csv: has no column 'income'; it has age, city"),
        ("age,city,income\n3,Rom,1\n", r"new\.csv: row 2, column 'city': the category 'Rom' is not among the training"),
        ("age,city,income\nold,Ulm,1\n", r"new\.csv: row 2, column 'age': 'old' is not a number"),
        ("age,city,income\n", r"new\.csv: has no rows"),
    ]:
        new.write_text(text)
        with pytest.raises(HpoError, match=problem):
            predictions(searched / "trained", new, "cpu")
    np.save(tmp_path / "new.npy", np.zeros((2, 5)))
    with pytest.raises(HpoError, match=r"new\.npy: this network takes the rows of a table, a \.csv or \.parquet file"):
        predictions(searched / "trained", tmp_path / "new.npy", "cpu")


def test_a_regression_on_embedded_categories_from_its_folds_to_its_predictions(
    storage: Storage, tmp_path: Path
) -> None:
    """One city is in a single row: a fold does not train on it."""
    write_table(tmp_path / "people.csv")
    lines = (tmp_path / "people.csv").read_text().splitlines()
    for row, text in ((4, "30,Rom,1.0,yes"), (9, "50,,-1.0,yes")):
        lines[row] = text
    (tmp_path / "people.csv").write_text("\n".join(lines) + "\n")
    made = tree(
        task={"kind": "regression"},
        preprocess={"standardize": True, "impute": "median", "categorical": "embedding", "unknown": "ignore"},
        search={"trials": 2, "population": 2, "pruner": "none"},
    )
    data = {"target": "income", "categorical": ["city", "answer"], "folds": 2, "test": 0.25}
    study = parse_study({**made, "data": {"dataset": "table:people.csv", **data}}, "people.toml", tmp_path)
    split, stop = load_split(study), threading.Event()
    cities = {len(fold.preprocessing.categories[0]) for fold in split.folds}
    assert cities == {3, 4}
    assert {tuple(fold.preprocessing.indices) for fold in split.folds} == {(5, 3)}
    search(study, storage)
    certificate = verify(storage, "tiny", 2, "cpu", stop, pytest.fail)
    assert max(certificate["largest"].values()) < 1e-9
    (tmp_path / "best.json").write_text(json.dumps(export(storage, "tiny")))
    assert replay(tmp_path / "best.json", "cpu", stop, pytest.fail).runs[0].difference < 1e-9
    options = EvaluationOptions(device="cpu", folder=tmp_path / "out")
    tested = evaluate_test_set(storage, "tiny", options, stop, lambda text: None).result["test"]
    new = tmp_path / "new.csv"
    new.write_text("\n".join([lines[0], *(lines[row - 1] for row in sealed_rows(study))]) + "\n")
    found = predictions(tmp_path / "out", new, "cpu")
    assert isinstance(found, TargetPredictions)
    assert [row["row"] for row in found.tree()["predictions"]] == list(range(2, 32))
    truth = [float(lines[row - 1].split(",")[2]) for row in sealed_rows(study)]
    assert tested["metrics"]["rmse"] == pytest.approx(root_mean_squared_error(truth, found.values[:, 0]), rel=1e-6)
    new.write_text("city,age,answer\nPisa,30,yes\n,30,yes\nUlm,30,yes\n")
    values = getattr(predictions(tmp_path / "out", new, "cpu"), "values")[:, 0]  # noqa: B009
    assert values[0] == values[1] != values[2]


def test_another_preprocessing_is_another_study(searched: Path) -> None:
    storage: Storage = open_storage(f"sqlite:///{searched}/hpo.db")
    try:
        stored = load_study(storage, "tiny")
        assert stored_study(stored) == table_study(searched)
        with pytest.raises(UsageError, match=r"differs from the stored study 'tiny' in preprocess\.impute"):
            search(table_study(searched, impute="mean"), storage)
    finally:
        storage.close()
