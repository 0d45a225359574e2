"""Starter study files: what is chosen for which data, and errors that leave nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

import hpo
from hpo.data.sources import source_of
from hpo.data.user.table import TableSource
from hpo.errors import HpoError
from hpo.starter.schema_file import COPY
from hpo.studyfile import DataSettings
from hpo.untrusted_files import parse_toml

ROWS = 80
NET = """\
from torch import nn

class Net(nn.Module):
    def __init__(self, shape, classes, width: int, depth=2, dropout: float = 0.1, scale=0.5, norm=True, init=None):
        super().__init__()
        assert init is None and depth == 2 and isinstance(width, int)
        self.layers = nn.Sequential(nn.Linear(shape[0], width), nn.Dropout(dropout), nn.Linear(width, classes))

    def forward(self, x):
        return self.layers(x)

def required(classes, steps: "list[int]"):
    raise AssertionError

def rigid(classes):
    raise ValueError("no rows, please")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with a table of features and of targets of each kind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    random = np.random.default_rng(0)
    rows = [[f"{value:.3f}" for value in row] for row in random.normal(size=(ROWS, 3))]
    header = ["id", "size", "site", "name", "same", "price", "word", "level", "rare", "a", "b"]
    table = []
    for number, (size, price, _) in enumerate(rows):
        features = [number, "" if number % 40 == 3 else size, ["North", "South"][number % 2], f"n{number}", 1]
        table.append([*features, price, ["yes", "no"][number % 2], number % 3, number % 8 == 0])
        table[-1][-1] = "few" if table[-1][-1] else "many"
        table[-1] += [number % 2, number // 2 % 2]
    write_table(tmp_path / "t.csv", header, table)
    return tmp_path


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    path.write_text("\n".join(",".join(map(str, row)) for row in [header, *rows]) + "\n")


def started(**arguments: Any) -> tuple[dict[str, Any], str]:
    """Write a starter file and return its tree and text; the file is valid for hpo and for its schema."""
    path = hpo.init(**arguments)
    hpo.read(path)
    text = path.read_text()
    tree = parse_toml(text)
    assert text.startswith(f"#:schema ./{COPY}\n")
    schema = json.loads((path.parent / COPY).read_text())
    jsonschema.validate(tree, schema, jsonschema.Draft7Validator)
    return tree, text


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_a_regression_of_a_table() -> None:
    tree, text = started(data="table:t.csv", target="price")
    assert tree["name"] == "t"
    assert tree["data"] == {
        "dataset": "table:t.csv",
        "target": "price",
        "features": ["size", "site", "word", "level", "rare", "a", "b"],
        "categorical": ["site", "word", "rare"],
        "test": 0.2,
        "folds": 5,
    }
    assert "id (an identifier), name (text with 64 different values), same (the same in all rows)" in text
    assert tree["task"] == {"kind": "regression"}
    assert tree["preprocess"] == {"standardize": True, "impute": "median", "unknown": "ignore"}
    assert "# missing values of size" in text
    assert tree["search"]["metric"] == "val_rmse"
    assert tree["network"]["dropout"] == {"low": 0.0, "high": 0.5}
    assert tree["optimizer"]["lr"]["log"] is tree["optimizer"]["weight_decay"]["log"] is True


@pytest.mark.parametrize(
    ("target", "kind", "metric", "comment"),
    [
        ("word", "classification", "val_accuracy", "the target word has 2 different words"),
        ("level", "classification", "val_accuracy", "the target level has 3 different whole numbers"),
        ("rare", "classification", "val_balanced_accuracy", "examples: accuracy would hide the small ones"),
        (["a", "b"], "multilabel", "val_f1", "the targets a, b are 0 or 1"),
        (["a", "price"], "regression", "val_rmse", "the targets a, price are numbers"),
    ],
)
def test_the_kind_of_the_task_is_guessed(target: str | list[str], kind: str, metric: str, comment: str) -> None:
    tree, text = started(data="table:t.csv", target=target)
    assert (tree["task"]["kind"], tree["search"]["metric"]) == (kind, metric)
    assert comment in text


def test_a_given_kind_is_not_guessed() -> None:
    tree, text = started(data="table:t.csv", target="level", task="regression")
    assert tree["task"] == {"kind": "regression"}
    assert "different whole numbers" not in text


def test_no_value_of_a_sealed_row_is_looked_at(folder: Path) -> None:
    before = hpo.init(data="table:t.csv", target="price", output="before.toml", name="t").read_text()
    settings = DataSettings(dataset="table:t.csv", target="price", test=0.2)
    source = source_of(settings, folder, "regression")
    assert isinstance(source, TableSource)
    sealed = set(source._split(ROWS, None)[1].tolist())
    header, *rows = (folder / "t.csv").read_text().splitlines()
    changed = ["zzz," * 10 + "zzz" if number in sealed else row for number, row in enumerate(rows)]
    (folder / "t.csv").write_text("\n".join([header, *changed]) + "\n")
    assert len(sealed) == 16
    assert hpo.init(data="table:t.csv", target="price", output="after.toml", name="t").read_text() == before


def test_arrays_and_images(folder: Path) -> None:
    random = np.random.default_rng(0)
    large, small = (random.integers(0, 256, (60, side, side), np.uint8) for side in (16, 8))
    labels = np.arange(60) % 3
    np.savez("large.npz", x=large, y=labels, x_val=large, y_val=labels, x_test=large, y_test=labels)
    np.savez("small.npz", x=small, y=labels.astype(str))
    np.savez("rows.npz", x=random.normal(size=(60, 3)).astype("float32"), y=random.normal(size=60))
    tree, text = started(data="npz:large.npz")
    assert (tree["network"]["kind"], tree["preprocess"], tree["task"]["kind"]) == (
        "cnn",
        {"image": "per-channel"},
        "classification",
    )
    assert tree["data"] == {"dataset": "npz:large.npz"}
    assert "# the validation set of these data scores the trials\n" in text
    tree, text = started(data="npz:small.npz")
    assert (tree["network"]["kind"], tree["task"]["kind"], tree["data"]["folds"]) == ("mlp", "classification", 5)
    assert "# `hpo test` needs a test set: has no test set (arrays x_test and y_test)\n" in text
    tree, text = started(data="npz:rows.npz")
    assert (tree["task"]["kind"], tree["preprocess"]) == ("regression", {"standardize": True})
    for number, image in enumerate(small[:20]):
        path = folder / "pictures" / ["cat", "dog"][number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    tree, _ = started(data="folder:pictures")
    assert (tree["name"], tree["task"]["kind"]) == ("pictures", "classification")


def test_known_data_and_a_function(folder: Path) -> None:
    (folder / "my_data.py").write_text(
        "import numpy as np\ndef load():\n    x = np.arange(60.0).reshape(30, 2)\n    return x, [0, 1, 2] * 10\n"
    )
    assert started(data="diabetes")[0]["task"] == {"kind": "regression"}
    tree, _ = started(data="digits", name="mine", output="x.toml")
    assert (tree["name"], tree["data"]) == ("mine", {"dataset": "digits", "validation": 0.2})
    tree, _ = started(data="my_data.py:load")
    assert (tree["name"], tree["task"]["kind"], tree["data"]["folds"]) == ("my_data", "classification", 5)


def test_arguments_of_a_module() -> None:
    tree, text = started(data="wine", module="net.py:Net")
    assert tree["name"] == "wine-net"
    assert tree["network"] == {
        "module": "net.py:Net",
        "args": {"width": 32, "depth": 2, "dropout": {"low": 0.0, "high": 0.5}, "scale": 0.5, "norm": True},
    }
    for line in (
        "width = 32  # required, so this is a guess; or { choices = [16, 32, 64] }",
        "scale = 0.5  # or { low = 0.05, high = 5, log = true }",
        "norm = true  # or { choices = [true, false] }",
        "# init: the default of net.py:Net",
    ):
        assert f"\n{line}\n" in text


def test_an_objective_function(folder: Path) -> None:
    (folder / "script.py").write_text("def objective(trial):\n    return trial.suggest_float('x', 0, 1)\n")
    tree, _ = started(objective="script.py:objective")
    assert (tree["name"], tree["objective"]) == ("script", "script.py:objective")
    assert tree["search"] == {"trials": 50, "direction": "minimize", "sampler": "tpe", "pruner": "median"}


def test_paths_are_relative_to_the_folder_of_the_file(folder: Path) -> None:
    (folder / "sub").mkdir()
    tree, _ = started(data="table:t.csv", target="word", module="net.py:Net", output="sub/x.toml")
    assert (tree["data"]["dataset"], tree["network"]["module"]) == ("table:../t.csv", "../net.py:Net")


def test_an_older_schema_is_replaced(folder: Path) -> None:
    old = json.loads(hpo.study_schema())
    old["definitions"] = {}
    (folder / COPY).write_text(json.dumps(old))
    started(data="wine")
    assert (folder / COPY).read_text() == hpo.study_schema()


def existing(folder: Path) -> None:
    (folder / "wine.toml").write_text("mine")


def foreign_schema(folder: Path) -> None:
    (folder / COPY).write_text('{"title": "another"}')


def no_features(folder: Path) -> None:
    write_table(folder / "t.csv", ["y", "name"], [[number % 2, f"n{number}"] for number in range(40)])


def nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("arguments", "message", "prepare"),
    [
        ({}, "--data: missing: name the data, or a function of an optuna.Trial with --objective", nothing),
        ({"data": "digts"}, "--data: unknown data set 'digts' (did you mean 'digits'?); known: ", nothing),
        ({"data": "t.csv"}, "--data: unknown data set 't.csv' (did you mean 'table:t.csv'?); known: ", nothing),
        ({"data": "table:none.csv", "target": "y"}, "none.csv: not found in ", nothing),
        ({"data": "table:t.csv"}, "--target: missing: name the column to predict; ", nothing),
        ({"data": "table:t.csv", "target": "prise"}, "has no column 'prise' (did you mean 'price'?)", nothing),
        ({"data": "table:t.csv", "target": ["a", "a"]}, "--target: must not name a column twice", nothing),
        (
            {"data": "table:t.csv", "target": "y"},
            "table:t.csv: has no column besides the target that can be a feature: name text with 32 different values",
            no_features,
        ),
        ({"data": "table:t.csv", "target": "word", "task": "regression"}, "'no' is not a number", nothing),
        ({"data": "wine", "target": "y"}, '--target: is used only with a table (data.dataset = "table:FILE")', nothing),
        ({"data": "wine", "task": "ranking"}, "--task: unknown kind 'ranking'; known: classification, ", nothing),
        ({"data": "wine", "task": "regression"}, "wine: has classes; task.kind = regression needs ", nothing),
        ({"data": "wine", "module": "net.py"}, "--module: must be FILE.py:NAME", nothing),
        ({"data": "wine", "module": "none.py:Net"}, "--module: ", nothing),
        ({"data": "wine", "module": "net.py:Nett"}, "--module: net.py has no 'Nett' (did you mean 'Net'?)", nothing),
        ({"data": "wine", "module": "net.py:nn"}, "--module: net.py:nn is neither a class nor a function", nothing),
        ({"data": "wine", "module": "net.py:required"}, "net.py:required has no default for 'steps'", nothing),
        ({"data": "wine", "module": "net.py:rigid"}, "--module: net.py:rigid raised ValueError: no rows", nothing),
        ({"module": "net.py:Net"}, "--data: missing", nothing),
        ({"objective": "net.py:Net", "data": "wine"}, "--objective: cannot be combined with --data", nothing),
        ({"objective": "none.py:f"}, "none.py", nothing),
        ({"objective": "net.py:Net"}, "--objective: net.py:Net is a class", nothing),
        ({"objective": "net.py"}, "--objective: must be FILE.py:NAME", nothing),
        ({"data": "wine", "name": " x"}, "--name: must not begin or end with a space", nothing),
        ({"data": "wine", "output": "x.json"}, "x.json: the study is written as TOML", nothing),
        ({"data": "wine", "output": "no/x.toml"}, "no/x.toml: cannot be written (No such file", nothing),
        ({"data": "wine"}, "wine.toml: exists already: name another file with -o, or move it", existing),
        ({"data": "wine"}, f"{COPY}: exists and is no schema of hpo; rename or remove it", foreign_schema),
    ],
)
def test_an_error_is_one_line_and_nothing_is_written(
    folder: Path, arguments: dict[str, Any], message: str, prepare: Callable[[Path], None]
) -> None:
    prepare(folder)
    before = files(folder)
    with pytest.raises(HpoError) as raised:
        hpo.init(**arguments)
    assert message in str(raised.value)
    assert str(raised.value).isprintable()
    assert files(folder) == before
