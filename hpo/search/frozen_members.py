"""Frozen members: trials whose training is paused after an epoch, with all that it needs to continue.

A frozen member continues in any stack of members that have trained the same number of epochs, and gets the learning
curve that it would have had without the pause.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpo.search.checkpoints import Checkpoint
from hpo.search.study_records import Curve
from hpo.training.stack import Member, MemberState

if TYPE_CHECKING:
    from hpo.search.training_checkpoints import TrainingCheckpoints


@dataclass(frozen=True)
class FrozenMember:
    """A trial's training so far: the member with its state, its learning curve, and its share of each epoch's seconds.

    `best` are the weights of its best epoch so far, where `training.keep` needs them. `elapsed_s` is the time that its
    populations have trained, in seconds.
    """

    member: Member
    curve: Curve
    seconds: list[float]
    best: Checkpoint | None = None
    elapsed_s: float = 0.0

    @property
    def state(self) -> MemberState:
        """The member's state."""
        assert self.member.state is not None, "a frozen member has a state"
        return self.member.state

    @property
    def epoch(self) -> int:
        """The epochs that the member has trained."""
        return self.state.epoch


class FrozenMembers:
    """The frozen members of one worker, by trial number. `checkpoints` writes and reads their states."""

    def __init__(self, checkpoints: TrainingCheckpoints | None) -> None:
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
        if self._checkpoints is not None and self._checkpoints.enabled:
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
