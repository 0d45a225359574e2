"""A trained network as a folder: its weights, a card that says what they are, and what else belongs to them.

    weights.safetensors     the weights; never a pickle
    card.json               hpo.card/1: configuration, form of the images, data, versions, hash of the weights

A folder is there whole or not at all, and one that holds anything is never written over. Reading one checks it: a card
or weights that are damaged, of another version or not of each other are an error of one line.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from hpo.errors import CodeError, HpoError
from hpo.results.writing import umask
from hpo.studyfile import NetworkSettings
from hpo.training.images import Shape
from hpo.training.weights import network_of, read
from hpo.usercode import found

CARD = "hpo.card/1"
CARD_FILE, WEIGHTS_FILE = "card.json", "weights.safetensors"


@dataclass(frozen=True)
class Model:
    """A network for inference, and the images that it takes: their shape, and the byte that stands for white.

    `white` is None where it takes numbers as given; `names` are those of the classes.
    """

    network: nn.Module
    shape: Shape
    names: tuple[str, ...]
    white: int | None
    card: Mapping[str, Any]


def check_free(folder: Path) -> None:
    """Raise HpoError unless a folder can be put there: nothing is, or an empty folder."""
    try:
        if folder.is_dir() and not any(folder.iterdir()):
            return
        if os.path.lexists(folder):
            raise HpoError(f"{folder}: is there already; name another folder with -o, or move it away")
        if not folder.absolute().parent.is_dir():
            raise HpoError(f"{folder}: the folder {folder.absolute().parent} does not exist; make it first")
    except OSError as error:
        raise HpoError(f"{folder}: cannot be written ({error.strerror or error})") from error


@contextmanager
def put(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which is put in the place of `folder` at the end, or removed where that fails."""
    check_free(folder)
    try:
        filled = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise HpoError(f"{folder}: cannot be written ({error.strerror or error})") from error
    try:
        yield filled
        filled.chmod(0o777 & ~umask())
        try:
            filled.rename(folder.absolute())
        except OSError as error:
            raise HpoError(f"{folder}: cannot be written ({error.strerror or error})") from error
    except BaseException:
        shutil.rmtree(filled, ignore_errors=True)
        raise


def read_model(folder: Path, device: torch.device) -> Model:
    """Return the network of a folder on the device."""
    card = _card(folder / CARD_FILE)
    try:
        file, form = folder / str(card["weights"]["file"]), card["input"]
        shape, classes, white = form["shape"], form["classes"], form["white"]
        numbers = [*shape, classes, *([] if white is None else [white])]
        sound = len(shape) == 3 and all(type(each) is int and 0 < each < 2**31 for each in numbers)
        settings = NetworkSettings.model_validate(card["config"]["network"])
        digest, code = card["weights"]["sha256"], card.get("code")
        names = card["data"].get("classes") or [str(label) for label in range(classes if sound else 0)]
        sound = sound and len(names) == classes and all(isinstance(name, str) for name in names)
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise HpoError(f"{folder / CARD_FILE}: is damaged: it does not say all that hpo predict needs") from error
    if not sound or file.parent != folder:
        raise HpoError(f"{folder / CARD_FILE}: is damaged: it does not say all that hpo predict needs")
    if sha256(file) != digest:
        raise HpoError(f"{file}: is not the file that {CARD_FILE} describes (its SHA-256 differs)")
    if settings.module is not None:
        settings = settings.located(_code_folder(folder, settings.module, code))
    state, _ = read(file)
    network = network_of(file, state, settings, (shape[0], shape[1], shape[2]), classes)
    network = network.float() if device.type == "mps" else network  # which has no wider type
    return Model(network.to(device), (shape[0], shape[1], shape[2]), tuple(names), white, card)


def _code_folder(folder: Path, module: str, code: Any) -> Path:
    """Return where the code of a network lies, which is not kept with its weights: there or beside them."""
    try:
        return found([module], code, folder)
    except (KeyError, TypeError) as error:
        raise HpoError(f"{folder / CARD_FILE}: is damaged: it does not say which code its network is") from error
    except CodeError as error:
        raise CodeError(f"{folder / CARD_FILE}: its network {error}") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise HpoError(f"{path}: cannot be read ({error.strerror or error})") from error


def _card(path: Path) -> dict[str, Any]:
    try:
        card: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HpoError(f"{path}: cannot be read ({error.strerror or error}); `hpo test` writes such folders") from error
    except (ValueError, RecursionError) as error:
        raise HpoError(f"{path}: is damaged: not JSON") from error
    found = card.get("schema") if isinstance(card, dict) else None
    if found != CARD:
        raise HpoError(f"{path}: is of {found!r}, and this version of hpo reads {CARD}")
    return dict(card)
