"""Arrays, DataFrames, classes and functions of a program as data and code of a study."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import optuna
import pandas as pd
import polars as pl
import pytest
import torch
from torch import Tensor, nn

import hpo
from hpo import memory_code
from hpo.data.sources import source_of
from hpo.data.user import memory_arrays, memory_table

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype(np.float32)
Y = RNG.permutation(np.arange(60) % 3)
HOUSES = {"rooms": [float(i % 5) for i in range(60)], "town": [("a", "b")[i % 2] for i in range(60)]}
HOUSES["price"] = [2.0 * rooms + 1 for rooms in HOUSES["rooms"]]


class Net(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(shape[0], width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def doubled(output: Tensor, targets: Tensor) -> Tensor:
    return 2 * nn.functional.cross_entropy(output, targets, reduction="none")


def hits(probabilities: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> float:
    return float((probabilities.argmax(axis=1) == targets).mean())


def objective(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", -1, 1) ** 2


def study(name: str = "mine", **changes: Any) -> hpo.Study:
    given: dict[str, Any] = {
        "name": name,
        "data": hpo.Data(x=X, y=Y, x_test=X[:9], y_test=Y[:9]),
        "network": hpo.Network(kind="mlp", hidden=[4]),
        "optimizer": hpo.Optimizer(lr=hpo.Range(1e-3, 1e-1, log=True)),
        "training": hpo.Training(epochs=1),
        "search": hpo.Search(trials=2),
    }
    return hpo.Study(**{**given, **changes})


def launch(of: hpo.Study, **options: Any) -> hpo.StoredStudy:
    return hpo.launch(of, device="cpu", progress="quiet", **options)


def test_arrays_and_functions_are_searched_tested_and_predicted_with(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (Net, doubled, hits):
        monkeypatch.setattr(each, "__module__", "__main__")
    made = study(
        network=hpo.Network(module=Net, args={"width": 8}),
        task=hpo.Task(loss=doubled),
        search=hpo.Search(trials=2, metric=hits, direction="maximize"),
    )
    events: list[hpo.events.Event] = []
    found = hpo.launch(made, device="cpu", progress=events.append)
    keys = "data.dataset, network.module, task.loss and search.metric"
    note = f"{keys}: in the memory of this process, so no other process can train this study"
    assert hpo.events.Note(note) in events
    assert sorted(found.export()["code"]["files"]) == ["memory:Net", "memory:doubled", "memory:hits"]
    assert "val_hits" in found.best.curve
    tested = found.test(device="cpu")
    assert "on 9 examples" in str(tested)
    np.save("rows.npy", X[:3])
    predicted = hpo.predict(tested.found.folder, "rows.npy", device="cpu")
    assert isinstance(predicted, hpo.Predictions)
    for call in (lambda: hpo.submit(made), lambda: launch(made, workers=2)):
        with pytest.raises(hpo.UsageError, match=f"{keys} of study 'mine' are in the memory of this process"):
            call()
    monkeypatch.setattr(memory_code, "_known", {})
    with pytest.raises(hpo.HpoError, match="memory:Net was defined in another process and is in no file: define Net"):
        found.verify(1, device="cpu")
    assert found.top(1)


def test_changed_code_is_refused_and_each_study_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Net, "__module__", "__main__")
    first = study(network=hpo.Network(module=Net, args={"width": 4}))
    other = type("Net", (Net,), {"forward": lambda self, x: self.layers(x + 1), "__module__": "__main__"})
    second = study("other", network=hpo.Network(module=other, args={"width": 4}))
    launch(first)
    assert memory_code.find("memory:Net").value is Net
    launch(second)
    with pytest.raises(hpo.CodeError, match=r"^study 'other': memory:Net .* has changed since the study was created"):
        launch(hpo.read(first, name="other"))
    with pytest.raises(hpo.StudyFileError, match=r"^hpo.Study: has two different objects named Net: rename one"):
        study(network=hpo.Network(module=hpo.Choices([Net, other])))


def test_an_objective_may_be_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "__module__", "__main__")
    made = hpo.Study(name="own", objective=objective, search=hpo.Search(trials=2))
    assert made.resolved()["objective"] == "memory:objective"
    assert hpo.launch(made, progress="quiet").best.params.keys() == {"x"}
    with pytest.raises(hpo.UsageError, match="--workers: objective of study 'own' is in the memory of this process"):
        hpo.launch(made, progress="quiet", workers=2)


def test_a_function_of_a_file_is_named_by_its_file() -> None:
    made = hpo.Study(name="own", objective=objective, search=hpo.Search(trials=2))
    assert made.resolved()["objective"].endswith("test_memory_data.py:objective")
    assert made.checked.keys_in_memory == []


@pytest.mark.parametrize("library", [pd, pl])
def test_a_dataframe_is_a_table(library: Any) -> None:
    table, other = library.DataFrame(HOUSES), library.DataFrame({key: values[:7] for key, values in HOUSES.items()})
    data = hpo.Data(table=table, target="price", categorical=["town"], validation=other, test=0.2)
    made = study(data=data, task=hpo.Task(kind="regression"))
    split = source_of(made.checked.data, made.checked.folder, "regression").read_training()  # type: ignore[union-attr]
    assert split.read_validation is not None
    assert (len(split), len(split.read_validation())) == (48, 7)
    assert hpo.Data(table=pl.DataFrame(HOUSES), target="price").tree() == hpo.Data(table=table, target="price").tree()
    assert made.check("cpu").startswith("hpo.Study: valid")


@pytest.mark.parametrize("library", [pd, pl])
def test_a_dataframe_that_is_changed_later_is_the_same_table(library: Any) -> None:
    table = library.DataFrame({"a": [1.0, 2.0]})
    path = hpo.Data(table=table, target="a").tree()["dataset"].removeprefix("table:")
    if library is pl:
        table[0, "a"] = 9.0
    else:
        table.loc[0, "a"] = 9.0
    assert memory_table.table_in_memory(path)["a"].to_list() == [1.0, 2.0]


def test_missing_values_of_a_dataframe_are_missing() -> None:
    table = pd.DataFrame({"a": [1.0, None, 3.0], "b": pd.array([1, None, 3], "Int64"), "c": ["x", None, "y"]})
    path = hpo.Data(table=table, target="c").tree()["dataset"].removeprefix("table:")
    found = memory_table.table_in_memory(path)
    assert found.dtypes == [pl.Float64, pl.Int64, pl.String]
    assert found.null_count().row(0) == (1, 1, 1)


def test_the_name_of_arrays_is_their_content() -> None:
    name = hpo.Data(x=X, y=Y).tree()["dataset"]
    assert name == hpo.Data(x=torch.from_numpy(X).requires_grad_(), y=Y.copy()).tree()["dataset"]
    assert hpo.Data(x=X, y=Y) == hpo.Data(x=X.copy(), y=Y)
    others = [hpo.Data(x=X + 1, y=Y), hpo.Data(x=X, y=1 - Y % 2), hpo.Data(x=X.astype(float), y=Y)]
    others += [hpo.Data(x=X, y=Y, groups=Y), hpo.Data(x=X, y=Y, classes=["a", "b", "c"])]
    assert len({name, *(each.tree()["dataset"] for each in others)}) == 6
    assert others[3].tree()["groups"] == "groups"


def test_changed_data_are_refused() -> None:
    launch(study())
    changed = study(data=hpo.Data(x=X + 1, y=Y, x_test=X[:9], y_test=Y[:9]))
    with pytest.raises(hpo.UsageError, match=r"differs from the stored study 'mine' in data\.dataset: 'arrays:"):
        launch(changed)
    with pytest.raises(hpo.HpoError, match=r"the data of arrays:\w+ are not those that the study was created with"):
        launch(changed, extend=True)


def test_an_array_that_was_changed_in_place_is_an_error() -> None:
    x = X.copy()
    made = study(data=hpo.Data(x=x, y=Y))
    x[0] = 1
    with pytest.raises(hpo.DataError, match=r"^hpo\.Data: an array was changed after hpo\.Data was made: make"):
        launch(made)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"x": X}, "y: missing beside x"),
        ({"y": Y, "x_val": X, "x": X}, "y_val: missing beside x_val"),
        ({"x": X, "y": Y[:9]}, "x and y must have one row for each example (got shapes [60, 4] and [9])"),
        ({"x": X, "y": np.array(1)}, "x and y must have one row for each example (got shapes [60, 4] and [])"),
        ({"x": [[1.0], [1.0, 2.0]], "y": [0, 1]}, "x: cannot be converted to an array ("),
        ({"x": np.ma.masked_equal([[1], [2]], 1), "y": [0, 1]}, "x: has masked elements"),
        ({"table": X, "target": "a"}, "table: must be a DataFrame of pandas or polars (got ndarray)"),
        (
            {"table": pl.LazyFrame(HOUSES), "target": "price"},
            "table: must be a DataFrame of pandas or polars (got Lazy",
        ),
        ({"table": pd.DataFrame({1: [1]}), "target": "a"}, "column 1: the names of columns must be different strings"),
        ({"table": pd.DataFrame({"a": [1, "b"]}), "target": "a"}, "column 'a' has values of several types: convert it"),
    ],
)
def test_wrong_data_are_an_error_when_they_are_given(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(hpo.DataError, match=rf"^hpo\.Data: {re.escape(problem)}"):
        hpo.Data(**given)


def test_data_of_another_process_have_to_be_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    table = hpo.Data(table=pl.DataFrame(HOUSES), target="price")
    made = [study(), study("table", data=table, task=hpo.Task(kind="regression"), preprocess=None)]
    for module, name in ((memory_arrays, "_arrays"), (memory_table, "_tables")):
        monkeypatch.setattr(module, name, {})
    for each, noun in zip(made, ("arrays were", "table was"), strict=True):
        with pytest.raises(
            hpo.DataError, match=f"^the study's {noun} in the memory of another process: create the same"
        ):
            each.check("cpu")
