"""The candidates of an ensemble: trials with stored weights, and their outputs for the validation split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from hpo.data import Split
from hpo.errors import HpoError
from hpo.results.no_best_trial import no_best_trial
from hpo.results.weights.checkpoint import read_checkpoint
from hpo.search.plan import NetworkPlan
from hpo.search.study_records import config_as_trained
from hpo.storage import Storage, best_trials
from hpo.storage.artifacts import checkpoint_files
from hpo.studyfile import NetworkSettings, Study
from hpo.training.device_data import split_shape
from hpo.training.evaluation import network_outputs
from hpo.training.networks.weights_file import State, load_network
from hpo.training.tasks.task import output_count
from hpo.usercode import one_line_error

LEAST = 2
"""The smallest number of candidates."""


@dataclass(frozen=True, eq=False)
class CandidateOutputs:
    """A trial with stored weights of so many `epochs`, and its outputs [N, outputs] for the validation split."""

    trial: int
    epochs: int
    outputs: Tensor


def stored_trials(storage: Storage, study: Study, stored: optuna.Study) -> list[FrozenTrial]:
    """Return the completed trials with stored weights. Raises HpoError where they are fewer than an ensemble needs."""
    files = checkpoint_files(storage, stored._study_id)
    found = [storage.get_trial(file.trial_id) for file in files if file.state == TrialState.COMPLETE]
    if len(found) >= LEAST:
        return found
    if not best_trials(storage, study.name, 1):
        raise no_best_trial(storage, study.name, "there is nothing to select")
    for key in ("folds", "splits"):
        if getattr(study.data, key) is not None:
            raise HpoError(
                f"study '{study.name}': its trials have no single set of weights, because of data.{key}: for an "
                f'ensemble, launch a study without data.{key} and with training.keep = "last"'
            )
    if study.first_settings.training.keep == "none":
        raise HpoError(
            f"study '{study.name}': no trial has stored weights: for an ensemble, launch a study with "
            f'training.keep = "last" (or "best") and training.keep_trials = 10'
        )
    few = f"{len(found) or 'no'} completed trial has stored weights, and an ensemble needs {LEAST}"
    raise HpoError(
        f"study '{study.name}': {few}: launch a study with training.keep_trials = 10 and at least {LEAST} trials"
    )


def candidate_outputs(
    storage: Storage, study: Study, stored: optuna.Study, planned: NetworkPlan, trials: Sequence[FrozenTrial]
) -> list[CandidateOutputs]:
    """Return the outputs of the stored weights of each trial. Raises HpoError where weights are missing or damaged."""
    found = []
    for trial in trials:
        config = config_as_trained(study, trial)
        advice = "select the ensemble on the machine that has it"
        trained = read_checkpoint(storage, stored, trial.number, config, planned, advice)
        outputs = validation_outputs(study, planned.split, config.network, trained.state, planned.device, trial.number)
        found.append(CandidateOutputs(trial.number, trained.epochs, outputs))
    return found


def validation_outputs(
    study: Study, split: Split, settings: NetworkSettings, state: State, device: torch.device, trial: int
) -> Tensor:
    """Return the outputs of a network with these weights for the validation examples of a split."""
    path = Path(f"trial {trial}")  # in errors
    with network_errors(study, trial):
        network = load_network(path, state, settings, split_shape(split), output_count(study.task, split))
        return network_outputs(network.to(device), torch.from_numpy(split.validation.inputs))


@contextmanager
def network_errors(study: Study, trial: int) -> Iterator[None]:
    """Turn any exception of the block into an HpoError of one line."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, HpoError) else one_line_error(error, study.folder)
        raise HpoError(
            f"study '{study.name}': the network of trial {trial} cannot be evaluated on the validation split: {reason}"
        ) from error
