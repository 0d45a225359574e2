"""Training checkpoints: states bit for bit, refusal of damaged and foreign files, errors of the folder, when due."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.artifacts import get_all_artifact_meta
from training_states import NETS, Bench, Clock, module_study, plain, restarted, study_with

from hpo.data import load_split
from hpo.results.copy import copy_line
from hpo.search.checkpoints import training_checkpoints
from hpo.search.checkpoints.frozen_member import FrozenMember
from hpo.search.checkpoints.state_file import state_to_bytes
from hpo.search.checkpoints.time_budget import TimeBudget
from hpo.search.checkpoints.training_checkpoints import MAX_TIME_FRACTION, TrainingCheckpoints
from hpo.service.queue_control import delete
from hpo.storage import Storage, identity, load_study, summary
from hpo.storage.artifacts import state_file_id
from hpo.studyfile import parse_study
from hpo.studyfile.metrics import SUMS
from hpo.training.stack import Member
from hpo.usercode import import_code

CONSEQUENCE = "; the trial starts again at epoch 1"


@pytest.fixture
def bench(storage: Storage) -> Bench:
    return Bench(study_with(), storage)


KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "mlp": {},
    "sgd": {"optimizer": {"kind": "sgd"}},
    "momentum": {"optimizer": {"kind": "momentum"}},
    "adagrad": {"optimizer": {"kind": "adagrad"}},
    "batch_norm": {"network": {"batch_norm": True, "dropout": 0.3}},
    "cnn": {"network": {"kind": "cnn", "conv": [2], "kernel": 3, "batch_norm": True}},
    "folds": {"data": {"folds": 3}, "network": {"batch_norm": True}},
    "muon": {"optimizer": {"kind": "muon", "adamw_lr": 0.003}},
    "plateau": {"data": {"folds": 3}, "optimizer": {"schedule": "plateau"}, "training": {"ema": 0.9}},
    "clip": {"optimizer": {"kind": "adamw", "clip": 1.0, "weight_decay": 0.01, "schedule": "cosine"}},
}


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        pytest.param(kind, precision, marks=[] if precision == "float64" or kind == "batch_norm" else pytest.mark.slow)
        for kind in KINDS
        for precision in ("float32", "bfloat16", "float64")
    ],
)
def test_members_come_back_bit_for_bit(kind: str, precision: str, storage: Storage) -> None:
    changes = KINDS[kind]
    study = study_with(
        network=changes.get("network", {}),
        optimizer={"kind": "adam", "lr": 0.01, **changes.get("optimizer", {})},
        training={"epochs": 5, "precision": precision, **changes.get("training", {})},
    )
    bench = Bench(study, storage, precision)
    frozen = bench.frozen(0, 3, best=True)
    assert bench.checkpoints.write(frozen) == {0, 3}
    for number, member in frozen.items():
        assert bench.checkpoints.exists(number)
        read = bench.checkpoints.read(replace(member.member, state=None))
        assert read is not None
        assert read.member == replace(member.member, state=read.member.state)
        assert plain(read) == plain(member)
    assert bench.notes == []


def test_a_trial_continues_from_its_file_with_the_curve_that_it_has_alone(bench: Bench) -> None:
    (whole,) = bench.trainer.run([bench.member(3)], metric="val_loss", minimized=True, stop=threading.Event()).values()
    frozen = bench.frozen(3, 4)
    bench.checkpoints.write(frozen)
    read = bench.checkpoints.read(bench.member(3))
    assert read is not None
    rest: list[dict[str, float]] = [result.metrics[3] for result in bench.trainer.train([read.member])]
    for metric in SUMS["classification"]:
        curve = read.curve[metric] + [values[metric] for values in rest]
        assert curve == pytest.approx(whole.curve[metric], rel=1e-9)


@pytest.mark.parametrize("net", ["Tied", "Changing"])
def test_states_of_user_defined_networks_come_back(net: str, storage: Storage, tmp_path: Path) -> None:
    bench = Bench(module_study(net, tmp_path), storage)
    frozen = bench.frozen(2, best=True)
    assert bench.checkpoints.write(frozen) == {2}
    read = bench.checkpoints.read(bench.member(2, seed=2))
    assert bench.notes == []
    assert read is not None
    assert plain(read) == plain(frozen[2])


def test_extra_state_that_is_no_tensor_is_not_stored(storage: Storage, tmp_path: Path) -> None:
    bench = Bench(module_study("Extra", tmp_path), storage)
    for number in (0, 1):
        assert bench.checkpoints.write(bench.frozen(number)) == set()
        assert not bench.checkpoints.exists(number)
    problem = "'network/_extra_state' is a dict: a weights file stores tensors only"
    assert bench.notes == [
        f"training checkpoints cannot store these networks ({problem}): "
        "a trial that is interrupted starts again at epoch 1"
    ]


def test_curves_keep_every_float(bench: Bench) -> None:
    (frozen,) = bench.frozen(1).values()
    odd = [math.nan, -math.inf, math.inf, -0.0, 5e-324, 0.1 + 0.2]
    for first in odd:
        member = replace(frozen, curve={**frozen.curve, "val_loss": [first, 1 / 3]})
        bench.checkpoints.remove({1})
        bench.checkpoints.write({1: member})
        read = bench.checkpoints.read(bench.member(1, seed=1))
        assert read is not None
        assert struct.pack("2d", *read.curve["val_loss"]) == struct.pack("2d", first, 1 / 3)


@pytest.fixture
def written(bench: Bench) -> tuple[Bench, Member, bytes, Any]:
    (frozen,) = bench.frozen(5, best=True).values()
    bench.checkpoints.write({5: frozen})
    return bench, replace(frozen.member, state=None), bench.path(5).read_bytes(), plain(frozen)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_a_damaged_file_is_refused(written: tuple[Bench, Member, bytes, Any], data: st.DataObject) -> None:
    """Half of the positions are in the header, which is a small part of the file."""
    bench, member, content, expected = written
    header = 8 + int.from_bytes(content[:8], "little")
    position = data.draw(st.integers(0, header + 20) | st.integers(0, len(content) - 1), label="position")
    match data.draw(st.sampled_from(["flip", "cut", "insert", "append"]), label="damage"):
        case "flip":
            flipped = content[position] ^ data.draw(st.integers(1, 255), label="bits")
            damaged = content[:position] + bytes([flipped]) + content[position + 1 :]
        case "cut":
            damaged = content[:position]
        case "insert":
            damaged = content[:position] + data.draw(st.binary(min_size=1, max_size=9)) + content[position:]
        case _:
            damaged = content + data.draw(st.binary(min_size=1, max_size=9))
    bench.path(5).write_bytes(damaged)
    bench.notes.clear()
    read = bench.checkpoints.read(member)
    if damaged == content:
        assert read is not None
        assert plain(read) == expected
    else:
        assert read is None
        (note,) = bench.notes
        assert note.startswith(f"trial 5: its training checkpoint {bench.path(5)} is ")
        assert note.endswith(CONSEQUENCE)
        assert "\n" not in note
        assert not bench.checkpoints.exists(5)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(content=st.binary(max_size=300), length=st.none() | st.integers(0, 2**64 - 1))
def test_a_file_of_anything_is_refused(bench: Bench, content: bytes, length: int | None) -> None:
    bench.path(5).parent.mkdir(exist_ok=True)
    bench.path(5).write_bytes(content if length is None else struct.pack("<Q", length) + content)
    assert bench.checkpoints.read(bench.member(5)) is None
    assert bench.notes.pop().endswith(CONSEQUENCE)


def test_a_file_of_another_training_is_refused(storage: Storage, tmp_path: Path) -> None:
    base = module_study("Tied", tmp_path)
    bench = Bench(base, storage)
    bench.checkpoints.write(bench.frozen(5))
    content = bench.path(5).read_bytes()
    differs = "was written with another seed, configuration, code, data or precision"

    def refused(other: Bench, member: Member, problem: str) -> None:
        other.path(member.number).write_bytes(content)
        assert other.checkpoints.read(member) is None
        file = other.path(member.number)
        expected = f"trial {member.number}: its training checkpoint {file} {problem}{CONSEQUENCE}"
        assert other.notes.pop() == expected

    def changed(**sections: dict[str, Any]) -> Member:
        study_tree = {**base.resolved()}
        for section, values in sections.items():
            study_tree[section] = {**study_tree[section], **values}
        return Member(5, parse_study(study_tree, "tiny.toml", tmp_path).first_config, 5)

    member = bench.member(5, seed=5)
    refused(bench, replace(member, number=6), "is a file of trial 5")
    refused(bench, replace(member, seed=6), differs)
    refused(bench, changed(optimizer={"lr": 0.02}), differs)
    refused(bench, changed(training={"batch_size": 50}), differs)
    refused(bench, changed(training={"precision": "float32"}), differs)
    refused(bench, changed(training={"epochs": 2}), "is of epoch 2, and the trial has 2 epochs")
    for sections in (
        {"training": {"epochs": 50, "keep": "best", "keep_trials": 2, "checkpoint": "none", "patience": 3}},
        {"search": {"seed": 9, "trials": 40}},
    ):
        bench.path(5).write_bytes(content)
        assert bench.checkpoints.read(changed(**sections)) is not None
    refused(Bench(base.renamed("other"), storage), member, "is a file of another study")
    other_seed = parse_study({**base.resolved(), "data": {**base.resolved()["data"], "split_seed": 1}}, "t", tmp_path)
    refused(restarted(bench, splits=[load_split(other_seed)]), member, differs)
    (tmp_path / "net.py").write_text(f"{NETS}\n")
    refused(restarted(bench, code=import_code(base.references, tmp_path)), member, differs)


def test_the_number_of_epochs_matters_with_a_schedule_of_all_epochs_only(storage: Storage) -> None:
    for number, schedule in enumerate(["constant", "cosine", "onecycle"]):
        optimizer = {"kind": "adam", "lr": 0.01, "schedule": schedule}
        bench = Bench(study_with(name=schedule, optimizer=optimizer), storage)
        bench.checkpoints.write(bench.frozen(number))
        longer = study_with(name=schedule, optimizer=optimizer, training={"epochs": 50}).first_config
        read = bench.checkpoints.read(Member(number, longer, number))
        assert (read is None) == (schedule != "constant")


def test_precision_auto_is_the_precision_that_was_chosen(storage: Storage) -> None:
    study = study_with(training={"epochs": 5, "precision": "auto"})
    bench = Bench(study, storage, "float32")
    bench.checkpoints.write(bench.frozen(1))
    assert bench.checkpoints.read(bench.member(1, seed=1)) is not None
    assert restarted(bench, precision="bfloat16").checkpoints.read(bench.member(1, seed=1)) is None
    bench.checkpoints.write(bench.frozen(1))
    fixed = study_with(training={"epochs": 5, "precision": "float32"}).first_config
    assert bench.checkpoints.read(Member(1, fixed, 1)) is not None


def rewritten(content: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Return a file's content with changed metadata and a valid SHA-256."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    about = json.loads(header["__metadata__"]["about"])
    change(about)
    about["sha256"] = "0" * 64
    header["__metadata__"]["about"] = json.dumps(about)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    blank = struct.pack("<Q", len(text)) + text + content[end:]
    return blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode(), 1)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda about: about.update(schema="hpo.state/2"), "its metadata: 'schema'"),
        (lambda about: about.update(epoch=0), "its metadata: 'epoch'"),
        (lambda about: about.update(epoch=True), "its metadata: 'epoch'"),
        (lambda about: about.update(epoch=3), "its learning curve has another number of epochs or other metrics"),
        (lambda about: about["curve"].pop("val_loss"), "its learning curve has another number of epochs"),
        (lambda about: about["curve"]["val_loss"].append("Infinite"), "its metadata: 'curve.val_loss.2'"),
        (lambda about: about.update(elapsed_s="NaN"), "its metadata: 'elapsed_s'"),
        (lambda about: about["seconds"].pop(), "its learning curve has another number of epochs"),
        (lambda about: about["best"].update(epoch=3), "its best epoch is not one of its epochs"),
        (lambda about: about.update(best=None), "it has a tensor of no known part ('best/"),
        (lambda about: about.update(moments=1), "it has a tensor of no known part ('optimizer/1/"),
        (lambda about: about.update(moments=3), "its optimizer state is that of another optimizer"),
        (lambda about: about["steps"].popitem(), "its optimizer state is that of another optimizer"),
        (lambda about: about["steps"].update({"1.weight": -1}), "its metadata: 'steps.1.weight'"),
        (
            lambda about: about["steps"].update({min(about["steps"]): 5}),
            "its optimizer has not made the 4 updates of 2 epochs",
        ),
        (lambda about: about.update(steps=dict.fromkeys(about["steps"], 4000)), "its optimizer has not made the 4 up"),
        (lambda about: about.update(more=1), "its metadata: 'more'"),
        (lambda about: None, ""),
    ],
)
def test_wrong_metadata_with_a_valid_sha256_is_refused(
    change: Callable[[dict[str, Any]], None], problem: str, written: tuple[Bench, Member, bytes, Any]
) -> None:
    bench, member, content, expected = written
    bench.path(5).write_bytes(rewritten(content, change))
    read = bench.checkpoints.read(member)
    if problem:
        assert read is None
        (note,) = bench.notes
        assert problem in note
        assert note.endswith(CONSEQUENCE)
    else:
        assert read is not None
        assert plain(read) == expected


def with_steps(bench: Bench, number: int, steps: int) -> None:
    """Change the step counts in the file of a trial, which stays a valid file."""

    def change(about: dict[str, Any]) -> None:
        about["steps"] = dict.fromkeys(about["steps"], steps)

    bench.path(number).write_bytes(rewritten(bench.path(number).read_bytes(), change))


def test_wrong_step_counts_of_a_user_defined_network_stay_out_of_the_stack_of_others(
    storage: Storage, tmp_path: Path
) -> None:
    """Its parameters may lack gradients, so that lower counts are possible."""
    bench = Bench(module_study("Plain", tmp_path), storage)
    bench.checkpoints.write(bench.frozen(1, 2, 3))
    with_steps(bench, 1, 3)
    with_steps(bench, 2, 5)
    read = [bench.checkpoints.read(bench.member(number, seed=number)) for number in (1, 2, 3)]
    assert [each is not None for each in read] == [True, False, True]
    assert "trial 2: " in bench.notes[0]
    members = [each.member for each in read if each]
    assert len(bench.trainer.groups(members)) == 2
    whole = bench.frozen(2, 3)
    assert len(bench.trainer.groups([each.member for each in whole.values()])) == 1


def test_tensors_of_another_shape_or_type_are_refused(bench: Bench) -> None:
    (frozen,) = bench.frozen(1).values()
    network = frozen.state.network
    name, value = next(iter(network.items()))
    for values, problem in [
        ({**network, name: value[:1]}, f"its network has another shape or type than the described network ('{name}')"),
        ({**network, name: value.float()}, "its network has another shape or type"),
        ({**network, "more": value[0]}, "its network has other tensors than the described network"),
        ({key: each for key, each in network.items() if key != name}, "its network has other tensors"),
    ]:
        state = replace(frozen.state, network=values)
        bench.checkpoints.write({1: replace(frozen, member=replace(frozen.member, state=state))})
        assert bench.checkpoints.read(replace(frozen.member, state=None)) is None
        assert problem in bench.notes.pop()


def test_a_file_that_is_too_large_is_not_read(written: tuple[Bench, Member, bytes, Any]) -> None:
    bench, member, _, _ = written
    with open(bench.path(5), "r+b") as file:
        file.truncate(2**40)  # a sparse file
    assert bench.checkpoints.read(member) is None
    assert "is larger than a state of this trial" in bench.notes[0]


def test_links_and_folders_are_no_files(written: tuple[Bench, Member, bytes, Any], tmp_path: Path) -> None:
    bench, member, content, _ = written
    bench.path(5).unlink()
    (tmp_path / "other").write_bytes(content)
    bench.path(5).symlink_to(tmp_path / "other")
    assert bench.checkpoints.read(member) is None
    bench.path(5).unlink()
    bench.path(5).mkdir()
    assert bench.checkpoints.read(member) is None
    assert not bench.checkpoints.exists(5)
    bench.checkpoints.remove({5})
    assert bench.notes == []


def test_each_file_replaces_the_last_one_and_is_removed(bench: Bench) -> None:
    assert bench.checkpoints.read(bench.member(1)) is None
    assert not bench.checkpoints.exists(1)
    for epoch in (1, 3):
        bench.checkpoints.write(bench.frozen(1, 2, epoch=epoch))
        read = bench.checkpoints.read(bench.member(1, seed=1))
        assert read is not None
        assert read.epoch == epoch
    folder = bench.path(1).parent
    assert sorted(os.listdir(folder)) == sorted([bench.path(1).name, bench.path(2).name])
    bench.checkpoints.remove({1, 7})
    assert os.listdir(folder) == [bench.path(2).name]
    assert bench.notes == []


def test_a_retry_continues_from_the_last_state_and_has_spent_no_time(bench: Bench) -> None:
    bench.checkpoints.write(bench.frozen(1, epoch=3))
    bench.checkpoints.write(bench.frozen(2, 3))
    bench.path(3).write_bytes(b"damaged")
    members = [bench.member(number, seed=number) for number in range(5)]
    bench.checkpoints.write_for_retry(members, bench.frozen(1, 4) | bench.frozen(2, epoch=3))
    read = [bench.checkpoints.read(member) for member in members]
    assert [each and (each.epoch, each.elapsed_s) for each in read] == [None, (3, 0.0), (3, 0.0), None, (2, 0.0)]
    (note,) = bench.notes
    assert note.startswith("trial 3: ")


def test_a_failed_write_leaves_the_last_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.checkpoints.write(bench.frozen(1, 2, epoch=1))
    real = state_to_bytes
    write_bytes = Path.write_bytes
    of_1: list[bytes] = []

    def content(member: FrozenMember, *others: str) -> bytes:
        written = real(member, *others)
        of_1.extend([written] * (member.member.number == 1))
        return written

    def full(self: Path, data: bytes) -> int:
        if data in of_1:
            write_bytes(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(self, data)

    monkeypatch.setattr(training_checkpoints, "state_to_bytes", content)
    monkeypatch.setattr(Path, "write_bytes", full)
    for _ in range(2):
        assert bench.checkpoints.write(bench.frozen(1, 2, epoch=2)) == {2}
    assert bench.notes == [
        f"training checkpoints cannot be written in {bench.path(1).parent} (No space left on device): "
        "a trial that is interrupted starts again at epoch 1"
    ]
    reads = [bench.checkpoints.read(bench.member(number, seed=number)) for number in (1, 2)]
    assert [read.epoch for read in reads if read] == [1, 2]
    assert len(os.listdir(bench.path(1).parent)) == 2


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        ("file/folder", "(Not a directory)"),
        ("file", "file: is not a folder; name another one"),
    ],
)
def test_a_folder_that_cannot_be_used_gives_one_warning(
    folder: str, why: str, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HPO_ARTIFACTS", str(tmp_path / folder))
    bench = Bench(study_with(), storage)
    assert bench.checkpoints.read(bench.member(1)) is None
    assert not bench.checkpoints.exists(1)
    for epoch in (1, 2):
        assert bench.checkpoints.write(bench.frozen(1, 2, epoch=epoch)) == set()
    bench.checkpoints.remove({1, 2})
    (note,) = bench.notes
    assert note.startswith("training checkpoints cannot be written ")
    assert why in note


def test_the_dashboard_does_not_list_the_files(bench: Bench) -> None:
    bench.checkpoints.write(bench.frozen(0))
    assert get_all_artifact_meta(load_study(bench.storage, "tiny"), storage=bench.storage) == []


def test_files_of_a_study_are_deleted_with_it_and_not_copied(storage: Storage) -> None:
    bench, other = Bench(study_with(), storage), Bench(study_with(name="other"), storage)
    for each in (bench, other):
        stored = load_study(storage, each.study.name)
        for _ in range(2):
            stored.ask()
        each.checkpoints.write(each.frozen(0, 1))
    copy_line(storage, "tiny", storage.location.full_url, "copy")
    copy = summary(storage, "copy")
    assert not (bench.path(0).parent / state_file_id(identity(copy.user_attrs, "copy"), 0)).exists()
    delete(storage, "copy")
    assert bench.checkpoints.exists(1)
    delete(storage, "tiny")
    assert sorted(os.listdir(other.path(0).parent)) == sorted(other.path(number).name for number in (0, 1))


def test_a_study_without_files_is_deleted_whatever_the_folder(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    Bench(study_with(), storage)
    monkeypatch.setenv("HPO_ARTIFACTS", str(tmp_path / "file"))
    delete(storage, "tiny")


def due(setting: Any, storage: Storage) -> Bench:
    return Bench(study_with(training={"epochs": 5, "checkpoint": setting}), storage)


def test_checkpoints_are_due_after_a_number_of_epochs_and_at_rungs(storage: Storage) -> None:
    checkpoints = due(3, storage).checkpoints
    assert checkpoints.enabled
    assert [epoch for epoch in range(1, 10) if checkpoints.due(epoch, [4, 2]) == [4, 2]] == [3, 6, 9]
    assert not any(checkpoints.due(epoch, [4, 2]) for epoch in (1, 2, 4))
    assert checkpoints.is_permitted


def test_no_checkpoint_is_due_with_none(storage: Storage) -> None:
    bench = due("none", storage)
    bench.clock.now = 1e9
    assert not bench.checkpoints.enabled
    assert not any(bench.checkpoints.due(epoch, [1]) for epoch in range(1, 9))
    assert not bench.checkpoints.is_permitted


def test_members_in_training_are_written_where_the_next_rung_is_paid_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write takes 0.01 s."""
    bench = restarted(bench, clock=(clock := Clock()))

    def slow(self: TrainingCheckpoints, *others: Any) -> bool:
        clock.now += 0.01
        return True

    monkeypatch.setattr(TrainingCheckpoints, "_write", slow)
    member: Any = SimpleNamespace(epoch=1)
    clock.now = 1.0
    assert bench.checkpoints.due(1, [3, 4, 5]) == [3]  # the duration of a write is not known
    bench.checkpoints.write({3: member})
    assert bench.checkpoints.due(2, [3, 4, 5]) == ()
    clock.now = 0.0699 / MAX_TIME_FRACTION  # 0.01 s are spent
    assert bench.checkpoints.due(3, [3, 4, 5]) == ()
    clock.now = 0.0701 / MAX_TIME_FRACTION
    assert bench.checkpoints.due(3, [3, 4, 5]) == [3, 4, 5]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    costs=st.lists(st.floats(0.001, 3), min_size=1, max_size=6),
    epoch_s=st.floats(0.1, 100),
    forced=st.booleans(),
    frozen=st.booleans(),
)
def test_auto_costs_at_most_two_percent_of_the_time(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    costs: list[float],
    epoch_s: float,
    forced: bool,
    frozen: bool,
) -> None:
    """The time before a write pays for all earlier ones, also for those that a lack of memory caused."""
    bench = restarted(bench, clock=(clock := Clock()))
    spent = 0.0

    def slow(self: TrainingCheckpoints, *others: Any) -> bool:
        nonlocal spent
        clock.now += costs[-1]
        spent += costs[-1]
        return True

    def is_due() -> bool:
        return bench.checkpoints.is_permitted if frozen else bool(bench.checkpoints.due(1, [0]))

    member: Any = SimpleNamespace(epoch=1)
    assert not is_due()
    with monkeypatch.context() as patch:
        patch.setattr(TrainingCheckpoints, "_write", slow)
        while costs:
            while not is_due():
                clock.now += epoch_s
            assert spent <= MAX_TIME_FRACTION * clock.now * (1 + 1e-9)
            bench.checkpoints.write({0: member})
            if forced:
                bench.checkpoints.write({0: member})
            costs.pop()
        clock.now = 1.001 + spent / MAX_TIME_FRACTION * 3
        assert is_due()


def test_time_of_nested_blocks_is_counted_once(bench: Bench) -> None:
    clock = Clock()
    budget = TimeBudget(0.5, 1.0, clock)
    with budget.spending():
        clock.now += 1.0
        with budget.spending():
            clock.now += 2.0
            assert budget.spent_s == 3.0
    clock.now += 1.0
    assert (budget.spent_s, budget.seconds_per_write, budget.permits()) == (3.0, None, False)
    budget.add_write()
    clock.now += 2.0
    assert (budget.seconds_per_write, budget.permits(), budget.permits(0.1)) == (3.0, True, False)
