"""Runs in TensorBoard: a study is a folder, a trial a folder of it with one event file.

The file has the parameters (for the HParams page), each metric by epoch, the final metrics, and the tags as a text. An
ended trial's file is written whole; its name ends in the digest of the content, by which another process finds it.
TensorBoard stores numbers as float32, and has no place for weights.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from hpo.files import write_atomically
from hpo.results.derived_names import file_stem
from hpo.tracking.content import Model, TrackedStudy, TrackedTrial
from hpo.tracking.tracker import PREFIX, plain_params

IDENTITY_FILE = "hpo-study.txt"
SUFFIX = ".hpo-"
PART = ".0-"  # sorts before SUFFIX: TensorBoard reads only files that follow those it has read
STATUS = {
    "complete": api_pb2.STATUS_SUCCESS,
    "pruned": api_pb2.STATUS_SUCCESS,
    "failed": api_pb2.STATUS_FAILURE,
}


class TensorboardFiles:
    """A `Tracker` that writes below a log folder."""

    follows_running = True

    def __init__(self, folder: str) -> None:
        self._root = Path(folder)
        self._folder = self._root
        self._writers: dict[int, EventFileWriter] = {}  # of running trials

    def open(self, study: TrackedStudy) -> Mapping[int, str]:
        """Create the study's folder with its tags; return the digests of ended trials by number."""
        self._folder = self._root / file_stem(study.name)
        marker = self._folder / IDENTITY_FILE
        if marker.exists() and marker.read_text() != study.identity:  # another study of this name
            self._folder = self._root / file_stem(f"{study.name} {study.identity}")
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(study.identity, self._folder / IDENTITY_FILE)
        self._write_study(study)
        names = {path: path.name.rpartition(SUFFIX)[2] for path in self._folder.glob(f"trial-*/*{SUFFIX}*")}
        return {int(path.parent.name.removeprefix("trial-")): digest for path, digest in names.items()}

    def write(self, trial: TrackedTrial) -> None:
        """Write the event file of a trial, and delete earlier ones."""
        before = self._writers.pop(trial.number, None)
        if before is not None:
            before.close()
        folder = self._trial_folder(trial)
        earlier = list(folder.glob("events.out.tfevents.*"))
        suffix = f"{PART}{trial.digest}" if trial.has_ended else ".running"
        writer = EventFileWriter(str(folder), filename_suffix=suffix)
        # Without it, a TensorBoard that has read an earlier file would show the points of both.
        writer.add_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))
        start = time.time() if trial.started is None else trial.started.timestamp()
        params = hparams_pb(plain_params(trial), trial_id=trial.name, start_time_secs=start)
        writer.add_event(Event(wall_time=start, summary=params))
        self._writers[trial.number] = writer
        self._append(trial, None)
        for path in earlier:
            path.unlink(missing_ok=True)

    def extend(self, trial: TrackedTrial, before: TrackedTrial) -> None:
        """Append to the file of a running trial; write the whole file of one that has ended."""
        if trial.has_ended or trial.number not in self._writers:
            self.write(trial)
        else:
            self._append(trial, before)

    def write_model(self, model: Model) -> None:
        """Do nothing: TensorBoard has no place for weights."""

    def close(self) -> None:
        """Close the files of running trials."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _trial_folder(self, trial: TrackedTrial) -> Path:
        folder = self._folder / f"trial-{trial.number:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _append(self, trial: TrackedTrial, before: TrackedTrial | None) -> None:
        writer = self._writers[trial.number]
        start = time.time() if trial.started is None else trial.started.timestamp()
        end = time.time() if trial.ended is None else trial.ended.timestamp()
        last = max((step for curve in trial.curves.values() for step, _ in curve), default=1) or 1
        for name, curve in trial.new_points(before).items():
            for step, value in curve:
                writer.add_event(_scalar(name, value, step, start + (end - start) * max(0, step) / last))
        if not trial.has_ended:
            writer.flush()
            return
        for name, value in trial.metrics.items():
            writer.add_event(_scalar(f"final/{name}", value, 0, end))
        writer.add_event(Event(wall_time=end, summary=_text("hpo", trial.tags)))
        writer.add_event(Event(wall_time=end, summary=_session_end(trial.state, end)))
        self._writers.pop(trial.number).close()
        for path in self._trial_folder(trial).glob(f"*{PART}{trial.digest}"):
            path.rename(path.with_name(path.name.replace(PART, SUFFIX)))

    def _write_study(self, study: TrackedStudy) -> None:
        """Write the study's tags as a text, unless they are written already."""
        folder = self._folder / "study"
        tags = {**study.tags, **({"description": study.description} if study.description else {})}
        suffix = f"{SUFFIX}{hashlib.sha256(str(tags).encode()).hexdigest()[:16]}"
        earlier = list(folder.glob("events.out.tfevents.*"))
        if any(path.name.endswith(suffix) for path in earlier):
            return
        writer = EventFileWriter(str(folder), filename_suffix=suffix)
        writer.add_event(Event(wall_time=time.time(), summary=_text("hpo", tags)))
        writer.close()
        for path in earlier:
            path.unlink(missing_ok=True)


def _scalar(name: str, value: float, step: int, at: float) -> Event:
    return Event(wall_time=at, step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))


def _session_end(state: str, at: float) -> Summary:
    """Return the end of a run for the HParams page; TensorBoard's own function for it needs TensorFlow."""
    info = plugin_data_pb2.SessionEndInfo(status=STATUS[state], end_time_secs=at)
    about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=info))
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])


def _text(name: str, tags: Mapping[str, str]) -> Summary:
    """Return a text for TensorBoard's page of texts: a block of code for each tag, in Markdown."""
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    texts = "\n\n".join(f"{PREFIX}{key}\n```\n{value}\n```" for key, value in tags.items())
    tensor = make_tensor_proto([texts])
    return Summary(value=[Summary.Value(tag=name, metadata=metadata, tensor=tensor)])
