"""Frozen members of one worker, by trial number: in memory while they fit, the others in training checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import psutil

from hpo.search.checkpoints.frozen_member import FrozenMember
from hpo.search.checkpoints.training_checkpoints import TrainingCheckpoints
from hpo.search.study_records import Curve
from hpo.training.size import frozen_memory
from hpo.training.stack import Member


@dataclass(frozen=True)
class _InFile:
    """A frozen member whose state is in its file only."""

    member: Member
    epoch: int
    curve: Curve


class FrozenMembers:
    """The frozen members of one worker, by trial number. `checkpoints` writes and reads their states.

    The states of members beyond `max_bytes` are in files only. The default is a fraction of the memory, and no more
    than half of what is available now. A state leaves the memory after its file was written; with
    `checkpoint = "none"`, none does.
    """

    def __init__(self, checkpoints: TrainingCheckpoints, max_bytes: int | None = None) -> None:
        self._checkpoints = checkpoints
        fits = min(frozen_memory(), psutil.virtual_memory().available // 2)
        self._max_bytes = fits if max_bytes is None else max_bytes
        self._members: dict[int, FrozenMember] = {}
        self._bytes: dict[int, int] = {}
        self._in_files: dict[int, _InFile] = {}
        self._unwritten: dict[int, int] = {}  # members without a file of their epoch, in the order of freezing
        self._refused: set[int] = set()  # members whose files could not be written

    @property
    def epochs(self) -> dict[int, int]:
        """The epochs that each member has trained, by number."""
        in_memory = {number: member.epoch for number, member in self._members.items()}
        return {**in_memory, **{number: member.epoch for number, member in self._in_files.items()}}

    @property
    def bytes_in_memory(self) -> int:
        """The size of the states in memory, in bytes."""
        return sum(self._bytes.values())

    def curve(self, number: int) -> Curve:
        """Return the learning curve of a frozen member."""
        return (self._members.get(number) or self._in_files[number]).curve

    def write(self) -> None:
        """Write the states of all members that are not written yet."""
        if self._checkpoints.enabled:
            self._write(sorted(self._members), only_permitted=False)

    def write_permitted(self) -> None:
        """Write states that are not written yet while that is permitted.

        Those with the most epochs come first, because their loss would cost most; of equal ones those frozen first.
        """
        if self._unwritten and self._checkpoints.is_permitted:
            order = sorted(self._unwritten, key=lambda number: -self._unwritten[number])
            self._write(order, only_permitted=True)

    def _write(self, numbers: Iterable[int], only_permitted: bool) -> set[int]:
        """Write the states of members in memory, in this order; return the members that have a file of their epoch."""
        members = {number: self._members[number] for number in numbers}
        written = self._checkpoints.write(members, only_permitted=only_permitted)
        for number in written:
            self._unwritten.pop(number, None)
        return written

    def put(self, members: Mapping[int, FrozenMember]) -> None:
        """Add members. States that do not fit into memory are written, those with the fewest epochs first."""
        for number, member in members.items():
            self.drop(number)
            self._members[number], self._bytes[number] = member, member.nbytes
            self._unwritten[number] = member.epoch
        if self._checkpoints.enabled:
            self._free_memory()

    def drop(self, number: int) -> None:
        """Remove a member, if it is there; its file remains."""
        self._members.pop(number, None)
        self._bytes.pop(number, None)
        self._in_files.pop(number, None)
        self._unwritten.pop(number, None)
        self._refused.discard(number)

    def take(self, numbers: Collection[int]) -> dict[int, FrozenMember]:
        """Remove members and return them; those whose state cannot be read any more are missing in the result."""
        taken = {}
        for number in numbers:
            if (member := self._members.get(number) or self._read(number)) is not None:
                taken[number] = member
            self.drop(number)
        return taken

    def _free_memory(self) -> None:
        """Move states to files until the others fit into memory, or no file can be written."""
        # Most members have few epochs, and most of them are never promoted.
        order = sorted(self._members, key=lambda number: (number in self._refused, self._members[number].epoch))
        while order and (excess := self.bytes_in_memory - self._max_bytes) > 0:
            chosen = []
            while order and excess > 0:
                chosen.append(order.pop(0))
                excess -= self._bytes[chosen[-1]]
            written = self._write(chosen, only_permitted=False)
            self._refused |= set(chosen) - written
            if not written:
                return
            for number in written:
                member = self._members.pop(number)
                del self._bytes[number]
                self._in_files[number] = _InFile(replace(member.member, state=None), member.epoch, member.curve)

    def _read(self, number: int) -> FrozenMember | None:
        """Return a member from its file; None where the file cannot be used, or another worker has replaced it."""
        if (frozen := self._in_files.get(number)) is None:
            return None
        read = self._checkpoints.read(frozen.member)
        return read if read is not None and read.epoch == frozen.epoch else None
