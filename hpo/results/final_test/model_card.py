"""The card beside a network's weights, `hpo.card/1`: what is read of it, checked before anything is built.

A card may come from anywhere. Promises: one that is damaged, or too large to be a card, is an HpoError of one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpo.errors import HpoError
from hpo.studyfile import NetworkSettings
from hpo.studyfile.messages import format_value
from hpo.training.device_split import Shape
from hpo.untrusted_files import parse_json, read_limited

CARD = "hpo.card/1"
CARD_FILE = "card.json"
LARGEST_CARD = 2**22
"""Bytes of a card: room for the names of 100,000 classes."""

Side = Annotated[int, Field(ge=1, lt=2**31)]


class Part(BaseModel):
    """Part of what hpo wrote, as it is read: strict, and with room for more."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class CodeRecord(Part):
    """What is read of the user's own code."""

    folder: str
    files: dict[str, str]


class _Weights(Part):
    file: str
    sha256: str


class _Input(Part):
    shape: list[Side] = Field(min_length=3, max_length=3)
    classes: Side
    white: Side | None


class _Data(Part):
    classes: list[str] | None = None


class _Config(Part):
    network: NetworkSettings


class _Read(Part):
    weights: _Weights
    input: _Input
    data: _Data
    config: _Config
    code: CodeRecord | None = None


@dataclass(frozen=True)
class Card:
    """What a card says: of the file of weights, of the images and their classes, of the network and its code.

    `names` are those of the classes, None where they are called by their numbers.
    """

    weights: str
    sha256: str
    shape: Shape
    classes: int
    names: tuple[str, ...] | None
    white: int | None
    network: NetworkSettings
    code: Mapping[str, Any] | None


def read_card(path: Path) -> Card:
    """Return what a card says. Raises HpoError where that is not all that is needed, or cannot be so."""
    try:
        read = _Read.model_validate(_tree(path))
    except ValidationError as error:
        raise damaged(path) from error
    names = tuple(read.data.classes or ())
    named = len(names) == read.input.classes == len(set(names)) and all(map(str.isprintable, names))
    if (names and not named) or Path(read.weights.file).name != read.weights.file:
        raise damaged(path)
    channels, height, width = read.input.shape
    return Card(
        weights=read.weights.file,
        sha256=read.weights.sha256,
        shape=(channels, height, width),
        classes=read.input.classes,
        names=names or None,
        white=read.input.white,
        network=read.config.network,
        code=None if read.code is None else read.code.model_dump(),
    )


def damaged(path: Path) -> HpoError:
    """Return the error of a card that says too little."""
    return HpoError(f"{path}: is damaged: it does not say all that hpo predict needs")


def _tree(path: Path) -> dict[str, Any]:
    try:
        tree = parse_json(read_limited(path, LARGEST_CARD).decode())
    except OSError as error:
        raise HpoError(f"{path}: cannot be read ({error.strerror or error}); `hpo test` writes such folders") from error
    except UnicodeDecodeError as error:
        raise HpoError(f"{path}: is not UTF-8 text") from error
    except ValueError as error:
        raise HpoError(f"{path}: {error}") from error
    schema = tree.get("schema") if isinstance(tree, dict) else None
    if schema != CARD:
        raise HpoError(f"{path}: is of {format_value(schema)}, and this version of hpo reads {CARD}")
    return dict(tree)
