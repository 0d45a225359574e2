"""User-defined networks: search, stored code, changed code, invalid networks, and errors in user code."""

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

NETWORK_CODE = """
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
    def __init__(self, shape, classes, width, previous=[]):
        super().__init__(shape, classes, width + len(previous))
        previous.append(1)
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
    (tmp_path / "nets.py").write_text(NETWORK_CODE)
    (tmp_path / "parts.py").write_text(PARTS)
    return tmp_path


def network_study(
    folder: Path, net: str = "Net", args: dict[str, Any] | None = None, **changes: dict[str, Any] | str
) -> Study:
    file_tree = tree(**changes)
    file_tree["network"] = {"module": f"nets.py:{net}", "args": ARGS if args is None else args}
    return parse_study(file_tree, "studies/tiny.toml", folder)


def notes(events: list[Any]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note) and event.level == "warning"]


def test_user_defined_networks_train_in_populations_and_their_code_is_stored(folder: Path, storage: Storage) -> None:
    events = search(network_study(folder), storage)
    assert [len(event.members) for event in events if isinstance(event, PopulationStarted)] == [4, 2]
    assert notes(events) == []
    trials = trials_of(storage)
    assert states(trials) == [TrialState.COMPLETE] * 6
    assert set(trials[0].params) == {"args.dropout", "lr"}
    record = user_attrs_of(load_study(storage, "tiny"))[CODE]
    assert record["folder"] == str(folder.resolve())
    assert list(record["files"]) == ["nets.py", "parts.py"]
    assert stored_study(load_study(storage, "tiny")).folder == folder.resolve()


def test_a_network_that_cannot_be_stacked_trains_alone(folder: Path, storage: Storage) -> None:
    study = network_study(folder, "Branching", search={"trials": 3, "population": "auto"})
    events = search(study, storage)
    assert next(event.population for event in events if isinstance(event, StudyStarted)) == 1
    assert [len(event.members) for event in events if isinstance(event, PopulationStarted)] == [1, 1, 1]
    (note,) = notes(events)
    assert note.startswith("nets.py:Branching: Branching cannot be stacked")
    assert states(trials_of(storage)) == [TrialState.COMPLETE] * 3


@pytest.mark.parametrize(
    ("name", "args", "line"),
    [
        (
            "Wrong",
            {"width": 4},
            "network.module: nets.py:Wrong raised RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x64 and "
            "4x10) for inputs of shape [4, 1, 8, 8] (nets.py, line 34, in forward)",
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
def test_an_invalid_network_is_refused_before_anything_is_stored(
    folder: Path, storage: Storage, name: str, args: dict[str, Any], line: str
) -> None:
    with pytest.raises(StudyFileError) as caught:
        search(network_study(folder, name, args), storage)
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
            "torch.Size([1, 4]) for inputs of shape [1, 1, 8, 8] (nets.py, line 17, in forward)",
        ),
    ],
)
def test_a_network_is_checked_on_a_batch_of_one_if_the_study_has_one(
    folder: Path, net: str, changes: dict[str, Any], line: str | None
) -> None:
    study = network_study(folder, net, {"width": 4}, **changes)
    if line is None:
        assert plan(study, "cpu").stacked
        return
    with pytest.raises(StudyFileError) as caught:
        plan(study, "cpu")
    assert str(caught.value).startswith(f"studies/tiny.toml: network.module: nets.py:{line}")


def test_a_constructor_that_raises_fails_its_trials_in_a_study_with_limits(folder: Path, storage: Storage) -> None:
    args = {"width": {"choices": [4, 8]}}
    limits = {"limits": {"parameters": 1000}, "trials": 2, "sampler": "grid", "retries": 0}
    search(network_study(folder, "Picky", args, optimizer={"lr": 0.1}, search=limits), storage)
    failed, complete = sorted(trials_of(storage), key=lambda trial: trial.state == TrialState.COMPLETE)
    assert complete.state == TrialState.COMPLETE
    assert failed.user_attrs[FAILURE_REASON] == "ValueError: a width of 8 (nets.py, line 40, in __init__)"


def test_an_error_fails_its_trial_and_three_alike_stop_the_study(folder: Path, storage: Storage) -> None:
    """Errors that differ only in a number are alike."""
    args = {"width": 4, "dropout": {"choices": [0.0, 0.1, 0.2, 0.3]}}
    study = network_study(
        folder, "Raising", args, optimizer={"lr": 0.1}, search={"trials": 4, "sampler": "grid", "retries": 0}
    )
    events: list[Any] = []
    error = r"ValueError: a rate of 0\.\d for inputs of shape \[4, 1, 8, 8\] \(nets\.py, line 28, in forward\)"
    message = rf"in 3 populations in a row \({error}\)"
    with pytest.raises(TrainingError, match=message):
        search(study, storage, stop_at=lambda event: bool(events.append(event)))
    trials = trials_of(storage)
    assert sorted(states(trials)) == [TrialState.COMPLETE, *[TrialState.FAIL] * 3]
    failed = next(trial for trial in trials if trial.state == TrialState.FAIL)
    assert failed.user_attrs[FAILURE_REASON].startswith("ValueError: a rate of 0.")
    (attempt,) = failed.system_attrs[ATTEMPTS]
    assert 'raise ValueError(f"a rate of {self.rate}")' in attempt["traceback"]
    assert "torch" not in attempt["traceback"]
    assert attempt["traceback"].strip() in "\n".join(notes(events))


def test_a_range_of_integers_is_an_integer_parameter(folder: Path) -> None:
    study = network_study(folder, args={"width": {"low": 4, "high": 6}, "dropout": {"low": 0, "high": 0.5}})
    assert [parameter.integer for parameter in study.parameters] == [True, False, False]
    assert plan(study, "cpu").population == 4


def test_built_in_and_user_defined_networks_are_searched_together(folder: Path, storage: Storage) -> None:
    file_tree = tree(optimizer={"lr": LR}, search={"trials": 4, "sampler": "random"})
    file_tree["network"] = {"kind": {"choices": ["mlp", "module"]}, "module": "nets.py:Net", "args": {"width": 4}}
    search(parse_study(file_tree, "studies/tiny.toml", folder), storage)
    trials = trials_of(storage)
    assert {trial.params["network.kind"] for trial in trials} == {"mlp", "module"}
    assert states(trials) == [TrialState.COMPLETE] * 4
    assert study_of().references == {}


def change_code(folder: Path) -> None:
    (folder / "parts.py").write_text(PARTS.replace("nn.ReLU()", "nn.Tanh()"))


def test_changed_code_is_refused_unless_it_is_accepted(folder: Path, storage: Storage) -> None:
    study = network_study(folder, search={"trials": 2})
    search(study, storage)
    more = network_study(folder, search={"trials": 4})
    change_code(folder)
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
    search(more, storage)  # the changed code is the stored code now


def test_a_study_starts_only_from_studies_of_the_same_code(folder: Path, storage: Storage) -> None:
    """The study file may be in another folder. A launch with `changed_code` accepts other code for good."""
    search(network_study(folder, search={"trials": 3}), storage)
    following = {"trials": 1, "start_from": ["tiny"]}
    (folder / "further").mkdir()
    file_tree = tree(name="further", search=following)
    file_tree["network"] = {"module": "../nets.py:Net", "args": ARGS}
    assert notes(search(parse_study(file_tree, "further/further.toml", folder / "further"), storage)) == []

    refused = "studies/tiny.toml: search.start_from: the trials of 'tiny' are not comparable with these: "
    other = "its network code differs ({}); restore the code, remove 'tiny' from start_from, or accept the difference "
    with pytest.raises(StudyFileError) as caught:
        search(network_study(folder, "Branching", name="next", search=following), storage)
    assert str(caught.value).startswith(refused + other.format("nets.py:Net, nets.py:Branching"))
    change_code(folder)
    changed = network_study(folder, name="next", search=following)
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


def test_the_next_study_may_be_written_to_another_folder(folder: Path, storage: Storage) -> None:
    """The next study finds the code and data of the first one, starts from it, and can be narrowed itself."""
    (folder / "my_data.py").write_text(DATA)
    study = network_study(folder, data={"dataset": "my_data.py:load"}, search={"trials": 8})
    search(study, storage)
    other_folder = new_folder(folder, "there")
    path = write_study(*propose(storage, "tiny"), other_folder / "next.toml")
    assert write_study(*propose(storage, "tiny"), path) == path  # an equal file is no error
    next_study = read_study(path)
    assert next_study.references == {"../my_data.py:load": "data.dataset", "../nets.py:Net": "network.module"}
    assert notes(search(next_study, storage)) == []
    (folder / "narrowed").mkdir()
    further = read_study(write_study(*propose(storage, "tiny-2"), folder / "narrowed" / "further.toml"))
    assert further.search.start_from == ["tiny-2", "tiny"]
    assert list(plan(further, "cpu").code.files) == ["../my_data.py", "../nets.py", "../parts.py"]

    file_tree = tree(name="either", search={"trials": 8})
    file_tree["network"] = {"module": {"choices": ["nets.py:Net", "nets.py:Branching"]}, "args": {"width": 4}}
    search(parse_study(file_tree, "either.toml", folder), storage)
    with pytest.raises(HpoError, match=r"^network\.module: is searched among files in .*: write the next study there"):
        write_study(*propose(storage, "either"), other_folder / "either.toml")
    assert read_study(write_study(*propose(storage, "either"), folder / "either.toml")).folder == folder


def test_every_searched_module_is_stored_with_the_study(folder: Path, storage: Storage) -> None:
    (folder / "others.py").write_text("from nets import Net\n")
    file_tree = tree(search={"trials": 1})
    two_modules = {"module": {"choices": ["nets.py:Net", "others.py:Net"]}, "args": {"width": 4}}
    conditional = {
        "kind": {"choices": ["mlp", "module"]},
        "when": {"kind": {"module": {**two_modules, "module": "others.py:Net"}}},
    }
    for network in (two_modules, conditional):
        study = parse_study({**file_tree, "network": network}, "studies/tiny.toml", folder)
        assert list(plan(study, "cpu").code.files) == ["nets.py", "others.py", "parts.py"]


def test_a_search_stops_if_another_study_has_imported_changed_code(folder: Path, storage: Storage) -> None:
    study = network_study(folder, search={"trials": 4, "population": 2})
    submit(study, storage)
    population_search = join("tiny", storage, device="cpu", on_event=lambda event: None, stop=threading.Event())
    with heartbeats(storage):
        assert population_search.step()
        change_code(folder)
        assert plan(study, "cpu").code.changed_since(user_attrs_of(load_study(storage, "tiny"))[CODE]) == ["parts.py"]
        with pytest.raises(StudyClosedError, match="its code has changed on this machine"):
            population_search.step()


def test_commands_after_a_search_use_the_code_of_the_study(
    folder: Path, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network with dropout that cannot be stacked, on user data, in each command that trains or loads it."""
    monkeypatch.chdir(new_folder(tmp_path, "elsewhere"))
    stop, messages = threading.Event(), list[str]()
    (folder / "my_data.py").write_text(DATA)
    data = {"dataset": "my_data.py:load"}
    study = network_study(folder, "Branching", data=data, search={"trials": 3}, training={"keep": "best"})
    search(study, storage)
    assert verify(storage, "tiny", 2, "cpu", stop, messages.append)["score"] == 0
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
    (run,) = replay(path, "cpu", stop, messages.append).runs
    assert run.difference == 0
    result, model = evaluate_test_set(
        storage, "tiny", EvaluationOptions(subnetworks=3, device="cpu"), stop, messages.append
    )
    jsonschema.validate(result, schema("test"))
    images = np.zeros((2, 64))
    np.save("images.npy", images)
    first = str(predictions(model, Path("images.npy"), "cpu"))
    _, checkpoint_model = evaluate_test_set(
        storage, "tiny", EvaluationOptions(again=True, from_checkpoint=True, device="cpu"), stop, messages.append
    )
    assert json.loads((checkpoint_model / "card.json").read_text())["code"] == exported["code"]

    moved = new_folder(tmp_path, "moved")
    for file in ("nets.py", "parts.py"):
        (folder / file).rename(moved / file)
    (folder / "my_data.py").unlink()
    assert export(storage, "tiny")["code"] == exported["code"]
    assert "SHA-256 of nets.py" in report(storage, "tiny")
    (moved / "my_data.py").write_text(DATA)
    shutil.copy(path, moved / "beside.json")
    (run,) = replay(moved / "beside.json", "cpu", stop, messages.append).runs
    assert run.difference == 0
    (moved / "my_data.py").unlink()  # the network does not need the data
    missing_network = r"needs nets\.py, which is neither in .* nor in the current folder$"
    with pytest.raises(CodeError, match=rf"^best\.json: {missing_network.replace('nets', 'my_data')}"):
        replay(path, "cpu", stop, messages.append)
    missing = r"needs my_data\.py, which is neither in .* nor in the current folder; copy the file there, or work"
    with pytest.raises(CodeError, match=rf"^study 'tiny': {missing}"):
        verify(storage, "tiny", 1, "cpu", stop, messages.append)
    with pytest.raises(CodeError, match=rf"card\.json: its network {missing_network}"):
        predictions(model, Path("images.npy"), "cpu")
    shutil.copytree(moved, model, dirs_exist_ok=True)
    assert str(predictions(model, Path("images.npy"), "cpu")) == first
    (moved / "my_data.py").write_text(DATA)
    shutil.copytree(moved, Path.cwd(), dirs_exist_ok=True)
    change_code(Path.cwd())
    with pytest.raises(CodeError, match=r"best\.json: needs parts\.py unchanged, but in .* the SHA-256 differs"):
        replay(path, "cpu", stop, messages.append)
    with pytest.raises(CodeError, match=r"^study 'tiny': parts\.py in .* has changed since the study was created"):
        verify(storage, "tiny", 1, "cpu", stop, messages.append)


def new_folder(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name
