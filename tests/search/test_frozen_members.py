"""Frozen members: in memory up to a limit, in files beyond it, and the same members back bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from training_states import Bench, module_study, plain, restarted, study_with

from hpo.search.checkpoints.frozen_members import FrozenMembers
from hpo.search.checkpoints.training_checkpoints import TrainingCheckpoints
from hpo.storage import Storage


@pytest.fixture
def bench(storage: Storage) -> Bench:
    return Bench(study_with(), storage)


def counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of the members whose files are written from now on, in order."""
    written: list[int] = []
    real = TrainingCheckpoints._write

    def count(self: TrainingCheckpoints, number: int, *others: Any) -> bool:
        written.append(number)
        bench.clock.now += 0.01
        return real(self, number, *others)

    monkeypatch.setattr(TrainingCheckpoints, "_write", count)
    return written


@pytest.mark.parametrize("fits", [0, 1, 3])
def test_members_beyond_the_limit_come_back_from_files(fits: int, bench: Bench) -> None:
    high, low = bench.frozen(0, 4, epoch=3, best=True), bench.frozen(1, 2, 5, epoch=1, best=True)
    members, size = {**high, **low}, high[0].nbytes
    frozen = FrozenMembers(bench.checkpoints, max_bytes=fits * size + size // 2)
    frozen.put(high)
    frozen.put(low)
    assert frozen.bytes_in_memory == fits * size
    on_disk = {number for number in members if bench.checkpoints.exists(number)}
    assert len(on_disk) == 5 - fits
    assert fits == 0 or not high.keys() <= on_disk  # those with the fewest epochs are written first
    assert frozen.epochs == {0: 3, 4: 3, 1: 1, 2: 1, 5: 1}
    assert {number: frozen.curve(number) for number in members} == {n: each.curve for n, each in members.items()}
    taken = frozen.take([0, 2, 5, 7])
    assert {number: plain(each) for number, each in taken.items()} == {n: plain(members[n]) for n in (0, 2, 5)}
    assert frozen.epochs == {4: 3, 1: 1}
    assert frozen.take([0]) == {}
    for number in (1, 8):
        frozen.drop(number)
    assert frozen.epochs == {4: 3}
    assert frozen.take([4]).keys() == {4}
    assert (frozen.bytes_in_memory, bench.notes) == (0, [])


def test_without_checkpoints_all_members_stay_in_memory(storage: Storage) -> None:
    bench = Bench(study_with(training={"epochs": 5, "checkpoint": "none"}), storage)
    members = bench.frozen(0, 1)
    frozen = FrozenMembers(bench.checkpoints, max_bytes=0)
    frozen.put(members)
    frozen.write()
    assert not bench.checkpoints.exists(0)
    assert frozen.take([0, 1]) == members


def test_members_of_a_few_bytes_stay_in_memory_by_default(bench: Bench) -> None:
    frozen = FrozenMembers(bench.checkpoints)
    frozen.put(bench.frozen(0, 1))
    assert not bench.checkpoints.exists(0)


def test_a_written_member_is_not_written_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    written = counted(bench, monkeypatch)
    frozen = FrozenMembers(bench.checkpoints, max_bytes=10**9)
    members = bench.frozen(0, 1, epoch=1)
    bench.checkpoints.write({0: members[0]})
    frozen.put(members)
    frozen.write()
    frozen.write()
    assert written == [0, 1]
    assert frozen.take([0])[0] is members[0]  # from memory
    frozen.put(bench.frozen(0, epoch=2))
    frozen.write()
    assert written == [0, 1, 0]
    bench.path(1).unlink()
    bench.checkpoints.remove({0})
    frozen.write()
    assert written == [0, 1, 0, 0, 1]


def test_states_are_written_when_there_is_time_for_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write takes 0.01 s."""
    monkeypatch.setattr(bench.checkpoints._budget, "_fraction", 0.02)  # 0.5 s of other work pay for it
    written = counted(bench, monkeypatch)
    frozen = FrozenMembers(bench.checkpoints, max_bytes=10**9)
    frozen.put(bench.frozen(4, 2, 3, epoch=1))
    frozen.write_permitted()
    assert written == []  # nothing is known of the duration yet
    bench.clock.now = 1.0
    frozen.write_permitted()
    assert written == [4, 2, 3]  # the third one exceeds the budget
    frozen.put(bench.frozen(1, 5, epoch=1))
    frozen.put(bench.frozen(7, epoch=2))
    frozen.put(bench.frozen(6, 8, epoch=1))
    frozen.write_permitted()
    assert written == [4, 2, 3]
    frozen.drop(5)
    frozen.take([8])
    bench.clock.now += 0.5
    frozen.write_permitted()
    assert written[3:] == [7]  # the most epochs
    bench.clock.now += 10
    for _ in range(3):
        frozen.write_permitted()
    assert written[4:] == [1, 6]  # in the order of freezing
    assert frozen.epochs == {4: 1, 2: 1, 3: 1, 1: 1, 7: 2, 6: 1}


def test_states_that_cannot_be_written_do_not_keep_others_from_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TrainingCheckpoints._write
    full = {1}
    monkeypatch.setattr(
        TrainingCheckpoints, "_write", lambda self, number, *others: number not in full and real(self, number, *others)
    )
    frozen = FrozenMembers(bench.checkpoints, max_bytes=10**9)
    frozen.put(bench.frozen(1, 2))
    bench.clock.now = 100.0
    frozen.write_permitted()
    assert (bench.checkpoints.exists(1), bench.checkpoints.exists(2)) == (False, True)
    full.clear()
    frozen.write_permitted()
    assert bench.checkpoints.exists(1)


def test_a_member_that_cannot_be_written_stays_in_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    members = bench.frozen(0, 1, 2, 3)
    real = TrainingCheckpoints._write
    monkeypatch.setattr(
        TrainingCheckpoints, "_write", lambda self, number, *others: number > 1 and bool(real(self, number, *others))
    )
    frozen = FrozenMembers(bench.checkpoints, max_bytes=0)
    for number, member in members.items():
        frozen.put({number: member})
    assert {number for number in members if bench.checkpoints.exists(number)} == {2, 3}
    assert frozen.bytes_in_memory == members[0].nbytes + members[1].nbytes
    taken = frozen.take(list(members))
    assert taken[0] is members[0]
    assert {number: plain(each) for number, each in taken.items()} == {n: plain(each) for n, each in members.items()}


@pytest.mark.parametrize("lost", ["missing", "damaged", "replaced"])
def test_members_whose_files_are_lost_are_not_returned(lost: str, bench: Bench) -> None:
    members = bench.frozen(0, 1, 2)
    frozen = FrozenMembers(bench.checkpoints, max_bytes=0)
    frozen.put(members)
    if lost == "missing":
        bench.path(1).unlink()
    elif lost == "damaged":
        bench.path(1).write_bytes(bench.path(1).read_bytes()[:-1])
    else:  # by a worker that has claimed the trial in the meantime
        other = restarted(bench)
        other.checkpoints.write(other.frozen(1, epoch=3))
    assert frozen.take([0, 1, 2]).keys() == {0, 2}
    assert len(bench.notes) == (lost == "damaged")
    assert frozen.epochs == {}


def test_members_of_an_unstackable_module_with_extra_state_stay_in_memory(storage: Storage, tmp_path: Path) -> None:
    bench = Bench(module_study("Extra", tmp_path), storage)
    members = {**bench.frozen(0), **bench.frozen(1)}
    frozen = FrozenMembers(bench.checkpoints, max_bytes=0)
    frozen.put(members)
    assert frozen.take([0, 1]) == members
    assert len(bench.notes) == 1


def test_the_size_of_a_member_counts_the_best_weights(storage: Storage) -> None:
    bench = Bench(study_with(), storage)
    (member,) = bench.frozen(0, best=True).values()
    assert member.best is not None
    sizes: list[int] = [value.nbytes for value in member.best.state.values()]
    assert member.nbytes == replace(member, best=None).nbytes + sum(sizes)
