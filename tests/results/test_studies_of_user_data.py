"""A study of user data, from its launch to its report: paths, class names, and hashes of the content."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from schemas import schema
from tiny import search, tree, trials_of

from hpo.errors import DataError, HpoError, StudyFileError
from hpo.results.confirm.study import create_confirming_study
from hpo.results.display.check import check_report
from hpo.results.export.best import export
from hpo.results.export.text import export_text
from hpo.results.final_test.evaluate import EvaluationOptions, evaluate_test_set
from hpo.results.final_test.model_folder import CARD_FILE
from hpo.results.final_test.predict import predictions
from hpo.results.final_test.result import SealedTestResult
from hpo.results.narrow.next_study import changed_study, write_study
from hpo.results.report import report
from hpo.results.reproduce.replay import replay
from hpo.search.events import Note
from hpo.search.launch import join
from hpo.search.plan import plan
from hpo.search.study_records import CODE, DATA, check_data, stored_study
from hpo.storage import Storage, load_study
from hpo.studyfile import Study, parse_study, read_study

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (60, 4, 3), dtype=np.uint8)
Y = np.array(["a<b", "sea, lake", "100"])[np.arange(60) % 3]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the study file and its images; the current one is another."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def write_images(home: Path, **arrays: Any) -> None:
    np.savez(home / "images.npz", **{"x": X, "y": Y, "x_test": X[:9], "y_test": Y[:9], **arrays})


def study_in(home: Path, dataset: str = "npz:images.npz", **search: Any) -> Study:
    written = tree(
        data={"dataset": dataset, "train_size": None},
        network={"hidden": [4]},
        training={"epochs": 1},
        search={"trials": 2, "population": 2, **search},
    )
    del written["data"]["train_size"]
    (home / "tiny.json").write_text(json.dumps(written))
    return read_study(home / "tiny.json")


def see(storage: Storage) -> dict[str, Any]:
    return evaluate_test_set(storage, "tiny", EvaluationOptions(device="cpu"), threading.Event(), lambda text: None)[0]


def test_the_names_of_classes_travel(storage: Storage, home: Path) -> None:
    write_images(home)
    search(study_in(home), storage)
    names = ["100", "a<b", "sea, lake"]
    assert load_study(storage, "tiny").user_attrs[DATA]["classes"] == names
    assert "9 sealed test examples" in report(storage, "tiny")
    result = see(storage)
    jsonschema.validate(result, schema("test"))
    assert [(each["name"], each["images"]) for each in result["test"]["classes"]] == [(name, 3) for name in names]
    assert json.loads((Path("tiny-test") / CARD_FILE).read_text())["data"]["classes"] == names
    figure = (Path("tiny-test") / "confusion.html").read_text()
    assert "sea, lake" in figure
    assert '"a&lt;b"' in figure  # it is text, and no markup
    np.save("images.npy", X[:9])
    heading, *rows = str(predictions(Path("tiny-test"), Path("images.npy"), "cpu")).splitlines()
    assert heading == "image,class,probability"
    said = {row.partition(",")[2].rpartition(",")[0] for row in rows}
    assert said <= {"100", "a<b", '"sea, lake"'}
    page = report(storage, "tiny")
    assert "3: 100, a&lt;b, sea, lake" in page
    assert "<td>a&lt;b</td><td>3</td>" in page


def test_a_class_without_images_is_a_line(storage: Storage, home: Path) -> None:
    y = np.where(np.isin(np.arange(60), (5, 40)), "rare", Y)
    write_images(home, y=y)
    study = study_in(home)
    said = "npz:images.npz: no validation example of class 'rare'; try another data.split_seed or a larger data.valida"
    warned = [event.text for event in search(study, storage) if isinstance(event, Note) and event.level == "warning"]
    assert [text.startswith(said) for text in warned] == [True]
    assert said in check_report(study, "cpu")
    tested = evaluate_test_set(storage, "tiny", EvaluationOptions(device="cpu"), threading.Event(), lambda text: None)
    assert "no test example of class 'rare'" in SealedTestResult(tested).lines()


def test_a_stored_study_finds_its_images_from_another_folder(storage: Storage, home: Path) -> None:
    write_images(home)
    search(study_in(home), storage)
    stored = load_study(storage, "tiny")
    study = stored_study(stored)
    assert study.folder == home
    check_data(study, plan(study, "cpu").split, stored)
    jsonschema.validate(export(storage, "tiny"), schema("best"))
    Path("best.json").write_text(export_text(storage, "tiny"))
    (run,) = replay(Path("best.json"), "cpu", threading.Event(), pytest.fail).runs
    assert run.difference == 0
    plan(read_study("best.json"), "cpu")
    plan(create_confirming_study(storage, "tiny", 1, 2), "cpu")
    # What narrowing writes finds them from its own folder.
    again = changed_study(study, [], "tiny-2", ["tiny"])
    path = write_study(again, ())
    assert 'dataset = "npz:../home/images.npz"' in path.read_text()
    assert write_study(again, ()) == path
    search(read_study(path), storage)  # its trials are those of the same images
    path = write_study(again, (), home / "tiny-2.toml")
    assert 'dataset = "npz:images.npz"' in path.read_text()


def test_all_files_of_a_table_are_found_from_the_folder_of_the_next_study(home: Path) -> None:
    for name in ("all", "val", "test"):
        (home / f"{name}.csv").touch()
    data = {"dataset": "table:all.csv", "target": "y", "validation": "val.csv", "test": "test.csv"}
    study = parse_study({**tree(), "data": data}, "tiny.toml", home)
    written = write_study(changed_study(study, [], "tiny-2", ["tiny"]), ()).read_text().splitlines()
    for line in ('dataset = "table:../home/all.csv"', 'validation = "../home/val.csv"', 'test = "../home/test.csv"'):
        assert line in written


def test_images_may_be_moved_but_not_changed(storage: Storage, home: Path, tmp_path: Path) -> None:
    write_images(home)
    search(study_in(home), storage)
    moved = home.rename(tmp_path / "moved")
    search(study_in(moved, trials=3), storage, extend=True)
    assert len(trials_of(storage)) == 3
    assert stored_study(load_study(storage, "tiny")).folder == moved
    other = X.copy()
    other[-1, -1, -1] ^= 1
    write_images(moved, x=other)
    with pytest.raises(HpoError, match=r"the data of npz:images\.npz are not those that the study was created with"):
        search(study_in(moved, trials=4), storage, extend=True)
    with pytest.raises(HpoError, match="are not those that the study was created with"):
        see(storage)
    Path("best.json").write_text(export_text(storage, "tiny"))
    with pytest.raises(HpoError, match=r"are not those of the exported trial \(their SHA-256 differs\)"):
        replay(Path("best.json"), "cpu", threading.Event(), pytest.fail)


def test_a_worker_without_the_images_says_so_in_a_line(storage: Storage, home: Path) -> None:
    write_images(home)
    search(study_in(home), storage)
    (home / "images.npz").unlink()
    with pytest.raises(DataError) as caught:
        join("tiny", storage, device="cpu", on_event=lambda event: None, stop=threading.Event())
    assert str(caught.value).startswith(f"images.npz: not found in {home} or {Path.cwd()}; ")
    write_images(Path())  # the current folder will do
    join("tiny", storage, device="cpu", on_event=lambda event: None, stop=threading.Event())


def test_data_without_test_images_is_searched_and_refused_a_look(storage: Storage, home: Path) -> None:
    np.savez(home / "images.npz", x=X, y=Y)
    search(study_in(home), storage)
    page = report(storage, "tiny")
    assert "no sealed test examples" in page
    assert "This data set has no sealed test set." in page
    jsonschema.validate(export(storage, "tiny"), schema("best"))
    with pytest.raises(DataError, match=r"images\.npz: has no test set \(arrays x_test and y_test\)$"):
        see(storage)
    assert not list(Path().iterdir())


def test_numbers_as_given_and_features_are_predicted_as_trained(storage: Storage, home: Path) -> None:
    x = RNG.normal(0, 100, (60, 7))
    write_images(home, x=x, x_test=x[:9])
    search(study_in(home), storage)
    see(storage)
    folder = Path("tiny-test")
    np.save("images.npy", x[:9])
    answers = str(predictions(folder, Path("images.npy"), "cpu"))
    np.save("images.npy", x[:9].astype(np.float32).reshape(9, 1, 1, 7))
    assert str(predictions(folder, Path("images.npy"), "cpu")) == answers
    for wrong, said in [
        (X[:2], "contains uint8, but this network takes floats, as it was trained on"),
        (x[:2] * np.nan, "contains NaN or infinite numbers"),
        (x[:2, :6], r"its shape is \[2, 6\], but this network takes \[N, 7\] or \[N, 1, 1, 7\]$"),
    ]:
        np.save("images.npy", wrong)
        with pytest.raises(HpoError, match=said):
            predictions(folder, Path("images.npy"), "cpu")


def test_a_folder_of_a_table_that_an_earlier_version_wrote_still_predicts(storage: Storage, home: Path) -> None:
    x = RNG.normal(0, 1, (60, 7))
    write_images(home, x=x, x_test=x[:9])
    search(study_in(home), storage)
    see(storage)
    np.save("rows.npy", x[:9])
    answers = str(predictions(Path("tiny-test"), Path("rows.npy"), "cpu"))
    card = Path("tiny-test") / CARD_FILE
    tree = json.loads(card.read_text())
    assert tree["input"] == {"shape": [7], "classes": 3, "white": None}
    tree["input"]["shape"] = [1, 1, 7]
    card.write_text(json.dumps(tree))
    assert str(predictions(Path("tiny-test"), Path("rows.npy"), "cpu")) == answers


WORDS_CODE = """
from torch import nn


class Words(nn.Module):
    def __init__(self, classes, ids):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(ids, 4), nn.BatchNorm1d(4), nn.Linear(4, classes)

    def forward(self, x):
        return self.head(self.norm(self.embed(x).mean(1)))
"""


def words_study(home: Path, ids: int) -> Study:
    (home / "my_net.py").write_text(WORDS_CODE)
    written = json.loads((home / "tiny.json").read_text())
    written["network"] = {"kind": "module", "module": "my_net.py:Words", "args": {"ids": ids}}
    (home / "tiny.json").write_text(json.dumps(written))
    return read_study(home / "tiny.json")


def test_integers_stay_integers_from_the_search_to_a_prediction(storage: Storage, home: Path) -> None:
    x = RNG.integers(0, 12, (60, 5)).astype(np.int32)
    write_images(home, x=x, x_test=x[:9])
    with pytest.raises(
        StudyFileError, match=r"network\.kind: mlp and cnn take bytes or floats, but the examples are int"
    ):
        search(study_in(home), storage)
    largest = (
        r"network\.module: my_net\.py:Words: layer 'embed' has the ids 0 to 10 \(num_embeddings\), but gets ids up t"
    )
    with pytest.raises(StudyFileError, match=largest):
        search(words_study(home, 11), storage)
    study = words_study(home, 12)
    assert plan(study, "cpu").stacked
    assert "validation examples of 5 integers, 3 classes" in check_report(study, "cpu")
    search(study, storage)
    (home / "best.json").write_text(export_text(storage, "tiny"))
    (run,) = replay(home / "best.json", "cpu", threading.Event(), pytest.fail).runs
    assert run.difference == 0
    result = see(storage)
    assert json.loads((Path("tiny-test") / CARD_FILE).read_text())["input"]["integers"] is True
    np.save("words.npy", x[:9].astype(np.uint16))
    rows = str(predictions(Path("tiny-test"), Path("words.npy"), "cpu")).splitlines()[1:]
    predicted = np.array([row.split(",", 1)[1].rpartition(",")[0].strip('"') for row in rows])
    assert (predicted == Y[:9]).mean() == result["test"]["accuracy"]
    for wrong, said in [
        (
            x[:9] + 12,
            r"tiny-test: network\.module: my_net\.py:Words: layer 'embed' has the ids 0 to 11 .*, but gets ids up",
        ),
        (x[:9] * 1.0, "contains float64, but this network takes integers, as it was trained on"),
        (x[:9, :4], r"its shape is \[9, 4\], but this network takes \[N, 5\]"),
    ]:
        np.save("words.npy", wrong)
        with pytest.raises(HpoError, match=said):
            predictions(Path("tiny-test"), Path("words.npy"), "cpu")


def test_a_test_set_with_an_unknown_id_is_a_line_that_names_it(storage: Storage, home: Path) -> None:
    x = RNG.integers(0, 12, (60, 5))
    write_images(home, x=x, x_test=x[:9] + 3)
    study_in(home)
    search(words_study(home, 12), storage)
    with pytest.raises(
        HpoError, match=r"cannot be evaluated on the test set: .* but gets ids up to 1[34]; no test result"
    ):
        see(storage)


def test_flips_shifts_and_cutout_of_rows_are_refused(storage: Storage, home: Path) -> None:
    write_images(home, x=RNG.normal(0, 1, (60, 7)))
    study = study_in(home)
    assert "validation examples of 7 features, 3 classes" in check_report(study, "cpu")
    for key, value, got in (
        ("flip", 0.5, "0.5"),
        ("shift", 1, "1"),
        ("cutout", 2, "2"),
        ("flip", {"low": 0.0, "high": 0.3}, "0.3"),
    ):
        written = json.loads((home / "tiny.json").read_text())
        written["training"][key] = value
        (home / "other.json").write_text(json.dumps(written))
        line = (
            rf"training\.{key}.*: needs images, but the examples of npz:images\.npz are 7 features \(got {got}\); rem"
        )
        with pytest.raises(StudyFileError, match=line):
            search(read_study(home / "other.json"), storage)


def test_channels_may_come_last_when_predicting(storage: Storage, home: Path) -> None:
    coloured = np.stack([X, X // 2, X // 3], 3)
    write_images(home, x=coloured, x_test=coloured[:9])
    with pytest.raises(DataError, match=r"x has shape \[60, 4, 3, 3\], which may be \[N, C, H, W\] or \[N, H, W, C\]"):
        search(study_in(home), storage)
    coloured = np.stack([np.pad(X, [(0, 0), (1, 1), (1, 1)])] * 3, 3)
    write_images(home, x=coloured, x_test=coloured[:9])
    search(study_in(home), storage)
    see(storage)
    answers = []
    for images in (coloured, np.moveaxis(coloured, 3, 1)):
        np.save("images.npy", images)
        answers.append(str(predictions(Path("tiny-test"), Path("images.npy"), "cpu")))
    assert answers[0] == answers[1]


def test_a_function_is_code_of_the_study(storage: Storage, home: Path) -> None:
    write_images(home)
    (home / "my_data.py").write_text("""
from pathlib import Path

import numpy as np

def load(test=False):
    found = np.load(Path(__file__).with_name("images.npz"))
    return (found["x_test"], found["y_test"]) if test else (found["x"], found["y"])
""")
    search(study_in(home, "my_data.py:load"), storage)
    stored = load_study(storage, "tiny")
    assert stored.user_attrs[CODE]["folder"] == str(home)
    assert set(stored.user_attrs[CODE]["files"]) == {"my_data.py"}
    assert plan(stored_study(stored), "cpu").split.names == ("100", "a<b", "sea, lake")
    assert see(storage)["test"]["images"] == 9
    (home / "my_data.py").write_text("x y")
    with pytest.raises(StudyFileError, match=r"^study 'tiny': data\.dataset: my_data\.py cannot be imported: Syntax"):
        plan(stored_study(stored), "cpu")
