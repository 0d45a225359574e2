"""Studies of the user's own modules: searched as any other, refused before anything is stored, and what errors do."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from optuna.trial import TrialState
from schemas import schema
from tiny import LR, search, states, study_of, tree, trials_of

from hpo.errors import CodeError, HpoError, StudyClosedError, StudyFileError, TrainingError
from hpo.results.confirm.study import create_confirming_study
from hpo.results.export.best import export
from hpo.results.final_test.evaluate import EvaluationOptions, evaluate_test_set
from hpo.results.final_test.predict import predictions
from hpo.results.narrow.next_study import propose, write_study
from hpo.results.report import report
from hpo.results.reproduce.replay import replay
from hpo.results.reproduce.verify import verify
from hpo.search.events import Note, PopulationStarted, StudyStarted
from hpo.search.launch import join, launch, submit
from hpo.search.options import LaunchOptions
from hpo.search.plan import plan
from hpo.search.sampling.warm_start import warm_start
from hpo.search.study_records import CHANGES, CODE, stored_study, user_attrs_of
from hpo.storage import ATTEMPTS, FAILURE_REASON, Storage, heartbeats, load_study, study_names
from hpo.studyfile import Study, parse_study, read_study

pytestmark = pytest.mark.usefixtures("one_thread")

CODE_OF_NETS = """
import torch.nn.functional as F
from torch import nn

from parts import body


class Net(nn.Module):
    def __init__(self, shape, classes, width, dropout=0.0):
        super().__init__()
        self.rate = dropout
        self.body = body(shape, width)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.drop(self.body(x)))


class Branching(Net):
    def forward(self, x):
        return super().forward(x) if x.sum() > -1e9 else 0


class Raising(Net):
    def forward(self, x):
        if self.rate > 0:
            raise ValueError(f"a rate of {self.rate}")
        return super().forward(x)


class Wrong(Net):
    def forward(self, x):
        return self.head(x.flatten(1))


class Picky(Net):
    def __init__(self, shape, classes, width):
        if width > 4:
            raise ValueError(f"a width of {width}")
        super().__init__(shape, classes, width)


class Squeezed(Net):
    def forward(self, x):
        return super().forward(x).squeeze()


class Growing(Net):
    def __init__(self, shape, classes, width, wider=[]):
        super().__init__(shape, classes, width + len(wider))
        wider.append(1)
"""
PARTS = """
import math

from torch import nn


def body(shape, width):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width), nn.BatchNorm1d(width), nn.ReLU())
"""
DATA = """
from sklearn.datasets import load_digits

def load(test=False):
    x, y = load_digits(return_X_y=True)
    return (x[150:200], y[150:200]) if test else (x[:150], y[:150])
"""
ARGS = {"width": 4, "dropout": {"low": 0.0, "high": 0.4}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(CODE_OF_NETS)
    (tmp_path / "parts.py").write_text(PARTS)
    return tmp_path


def own(folder: Path, net: str = "Net", args: dict[str, Any] | None = None, **changes: dict[str, Any] | str) -> Study:
    written = tree(**changes)
    written["network"] = {"module": f"nets.py:{net}", "args": ARGS if args is None else args}
    return parse_study(written, "studies/tiny.toml", folder)


def notes(events: list[Any]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


def test_a_study_of_a_module_trains_populations_and_keeps_its_code(folder: Path, storage: Storage) -> None:
    events = search(own(folder), storage)
    assert [len(event.members) for event in events if isinstance(event, PopulationStarted)] == [4, 2]
    assert notes(events) == []
    trials = trials_of(storage)
    assert states(trials) == [TrialState.COMPLETE] * 6
    assert set(trials[0].params) == {"args.dropout", "lr"}
    record = user_attrs_of(load_study(storage, "tiny"))[CODE]
    assert record["folder"] == str(folder.resolve())
    assert list(record["files"]) == ["nets.py", "parts.py"]
    assert stored_study(load_study(storage, "tiny")).folder == folder.resolve()


def test_a_module_that_cannot_be_stacked_trains_one_at_a_time(folder: Path, storage: Storage) -> None:
    study = own(folder, "Branching", search={"trials": 3, "population": "auto"})
    events = search(study, storage)
    assert next(event.population for event in events if isinstance(event, StudyStarted)) == 1
    assert [len(event.members) for event in events if isinstance(event, PopulationStarted)] == [1, 1, 1]
    (said,) = notes(events)
    assert said.startswith("nets.py:Branching: Branching cannot be stacked")
    assert states(trials_of(storage)) == [TrialState.COMPLETE] * 3


@pytest.mark.parametrize(
    ("name", "args", "line"),
    [
        (
            "Wrong",
            {"width": 4},
            "network.module: nets.py:Wrong raised RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x64 and "
            "4x10) (nets.py, line 34, in forward)",
        ),
        (
            "Net",
            {"width": "four"},
            "network.module: nets.py:Net raised TypeError: ",
        ),
        (
            "Growing",
            {"width": 4},
            "network.module: nets.py:Growing constructs a different network each time (318 parameters, then 395); its "
            "constructor must not change defaults or global state",
        ),
        ("Net", {}, "network.args.width: missing: nets.py:Net has no default for it"),
        ("Net", {"width": 4, "qq": 1}, "network.args.qq: is not an argument of nets.py:Net; it has shape, classes"),
        ("Nett", {"width": 4}, "network.module: nets.py has no 'Nett' (did you mean 'Net'?)"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_stored(
    folder: Path, storage: Storage, name: str, args: dict[str, Any], line: str
) -> None:
    with pytest.raises(StudyFileError) as caught:
        search(own(folder, name, args), storage)
    assert str(caught.value).startswith(f"studies/tiny.toml: {line}")
    assert "\n" not in str(caught.value)
    assert study_names(storage) == []


@pytest.mark.parametrize(
    ("net", "changes", "line"),
    [
        ("Squeezed", {}, None),
        (
            "Squeezed",
            {"data": {"validation": 0.005}},
            "Squeezed returns [10] for 1 example; a network must return [B, 10]",
        ),
        ("Squeezed", {"data": {"train_size": 1002, "validation": 0.5}}, "Squeezed returns [10] for 1 example"),
        ("Net", {"data": {"validation": 0.005}}, None),
        (
            "Net",
            {"training": {"batch_size": {"choices": [60, 1]}}},
            "Net raised ValueError: Expected more than 1 value per channel when training, got input size "
            "torch.Size([1, 4]) for a batch of 1 image (nets.py, line 17, in forward)",
        ),
    ],
)
def test_a_module_is_tried_on_a_batch_of_one_where_its_study_has_one(
    folder: Path, net: str, changes: dict[str, Any], line: str | None
) -> None:
    study = own(folder, net, {"width": 4}, **changes)
    if line is None:
        assert plan(study, "cpu").stacked
        return
    with pytest.raises(StudyFileError) as caught:
        plan(study, "cpu")
    assert str(caught.value).startswith(f"studies/tiny.toml: network.module: nets.py:{line}")


def test_a_module_that_raises_fails_its_trials_in_a_study_with_limits(folder: Path, storage: Storage) -> None:
    args = {"width": {"choices": [4, 8]}}
    limits = {"limits": {"parameters": 1000}, "trials": 2, "sampler": "grid", "retries": 0}
    search(own(folder, "Picky", args, optimizer={"lr": 0.1}, search=limits), storage)
    failed, complete = sorted(trials_of(storage), key=lambda trial: trial.state == TrialState.COMPLETE)
    assert complete.state == TrialState.COMPLETE
    assert failed.user_attrs[FAILURE_REASON] == "ValueError: a width of 8 (nets.py, line 40, in __init__)"


def test_an_error_of_a_module_fails_its_trials_and_three_of_a_kind_stop_the_study(
    folder: Path, storage: Storage
) -> None:
    """Each says another number; that makes no other kind."""
    args = {"width": 4, "dropout": {"choices": [0.0, 0.1, 0.2, 0.3]}}
    study = own(folder, "Raising", args, optimizer={"lr": 0.1}, search={"trials": 4, "sampler": "grid", "retries": 0})
    events: list[Any] = []
    said = r"in 3 populations in a row \(ValueError: a rate of 0\.\d \(nets\.py, line 28, in forward\)\)"
    with pytest.raises(TrainingError, match=said):
        search(study, storage, stop_at=lambda event: bool(events.append(event)))
    trials = trials_of(storage)
    assert sorted(states(trials)) == [TrialState.COMPLETE, *[TrialState.FAIL] * 3]
    failed = next(trial for trial in trials if trial.state == TrialState.FAIL)
    assert failed.user_attrs[FAILURE_REASON].startswith("ValueError: a rate of 0.")
    (attempt,) = failed.system_attrs[ATTEMPTS]
    assert 'raise ValueError(f"a rate of {self.rate}")' in attempt["traceback"]
    assert "torch" not in attempt["traceback"]
    assert attempt["traceback"].strip() in "\n".join(notes(events))


def test_whole_ranges_are_whole_as_they_are_written(folder: Path) -> None:
    study = own(folder, args={"width": {"low": 4, "high": 6}, "dropout": {"low": 0, "high": 0.5}})
    assert [parameter.integer for parameter in study.parameters] == [True, False, False]
    assert plan(study, "cpu").population == 4


def test_hpos_own_networks_and_a_module_can_be_searched_side_by_side(folder: Path, storage: Storage) -> None:
    written = tree(optimizer={"lr": LR}, search={"trials": 4, "sampler": "random"})
    written["network"] = {"kind": {"choices": ["mlp", "module"]}, "module": "nets.py:Net", "args": {"width": 4}}
    search(parse_study(written, "studies/tiny.toml", folder), storage)
    trials = trials_of(storage)
    assert {trial.params["network.kind"] for trial in trials} == {"mlp", "module"}
    assert states(trials) == [TrialState.COMPLETE] * 4
    assert study_of().references == {}


def edit(folder: Path) -> None:
    (folder / "parts.py").write_text(PARTS.replace("nn.ReLU()", "nn.Tanh()"))


def test_other_code_is_refused_unless_it_is_allowed(folder: Path, storage: Storage) -> None:
    study = own(folder, search={"trials": 2})
    search(study, storage)
    more = own(folder, search={"trials": 4})
    edit(folder)
    changed = r"^study 'tiny': parts\.py in .* has changed since the study was created .*--changed-code$"
    with pytest.raises(CodeError, match=changed):
        search(more, storage, extend=True)
    with pytest.raises(CodeError, match=r"parts\.py"):
        join("tiny", storage, device="cpu", on_event=lambda event: None, stop=threading.Event())
    join("tiny", storage, device="cpu", on_event=lambda event: None, stop=threading.Event(), changed_code=True)
    before = user_attrs_of(load_study(storage, "tiny"))[CODE]
    options = LaunchOptions(extend=True, changed_code=True)
    launch(more, storage, options, on_event=lambda event: None, stop=threading.Event())
    after = user_attrs_of(load_study(storage, "tiny"))
    assert states(trials_of(storage)) == [TrialState.COMPLETE] * 4
    assert [file for file, content in after[CODE]["files"].items() if before["files"][file] != content] == ["parts.py"]
    assert after[CHANGES][-1]["changed"] == ["search.trials: 2 -> 4", "parts.py: other contents"]
    search(more, storage)  # it is the study's code now


def test_a_study_starts_from_networks_of_the_same_code(folder: Path, storage: Storage) -> None:
    """Wherever its own file is; else it is refused, or has other code count as its own for good."""
    search(own(folder, search={"trials": 3}), storage)
    following = {"trials": 1, "start_from": ["tiny"]}
    (folder / "further").mkdir()
    written = tree(name="further", search=following)
    written["network"] = {"module": "../nets.py:Net", "args": ARGS}
    assert notes(search(parse_study(written, "further/further.toml", folder / "further"), storage)) == []

    refused = "studies/tiny.toml: search.start_from: the trials of 'tiny' are not comparable with these: "
    other = "its network code differs ({}); restore the code, remove 'tiny' from start_from, or accept the difference "
    with pytest.raises(StudyFileError) as caught:
        search(own(folder, "Branching", name="next", search=following), storage)
    assert str(caught.value).startswith(refused + other.format("nets.py:Net, nets.py:Branching"))
    edit(folder)
    changed = own(folder, name="next", search=following)
    with pytest.raises(StudyFileError) as caught:
        search(changed, storage)
    assert str(caught.value).startswith(refused + other.format("parts.py") + "with --changed-code")
    assert "next" not in study_names(storage)
    assert notes(search(changed, storage, changed_code=True)) == []
    stored = load_study(storage, "next")
    assert warm_start(changed, user_attrs_of(stored), storage).names == ("tiny",)
    storage.set_study_attrs(
        load_study(storage, "tiny")._study_id, {CODE: user_attrs_of(stored)[CODE] | {"files": {"nets.py": ""}}}
    )
    (problem,) = warm_start(changed, user_attrs_of(stored), storage).problems
    assert other.format("parts.py, nets.py") in problem or other.format("nets.py, parts.py") in problem


def test_the_next_study_may_be_written_elsewhere(folder: Path, storage: Storage) -> None:
    """It finds the code and the images of the one before, starts from it, and can be narrowed in turn."""
    (folder / "my_data.py").write_text(DATA)
    study = own(folder, data={"dataset": "my_data.py:load"}, search={"trials": 8})
    search(study, storage)
    there = tmp_path_of(folder, "there")
    path = write_study(*propose(storage, "tiny"), there / "next.toml")
    assert write_study(*propose(storage, "tiny"), path) == path  # it says so already
    written = read_study(path)
    assert written.references == {"../my_data.py:load": "data.dataset", "../nets.py:Net": "network.module"}
    assert notes(search(written, storage)) == []
    (folder / "narrowed").mkdir()
    further = read_study(write_study(*propose(storage, "tiny-2"), folder / "narrowed" / "further.toml"))
    assert further.search.start_from == ["tiny-2", "tiny"]
    assert list(plan(further, "cpu").code.files) == ["../my_data.py", "../nets.py", "../parts.py"]

    either = tree(name="either", search={"trials": 8})
    either["network"] = {"module": {"choices": ["nets.py:Net", "nets.py:Branching"]}, "args": {"width": 4}}
    search(parse_study(either, "either.toml", folder), storage)
    with pytest.raises(HpoError, match=r"^network\.module: is searched among files in .*: write the next study there"):
        write_study(*propose(storage, "either"), there / "either.toml")
    assert read_study(write_study(*propose(storage, "either"), folder / "either.toml")).folder == folder


def test_every_module_that_a_trial_may_have_is_kept(folder: Path, storage: Storage) -> None:
    (folder / "others.py").write_text("from nets import Net\n")
    written = tree(search={"trials": 1})
    either = {"module": {"choices": ["nets.py:Net", "others.py:Net"]}, "args": {"width": 4}}
    within = {
        "kind": {"choices": ["mlp", "module"]},
        "when": {"kind": {"module": {**either, "module": "others.py:Net"}}},
    }
    for network in (either, within):
        study = parse_study({**written, "network": network}, "studies/tiny.toml", folder)
        assert list(plan(study, "cpu").code.files) == ["nets.py", "others.py", "parts.py"]


def test_a_search_does_not_go_on_with_what_another_study_has_imported_since(folder: Path, storage: Storage) -> None:
    study = own(folder, search={"trials": 4, "population": 2})
    submit(study, storage)
    begun = join("tiny", storage, device="cpu", on_event=lambda event: None, stop=threading.Event())
    with heartbeats(storage):
        assert begun.step()
        edit(folder)
        assert plan(study, "cpu").code.changed_since(user_attrs_of(load_study(storage, "tiny"))[CODE]) == ["parts.py"]
        with pytest.raises(StudyClosedError, match="its code has changed on this machine"):
            begun.step()


def test_what_follows_a_search_goes_on_with_its_code(
    folder: Path, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module of its own that no stack knows, with dropout and own images, in all that trains or reads it again."""
    monkeypatch.chdir(tmp_path_of(tmp_path, "elsewhere"))
    stop, said = threading.Event(), list[str]()
    (folder / "my_data.py").write_text(DATA)
    data = {"dataset": "my_data.py:load"}
    study = own(folder, "Branching", data=data, search={"trials": 3}, training={"keep": "best"})
    search(study, storage)
    assert verify(storage, "tiny", 2, "cpu", stop, said.append)["score"] == 0
    confirming = create_confirming_study(storage, "tiny", 1, 1)
    assert confirming.folder == folder.resolve()
    assert user_attrs_of(load_study(storage, confirming.name))[CODE] == user_attrs_of(load_study(storage, "tiny"))[CODE]
    search(confirming, storage)
    exported = export(storage, "tiny")
    jsonschema.validate(exported, schema("best"))
    assert exported["config"]["network"]["module"] == "nets.py:Branching"
    assert list(exported["code"]["files"]) == ["my_data.py", "nets.py", "parts.py"]
    path = Path("best.json")
    path.write_text(json.dumps(exported))
    (run,) = replay(path, "cpu", stop, said.append).runs
    assert run.difference == 0
    result, model = evaluate_test_set(
        storage, "tiny", EvaluationOptions(subnetworks=3, device="cpu"), stop, said.append
    )
    jsonschema.validate(result, schema("test"))
    images = np.zeros((2, 64))
    np.save("images.npy", images)
    first = str(predictions(model, Path("images.npy"), "cpu"))
    _, kept_one = evaluate_test_set(
        storage, "tiny", EvaluationOptions(again=True, from_checkpoint=True, device="cpu"), stop, said.append
    )
    assert json.loads((kept_one / "card.json").read_text())["code"] == exported["code"]

    moved = tmp_path_of(tmp_path, "moved")
    for file in ("nets.py", "parts.py"):
        (folder / file).rename(moved / file)
    (folder / "my_data.py").unlink()
    assert export(storage, "tiny")["code"] == exported["code"]
    assert "SHA-256 of nets.py" in report(storage, "tiny")
    (moved / "my_data.py").write_text(DATA)
    shutil.copy(path, moved / "beside.json")
    (run,) = replay(moved / "beside.json", "cpu", stop, said.append).runs
    assert run.difference == 0
    (moved / "my_data.py").unlink()  # which no network is made of
    nowhere = r"needs nets\.py, which is neither in .* nor in the current folder$"
    with pytest.raises(CodeError, match=rf"^best\.json: {nowhere.replace('nets', 'my_data')}"):
        replay(path, "cpu", stop, said.append)
    there = r"needs my_data\.py, which is neither in .* nor in the current folder; copy the file there, or work"
    with pytest.raises(CodeError, match=rf"^study 'tiny': {there}"):
        verify(storage, "tiny", 1, "cpu", stop, said.append)
    with pytest.raises(CodeError, match=rf"card\.json: its network {nowhere}"):
        predictions(model, Path("images.npy"), "cpu")
    shutil.copytree(moved, model, dirs_exist_ok=True)
    assert str(predictions(model, Path("images.npy"), "cpu")) == first
    (moved / "my_data.py").write_text(DATA)
    shutil.copytree(moved, Path.cwd(), dirs_exist_ok=True)
    edit(Path.cwd())
    with pytest.raises(CodeError, match=r"best\.json: needs parts\.py unchanged, but in .* the SHA-256 differs"):
        replay(path, "cpu", stop, said.append)
    with pytest.raises(CodeError, match=r"^study 'tiny': parts\.py in .* has changed since the study was created"):
        verify(storage, "tiny", 1, "cpu", stop, said.append)


def tmp_path_of(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name
