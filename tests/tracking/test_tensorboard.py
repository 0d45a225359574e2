"""TensorBoard: the event files of 16 trials, read back by TensorBoard's own reader, equal the storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import hpo

pytestmark = pytest.mark.filterwarnings("ignore")  # of TensorBoard's own packages


def read(folder: Path) -> EventAccumulator:
    (file,) = folder.glob("events.out.tfevents.*")
    found = EventAccumulator(str(file), size_guidance={"scalars": 0})
    found.Reload()
    return found


def params(found: EventAccumulator) -> dict[str, Any]:
    metadata = found.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    start = HParamsPluginData.FromString(metadata).session_start_info
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*tfevents*")}


def test_trials_equal_the_storage_and_a_second_export_changes_nothing(study: hpo.StoredStudy, tmp_path: Path) -> None:
    assert study.export_to("tensorboard:logs") == "tiny: 16 trials in tensorboard:logs"
    folder = tmp_path / "logs" / "tiny"
    for trial in study.trials():
        found = read(folder / f"trial-{trial.number:04d}")
        written = params(found)
        assert {name: written[name] for name in trial.params} == trial.params
        assert written["hidden"] == "[8]"
        tags = {tag for tag in found.Tags()["scalars"] if not tag.startswith("final/")}
        assert tags == (set(trial.curve) if trial.epochs else set())
        for metric in tags:
            points = found.Scalars(metric)
            assert [point.step for point in points] == list(range(1, trial.epochs + 1))
            np.testing.assert_array_equal([point.value for point in points], trial.curve[metric].astype(np.float32))
        (epochs,) = found.Scalars("final/epochs")
        assert epochs.value == trial.epochs
        if trial.value is not None:
            assert found.Scalars("final/score")[0].value == np.float32(trial.value)
        (text,) = found.Tensors("hpo")
        assert f"hpo.state\n```\n{trial.state}\n```" in text.tensor_proto.string_val[0].decode()
    before = files(folder)
    assert len(before) == 17
    study.export_to("tensorboard:logs")
    assert files(folder) == before


def test_a_trial_that_goes_on_has_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tracked_trials import STUDY, tracked

    from hpo.tracking.tensorboard_files import TensorboardFiles

    monkeypatch.chdir(tmp_path)
    tracker = TensorboardFiles("logs")
    assert tracker.open(STUDY) == {}
    first, more = tracked(0, "running", [0.1]), tracked(0, "running", [0.1, 0.2])
    tracker.write(first)
    tracker.extend(more, first)
    assert [point.value for point in read(tmp_path / "logs/s/trial-0000").Scalars("val_loss")] == pytest.approx(
        [0.1, 0.2]
    )
    ended = tracked(0, "complete", [0.1, 0.2, 0.3])
    tracker.extend(ended, more)
    tracker.close()
    assert len(read(tmp_path / "logs/s/trial-0000").Scalars("val_loss")) == 3
    assert TensorboardFiles("logs").open(STUDY) == {0: ended.digest}
