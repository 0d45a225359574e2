"""Training-state files: a frozen member as a safetensors file (never pickle), with the SHA-256 of the file's content.

The tensors of the file are named `network/NAME`, `optimizer/INDEX/NAME`, `averages/NAME` and `best/NAME`, those of a
further fold `fold/2/network/NAME` and so on; the metadata is described by `StateMetadata`. A file is validated before
its content is used, because it may be damaged or written by anybody. This module does not access the file system.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from itertools import zip_longest
from typing import Annotated, Any, Literal

import safetensors
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError
from safetensors import torch as tensors

from hpo.search.checkpoints.frozen_member import FrozenMember
from hpo.search.checkpoints.weights import Checkpoint
from hpo.text import decode_non_finite, encode_non_finite
from hpo.training.networks.weights_file import ABOUT, State, weights_to_bytes
from hpo.training.optimizers.optimizer import FrozenOptimizer
from hpo.training.optimizers.schedules import Plateau
from hpo.training.stack import Member, MemberState
from hpo.training.state_layout import StateLayout
from hpo.untrusted_files import parse_json

STATE = "hpo.state/1"
"""The schema named in a file's metadata."""

NO_SHA256 = "0" * 64
"""Placeholder of the SHA-256 in the content that is hashed."""

_LENGTH_BYTES = 8
_BYTES_PER_NUMBER = 40

Number = Annotated[float, BeforeValidator(decode_non_finite)]
"""A number; NaN and infinities are strings in JSON."""


Steps = dict[str, Annotated[int, Field(ge=0, le=2**53)]]
"""Parameter's name -> the optimizer's updates of it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class BestEpoch(_Strict):
    """The epoch with the lowest validation loss, whose weights the file contains."""

    epoch: int
    val_loss: Number


class PlateauState(_Strict):
    """The state of a plateau schedule (hpo/training/optimizers/schedules.py)."""

    lr: FiniteFloat = Field(ge=0)
    best: Number
    bad_epochs: int = Field(ge=0)


class StateMetadata(_Strict):
    """The metadata of a file. `steps` has the optimizer's updates of each parameter, `moments` its states' number.

    `fold_steps` has the steps on each further fold of `data.folds`. `plateaus` has the state of the schedule on each
    fold, and is empty unless it is a plateau.

    `fingerprint` identifies all that the learning curve depends on: see hpo/search/checkpoints/training_checkpoints.py.
    """

    schema_: Literal["hpo.state/1"] = Field(alias="schema")
    identity: str
    trial: int
    fingerprint: str
    epoch: int = Field(ge=1)
    curve: dict[str, list[Number]]
    seconds: list[FiniteFloat]
    elapsed_s: FiniteFloat = Field(ge=0)
    best: BestEpoch | None
    moments: int = Field(ge=0, le=9)
    steps: Steps
    fold_steps: list[Steps] = []
    plateaus: list[PlateauState] = []
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    def check(self, metrics: Collection[str]) -> None:
        """Raise ValueError unless the curve has these metrics, and curve, seconds and best epoch fit `epoch` epochs."""
        lengths = {len(values) for values in (*self.curve.values(), self.seconds)}
        if self.curve.keys() != set(metrics) or lengths != {self.epoch}:
            raise ValueError("its learning curve has another number of epochs or other metrics")
        if self.best is not None and not 1 <= self.best.epoch <= self.epoch:
            raise ValueError("its best epoch is not one of its epochs")


def state_to_bytes(frozen: FrozenMember, identity: str, fingerprint: str) -> bytes:
    """Return a frozen member of the study with this identity as a file's content.

    Raises HpoError for a value that a file cannot store: a sparse tensor, an unsupported type, or no tensor.
    """
    best, parts = frozen.best, dict[str, State]()
    for prefix, fold in zip(_prefixes(len(frozen.state.folds)), frozen.state.folds, strict=True):
        parts[f"{prefix}network"] = fold.network
        parts |= {f"{prefix}optimizer/{index}": state for index, state in enumerate(fold.optimizer.states)}
        parts[f"{prefix}averages"] = fold.averages or {}
    if best is not None:
        parts["best"] = best.state
    values = {f"{part}/{name}": value for part, tensors_of in parts.items() for name, value in tensors_of.items()}
    about = {
        "schema": STATE,
        "identity": identity,
        "trial": frozen.member.number,
        "fingerprint": fingerprint,
        "epoch": frozen.epoch,
        "curve": frozen.curve,
        "seconds": frozen.seconds,
        "elapsed_s": frozen.elapsed_s,
        "best": None if best is None else {"epoch": best.epoch, "val_loss": best.val_loss},
        "moments": len(frozen.state.optimizer.states),
        "steps": frozen.state.optimizer.steps,
        "fold_steps": [fold.optimizer.steps for fold in frozen.state.other_folds],
        "plateaus": [asdict(at) for fold in frozen.state.folds if (at := fold.optimizer.plateau) is not None],
        "sha256": NO_SHA256,
    }
    content = weights_to_bytes(values, encode_non_finite(about))
    digest = hashlib.sha256(content).hexdigest()
    end = _header_end(content)
    return b"".join([content[:end].replace(NO_SHA256.encode(), digest.encode(), 1), memoryview(content)[end:]])


def max_state_bytes(layout: StateLayout, epochs: int, metrics: int) -> int:
    """Return the upper limit of a file's size: a state of this layout after at most `epochs` epochs of `metrics`."""
    return layout.max_bytes + epochs * (metrics + 1) * _BYTES_PER_NUMBER


def read_metadata(content: bytes, metrics: Collection[str]) -> StateMetadata:
    """Return the metadata of a file's content, whose SHA-256 and structure are valid. `metrics` are those of the curve.

    Raises ValueError, whose text describes the problem, for a damaged content.
    """
    end = _header_end(content)
    about = _about(content[_LENGTH_BYTES:end])
    digest = hashlib.sha256(content[:end].replace(about.sha256.encode(), NO_SHA256.encode(), 1))
    digest.update(memoryview(content)[end:])
    if digest.hexdigest() != about.sha256:
        raise ValueError("is damaged or truncated: its SHA-256 differs")
    about.check(metrics)
    return about


def read_state(
    content: bytes, about: StateMetadata, member: Member, layout: StateLayout, steps: Sequence[int]
) -> FrozenMember:
    """Return `member` frozen as in a file's content with this metadata.

    `steps` are the numbers of steps in an epoch, one for each fold.

    Raises ValueError, whose text describes the problem, for tensors that do not match the layout of the member's state.
    """
    try:
        values = tensors.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, AssertionError, RuntimeError, OverflowError) as error:
        raise ValueError(f"its tensors cannot be read ({_one_line(error)})") from error
    all_steps = [about.steps, *about.fold_steps]
    prefixes = _prefixes(len(all_steps))
    parts: dict[str, State] = {
        f"{prefix}{part}": {}
        for prefix in prefixes
        for part in ("network", "averages", *(f"optimizer/{index}" for index in range(about.moments)))
    }
    if about.best is not None:
        parts["best"] = {}
    for key, value in values.items():
        part = next((part for part in parts if key.startswith(f"{part}/")), None)
        if part is None:
            raise ValueError(f"it has a tensor of no known part ({key[:60]!r})")
        parts[part][key.removeprefix(f"{part}/")] = value
    states = []
    plateaus = [Plateau(**each.model_dump()) for each in about.plateaus]
    for prefix, updates, plateau in zip_longest(prefixes, all_steps, plateaus[: len(prefixes)]):
        moments = [parts[f"{prefix}optimizer/{index}"] for index in range(about.moments)]
        optimizer, averages = FrozenOptimizer(moments, updates, plateau), parts[f"{prefix}averages"] or None
        states.append(MemberState(about.epoch, parts[f"{prefix}network"], optimizer, averages))
    state = replace(states[0], other_folds=tuple(states[1:]))
    layout.check(state, parts.get("best"), [about.epoch * each for each in steps])
    best = None if about.best is None else Checkpoint(about.best.epoch, about.best.val_loss, parts["best"])
    return FrozenMember(replace(member, state=state), about.curve, about.seconds, best, about.elapsed_s)


def _prefixes(folds: int) -> list[str]:
    """Return what the names of each fold's tensors begin with."""
    return ["", *(f"fold/{fold}/" for fold in range(2, folds + 1))]


def _header_end(content: bytes) -> int:
    """Return the position after the header, whose length is at the beginning of a safetensors file."""
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    if not _LENGTH_BYTES < end <= len(content):
        raise ValueError("is damaged or truncated: its header is incomplete")
    return end


def _about(header: bytes) -> StateMetadata:
    try:
        tree: Any = parse_json(header.decode())
        return StateMetadata.model_validate(parse_json(tree["__metadata__"][ABOUT]))
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))[:60]
        raise ValueError(f"is damaged, or not a file of a training state (its metadata: {place!r})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"is damaged, or not a file of a training state ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
