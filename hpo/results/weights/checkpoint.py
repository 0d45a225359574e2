"""Read a trial's checkpoint, and check that it belongs to that trial.

A checkpoint is accepted only if it belongs to the trial: its epoch and validation loss must be in the trial's stored
learning curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import optuna

from hpo.errors import HpoError
from hpo.search.plan import NetworkPlan
from hpo.search.study_records import CURVE, RUN, precision_of, user_attrs_of
from hpo.storage import WORKER, Storage
from hpo.storage.artifacts import ARTIFACTS_VARIABLE, artifact_folder, checkpoint_files
from hpo.studyfile import Config
from hpo.training.networks.weights_file import State, read_weights


@dataclass(frozen=True)
class Trained:
    """Weights of a trained network, and how they were trained; `examples` is the number of training examples."""

    state: State
    epochs: int
    examples: int
    seed: int
    from_checkpoint: bool
    device: str
    precision: str


def read_checkpoint(
    storage: Storage, stored: optuna.Study, number: int, config: Config, planned: NetworkPlan, otherwise: str
) -> Trained:
    """Return the weights in the checkpoint of the trial of that number, whose configuration is `config`.

    Raises HpoError where it has none, or another trial's; the error advises to restore the file, or `otherwise`.
    """
    name = stored.study_name
    found = [file for file in checkpoint_files(storage, stored._study_id) if file.number == number]
    if not found:
        raise HpoError(
            f"study '{name}': trial {number} has no checkpoint ([training] keep saves those of the best trials): "
            f"{otherwise}"
        )
    trial, run = storage.get_trial(found[0].trial_id), user_attrs_of(stored)[RUN]
    worker = trial.system_attrs.get(WORKER, {})
    path = artifact_folder(storage.location) / found[0].artifact_id
    if not path.exists():
        raise HpoError(
            f"{path}: does not exist here; {worker.get('host', 'another machine')} wrote it: name its folder in "
            f"{ARTIFACTS_VARIABLE}, or {otherwise}"
        )
    state, metadata = read_weights(path)
    epoch = _epoch(metadata, trial.system_attrs.get(CURVE, {}).get("val_loss", []))
    if metadata.get("trial") != str(number) or epoch is None or "seed" not in trial.user_attrs:
        raise HpoError(
            f"{path}: is not the checkpoint of trial {number} of study '{name}': restore the file, or {otherwise}"
        )
    return Trained(
        state,
        epoch,
        len(planned.split.train),
        trial.user_attrs["seed"],
        True,
        worker.get("device") or run["device"],
        precision_of(config, str(run["precision"])),
    )


def _epoch(metadata: dict[str, Any], losses: list[float]) -> int | None:
    """Return the epoch of a checkpoint; None where the learning curve has another validation loss at that epoch."""
    try:
        epoch, loss = int(metadata["epoch"]), float(metadata["val_loss"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return epoch if 0 < epoch <= len(losses) and losses[epoch - 1] == loss else None
