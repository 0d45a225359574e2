"""Save the weights of the best trials as artifacts (`[training] keep`, `keep_trials`).

A trial that completes among the best is stored with the name of its checkpoint; checkpoints of trials that are no
longer among the best are removed after every population, together with their training states, which
training_checkpoints.py writes with `keep = "last"`. Where files cannot be written or removed, the search warns
once and continues: no trial is lost.

Several workers leave the checkpoints of the best trials and no others: each writes its files before its trials end, and
removes old ones afterwards, so that of two workers that end trials at the same time one sees the other's files.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from hpo.errors import HpoError
from hpo.search.events import Event, Note
from hpo.search.study_records import directions
from hpo.storage import ClaimConditions, Storage, best_trials, identity
from hpo.storage.artifacts import (
    CHECKPOINT_NAMES,
    ArtifactFolder,
    artifact_folder,
    checkpoint_attrs,
    checkpoint_files,
    checkpoint_id,
    delete_checkpoint_records,
    state_file_id,
)
from hpo.storage.pareto import best_first, losses
from hpo.studyfile import Study
from hpo.training.networks.weights_file import State, weights_to_bytes
from hpo.training.population import EpochResult

WEIGHTS = "hpo.weights/1"
"""The schema named in a checkpoint's metadata."""


@dataclass(frozen=True)
class Checkpoint:
    """A member's weights after an epoch, and their validation loss."""

    epoch: int
    val_loss: float
    state: State


class CheckpointWriter:
    """Writes and removes the checkpoints of one study, in one worker."""

    def __init__(
        self, study: Study, conditions: ClaimConditions, storage: Storage, say: Callable[[Event], None]
    ) -> None:
        settings = study.first_settings.training
        self.keep, self._most = settings.keep, settings.keep_trials
        self._name, self._study_id, self._storage, self._say = study.name, conditions.study_id, storage, say
        self._directions = directions(study)
        self._identity = identity(conditions.expected_attrs, study.name)
        self._path = artifact_folder(storage.location)
        self._folder = ArtifactFolder(self._path)
        self._warned = False

    def among_the_best(self, scores: Mapping[int, Sequence[float]]) -> set[int]:
        """Return those of the trials completing with these scores that are among the best."""
        known = {trial.number: trial.values for trial in best_trials(self._storage, self._study_id, self._most)}
        ranked = best_first({n: losses(values, self._directions) for n, values in {**known, **scores}.items()})
        return set(ranked[: self._most]) & scores.keys()

    def write(self, number: int, checkpoint: Checkpoint) -> dict[str, Any]:
        """Write a trial's checkpoint; return its system attributes, or none where the file cannot be written."""
        about = {
            "schema": WEIGHTS,
            "study": self._name,
            "identity": self._identity,
            "trial": str(number),
            "epoch": str(checkpoint.epoch),
            "val_loss": repr(checkpoint.val_loss),
        }
        artifact_id = checkpoint_id(self._identity, number)
        try:
            self._folder.write(artifact_id, io.BytesIO(weights_to_bytes(checkpoint.state, about)))
        except (OSError, HpoError) as error:
            self._warn("written", error)
            return {}
        return checkpoint_attrs(artifact_id, CHECKPOINT_NAMES[self.keep])

    def best(self) -> set[int]:
        """Return the numbers of the completed trials whose checkpoints remain."""
        return {trial.number for trial in best_trials(self._storage, self._study_id, self._most)}

    def remove_old(self, completed: Collection[int], written: Collection[int]) -> None:
        """Remove checkpoints and training states of trials that are not among the best.

        `completed` are the trials that this process has just ended, `written` those of them with a new checkpoint. The
        others have checkpoints of earlier attempts at most.
        """
        ended = [file for file in checkpoint_files(self._storage, self._study_id) if file.state.is_finished()]
        best = self.best()  # read after the files: a trial that another worker ends in between is in neither list
        out = [file for file in ended if file.number not in best]
        not_best = {file.number for file in out} | (set(completed) - best)
        try:
            # By the study's own ids: trials of a copied study name the files of the original.
            for number in not_best | (set(completed) - set(written)):
                self._folder.remove(checkpoint_id(self._identity, number))
            for number in not_best:
                self._folder.remove(state_file_id(self._identity, number))
        except OSError as error:
            self._warn("removed", error)
            return
        delete_checkpoint_records(self._storage, out)

    def _warn(self, what: str, error: OSError | HpoError) -> None:
        if not self._warned:
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            self._say(
                Note(
                    f"checkpoints cannot be {what} in {self._path} ({why}): the search continues without them",
                    "warning",
                )
            )
        self._warned = True


class PopulationCheckpoints:
    """The best weights so far of one population's members, on the CPU. The last epoch's are read when needed.

    `best` are those of members that continue, by number.
    """

    def __init__(self, writer: CheckpointWriter, best: Mapping[int, Checkpoint]) -> None:
        self._writer = writer
        self._start, self._best = best, dict(best)
        self._completed: Set[int] = set()
        self._written: Set[int] = set()

    def epoch_ended(self, result: EpochResult, numbers: Collection[int]) -> None:
        """Copy the weights of those of `numbers` whose validation loss is their lowest so far."""
        if self._writer.keep != "best":
            return
        losses = {number: result.metrics[number]["val_loss"] for number in numbers}
        improved = [n for n, loss in losses.items() if n not in self._best or loss < self._best[n].val_loss]
        self._best |= _checkpoints(result, improved)

    def restart(self, numbers: Iterable[int]) -> None:
        """Return to the weights at the start: a population that ran out of memory restarts."""
        for number in numbers:
            self._best.pop(number, None)
            if number in self._start:
                self._best[number] = self._start[number]

    def best(self, number: int) -> Checkpoint | None:
        """Return a member's best weights so far, where they are needed."""
        return self._best.get(number)

    def write(self, result: EpochResult, scores: Mapping[int, Sequence[float]]) -> dict[int, dict[str, Any]]:
        """Write the checkpoints of the best of the completing trials; return their system attributes by number."""
        best = self._writer.among_the_best(scores)
        those = self._best if self._writer.keep == "best" else _checkpoints(result, best)
        files = {number: self._writer.write(number, those[number]) for number in sorted(best)}
        self._completed = scores.keys()
        self._written = {number for number, attrs in files.items() if attrs}
        return files

    @property
    def written(self) -> Set[int]:
        """The completing trials whose checkpoints of the last epoch have just been written."""
        return self._written if self._writer.keep == "last" else frozenset()

    def ended(self, numbers: Collection[int]) -> None:
        """Forget members that have ended, and remove checkpoints that are no longer among the best."""
        for number in numbers:
            self._best.pop(number, None)
        if completed := self._completed & set(numbers):
            self._writer.remove_old(completed, self._written)
        self._completed, self._written = set(), set()


def _checkpoints(result: EpochResult, numbers: Collection[int]) -> dict[int, Checkpoint]:
    states = result.states(numbers)
    return {n: Checkpoint(result.epoch, result.metrics[n]["val_loss"], states[n]) for n in numbers}
