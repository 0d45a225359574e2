"""A trial's kept weights, taken for the network that is to be tested.

What is read is checked against the trial's stored learning curve: weights that it does not speak of are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import optuna

from hpo.errors import HpoError
from hpo.results.selection import Selection
from hpo.search.plan import NetworkPlan
from hpo.search.study_records import CURVE, RUN, precision_of, user_attrs_of
from hpo.storage import WORKER, Storage
from hpo.storage.artifacts import ARTIFACTS_VARIABLE, artifact_folder, checkpoint_files
from hpo.training.networks.weights import State, read_weights


@dataclass(frozen=True)
class Trained:
    """A network's weights, and how they came about: epochs, images trained on, seed, device and precision."""

    state: State
    epochs: int
    images: int
    seed: int
    checkpoint: bool
    device: str
    precision: str


def from_checkpoint(storage: Storage, stored: optuna.Study, selected: Selection, planned: NetworkPlan) -> Trained:
    """Return the weights that are kept of the chosen trial. Raises HpoError where there are none, or not its own."""
    name = stored.study_name
    found = [file for file in checkpoint_files(storage, stored._study_id) if file.number == selected.trial]
    if not found:
        raise HpoError(
            f"study '{name}': no weights are kept of trial {selected.trial}; [training] keep keeps those of the best "
            "trials, and without --from-checkpoint it is trained anew"
        )
    trial, run = storage.get_trial(found[0].trial_id), user_attrs_of(stored)[RUN]
    worker = trial.system_attrs.get(WORKER, {})
    path = artifact_folder(storage.location) / found[0].artifact_id
    if not path.exists():
        raise HpoError(
            f"{path}: is not there; {worker.get('host', 'another machine')} wrote it: "
            f"name the folder in {ARTIFACTS_VARIABLE}, or leave --from-checkpoint out"
        )
    state, about = read_weights(path)
    epoch = _epoch(about, trial.system_attrs.get(CURVE, {}).get("val_loss", []))
    if about.get("trial") != str(selected.trial) or epoch is None or "seed" not in trial.user_attrs:
        raise HpoError(f"{path}: does not hold the weights of trial {selected.trial} of study '{name}'")
    return Trained(
        state,
        epoch,
        len(planned.split.train),
        trial.user_attrs["seed"],
        True,
        worker.get("device") or run["device"],
        precision_of(selected.config, str(run["precision"])),
    )


def _epoch(about: dict[str, Any], losses: list[float]) -> int | None:
    """Return the epoch that weights say they are of, where the curve has their validation loss there."""
    try:
        epoch, loss = int(about["epoch"]), float(about["val_loss"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return epoch if 0 < epoch <= len(losses) and losses[epoch - 1] == loss else None
