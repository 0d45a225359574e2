"""Runs in Weights & Biases: a study is a group of a project, an ended trial a run of it.

A run has the parameters as config, each metric by epoch as history, the final metrics as summary, the state as tag, and
the weights of a kept trial as artifact. Its id is made of the study's identity and the trial's number, so a trial never
gets a second run. The folder of a run on this machine has a small file with the digest, also with WANDB_MODE=offline.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from hpo.tracking.content import Model, TrackedStudy, TrackedTrial
from hpo.tracking.tracker import named_file, plain_params, rows_by_step, tags_of

WRITTEN_FILE = "hpo-written.json"
START_S = 30.0
"""Seconds that the start of a run may take."""


class WandbRuns:
    """A `Tracker` in a project; by default the project has the study's name."""

    follows_running = False

    def __init__(self, project: str) -> None:
        self._project = project
        self._study = TrackedStudy("", "", "", {})
        self._written: dict[int, dict[str, Any]] = {}  # contents of the files of this machine, by trial
        self._trials: dict[int, TrackedTrial] = {}  # that this object has written

    def open(self, study: TrackedStudy) -> Mapping[int, str]:
        """Return the digests of the runs that this machine has written, by trial."""
        self._study = study
        base = Path(os.environ.get("WANDB_DIR") or ".")
        for folder in (base / "wandb", base / ".wandb"):
            for file in sorted(folder.glob(f"*run-*-{_safe(study.identity)}-*/files/{WRITTEN_FILE}")):
                written = json.loads(file.read_text())
                self._written[written["trial"]] = written
        return {number: written["digest"] for number, written in self._written.items()}

    def write(self, trial: TrackedTrial) -> None:
        """Write a run; of a run that exists, only what is new."""
        self._trials[trial.number] = trial
        run = self._start(trial.number)
        known = self._written.get(trial.number, {"last": run.step if run.resumed else -1})
        rows = rows_by_step(trial)
        for step, row in rows.items():
            if step > known["last"]:
                run.log(row, step=step)
        run.summary.update(dict(trial.metrics))
        written = {"trial": trial.number, "digest": trial.digest, "last": max(rows, default=0)}
        Path(run.dir, WRITTEN_FILE).write_text(json.dumps(written))
        run.finish(exit_code=1 if trial.state == "failed" else 0)
        self._written[trial.number] = written

    def extend(self, trial: TrackedTrial, before: TrackedTrial) -> None:
        """Write a run."""
        self.write(trial)

    def write_model(self, model: Model) -> None:
        """Log the weights as an artifact of the run, unless this machine has done so."""
        written = self._written.get(model.number)
        if written is None or written.get("model") == model.filename:
            return
        run = self._start(model.number)
        artifact = wandb.Artifact(_safe(f"{self._study.name}-trial-{model.number}"), type="model")
        with named_file(model) as path:
            artifact.add_file(str(path.resolve()), name=model.filename)
        run.log_artifact(artifact)
        written["model"] = model.filename
        Path(run.dir, WRITTEN_FILE).write_text(json.dumps(written))
        run.finish()

    def close(self) -> None:
        """Do nothing: every run is finished when it is written."""

    def _start(self, number: int) -> wandb.Run:
        """Start or resume the run of a trial."""
        about: dict[str, Any] = {}
        if trial := self._trials.get(number):
            about["config"] = {**plain_params(trial), **tags_of(trial), "hpo.study": self._study.name}
            about["tags"] = [trial.state]
        return wandb.init(
            project=_safe(self._project or self._study.name),
            group=self._study.name,
            id=f"{_safe(self._study.identity)}-{number}",
            name=f"trial {number}",
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, x_disable_stats=True, init_timeout=START_S
            ),
            **about,
        )


def _safe(name: str) -> str:
    """Return a name with the characters that ids and projects may have."""
    return re.sub(r"[^\w\-.]", "-", name, flags=re.ASCII)[:100]
