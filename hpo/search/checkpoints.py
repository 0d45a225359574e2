"""The weights of the best trials, kept as artifacts while a study is searched: `[training] keep` and `keep_trials`.

A trial that completes among the best is stored together with the name of its file, and what falls out is removed after
every population. Where files cannot be written or removed, the search says so once and goes on: it loses no trial.

Several processes end up with the files of the best, and no others: each writes before its trials end, and looks for
what to remove after that, so that of two that end trials at the same time one sees what the other has written.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from hpo.errors import HpoError
from hpo.search.events import Event, Note
from hpo.storage import ClaimConditions, Storage, best_trials, identity
from hpo.storage.artifacts import FILES, ArtifactFolder, artifact_folder, file_attrs, file_id, forget_files, kept_files
from hpo.storage.pareto import best_first, directions, losses
from hpo.studyfile import Study
from hpo.training.networks.weights import State, weights_to_bytes
from hpo.training.population import EpochResult

WEIGHTS = "hpo.weights/1"
"""The schema that a file of weights names in its metadata."""


@dataclass(frozen=True)
class Checkpoint:
    """A member's weights after an epoch, and the validation loss that they had."""

    epoch: int
    val_loss: float
    state: State


class Keeper:
    """Keeps the weights of one study's best trials, for one process."""

    def __init__(
        self, study: Study, conditions: ClaimConditions, storage: Storage, say: Callable[[Event], None]
    ) -> None:
        settings = study.first.training
        self.keep, self._most = settings.keep, settings.keep_trials
        self._name, self._study_id, self._storage, self._say = study.name, conditions.study_id, storage, say
        self._directions = directions(study)
        self._identity = identity(conditions.expected_attrs, study.name)
        self._path = artifact_folder(storage.location)
        self._folder = ArtifactFolder(self._path)
        self._warned = False

    def among_the_best(self, scores: Mapping[int, Sequence[float]]) -> set[int]:
        """Return the trials, of those about to complete with these scores, that would be among the best."""
        known = {trial.number: trial.values for trial in best_trials(self._storage, self._study_id, self._most)}
        ranked = best_first({n: losses(values, self._directions) for n, values in {**known, **scores}.items()})
        return set(ranked[: self._most]) & scores.keys()

    def write(self, number: int, checkpoint: Checkpoint) -> dict[str, Any]:
        """Write a trial's file; return the system attributes to end the trial with, none where it cannot be written."""
        about = {
            "schema": WEIGHTS,
            "study": self._name,
            "identity": self._identity,
            "trial": str(number),
            "epoch": str(checkpoint.epoch),
            "val_loss": repr(checkpoint.val_loss),
        }
        artifact_id = file_id(self._identity, number)
        try:
            self._folder.write(artifact_id, io.BytesIO(weights_to_bytes(checkpoint.state, about)))
        except (OSError, HpoError) as error:
            self._warn("written", error)
            return {}
        return file_attrs(artifact_id, FILES[self.keep])

    def tidy(self, without: Collection[int]) -> None:
        """Remove what is no longer among the best, and what earlier attempts at trials `without` a file have left."""
        ended = [file for file in kept_files(self._storage, self._study_id) if file.state.is_finished()]
        # Asked for after the files: a trial that another process ends in between is among neither.
        best = {trial.number for trial in best_trials(self._storage, self._study_id, self._most)}
        out = [file for file in ended if file.number not in best]
        try:
            # By their own ids: the trials of a copied study name the files of the study that it is a copy of.
            for number in {file.number for file in out} | set(without):
                self._folder.remove(file_id(self._identity, number))
        except OSError as error:
            self._warn("removed", error)
            return
        forget_files(self._storage, out)

    def _warn(self, what: str, error: OSError | HpoError) -> None:
        if not self._warned:
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            self._say(Note(f"weights cannot be {what} in {self._path} ({why}): the search goes on without", "warning"))
        self._warned = True


class Weights:
    """The weights of one population's members that may be kept, with the epochs that they are of.

    On the CPU, and of members that are well; those of the last epoch are fetched when they are wanted.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._best: dict[int, Checkpoint] = {}
        self._completed: Set[int] = set()
        self._written: Set[int] = set()

    def epoch_ended(self, result: EpochResult, numbers: Collection[int]) -> None:
        """Take the weights of those of `numbers` that have never had a lower validation loss."""
        if self._keeper.keep != "best":
            return
        losses = {number: result.metrics[number]["val_loss"] for number in numbers}
        # A population that had to be made smaller begins again.
        improved = [n for n, loss in losses.items() if result.epoch == 1 or loss < self._best[n].val_loss]
        self._best |= _checkpoints(result, improved)

    def write(self, result: EpochResult, scores: Mapping[int, Sequence[float]]) -> dict[int, dict[str, Any]]:
        """Write the files of the best of the trials that complete now; return their system attributes by number."""
        chosen = self._keeper.among_the_best(scores)
        those = self._best if self._keeper.keep == "best" else _checkpoints(result, chosen)
        files = {number: self._keeper.write(number, those[number]) for number in sorted(chosen)}
        self._completed = scores.keys()
        self._written = {number for number, attrs in files.items() if attrs}
        return files

    def ended(self, numbers: Collection[int]) -> None:
        """Forget members that have ended; where trials have completed, leave the files of the best."""
        for number in numbers:
            self._best.pop(number, None)
        if completed := self._completed & set(numbers):
            self._keeper.tidy(completed - self._written)
        self._completed = set()


def _checkpoints(result: EpochResult, numbers: Collection[int]) -> dict[int, Checkpoint]:
    states = result.states(numbers)
    return {n: Checkpoint(result.epoch, result.metrics[n]["val_loss"], states[n]) for n in numbers}
