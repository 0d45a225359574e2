"""A trained network as a folder: its weights, a card that says what they are, and what else belongs to them.

    weights.safetensors     the weights; never a pickle
    card.json               hpo.card/1: configuration, form of the images, data, versions, hash of the weights

A folder is there whole or not at all, and one that holds anything is never written over. Reading one checks it: a card
or weights that are damaged, of another version or not of each other are an error of one line.
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

from hpo.errors import CodeError, HpoError
from hpo.files import UMASK, temporary_path
from hpo.results.final_test.model_card import CARD_FILE, damaged, read_card
from hpo.studyfile import NetworkSettings
from hpo.training.device_split import Shape
from hpo.training.networks.builtin import build_uninitialized
from hpo.training.networks.weights import MAX_ELEMENT_BYTES, load_network, max_weights_bytes, read_weights
from hpo.training.size import device_memory, measure_network, network_size
from hpo.untrusted_files import open_regular_file
from hpo.usercode import find_unchanged_code, one_line_error

WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True)
class Model:
    """A network for inference, and the images that it takes: their shape, and the byte that stands for white.

    `white` is None where it takes numbers as given; `names` are those of the classes; `activations` is how many numbers
    its layers make of an image.
    """

    network: nn.Module
    shape: Shape
    names: tuple[str, ...]
    white: int | None
    activations: int


def check_free(folder: Path) -> None:
    """Raise HpoError unless a folder can be put there: nothing is, or an empty folder."""
    with _writing(folder):
        if folder.is_dir() and not any(folder.iterdir()):
            return
        if os.path.lexists(folder):
            raise HpoError(f"{folder}: is there already; name another folder with -o, or move it away")
        if not folder.absolute().parent.is_dir():
            raise HpoError(f"{folder}: the folder {folder.absolute().parent} does not exist; make it first")


@contextmanager
def put(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which is put in the place of `folder` at the end, or removed where that fails.

    An error of the block that names what is in it names what would be in `folder`.
    """
    check_free(folder)
    place = folder.absolute()  # and not what that is once the block is done
    with ExitStack() as stack:
        with _writing(folder):
            filled = stack.enter_context(temporary_path(place.parent, folder=True))
        try:
            yield filled
        except HpoError as error:
            error.args = (str(error).replace(str(filled), str(folder)),)
            raise
        with _writing(folder):
            filled.chmod(0o777 & ~UMASK)
            filled.rename(place)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HpoError(f"{folder}: cannot be written ({error.strerror or error})") from error


def read_model(folder: Path, device: torch.device) -> Model:
    """Return the network of a folder on the device.

    Raises HpoError for whatever is wrong with it. A folder may come from anywhere: how large its network is, is known
    before anything is built, and its weights are read once their file is of that size.
    """
    path = folder / CARD_FILE
    card = read_card(path)
    settings, file = card.network, folder / card.weights
    if settings.module is not None:
        settings = settings.with_folder(_code_folder(folder, settings.module, card.code))
    network, activations = _outline(path, settings, card.shape, card.classes)
    largest = max_weights_bytes(network)
    if 2 * largest + MAX_ELEMENT_BYTES * activations > device_memory(device):
        raise HpoError(f"{path}: its network does not fit into the memory of {device}")
    if _size_of(file, folder) > largest:
        raise HpoError(f"{file}: its weights do not match the described network")
    if sha256(file) != card.sha256:
        raise HpoError(f"{file}: is not the file that {CARD_FILE} describes (its SHA-256 differs)")
    network = load_network(file, read_weights(file)[0], settings, card.shape, card.classes)
    network = network.float() if device.type == "mps" else network  # which has no wider type
    names = card.names or tuple(map(str, range(card.classes)))
    return Model(network.to(device), card.shape, names, card.white, activations)


def _outline(path: Path, settings: NetworkSettings, shape: Shape, classes: int) -> tuple[nn.Module, int]:
    """Return the network that a card describes, without its weights, and its activations for one image."""
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
    """Return the size of a regular file of the folder's own, which a link that leads out of it is not."""
    try:
        with open_regular_file(file) as found:
            if file.resolve().parent != folder.resolve():
                raise HpoError(f"{file}: leads to {file.resolve()}, outside the folder; put the file itself there")
            return os.fstat(found.fileno()).st_size
    except OSError as error:
        raise HpoError(f"{file}: cannot be read ({error.strerror or error})") from error


def _code_folder(folder: Path, module: str, code: Mapping[str, Any] | None) -> Path:
    """Return where the code of a network lies, which is not kept with its weights: there or beside them."""
    if code is None:
        raise damaged(folder / CARD_FILE)
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
