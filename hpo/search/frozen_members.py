"""Frozen members of one worker, by trial number."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from hpo.search.frozen_member import FrozenMember
from hpo.search.study_records import Curve
from hpo.search.training_checkpoints import TrainingCheckpoints


class FrozenMembers:
    """The frozen members of one worker, by trial number. `checkpoints` writes and reads their states."""

    def __init__(self, checkpoints: TrainingCheckpoints) -> None:
        self._checkpoints = checkpoints
        self._members: dict[int, FrozenMember] = {}

    @property
    def epochs(self) -> dict[int, int]:
        """The epochs that each member has trained, by number."""
        return {number: member.epoch for number, member in self._members.items()}

    def curve(self, number: int) -> Curve:
        """Return the learning curve of a frozen member."""
        return self._members[number].curve

    def write(self) -> None:
        """Write the states of all members that are not written yet."""
        if self._checkpoints.enabled:
            self._checkpoints.write(self._members)

    def put(self, members: Mapping[int, FrozenMember]) -> None:
        """Add members."""
        self._members |= members

    def drop(self, number: int) -> None:
        """Remove a member, if it is there."""
        self._members.pop(number, None)

    def take(self, numbers: Collection[int]) -> dict[int, FrozenMember]:
        """Remove members and return them; those whose state cannot be read any more are missing in the result."""
        return {number: self._members.pop(number) for number in numbers if number in self._members}
