"""Write the folder of a tested network or ensemble whole or not at all, and load its network.

    weights.safetensors     the weights, never a pickle; of an ensemble weights-TRIAL.safetensors for each member
    card.json               configuration, input format, preprocessing, data, versions, SHA-256 of the weights

A folder that contains anything is never overwritten. Reading checks everything: a card or weights that are damaged, of
another version, or do not belong together are an error of one line.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpo.data.preprocessing import FittedPreprocessing
from hpo.errors import CodeError, HpoError
from hpo.files import UMASK, temporary_path
from hpo.results.ensemble.network import EnsembleNetwork
from hpo.results.final_test.model_card import CARD_FILE, Card, CardNetwork, damaged_card, read_card
from hpo.studyfile import NetworkSettings
from hpo.training.device_data import Shape
from hpo.training.networks.builtin import build_uninitialized
from hpo.training.networks.weights_file import MAX_ELEMENT_BYTES, load_network, max_weights_bytes, read_weights
from hpo.training.size import device_memory, measure_network, network_size
from hpo.training.tasks.task import Task
from hpo.untrusted_files import open_regular_file
from hpo.usercode import find_unchanged_code, one_line_error

WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True)
class Model:
    """A network for inference, with the shape and preprocessing of its input and the names of its classes or labels.

    `scaling` has mean and deviation of the columns that a regression predicts. `white` is the byte that stands for
    white, None where the network takes numbers as they are. `activations` is the number of values that its layers
    compute for one example.
    """

    network: nn.Module
    shape: Shape
    names: tuple[str, ...]
    white: int | None
    activations: int
    task: str
    scaling: tuple[tuple[float, ...], tuple[float, ...]] | None
    preprocessing: FittedPreprocessing


def check_free(folder: Path) -> None:
    """Raise HpoError unless the folder can be created, or exists and is empty."""
    with _write_errors(folder):
        if folder.is_dir() and not any(folder.iterdir()):
            return
        if os.path.lexists(folder):
            raise HpoError(f"{folder}: exists already: name another folder with -o, or move it")
        if not folder.absolute().parent.is_dir():
            raise HpoError(f"{folder}: the folder {folder.absolute().parent} does not exist: create it first")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, which becomes `folder` at the end of the block, or is removed if the block fails.

    In the errors of the block, paths in the temporary folder are replaced by those in `folder`.
    """
    check_free(folder)
    target = folder.absolute()  # before the block can change the current folder
    with ExitStack() as stack:
        with _write_errors(folder):
            files = stack.enter_context(temporary_path(target.parent, folder=True))
        try:
            yield files
        except HpoError as error:
            error.args = (str(error).replace(str(files), str(folder)),)
            raise
        with _write_errors(folder):
            files.chmod(0o777 & ~UMASK)
            files.rename(target)


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HpoError(f"{folder}: cannot be written ({error.strerror or error})") from error


def read_model(folder: Path, device: torch.device) -> Model:
    """Return the network of a folder on the device. Raises HpoError for every fault of the folder.

    A folder may come from anywhere: the size of the network is computed before it is built, and the weights are read
    only if their file is not larger than that.
    """
    path = folder / CARD_FILE
    card = read_card(path)
    outlines = []
    for each in card.networks:
        settings = each.settings
        if settings.module is not None:
            settings = settings.with_folder(_code_folder(folder, settings.module, card.code))
        network, activations = _outline(path, settings, card.shape, card.classes)
        outlines.append((settings, max_weights_bytes(network), activations))
    activations = sum(count for _, _, count in outlines)
    needed = 2 * sum(largest for _, largest, _ in outlines) + MAX_ELEMENT_BYTES * activations
    if needed > device_memory(device):
        raise HpoError(f"{path}: its network does not fit into the memory of {device}")
    networks = [
        _read_network(folder, card, each, settings, largest, device)
        for each, (settings, largest, _) in zip(card.networks, outlines, strict=True)
    ]
    names = card.names or tuple(map(str, range(card.classes)))
    return Model(
        networks[0] if len(networks) == 1 else EnsembleNetwork(_task(card), networks, [e.picks for e in card.networks]),
        card.shape,
        names,
        card.white,
        activations,
        card.task,
        card.scaling,
        card.preprocessing,
    )


def _read_network(
    folder: Path, card: Card, described: CardNetwork, settings: NetworkSettings, largest: int, device: torch.device
) -> nn.Module:
    """Return a network of the card with its weights, whose file has at most `largest` bytes."""
    file = folder / described.weights
    if _size_of(file, folder) > largest:
        raise HpoError(f"{file}: its weights do not match the described network")
    if sha256(file) != described.sha256:
        raise HpoError(f"{file}: is not the file that {CARD_FILE} describes (its SHA-256 differs)")
    network = load_network(file, read_weights(file)[0], settings, card.shape, card.classes)
    network = network.float() if device.type == "mps" else network  # mps has no float64
    return network.to(device)


def _task(card: Card) -> Task:
    """Return the task whose predictions are averaged: a regression with a variance for each column has two outputs."""
    has_variances = card.scaling is not None and card.classes > len(card.scaling[0])
    return Task(card.task, card.classes, "gaussian_nll" if has_variances else "")


def _outline(path: Path, settings: NetworkSettings, shape: Shape, classes: int) -> tuple[nn.Module, int]:
    """Return the network of a card, without weights, and the number of its activations for one example."""
    try:
        network = build_uninitialized(settings, shape, classes)
        extent = (
            measure_network(network, shape) if settings.module is not None else network_size(settings, shape, classes)
        )
        return network, extent.activations
    except HpoError as error:
        raise HpoError(f"{path}: its network cannot be built: {error}") from error
    except Exception as error:
        if settings.module is None:
            raise
        raised = f"{settings.module} raised {one_line_error(error, settings.folder)}"
        raise HpoError(f"{path}: its network cannot be built: {raised}") from error


def _size_of(file: Path, folder: Path) -> int:
    """Return the size of a regular file in the folder. Raises HpoError for a link that leads out of it."""
    try:
        with open_regular_file(file) as found:
            if file.resolve().parent != folder.resolve():
                raise HpoError(f"{file}: leads to {file.resolve()}, outside the folder: copy the file into the folder")
            return os.fstat(found.fileno()).st_size
    except OSError as error:
        raise HpoError(f"{file}: cannot be read ({error.strerror or error})") from error


def _code_folder(folder: Path, module: str, code: Mapping[str, Any] | None) -> Path:
    """Return the folder of the network's code: this one, or the one in the card. Code is not part of a model folder."""
    if code is None:
        raise damaged_card(folder / CARD_FILE)
    try:
        return find_unchanged_code([module], code, folder)
    except CodeError as error:
        raise CodeError(f"{folder / CARD_FILE}: its network {error}") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    try:
        with open_regular_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise HpoError(f"{path}: cannot be read ({error.strerror or error})") from error
