"""A stored study with members to freeze and the training checkpoints of a worker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny import study_of, tree

from hpo.data import load_split
from hpo.search.checkpoints.frozen_member import FrozenMember
from hpo.search.checkpoints.training_checkpoints import TrainingCheckpoints
from hpo.search.checkpoints.weights import Checkpoint
from hpo.search.events import Event, Note
from hpo.search.space import config_of
from hpo.search.study_records import claim_conditions, open_study
from hpo.storage import Storage, identity, load_study
from hpo.storage.artifacts import artifact_folder, state_file_id
from hpo.studyfile import Study, parse_study
from hpo.training.device_data import to_device
from hpo.training.stack import Member
from hpo.training.trainer import Trainer
from hpo.usercode import import_code


def study_with(name: str = "tiny", **changes: dict[str, Any]) -> Study:
    changes = {"optimizer": {"kind": "adam", "lr": 0.01}, "training": {"epochs": 5}, **changes}
    return study_of(name=name, **changes)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A stored study with the training checkpoints of a worker, whose notes are in `notes`."""

    def __init__(self, study: Study, storage: Storage, precision: str = "float64") -> None:
        self.study, self.storage, self.clock = study, storage, Clock()
        self.split, self.code = load_split(study), import_code(study.references, study.folder)
        self.notes: list[str] = []
        stored = open_study(study, self.split, self.code, storage)
        self.checkpoints = TrainingCheckpoints(
            study,
            claim_conditions(study, stored),
            storage,
            self._say,
            code=self.code,
            splits=[self.split],
            precision=precision,
            clock=self.clock,
        )
        self.trainer = Trainer(
            to_device(self.split, study.data.split_seed, torch.device("cpu")), precision, lambda text: None
        )

    def _say(self, event: Event) -> None:
        assert isinstance(event, Note)
        assert event.level == "warning"
        self.notes.append(event.text)

    def member(self, number: int, seed: int = 3, **values: Any) -> Member:
        return Member(number, config_of(self.study, values), seed)

    def frozen(self, *numbers: int, epoch: int = 2, best: bool = False) -> dict[int, FrozenMember]:
        """Return members frozen after an epoch of training."""
        members = {number: self.member(number, seed=number) for number in numbers}
        curves: dict[int, dict[str, list[float]]] = {number: {} for number in numbers}
        epochs = self.trainer.train(list(members.values()))
        result = next(epochs)
        while True:
            for number, curve in curves.items():
                for metric, value in result.metrics[number].items():
                    curve.setdefault(metric, []).append(value)
            if result.epoch == epoch:
                break
            result = epochs.send(())
        states, weights = result.freeze(numbers), result.states(numbers) if best else {}
        epochs.close()
        return {
            number: FrozenMember(
                replace(member, state=states[number]),
                curves[number],
                [0.1 * number] * epoch,
                Checkpoint(epoch, curves[number]["val_loss"][-1], weights[number]) if best else None,
                12.5 + number,
            )
            for number, member in members.items()
        }

    def path(self, number: int) -> Path:
        own = identity(load_study(self.storage, self.study.name).user_attrs, self.study.name)
        return artifact_folder(self.storage.location) / state_file_id(own, number)


def plain(frozen: FrozenMember) -> Any:
    """Return everything that training continues with, tensors as type, shape and bytes, as values to compare."""
    state, best = frozen.state, frozen.best
    parts = [part for fold in state.folds for part in (fold.network, *fold.optimizer.states, fold.averages or {})]
    if best:
        parts.append(best.state)
    tensors = [
        {
            name: (v.dtype, v.shape, v.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            for name, v in each.items()
        }
        for each in parts
    ]
    numbers = repr([sorted(frozen.curve.items()), frozen.seconds, frozen.elapsed_s])
    of_best = best and (best.epoch, repr(best.val_loss))
    steps = [(sorted(fold.optimizer.steps.items()), fold.optimizer.plateau) for fold in state.folds]
    return state.epoch, steps, tensors, numbers, of_best


NETS = """
import torch
from torch import nn


class Plain(nn.Module):  # can be stacked
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x):
        return self.last(x.flatten(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.last = nn.Linear(64, 10)
        self.last.bias.requires_grad = False
        self.register_buffer("scale", torch.ones(()), persistent=False)
        self.register_buffer("empty", torch.ones(0, 3))

    def forward(self, x):
        return self.last(torch.relu(self.second(torch.relu(self.first(x.flatten(1)))))) * self.scale


class Changing(nn.Module):  # cannot be stacked
    def __init__(self):
        super().__init__()
        self.last, self.unused = nn.Linear(64, 10), nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("transposed", torch.arange(6.0).reshape(2, 3).t())
        self.register_buffer("grows", None)

    def forward(self, x):
        self.calls += 1
        self.grows = torch.ones(int(self.calls), dtype=torch.int32)
        return self.last(x.flatten(1)) * (1.0 if x.sum() > -1e9 else 0.0)


class Extra(Changing):
    def get_extra_state(self):
        return {"no": "tensor"}

    def set_extra_state(self, state):
        pass
"""


def module_study(net: str, folder: Path) -> Study:
    (folder / "net.py").write_text(NETS)
    study_tree = tree(optimizer={"kind": "adam", "lr": 0.01}, training={"epochs": 5})
    study_tree["network"] = {"module": f"net.py:{net}"}
    return parse_study(study_tree, "tiny.toml", folder)


def restarted(bench: Bench, **changes: Any) -> Bench:
    """Return the same study in another process, which may have other data, code, precision or clock."""
    other = object.__new__(Bench)
    other.__dict__ |= {**bench.__dict__, "notes": []}
    conditions = claim_conditions(bench.study, load_study(bench.storage, bench.study.name))
    arguments = {"study": bench.study, "splits": [bench.split], "code": bench.code, "precision": "float64", **changes}
    other.checkpoints = TrainingCheckpoints(conditions=conditions, storage=bench.storage, say=other._say, **arguments)
    return other
