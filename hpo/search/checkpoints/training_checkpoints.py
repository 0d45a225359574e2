"""Training checkpoints of one study (`[training] checkpoint`): files from which the training of a trial continues.

The folder of artifacts has one file a trial, the last one, until the trial ends. The file is named by the study's
identity and the trial's number, and no attribute names it, so the dashboard does not list it. It is written whole or
not at all. A trial whose file is missing or cannot be used starts again at epoch 1: no error of a file ends a search.

The fingerprint in a file is the SHA-256 of everything that the learning curve of a trial depends on: configuration,
seed, data, code and precision. A changed number of epochs changes it only where the schedule depends on that number.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from optuna.artifacts.exceptions import ArtifactNotFound

from hpo.data import Split
from hpo.errors import HpoError, StorageError
from hpo.search.checkpoints.frozen_member import FrozenMember
from hpo.search.checkpoints.state_file import StateMetadata, max_state_bytes, read_metadata, read_state, state_to_bytes
from hpo.search.checkpoints.time_budget import TimeBudget
from hpo.search.events import Event, Note
from hpo.search.study_records import precision_of
from hpo.storage import ClaimConditions, Storage, identity
from hpo.storage.artifacts import ArtifactFolder, artifact_folder, state_file_id
from hpo.studyfile import Config, Study, TaskSettings
from hpo.studyfile.models import SCHEDULES_OF_ALL_EPOCHS
from hpo.training.device_data import split_shape, steps_per_epoch
from hpo.training.size import shape_key
from hpo.training.stack import Member
from hpo.training.state_layout import StateLayout, state_layout
from hpo.training.tasks.task import output_count
from hpo.usercode import UserCode

MAX_TIME_FRACTION = 0.015
"""With `checkpoint = "auto"`, the largest fraction of the time that is spent on writing. The rest of the promised 2% is
for what is not measured: the decision after every epoch, and the search for states when a trial is claimed."""

FIRST_WRITE_S = 1.0
"""With `checkpoint = "auto"`, seconds before the first write of a process, whose duration is not known yet."""

IRRELEVANT_KEYS = ("keep", "keep_trials", "checkpoint", "patience")
"""Keys of `[training]` that do not affect a trial's learning curve, except its end."""

_CONSEQUENCE = "a trial that is interrupted starts again at epoch 1"


Put = Callable[[str, bytes], None]
"""Writes a file of the folder of artifacts, given its id and content."""


class TrainingCheckpoints:
    """Writes, reads and removes the training checkpoints of one study, in one worker.

    `code` is the study's code and `splits` its data, `precision` the one that "auto" stands for. `clock` returns a
    time in seconds.
    """

    def __init__(
        self,
        study: Study,
        conditions: ClaimConditions,
        storage: Storage,
        say: Callable[[Event], None],
        *,
        code: UserCode,
        splits: Sequence[Split],
        precision: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._setting = study.first_settings.training.checkpoint
        self._say, self._precision = say, precision
        self._identity = identity(conditions.expected_attrs, study.name)
        self._folder: Path | None = None
        try:
            self._folder = artifact_folder(storage.location)
        except StorageError as error:
            self._no_folder = str(error)
        self._splits, self._outputs = splits, output_count(study.task, splits[0])
        self._data: dict[str, object] = {"code": dict(code.files), "sha256": splits[0].content_sha256}
        if study.task != TaskSettings():  # states of earlier versions, which had no other task, stay valid
            self._data["task"] = study.task.model_dump(mode="json", exclude_none=True)
        self._metrics = study.curve_keys
        self._warned: set[str] = set()
        self._layouts: dict[str, StateLayout] = {}
        self._written: dict[int, int] = {}  # trial number -> epoch of the file that this object wrote
        self._budget = TimeBudget(MAX_TIME_FRACTION, FIRST_WRITE_S, clock)

    @property
    def enabled(self) -> bool:
        """Return whether training states are written at all."""
        return self._setting != "none"

    @property
    def is_permitted(self) -> bool:
        """Return whether the state of a frozen member may be written now; with "auto", within the time budget."""
        return self.enabled and (self._setting != "auto" or self._budget.permits())

    def due(self, epoch: int, numbers: Sequence[int]) -> Sequence[int]:
        """Return those of the members of a population in training that are to be written after this epoch.

        With "auto" all of them, where the time budget would also pay for their states at the next rung. While the
        duration of a write is not known, one of them.
        """
        if self._setting != "auto":
            return numbers if self.enabled and epoch % int(self._setting) == 0 else ()
        duration = self._budget.seconds_per_write
        if duration is None:
            return numbers[:1] if self._budget.permits() else ()
        return numbers if self._budget.permits(2 * duration * len(numbers)) else ()

    def spending(self) -> AbstractContextManager[None]:
        """Count the time of a block as spent on training checkpoints."""
        return self._budget.spending()

    def write(self, members: Mapping[int, FrozenMember], *, only_permitted: bool = False) -> set[int]:
        """Write the files of these members, by trial number; return the trials that have a file of their epoch now.

        Each file replaces the trial's last one; a file of the same epoch is not written again. With `only_permitted`,
        write in the order of `members` while that is permitted. Warns once where files cannot be written.
        """
        with self.spending():
            missing = [number for number, member in members.items() if not self._is_written(number, member.epoch)]
            written = members.keys() - set(missing)
            if missing:
                with self._batch() as put:
                    for number in missing:
                        if only_permitted and not self.is_permitted:
                            break
                        if self._write(number, members[number], put):
                            self._written[number] = members[number].epoch
                            self._budget.add_write()
                            written.add(number)
            return written

    def write_for_retry(self, members: Iterable[Member], frozen: Mapping[int, FrozenMember]) -> None:
        """Write the last states of trials that are to be retried: those of their files, or later ones in `frozen`.

        No time is spent in these states, so that a retry has the whole `search.trial_timeout`.
        """
        for member in members if self.enabled else ():
            number = member.number
            try:
                state = self._state(member)
            except (OSError, ValueError):  # noted once the trial is claimed, unless the file is replaced here
                state = None
            states = [each for each in (state, frozen.get(number)) if each is not None]
            if states:
                self._written.pop(number, None)
                self.write({number: replace(max(states, key=lambda each: each.epoch), elapsed_s=0.0)})

    def read(self, member: Member) -> FrozenMember | None:
        """Return the member frozen as in its file; None where it has no file that can be used.

        Notes a file that is damaged, or is not of this member's training, as a warning, and removes it.
        """
        number = member.number
        try:
            state = self._state(member)
            if state is not None:
                self._written[number] = state.epoch
            return state
        except OSError as error:
            problem = f"cannot be read ({error.strerror or error})"
        except ValueError as error:
            problem = str(error)
        damaged = f"its training checkpoint {self._file(number)} {problem}"
        self._say(Note(f"trial {number}: {damaged}; the trial starts again at epoch 1", "warning"))
        self.remove({number})
        return None

    def peek(self, member: Member) -> FrozenMember | None:
        """Return the member as `read` does; remove no file and note nothing."""
        try:
            return self._state(member)
        except (OSError, ValueError):
            return None

    def exists(self, number: int) -> bool:
        """Return whether there is a file of a trial; whether it can be used is known once it is read."""
        file = self._file(number)
        return file is not None and os.path.isfile(file)  # False also in a folder that this user may not read

    def remove(self, numbers: Collection[int]) -> None:
        """Remove the files of these trials, where there are any. Warns once where files cannot be removed."""
        with self.spending():
            for number in numbers:
                self._written.pop(number, None)
                file = self._file(number)
                if file is None:
                    continue
                try:
                    ArtifactFolder(file.parent).remove(file.name)
                except NotADirectoryError:  # no file can be there
                    continue
                except OSError as error:
                    why = error.strerror or str(error)
                    self._warn("removed", f"training checkpoints cannot be removed in {file.parent} ({why})")

    def _file(self, number: int) -> Path | None:
        """Return the path of a trial's file; None where this user has no folder of artifacts."""
        return None if self._folder is None else self._folder / state_file_id(self._identity, number)

    def _is_written(self, number: int, epoch: int) -> bool:
        return self._written.get(number) == epoch and self.exists(number)

    @contextlib.contextmanager
    def _batch(self) -> Iterator[Put | None]:
        """Return a function that writes a file, or None where the folder cannot be used."""
        if self._folder is None:
            self._warn("written", f"training checkpoints cannot be written ({self._no_folder}): {_CONSEQUENCE}")
            yield None
            return
        with contextlib.ExitStack() as stack:
            put = None
            try:
                put = stack.enter_context(ArtifactFolder(self._folder).batch())
            except OSError as error:
                self._warn_unwritten(error)
            yield put

    def _write(self, number: int, member: FrozenMember, put: Put | None) -> bool:
        if put is None:
            return False
        try:
            put(state_file_id(self._identity, number), self._content(member))
        except HpoError as error:
            self._warn("stored", f"training checkpoints cannot store these networks ({error}): {_CONSEQUENCE}")
            return False
        except OSError as error:
            self._warn_unwritten(error)
            return False
        return True

    def _content(self, member: FrozenMember) -> bytes:
        return state_to_bytes(member, self._identity, self._fingerprint(member.member))

    def _warn_unwritten(self, error: OSError) -> None:
        why = error.strerror or str(error)
        self._warn("written", f"training checkpoints cannot be written in {self._folder} ({why}): {_CONSEQUENCE}")

    def _state(self, member: Member) -> FrozenMember | None:
        """Return the member frozen as in its file; None without one. Raises OSError, or ValueError with the problem."""
        if not self.exists(member.number):
            return None
        try:
            layout = self._layout(member)
        except Exception:  # noqa: BLE001 - training builds the same network, and fails the trial
            return None
        content = self._read(member.number, max_state_bytes(layout, member.config.training.epochs, len(self._metrics)))
        if content is None:
            return None
        about = read_metadata(content, self._metrics)
        self._check(about, member)
        batch_size, folds = member.config.training.batch_size, self._splits[member.split].folds
        steps = [steps_per_epoch(len(fold.train), batch_size) for fold in folds]
        return read_state(content, about, member, layout, steps)

    def _read(self, number: int, max_bytes: int) -> bytes | None:
        """Return the content of a trial's file; None where there is none. Raises ValueError for a larger file."""
        file = self._file(number)
        try:
            if file is None:
                return None
            with ArtifactFolder(file.parent).open_reader(file.name) as stream:
                size = os.fstat(stream.fileno()).st_size
                if size > max_bytes:
                    raise ValueError(f"is larger than a state of this trial, {max_bytes:,} bytes")
                return stream.read(size)
        except ArtifactNotFound:
            return None

    def _layout(self, member: Member) -> StateLayout:
        config, split = member.config, self._splits[member.split]
        precision = precision_of(config, self._precision)
        key = f"{shape_key(config.network)} {config.optimizer.kind} {precision} {member.split}"
        if key not in self._layouts:
            self._layouts[key] = state_layout(config, split_shape(split), self._outputs, precision, len(split.folds))
        return self._layouts[key]

    def _check(self, about: StateMetadata, member: Member) -> None:
        """Raise ValueError unless the file is one of this member's training, which can continue."""
        if about.identity != self._identity:
            raise ValueError("is a file of another study")
        if about.trial != member.number:
            raise ValueError(f"is a file of trial {about.trial}")
        if about.fingerprint != self._fingerprint(member):
            raise ValueError("was written with another seed, configuration, code, data or precision")
        if about.epoch >= member.config.training.epochs:
            raise ValueError(f"is of epoch {about.epoch}, and the trial has {member.config.training.epochs} epochs")

    def _fingerprint(self, member: Member) -> str:
        split = self._splits[member.split]
        settings = {"config": _curve_settings(member.config), "seed": member.seed, **self._data}
        settings |= {"split_sha256": split.split_sha256, "split_seed": split.data.split_seed}
        settings["precision"] = precision_of(member.config, self._precision)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._say(Note(text, "warning"))
        self._warned.add(kind)


def _curve_settings(config: Config) -> dict[str, object]:
    """Return the settings that a trial's learning curve depends on, without its precision."""
    training: set[str] = {*IRRELEVANT_KEYS, "precision"}
    if config.optimizer.schedule not in SCHEDULES_OF_ALL_EPOCHS:
        training.add("epochs")
    return config.model_dump(mode="json", exclude={"training": training})
