"""Frozen member: a trial whose training is paused after an epoch, with all that it needs to continue.

A frozen member continues in any stack of members that have trained the same number of epochs, and gets the learning
curve that it would have had without the pause.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hpo.search.checkpoints.weights import Checkpoint
from hpo.search.study_records import Curve
from hpo.training.stack import Member, MemberState


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

    @property
    def nbytes(self) -> int:
        """The size of all tensors in bytes."""
        best = {} if self.best is None else self.best.state
        return self.state.nbytes + sum(value.nbytes for value in best.values() if isinstance(value, Tensor))
