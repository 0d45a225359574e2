"""Tables from CSV and Parquet files: columns, targets, the sealed test set, and errors that name column and row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from hpo.data import check_test, load_split, load_test, load_whole
from hpo.data.user.table import read_rows
from hpo.errors import DataError, HpoError, StudyFileError
from hpo.studyfile import Study, parse_study

PETS = """\
age,weight, kind ,owner
1,4.5,cat,Ann
2,30, dog ,Bea
,5.25,cat,Bea
12,28.5,dog,Ann

7,3,cat,Ann
3,-1e1,dog,Bea
"""
COLUMNS = {"target": "owner", "categorical": ["kind"]}


def table_study(
    folder: Path,
    *,
    preprocess: dict[str, Any] | None = None,
    task: str = "classification",
    kind: str = "mlp",
    **data: Any,
) -> Study:
    tree: dict[str, Any] = {
        "name": "s",
        "data": {"dataset": "table:pets.csv", "validation": 0.34, **COLUMNS, **data},
        "task": {"kind": task},
        "network": {"kind": kind},
        "optimizer": {"lr": 0.1},
        "training": {"epochs": 1},
        "search": {"trials": 1},
        "preprocess": {"impute": "mean", "unknown": "ignore"} if preprocess is None else preprocess,
    }
    return parse_study({key: value for key, value in tree.items() if value != {}}, "x.toml", folder)


def refusal(text: str, folder: Path, **data: Any) -> str:
    (folder / "pets.csv").write_text(text)
    with pytest.raises(HpoError) as caught:
        load_split(table_study(folder, **data))
    assert isinstance(caught.value, DataError | StudyFileError)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{folder}/", "")


def many_rows(count: int = 40) -> str:
    rows = ["age,weight,kind,owner"]
    for number in range(count):
        rows.append(f"{number},{number % 7},{'cat' if number % 3 else 'dog'},{'Ann' if number % 2 else 'Bea'}")
    return "\n".join(rows) + "\n"


def test_a_csv_file_has_numbers_and_categories_with_the_numbers_of_their_rows(tmp_path: Path) -> None:
    (tmp_path / "pets.csv").write_text("\ufeff" + PETS, encoding="utf-8")
    rows = read_rows(tmp_path / "pets.csv", ["weight", "age"], ["kind"])
    assert rows.lines.tolist() == [2, 3, 4, 5, 7, 8]  # row 6 is blank
    expected = [[4.5, 1], [30, 2], [5.25, np.nan], [28.5, 12], [3, 7], [-10, 3]]
    np.testing.assert_array_equal(rows.numbers, expected)
    assert rows.categories[:, 0].tolist() == ["cat", "dog", "cat", "dog", "cat", "dog"]


def test_class_names_are_in_the_order_of_numbers_or_of_the_alphabet(tmp_path: Path) -> None:
    (tmp_path / "pets.csv").write_text(PETS)
    data = {"features": ["age", "weight"], "categorical": None, "validation": 0.2}
    assert load_split(table_study(tmp_path, **{**data, "target": "kind"})).names == ("cat", "dog")
    text = "a,y\n" + "".join(f"{number},{(9, 10, 2)[number % 3]}\n" for number in range(12))
    (tmp_path / "pets.csv").write_text(text)
    split = load_split(table_study(tmp_path, target="y", categorical=None, preprocess={}))
    assert split.names == ("2", "9", "10")


def test_a_parquet_file_has_the_same_examples_and_hash_as_the_csv_file(tmp_path: Path) -> None:
    (tmp_path / "pets.csv").write_text(many_rows())
    pl.read_csv(tmp_path / "pets.csv").with_columns(
        pl.col("kind").cast(pl.Categorical), pl.lit([1]).alias("nested")
    ).write_parquet(tmp_path / "pets.parquet")
    data = {"features": ["age", "weight", "kind"], "preprocess": {}}
    splits = [load_split(table_study(tmp_path, dataset=f"table:pets.{end}", **data)) for end in ("csv", "parquet")]
    np.testing.assert_array_equal(splits[0].train.inputs, splits[1].train.inputs)
    assert splits[0].content_sha256 == splits[1].content_sha256
    with pytest.raises(DataError, match=r"column 'nested' has the type List.*: convert it, or leave it out"):
        load_split(table_study(tmp_path, dataset="table:pets.parquet"))


def test_a_fraction_of_the_rows_is_sealed_whatever_the_split_seed(tmp_path: Path) -> None:
    (tmp_path / "pets.csv").write_text(many_rows())
    study = table_study(tmp_path, test=0.25, preprocess={})
    split, test = load_split(study), load_test(load_split(study))
    ages = [set(each.inputs[:, 0].tolist()) for each in (split.train, split.validation, test)]
    assert [len(each) for each in ages] == [20, 10, 10]
    assert set.union(*ages) == set(range(40))
    assert split.test_size == 10
    other = load_test(load_split(table_study(tmp_path, test=0.25, split_seed=1, preprocess={})))
    assert set(other.inputs[:, 0].tolist()) == ages[2]


def test_whole_groups_or_the_last_rows_are_sealed(tmp_path: Path) -> None:
    (tmp_path / "pets.csv").write_text(many_rows())
    by_group = {"categorical": None, "features": ["age"], "groups": "weight", "preprocess": {}}
    split = load_split(table_study(tmp_path, test=0.3, **by_group))
    weights = [{int(age) % 7 for age in each.inputs.ravel()} for each in (split.train, split.validation)]
    weights.append({int(age) % 7 for age in load_test(split).inputs.ravel()})
    assert (sum(map(len, weights)), len(weights[2])) == (7, 2)
    assert set.union(*weights) == set(range(7))
    split = load_split(table_study(tmp_path, test=0.25, order="time", preprocess={}))
    parts = [each.inputs[:, 0] for each in (split.train, split.validation, load_test(split))]
    assert np.concatenate(parts).tolist() == list(range(40))
    without = refusal(many_rows().replace("39,4,", "39,,"), tmp_path, **by_group)
    assert "pets.csv: row 41, column 'weight': the group is missing" in without


def test_no_value_of_a_sealed_row_is_converted_before_the_test(tmp_path: Path) -> None:
    (tmp_path / "pets.csv").write_text(many_rows())
    study = table_study(tmp_path, test=0.25, preprocess={})
    split = load_split(study)
    sealed = sorted(int(age) for age in load_test(split).inputs[:, 0])
    lines = many_rows().splitlines()
    for number in sealed:
        lines[number + 1] = "x,inf,bird,nobody"
    (tmp_path / "pets.csv").write_text("\n".join(lines))
    again = load_split(study)
    np.testing.assert_array_equal(again.train.inputs, split.train.inputs)
    assert again.content_sha256 == split.content_sha256
    with pytest.raises(DataError, match=rf"pets\.csv: row {sealed[0] + 2}, column 'owner': 'nobody' is not a class"):
        load_test(again)


def test_a_test_file_has_the_columns_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "pets.csv").write_text(many_rows())
    (tmp_path / "test.csv").write_text("owner,kind,weight,age\nBea,dog,3,100\nAnn,cat,2,101\n")
    study = table_study(tmp_path, test="test.csv", preprocess={})
    check_test(study)
    split = load_split(study)
    assert split.test_size is None
    test = load_test(split)
    np.testing.assert_array_equal(test.inputs, [[100, 3, 0, 1], [101, 2, 1, 0]])
    assert test.targets.tolist() == [1, 0]
    (tmp_path / "test.csv").write_text("owner,kind,age\nBea,dog,100\n")
    with pytest.raises(DataError, match=r"test\.csv: has no column 'weight'; it has owner, kind, age"):
        load_test(split)
    (tmp_path / "test.csv").write_text("owner,kind,age,weight\nBea,,100,1\n")
    with pytest.raises(DataError, match=r"test\.csv: row 2, column 'kind': the value is missing"):
        load_test(split)
    (tmp_path / "test.csv").unlink()
    with pytest.raises(DataError, match=r"test\.csv: not found"):
        load_split(study)
    with pytest.raises(DataError, match="has no test set"):
        check_test(table_study(tmp_path))


def test_a_validation_file_is_used_whole(tmp_path: Path) -> None:
    (tmp_path / "pets.csv").write_text(many_rows())
    (tmp_path / "val.csv").write_text("owner,kind,weight,age\nBea,dog,3,100\nAnn,cat,2,101\n")
    (tmp_path / "test.csv").write_text("owner,kind,weight,age\nBea,dog,3,200\n")
    data: dict[str, Any] = {"validation": "val.csv", "preprocess": {}}
    split = load_split(table_study(tmp_path, **data))
    assert (split.method, len(split.train)) == ("the validation set of the data", 40)
    np.testing.assert_array_equal(split.validation.inputs, [[100, 3, 0, 1], [101, 2, 1, 0]])
    assert split.validation.targets.tolist() == [1, 0]
    whole = load_whole(table_study(tmp_path, **data))
    assert len(whole.train) == 42
    assert whole.content_sha256 == split.content_sha256
    assert len(load_split(table_study(tmp_path, test=0.25, **data)).train) == 30
    assert load_test(load_split(table_study(tmp_path, test="test.csv", **data))).inputs[:, 0].tolist() == [200]
    for keys, problem in [
        ({"groups": "kind", "categorical": None}, "data.groups: is not used: table:pets.csv has a validation set"),
        ({"order": "time"}, "data.order: is not used: table:pets.csv has a validation set"),
        ({"stratify": True}, "data.stratify: is not used: table:pets.csv has a validation set"),
        ({"train_size": 41}, "data.train_size: must be at most 40"),
        ({"test": "val.csv"}, "val.csv: data.test is a file of other rows of the study, too: name a file of its own"),
        ({"validation": "pets.csv"}, "pets.csv: data.validation is a file of other rows of the study, too"),
    ]:
        assert problem in refusal(many_rows(), tmp_path, **{**data, **keys})
    for text, problem in [
        ("owner,kind,age\nBea,dog,100\n", "val.csv: has no column 'weight'; it has owner, kind, age"),
        ("kind,age,weight\ndog,100,1\n", "val.csv: has no column 'owner'; it has kind, age, weight"),
        ("owner,kind,age,weight\nEve,dog,100,1\n", "val.csv: row 2, column 'owner': 'Eve' is not a class"),
        ("owner,kind,age,weight\nBea,dog,1,2\nBea,owl,1,2\n", "val.csv: row 3, column 'kind': the category 'owl' is"),
        ("owner,kind,age,weight\nBea,dog,old,2\n", "val.csv: row 2, column 'age': 'old' is not a number"),
        ("owner,kind,age,weight\n", "val.csv: has no rows"),
    ]:
        (tmp_path / "val.csv").write_text(text)
        assert problem in refusal(many_rows(), tmp_path, **data)
    (tmp_path / "val.csv").unlink()
    assert "val.csv: not found" in refusal(many_rows(), tmp_path, **data)


def test_errors_name_column_and_row(tmp_path: Path) -> None:
    plain = {"preprocess": {}}
    assert "pets.csv: row 4, column 'age': the value is missing: set pre" in refusal(PETS, tmp_path, **plain)
    for wrong, problem in [
        (PETS.replace("-1e1", "heavy"), "pets.csv: row 8, column 'weight': 'heavy' is not a number; list"),
        (PETS.replace("-1e1", "inf"), "pets.csv: row 8, column 'weight': 'inf' is not a finite number"),
        (PETS.replace("-1e1", "1e300"), "pets.csv: row 8, column 'weight': is too large for float32"),
        (
            PETS.replace("-1e1,dog,Bea", "-1e1,dog,"),
            "pets.csv: row 8, column 'owner': the target is missing; remove the row",
        ),
        (PETS.replace("weight", "age"), "pets.csv: two columns are called 'age': rename or remove one"),
        (PETS.replace("weight", ""), "pets.csv: column 2 has no printable name in row 1"),
        (PETS.replace("30, dog ,", "30, dog,brown,"), "pets.csv: a row has more cells than the header"),
        (PETS.replace("dog", "cat"), "pets.csv: column 'kind' is 'cat' in all rows: leave it out of data.features"),
        (PETS.replace("Bea", "Ann"), "pets.csv: column 'owner': only one class ('Ann')"),
        ("owner\nAnn\nBea\n", "pets.csv: has no column besides owner: a table has a target and at least one feature"),
        ("", "pets.csv: is empty"),
        ("age,weight,kind,owner\n", "pets.csv: has no rows"),
        (PETS.replace("owner", "human"), "pets.csv: has no column 'owner'; it has age, weight, kind, human"),
        (PETS.replace("kind", "kinds"), "pets.csv: has no column 'kind' (did you mean 'kinds'?)"),
    ]:
        assert problem in refusal(wrong, tmp_path)
    fractions = PETS.replace("\n1,", "\n0.5,").replace("\n,", "\n8,")
    found = refusal(fractions, tmp_path, target="age", features=["weight"], categorical=None)
    assert "column 'age' has numbers, such as 0.5, where labels must be whole" in found
    rare = many_rows().replace("39,4,dog", "39,4,owl").replace("38,3,cat", "38,3,emu").replace("37,2,cat", "37,2,asp")
    unknown = "is not among the training rows: remove the row, or train with preprocess.unknown"
    assert unknown in refusal(rare, tmp_path, validation=0.9, preprocess={}, split_seed=1)


def test_targets_of_other_tasks_are_columns_of_numbers(tmp_path: Path) -> None:
    (tmp_path / "pets.csv").write_text(many_rows())
    data = {"features": ["age"], "categorical": None, "preprocess": {}, "test": 0.25}
    split = load_split(table_study(tmp_path, task="regression", target="weight", **data))
    np.testing.assert_array_equal(split.train.targets[:, 0], split.train.inputs[:, 0] % 7)
    test = load_test(split)
    np.testing.assert_array_equal(test.targets[:, 0], test.inputs[:, 0] % 7)
    assert (split.names, split.columns, split.train.targets.dtype) == ((), 1, np.float64)
    several = {**data, "target": ["weight", "age"], "features": None, "categorical": ["kind", "owner"]}
    split = load_split(table_study(tmp_path, task="regression", **several))
    assert (split.columns, split.preprocessing.numeric) == (2, [])
    without = {**data, "test": None}
    refused = refusal(many_rows().replace("39,4,", "39,,"), tmp_path, task="regression", target="weight", **without)
    assert "pets.csv: row 41, column 'weight': the target is missing" in refused
    labels = "a,b,c\n" + "".join(f"{number},{number % 2},{int(number % 3 == 0)}\n" for number in range(30))
    (tmp_path / "pets.csv").write_text(labels)
    both = {**without, "features": ["a"], "target": ["b", "c"]}
    split = load_split(table_study(tmp_path, task="multilabel", **both))
    assert (split.names, split.train.targets.shape[1]) == (("b", "c"), 2)
    wrong = labels.replace("\n3,1,1", "\n3,2,1")
    assert "pets.csv: row 5, column 'b': the label must be 0 or 1" in refusal(
        wrong, tmp_path, task="multilabel", **both
    )


def test_damaged_files_are_errors_of_one_line(tmp_path: Path) -> None:
    for name, content in [("pets.csv", b"a,b\n\xff,1\n"), ("pets.parquet", b"PAR1"), ("pets.csv", b'a,b\n1,"2\n')]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: ") as caught:
            load_split(table_study(tmp_path, dataset=f"table:{name}"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"target": None}, "data.target: missing"),
        ({"target": ["age", "age"], "categorical": None}, "data.target: must not name a column twice"),
        ({"dataset": "table:pets.txt"}, "data.dataset: a table must be a .csv or .parquet file"),
        ({"dataset": "pets.csv"}, "unknown data set 'pets.csv' (did you mean 'table:pets.csv'?)"),
        ({"dataset": "digits"}, "data.target: is used only with a table"),
        ({"features": ["age", "owner"]}, "data.features: must not contain the target 'owner'"),
        ({"features": ["age", "age"], "categorical": None}, "data.features: must not name a column twice"),
        ({"features": ["age"]}, "data.categorical: 'kind' is not in data.features"),
        ({"test": 1.5}, "data.test: must be below 1"),
        (
            {"validation": "pets.txt"},
            "data.validation: must be a .csv or .parquet file, auto or a fraction",
        ),
        ({"validation": "pets.csv", "folds": 3}, "data.folds: cannot be combined with validation"),
        (
            {"dataset": "npz:a.npz", "validation": "pets.csv"},
            "data.validation: must be auto or a number above 0 and below 1; a file is possible with a table only",
        ),
        ({"test": "pets.txt"}, "data.test: must be a .csv or .parquet file, or a fraction"),
        ({"preprocess": {"impute": "mode"}}, "preprocess.impute: unknown impute 'mode'"),
        ({"preprocess": {"scale": True}}, "preprocess.scale: unknown key; known: standardize, impute"),
        (
            {"preprocess": {"categorical": "embedding"}, "categorical": []},
            "preprocess.categorical: embedding is not used without data.categorical",
        ),
        (
            {"preprocess": {"categorical": "embedding"}, "kind": "cnn"},
            'preprocess.categorical: must be "onehot" when network.kind = "cnn": only mlp has embeddings of columns',
        ),
        ({"preprocess": {"standardize": {"choices": [True, False]}}}, "preprocess.standardize: cannot be searched"),
    ],
)
def test_wrong_keys_are_errors_of_the_study_file(tmp_path: Path, data: dict[str, Any], problem: str) -> None:
    given = {**COLUMNS, **data}
    with pytest.raises(StudyFileError) as caught:
        table_study(tmp_path, **{key: value for key, value in given.items() if value is not None or key == "target"})
    assert problem in str(caught.value)


def test_keys_of_tables_are_left_out_of_other_resolved_files(tmp_path: Path) -> None:
    resolved = table_study(tmp_path, preprocess={}).resolved()
    assert "preprocess" not in resolved
    assert resolved["data"] == {
        "dataset": "table:pets.csv",
        "validation": 0.34,
        "split_seed": 0,
        "stratify": "auto",
        "target": "owner",
        "categorical": ["kind"],
    }
